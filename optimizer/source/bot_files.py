"""The bots directory: one `*.json` or `*.json.gz` per bot, whose name is the file's stem.

A file that cannot be used becomes a `Reject` that names it; the other bots are still used.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from optimizer.errors import SourceError, SourceMissing
from optimizer.models import Bot, Reject, RejectReason
from optimizer.source.input_file import InputFile
from optimizer.source.local_file import LocalFile

__all__ = ["bots_fingerprint", "read_bots"]

ENDINGS: Final = (".json.gz", ".json")
CHUNK_BYTES: Final = 64 * 1024


def read_bots(bots_dir: Path, parse: Callable[[Iterable[bytes], str], Bot | Reject]) -> Iterator[Bot | Reject]:
    """Read every bot file of a directory, in the order of names.

    Args:
        bots_dir: The directory; if it cannot be listed, that is the only reject.
        parse: Makes a bot from its JSON, in chunks, and its name; raises `SourceError` if the JSON is not valid.
    """
    try:
        paths = _bot_paths(bots_dir)
    except OSError as error:
        details = f"the directory cannot be listed: {error.strerror}; check ROLLING_BOTS_DIR"
        yield Reject(RejectReason.BOT, None, str(bots_dir), details)
        return
    for name, path in paths:
        if not _is_utf8(name):
            shown = os.fsencode(path).decode("utf-8", "replace")
            yield Reject(RejectReason.BOT, None, shown, "the file's name is not valid UTF-8")
            continue
        try:
            with InputFile(LocalFile(path)) as file:
                bot = parse(file.chunks(CHUNK_BYTES), name)
                file.check_unchanged()
        except SourceMissing:
            continue  # deleted since the directory was listed
        except SourceError as error:
            yield Reject(RejectReason.BOT, name, str(path), f"{type(error).__name__}: {error}")
        else:
            yield Reject(bot.reason, name, str(path), bot.details) if isinstance(bot, Reject) else bot


def bots_fingerprint(bots_dir: Path) -> str:
    """Return a digest of the names, inodes, sizes and modification times of the bot files."""
    try:
        states = [f"{name}/{_state(path)}\n" for name, path in _bot_paths(bots_dir)]
    except OSError as error:
        states = [f"errno {error.errno}"]
    return hashlib.sha256(os.fsencode("".join(states))).hexdigest()[:16]


def _is_utf8(name: str) -> bool:
    """Whether a file's name is valid UTF-8; Python shows invalid bytes as lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _state(path: Path) -> str:
    try:
        status = path.stat()
    except OSError as error:  # a dangling link must not hide changes of the other files
        return f"errno {error.errno}"
    return f"{status.st_ino}/{status.st_size}/{status.st_mtime_ns}"


def _bot_paths(bots_dir: Path) -> list[tuple[str, Path]]:
    """Return names and files of the bots, sorted by name, without hidden files: those are still being written."""
    return sorted(
        (path.name.removesuffix(ending), path)
        for path in bots_dir.iterdir()
        for ending in ENDINGS
        if path.name.endswith(ending) and not path.name.startswith(".")
    )
