"""The bytes of an input file on a local or network file system."""

from __future__ import annotations

import os
import stat
from io import FileIO
from pathlib import Path
from typing import Final

from optimizer.errors import SourceMissing, SourceTorn, SourceUnreadable

__all__ = ["LocalFile"]

TRAILER_BYTES: Final = 8  # gzip's CRC-32 and length, RFC 1952 section 2.3.1


class LocalFile(FileIO):
    """An open file, in the version that was opened; a `ByteReader`.

    A file that is replaced by `rename` while it is read stays whole under the open descriptor: what is read is the
    version that was current when it was opened. A file that is written in place is torn.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # Without O_NONBLOCK, opening a FIFO would wait for a writer; regular files ignore the flag.
            super().__init__(path, opener=_open_without_waiting)
        except FileNotFoundError:
            where = "" if path.is_absolute() else f" in {Path.cwd()}"
            raise SourceMissing(f"{path} not found{where}; set ROLLING_INPUT to the prediction engine's file") from None
        except IsADirectoryError:
            raise SourceUnreadable(
                f"{path} is a directory; set ROLLING_INPUT to a file, or to {path / '*.json.gz'}"
            ) from None
        except OSError as error:
            raise SourceUnreadable(f"{path} cannot be opened: {error.strerror or error}") from error
        try:
            self._opened = os.fstat(self.fileno())
            if not stat.S_ISREG(self._opened.st_mode):
                raise SourceUnreadable(f"{path} is not a regular file")
            self.fingerprint = self._fingerprint()
        except OSError as error:
            self.close()
            raise SourceUnreadable(f"{path} cannot be read: {error.strerror or error}") from error
        except BaseException:
            self.close()
            raise

    @property
    def size_bytes(self) -> int:
        """The size when it was opened."""
        return self._opened.st_size

    @property
    def modified_s(self) -> float:
        """When it was last written to, in seconds since the epoch."""
        return self._opened.st_mtime

    @property
    def landed_s(self) -> float:
        """When it was last written to, or renamed or linked to its path, in seconds since the epoch."""
        return max(self._opened.st_mtime, self._opened.st_ctime)

    def check_unchanged(self) -> None:
        """Check that the file was not written to since it was opened.

        Raises:
            SourceTorn: Its size or time of modification has changed.
            SourceUnreadable: The file system has lost it.
        """
        try:
            now = os.fstat(self.fileno())
        except OSError as error:  # a network file system that has forgotten the file
            raise SourceUnreadable(f"{self.path}: {error.strerror or error}") from error
        if (now.st_size, now.st_mtime_ns) != (self._opened.st_size, self._opened.st_mtime_ns):
            raise SourceTorn(
                f"{self.path} was written to while it was read ({self._opened.st_size:,} bytes before, "
                f"{now.st_size:,} now); write to a temporary file and rename it over the old one"
            )

    def _fingerprint(self) -> str:
        """Inode, size, time of modification and trailer.

        The device is left out: over NFS it is a number of the mount, which differs between hosts and boots, so each
        worker of a fleet would take the file for a different one.
        """
        opened = self._opened
        self.seek(max(0, opened.st_size - TRAILER_BYTES))
        trailer = self.read(TRAILER_BYTES)
        return f"{opened.st_ino:x}-{opened.st_size:x}-{opened.st_mtime_ns:x}-{trailer.hex()}"


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)
