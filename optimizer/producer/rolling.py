"""`write_rolling`: write a rolling file, or its parts.

Errors: `RecordUnwritable`, `InputUnwritable`, `SettingsInvalid`; errors of the records' iterator are passed on.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from optimizer.errors import InputUnwritable, SettingsInvalid
from optimizer.producer.document import Document, Records, Shape, entries
from optimizer.producer.encoding import encode_bots
from optimizer.producer.members import Compression, Members
from optimizer.producer.partial import landed, partial, writing
from optimizer.producer.parts import MOST_PARTS, write_parts
from optimizer.producer.result import Written
from optimizer.scan.engine import usable_cores
from optimizer.storage.durable import sync_directory
from optimizer.storage.location import Url, is_pattern, parse_location

__all__ = ["LEVEL", "write_rolling"]

# igzip's level 2: 500 MB of JSON a second and core, to 0.275 of its size. So does level 1, but its bytes occasionally
# differ for the same JSON. Level 3 takes twice as long for 0.270.
LEVEL: Final = 2
MOST_LEVEL: Final = 3


def write_rolling(
    path: str | os.PathLike[str],
    records: Records,
    *,
    bots: Mapping[str, object] | None = None,
    parts: int = 0,
    level: int = LEVEL,
    threads: int | None = None,
) -> Written:
    """Write a rolling file, gzipped, and replace the old one when the new one is complete and on disk.

    Records are encoded one by one, and may come from a generator: memory does not grow with their number. Each is a
    dict, a dataclass or a `msgspec.Struct`, and is written with all its fields, `None` as null, decimals as numbers.

    The file's modification time is the time of the call, before the first record was read: an update that is published
    meanwhile is newer than the file.

    Args:
        path: The file; with `parts`, the directory, which is created. If it is a symbolic link, its target is replaced.
        records: By symbol; or an iterable of records, each with a `symbol`.
        bots: By name.
        parts: The number of files among which records are divided, by symbol. Only changed ones are replaced, so keep
            the order of the records. 0 writes one file.
        level: The compression level, from 0 (fast) to 3 (small).
        threads: The number of compressing threads, besides the caller's; by default one for each core.

    Returns:
        The numbers and sizes of what was written.

    Raises:
        RecordUnwritable: A record holds NaN, an infinity, or a value that JSON cannot express; nothing is replaced.
        InputUnwritable: A file cannot be written; nothing is replaced, except perhaps some of the `parts`.
        SettingsInvalid: An argument is invalid.
    """
    target = _target(path)
    if isinstance(records, str | bytes) or not isinstance(records, Iterable):
        raise SettingsInvalid(f"records is {type(records).__name__}, and neither a mapping by symbol nor an iterable")
    if bots is not None and not isinstance(bots, Mapping):
        raise SettingsInvalid(f"bots is {type(bots).__name__}, and no mapping by name")
    _check("parts", parts, 0, MOST_PARTS)
    _check("level", level, 0, MOST_LEVEL)
    threads = usable_cores() if threads is None else threads
    _check("threads", threads, 1, None)
    with Compression(level, threads) as compression:
        if parts:
            return write_parts(target, records, bots, parts, compression)
        return _write_file(target, records, bots, compression)


def _write_file(path: Path, records: Records, bots: Mapping[str, object] | None, compression: Compression) -> Written:
    if path.is_dir():
        raise InputUnwritable(f"{path} is a directory: give the file's name, or `parts` to write parts into it")
    with partial(path.parent, path.name) as file:
        with writing(file):
            began_ns = file.stat().st_mtime_ns
        document = Document(Members(file, compression), Shape.of(records))
        count = 0
        for _symbol, entry in entries(records):
            document.add(entry)
            count += 1
        document.end(None if bots is None else encode_bots(bots))
        compression.finish()
        with writing(path):
            landed(file, path, began_ns)
            file.rename(path)
            sync_directory(path.parent)
    return Written(count, document.json_bytes, compression.written_bytes, files_written=1, files_unchanged=0)


def _target(path: str | os.PathLike[str]) -> Path:
    location = parse_location(os.fspath(path))
    if isinstance(location, Url):
        raise SettingsInvalid(f"{location} is a URL, and only local files are written; write one and copy it there")
    if is_pattern(location):
        raise SettingsInvalid(f"{location} is a pattern; give `path` the directory, and `parts` how many files")
    return Path(os.path.realpath(location))


def _check(name: str, value: int, least: int, most: int | None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        limits = f"at least {least}" if most is None else f"from {least} to {most:,}"
        raise SettingsInvalid(f"{name}={value!r} is not a whole number {limits}")
