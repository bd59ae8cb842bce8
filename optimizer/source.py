"""The input file: open, fingerprint, inflate, and prove at the end that it was whole.

In: a path (`remote.py` is the same for a URL). Out: chunks of JSON, of so many bytes at the most, so that a
decompression bomb costs time and no memory. Compression is found by magic bytes: gzip (any number of members, zero
padding after the last), zstd, or none.

A decompressor hands out nearly all bytes before it can notice a bad checksum. So nothing that comes out of `chunks`
may be published before the iterator has ended by itself and `check_unchanged` has returned.

Errors: `SourceMissing`, `SourceUnreadable`, `SourceTorn`.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Generator
from contextlib import AbstractContextManager, nullcontext
from gzip import BadGzipFile
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Protocol, cast

from isal import igzip, igzip_lib

from optimizer.errors import SourceError, SourceMissing, SourceTorn, SourceUnreadable
from optimizer.locations import Location

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["Source"]

TRAILER_BYTES: Final = 8  # gzip's CRC-32 and length, RFC 1952 section 2.3.1
GZIP_MAGIC: Final = b"\x1f\x8b"
ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
# A zstd frame may ask for a window of gigabytes. 8 MiB is what RFC 8878 section 3.1.1.1.2 recommends to support.
ZSTD_WINDOW_LOG_MAX: Final = 23

_INFLATE_ERROR = cast("type[Exception]", igzip_lib.IsalError)
# igzip raises OverflowError for a gzip header that does not end within 512 KiB.
_READ_ERRORS: Final = (EOFError, OSError, OverflowError, _INFLATE_ERROR, zstd.ZstdError)


class Source:
    """An input file held open, as it was at one moment.

    A file that is replaced by `rename` while it is read stays whole under the open descriptor: what comes out is the
    version that was current when it was opened. A file that is written in place is torn.
    """

    path: Location
    fingerprint: str

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # Opening a FIFO would wait for a writer; regular files take no notice of the flag.
            file = FileIO(path, opener=_open_without_waiting)
        except FileNotFoundError:
            raise SourceMissing(f"{path} not found; set ROLLING_INPUT to the prediction engine's file") from None
        except OSError as error:
            raise SourceUnreadable(f"{path} cannot be opened: {error.strerror or error}") from error
        self._file: Openable = file
        self._descriptor = file.fileno()
        try:
            self._before = os.fstat(self._descriptor)
            if not stat.S_ISREG(self._before.st_mode):
                raise SourceUnreadable(f"{path} is not a regular file")
            self.fingerprint = self._fingerprint()
        except OSError as error:
            self._file.close()
            raise SourceUnreadable(f"{path} cannot be read: {error.strerror or error}") from error
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @property
    def size_bytes(self) -> int:
        """Bytes of the file as it lies on disk."""
        return self._before.st_size

    @property
    def position_bytes(self) -> int:
        """How many of them have been read so far."""
        return self._file.tell()

    def chunks(self, chunk_bytes: int) -> Generator[bytes]:
        """Yield the JSON from its beginning, so much at a time; end only where the last checksum was right.

        Raises (without the path, which whoever scans knows and adds to the errors of all stages):
            SourceTorn: The compressed stream ended early, failed a checksum, is damaged, or has bytes after its end.
            SourceUnreadable: The disk failed, or a zstd window is too large.
        """
        count = 0
        try:
            self._file.seek(0)
            magic = self._file.read(4)
            self._file.seek(0)
            with _reader(self._file, magic) as reader:
                while chunk := reader.read(chunk_bytes):
                    count += len(chunk)
                    yield chunk
        except _READ_ERRORS as error:
            raise self._explained(error, count) from error

    def check_unchanged(self) -> None:
        """Check that nobody wrote into the file since it was opened.

        Raises:
            SourceTorn: Its size or time of modification is another.
            SourceUnreadable: The file system has lost it.
        """
        try:
            now = os.fstat(self._descriptor)
        except OSError as error:  # a network file system that has forgotten the file
            raise SourceUnreadable(f"{self.path}: {error.strerror or error}") from error
        if (now.st_size, now.st_mtime_ns) != (self._before.st_size, self._before.st_mtime_ns):
            raise SourceTorn(
                f"{self.path} was written to while it was read ({self._before.st_size:,} bytes before, "
                f"{now.st_size:,} now); write to a temporary file and rename it over the old one"
            )

    def _fingerprint(self) -> str:
        """Inode, size, time of modification and trailer.

        The device is left out: over NFS it is a number of the mount, and differs from host to host and from boot to
        boot, so that every worker of a fleet would take the others' work for another file.
        """
        before = self._before
        self._file.seek(max(0, before.st_size - TRAILER_BYTES))
        trailer = self._file.read(TRAILER_BYTES)
        return f"{before.st_ino:x}-{before.st_size:x}-{before.st_mtime_ns:x}-{trailer.hex()}"

    def _explained(self, error: Exception, count: int) -> SourceError:
        where = f"after {count:,} bytes of JSON"
        if isinstance(error, EOFError):
            return SourceTorn(f"{where}: the compressed file ends early; is it still being written?")
        if isinstance(error, BadGzipFile) and str(error).startswith("Not a gzipped file"):
            return SourceTorn(f"{where}: bytes that are no gzip follow the last member; is it still being written?")
        if isinstance(error, BadGzipFile):
            return SourceTorn(f"{where}: gzip's check failed ({error}); the file is damaged or still being written")
        if isinstance(error, zstd.ZstdError) and "too much memory" in str(error):
            return SourceUnreadable(
                f"{where}: its zstd window is over {1 << (ZSTD_WINDOW_LOG_MAX - 20)} MiB; compress without --long"
            )
        if isinstance(error, OSError):
            return SourceUnreadable(f"{where}: {error.strerror or error}")
        return SourceTorn(f"{where}: the compressed data is damaged ({error}), or is still being written")


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _reader(file: Openable, magic: bytes) -> AbstractContextManager[_Readable]:
    """The JSON of an open file; leaving the context ends the decompressor and leaves the file open."""
    if magic.startswith(GZIP_MAGIC):
        # igzip's reader releases the GIL while it inflates; isal_zlib.decompressobj does not, and igzip_threaded
        # (isal 1.9.1) can end a stream early without an error.
        reader = igzip.GzipFile(fileobj=file, mode="rb")  # type: ignore[no-untyped-call]
        return cast("AbstractContextManager[_Readable]", reader)
    if magic == ZSTD_MAGIC:
        return zstd.ZstdFile(
            cast("IO[bytes]", file), options={zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG_MAX}
        )
    return nullcontext(file)


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class Openable(_Readable, Protocol):
    """What is read of an open file."""

    def seek(self, offset: int, whence: int = 0, /) -> int: ...
    def tell(self) -> int: ...
    def close(self) -> None: ...
