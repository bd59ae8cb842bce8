"""The bots directory: one `*.json` or `*.json.gz` a bot, the file's stem its name.

A file that cannot be used is a `Reject` that names it; the other bots count all the same.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from optimizer.errors import SourceError, SourceMissing
from optimizer.models import Bot, Reject, RejectReason
from optimizer.scan.scanner import scan_bot
from optimizer.scan.schema import is_text
from optimizer.source.file import Source

__all__ = ["bots_fingerprint", "read_bots"]

ENDINGS: Final = (".json.gz", ".json")
CHUNK_BYTES: Final = 64 * 1024


def read_bots(bots_dir: Path, *, max_record_bytes: int) -> Iterator[Bot | Reject]:
    """Read every bot file of a directory, by name.

    Args:
        bots_dir: The directory; where it cannot be listed, that is the one reject.
        max_record_bytes: The longest bot, without what is nested deeper than its positions' fields.
    """
    try:
        paths = _bot_paths(bots_dir)
    except OSError as error:
        details = f"the directory cannot be listed: {error.strerror}; check ROLLING_BOTS_DIR"
        yield Reject(RejectReason.BOT, None, str(bots_dir), details)
        return
    for name, path in paths:
        if not is_text(name):  # the bytes of a file name that are no UTF-8 come as lone surrogates
            shown = os.fsencode(path).decode("utf-8", "replace")
            yield Reject(RejectReason.BOT, None, shown, "the file's name is not valid UTF-8")
            continue
        try:
            with Source(path) as source:
                bot = scan_bot(source.chunks(CHUNK_BYTES), name, max_record_bytes=max_record_bytes)
                source.check_unchanged()
        except SourceMissing:
            continue  # deleted since the directory was listed
        except SourceError as error:
            yield Reject(RejectReason.BOT, name, str(path), f"{type(error).__name__}: {error}")
        else:
            yield Reject(bot.reason, name, str(path), bot.details) if isinstance(bot, Reject) else bot


def bots_fingerprint(bots_dir: Path) -> str:
    """A digest of the names, inodes, sizes and times of modification of the bot files."""
    try:
        states = [f"{name}/{_state(path)}\n" for name, path in _bot_paths(bots_dir)]
    except OSError as error:
        states = [f"errno {error.errno}"]
    return hashlib.sha256(os.fsencode("".join(states))).hexdigest()[:16]


def _state(path: Path) -> str:
    try:
        status = path.stat()
    except OSError as error:  # a link that leads nowhere must not hide what becomes of the other files
        return f"errno {error.errno}"
    return f"{status.st_ino}/{status.st_size}/{status.st_mtime_ns}"


def _bot_paths(bots_dir: Path) -> list[tuple[str, Path]]:
    """Bot names and files, by name; hidden files are being written by somebody."""
    return sorted(
        (path.name.removesuffix(ending), path)
        for path in bots_dir.iterdir()
        for ending in ENDINGS
        if path.name.endswith(ending) and not path.name.startswith(".")
    )
