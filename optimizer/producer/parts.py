"""Writes the parts of a source to a directory: each symbol is in one part, and only changed parts are replaced.

All parts are first written to a hidden directory inside, so the disk has to hold both sets. Then, under a lock of the
directory, those that differ are renamed into place. A run meanwhile sees each part whole, some of them new. As long as
the names stay the same, a symbol stays in its part, so that a run sees it once.

If names are added or removed (at first, or with another number of parts), a file that cannot be scanned is present from
before the first change until after the last: a run meanwhile, or after a producer was killed there, fails and names it.

Errors: `RecordUnwritable`, `InputUnwritable`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final
from zlib import crc32

from optimizer.producer.document import Document, Records, Shape, entries
from optimizer.producer.encoding import encode_bots
from optimizer.producer.members import MEMBER_BYTES, Compression, Members, same_content
from optimizer.producer.partial import landed, locked, partial, writing
from optimizer.producer.result import Written
from optimizer.storage.durable import sync_directory, write_file

__all__ = ["MOST_PARTS", "part_of", "write_parts"]

MOST_PARTS: Final = 4_096
# The JSON that all parts together hold in memory: one member each, so members are smaller if there are many parts.
BUFFERS_BYTES: Final = 64 << 20
LEAST_MEMBER_BYTES: Final = 64 << 10

BOTS_NAME: Final = "part-bots.json.gz"
_OURS: Final = re.compile(r"part-(?:[0-9]+|bots)\.json\.gz")
# Half a gzip header, which is reported as torn; patterns for the parts match its name.
CHANGING_NAME: Final = "part-names-are-changing.json.gz"
CHANGING: Final = b"\x1f\x8b\x08\0"


def part_of(symbol: str, parts: int) -> int:
    """Return the number of a symbol's part: the same in every process, release and machine."""
    return crc32(symbol.encode()) % parts


def write_parts(
    directory: Path,
    records: Records,
    bots: Mapping[str, object] | None,
    parts: int,
    compression: Compression,
) -> Written:
    """Write records into parts, and bots into a separate one; replace the changed parts.

    Raises:
        RecordUnwritable: A record or bot cannot be written.
        InputUnwritable: A file cannot be written.
    """
    with writing(directory):
        directory.mkdir(exist_ok=True)
    with partial(directory, "parts", is_directory=True) as staging:
        began_ns = staging.stat().st_mtime_ns
        digits = max(2, len(str(parts - 1)))
        names = [f"part-{number:0{digits}}.json.gz" for number in range(parts)]
        shape = Shape.of(records)
        member_bytes = max(LEAST_MEMBER_BYTES, min(MEMBER_BYTES, BUFFERS_BYTES // parts))
        documents = [Document(Members(_created(staging / name), compression, member_bytes), shape) for name in names]
        count = 0
        for symbol, entry in entries(records):
            documents[part_of(symbol, parts)].add(entry)
            count += 1
        if bots is not None:
            names.append(BOTS_NAME)
            documents.append(Document(Members(_created(staging / BOTS_NAME), compression), Shape.MAP))
            documents[-1].end(encode_bots(bots))
        for document in documents[:parts]:
            document.end()
        compression.finish()
        with writing(directory):
            changed = _replace(directory, staging, names, began_ns)
    return Written(
        records=count,
        json_bytes=sum(document.json_bytes for document in documents),
        file_bytes=compression.written_bytes,
        files_written=changed,
        files_unchanged=len(names) - changed,
    )


def _created(path: Path) -> Path:
    with writing(path):
        path.touch(exist_ok=False)
    return path


def _replace(directory: Path, staging: Path, names: Collection[str], began_ns: int) -> int:
    """Rename the files that differ into place; return how many."""
    with locked(directory):
        there = {name for name in os.listdir(directory) if _OURS.fullmatch(name)}  # noqa: PTH208 - names are needed
        changing = directory / CHANGING_NAME
        names_change = there != set(names) or changing.exists()
        changed = [name for name in names if name not in there or not same_content(directory / name, staging / name)]
        for name in changed:
            landed(staging / name, directory / name, began_ns)
        if names_change:
            write_file(changing, CHANGING)
            sync_directory(directory)
        for name in changed:
            (staging / name).rename(directory / name)
        sync_directory(directory)
        if names_change:
            for name in there - set(names):
                (directory / name).unlink()
            sync_directory(directory)
            changing.unlink()
            sync_directory(directory)
    return len(changed)
