"""Files of a local file system that survive a crash of the machine, and links that change by one rename.

Errors: `OSError`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

__all__ = ["partial_link", "replace_link", "shown_path", "sync_directory", "sync_file", "write_file"]


# A component of a path: hidden or not, with a random number or without.
_PARTIAL: Final = re.compile(r"(?<![^/])\.?(?P<name>[^/]+?)(\.[0-9a-f]{16})?\.partial(?![^/])")


def write_file(path: Path, data: bytes) -> None:
    """Write a file and sync it; its name is durable once its directory is synced."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    sync_file(path)


def sync_file(path: Path) -> None:
    """Make the content of a file durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_link(path: Path, target: str) -> None:
    """Point `path` at `target` in one rename, whatever it was before."""
    partial = partial_link(path)
    partial.unlink(missing_ok=True)
    partial.symlink_to(target)
    partial.rename(path)


def shown_path(path: str | os.PathLike[str]) -> str:
    """Return the final path of a file that is being written, for messages: `x.json` for `.x.json.0a1b.partial`."""
    return _PARTIAL.sub(r"\g<name>", os.fspath(path))


def partial_link(path: Path) -> Path:
    """The link that `replace_link` makes before the rename; a process that died may have left it."""
    return path.with_name(f".{path.name}.partial")
