"""The file with the id of an output directory, which shows workers whether they write to the same one.

It holds 32 random hexadecimal digits from the first run. Errors: none; an id that cannot be read or written is no
reason to fail a run, and counts as missing.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Final

__all__ = ["MARKER_NAME", "Marker"]

MARKER_NAME: Final = ".output-id"
_ID: Final = re.compile(rb"[0-9a-f]{32}")


class Marker:
    """The marker of a directory."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / MARKER_NAME

    def read(self) -> str:
        """Read the id; empty if there is none."""
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return ""
        try:
            content = os.read(descriptor, 64)
        except OSError:  # it is a directory
            return ""
        finally:
            os.close(descriptor)
        return content.decode() if _ID.fullmatch(content) else ""

    def create(self, new_id: str) -> str:
        """Write an id unless there is one by now; return the stored id, empty if none can be written."""
        with suppress(OSError):
            if not self.read():
                self._path.unlink(missing_ok=True)  # the leftover of a writer that died before it wrote the id
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            try:
                os.write(descriptor, new_id.encode())
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        return self.read()
