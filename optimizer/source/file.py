"""The input file: open, fingerprint, inflate, and prove at the end that it was whole.

In: a path (`remote.py` is the same for a URL). Out: chunks of JSON, of so many bytes at the most, so that a
decompression bomb costs time and no memory. Compression is found by magic bytes: gzip (any number of members, zero
padding after the last), zstd (any number of frames, skippable ones too), or none; others are named (`formats.py`).

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
from optimizer.source.compression import GZIP, HEAD_BYTES, JSON_BEGINNINGS, SKIPPABLE, ZSTD, Format, refusal_of
from optimizer.storage.location import Location

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["Source"]

TRAILER_BYTES: Final = 8  # gzip's CRC-32 and length, RFC 1952 section 2.3.1
# A zstd frame may ask for a window of gigabytes. 8 MiB is what RFC 8878 section 3.1.1.1.2 recommends to support.
ZSTD_WINDOW_LOG_MAX: Final = 23

# Of a file that is followed to the end of its last member or frame, to say where other bytes begin.
FOLLOW_BYTES: Final = 1 << 20
SHOWN_BYTES: Final = 20

_ZSTD_OPTIONS: Final[dict[int, int]] = {zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG_MAX}
_INFLATE_ERROR = cast("type[Exception]", igzip_lib.IsalError)
# igzip raises OverflowError for a gzip header that does not end within 512 KiB.
_DAMAGED: Final = (EOFError, BadGzipFile, OverflowError, _INFLATE_ERROR, zstd.ZstdError)
_READ_ERRORS: Final = (OSError, *_DAMAGED)


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
            where = "" if path.is_absolute() else f" in {Path.cwd()}"
            raise SourceMissing(f"{path} not found{where}; set ROLLING_INPUT to the prediction engine's file") from None
        except IsADirectoryError:
            raise SourceUnreadable(
                f"{path} is a directory; set ROLLING_INPUT to a file, or to {path / '*.json.gz'}"
            ) from None
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
            SourceUnreadable: The disk failed; the format is another; a zstd frame needs a large window or a dictionary.
        """
        count = 0
        packed = None
        try:
            self._file.seek(0)
            head = self._file.read(HEAD_BYTES)
            self._file.seek(0)
            packed = _compression(head)
            with _reader(self._file, packed) as reader:
                while chunk := reader.read(chunk_bytes):
                    if not count and (refusal := refusal_of(chunk[:HEAD_BYTES], inside=packed.name if packed else "")):
                        raise refusal
                    count += len(chunk)
                    yield chunk
        except _READ_ERRORS as error:
            raise self._explained(error, packed, count) from error

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

    def _explained(self, error: Exception, packed: Format | None, count: int) -> SourceError:
        where = f"after {count:,} bytes of JSON"
        text = str(error)
        if isinstance(error, OSError) and not isinstance(error, BadGzipFile):
            return SourceUnreadable(f"{where}: {error.strerror or error}")
        if "too much memory" in text:
            return SourceUnreadable(
                f"{where}: its zstd window is over {1 << (ZSTD_WINDOW_LOG_MAX - 20)} MiB; compress without --long"
            )
        if "Dictionary mismatch" in text:
            return SourceUnreadable(f"{where}: it is zstd that needs {self._dictionary()}; compress without one")
        # igzip finds a header of fewer than ten bytes too short before it looks at its first two.
        if isinstance(error, EOFError) or "Not a gzipped file" in text or "Unknown frame descriptor" in text:
            torn = SourceTorn(f"{where}: the compressed file ends early; is it still being written?")
            return torn if packed is None else self._trailing(packed, where) or torn
        if isinstance(error, BadGzipFile):
            return SourceTorn(f"{where}: gzip's check failed ({error}); the file is damaged or still being written")
        return SourceTorn(f"{where}: the compressed data is damaged ({error}), or is still being written")

    def _trailing(self, packed: Format, where: str) -> SourceError | None:
        """What follows the last member or frame; `None` where it may be the beginning of another one."""
        try:
            end = _end_of_streams(self._file, packed)
            self._file.seek(end)
            rest = self._file.read(SHOWN_BYTES)
        except _READ_ERRORS:
            return None
        if not rest or any(magic.startswith(rest[: len(magic)]) for magic in packed.magic):
            return None
        return SourceTorn(
            f"{where}: the {packed.name} data ends at byte {end:,} of the file, and what follows is no "
            f"{packed.name}: {rest!r}; write the file anew, or cut it there"
        )

    def _dictionary(self) -> str:
        """The dictionary that the first frame names; a later one may be what needs it."""
        try:
            self._file.seek(_first_data_frame(self._file))
            number = zstd.get_frame_info(self._file.read(HEAD_BYTES)).dictionary_id
        except _READ_ERRORS:
            number = 0
        return f"dictionary {number}" if number else "a dictionary"


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _compression(head: bytes) -> Format | None:
    """What a file with this beginning is compressed with; one that is cut within the magic bytes too."""
    may_be = (known for known in (GZIP, ZSTD) if any(magic.startswith(head[: len(magic)]) for magic in known.magic))
    return next(may_be, None) if head not in JSON_BEGINNINGS else None


def _reader(file: Openable, packed: Format | None) -> AbstractContextManager[_Readable]:
    """The JSON of an open file; leaving the context ends the decompressor and leaves the file open."""
    if packed is GZIP:
        # igzip's reader releases the GIL while it inflates; isal_zlib.decompressobj does not, and igzip_threaded
        # (isal 1.9.1) can end a stream early without an error.
        reader = igzip.GzipFile(fileobj=file, mode="rb")  # type: ignore[no-untyped-call]
        return cast("AbstractContextManager[_Readable]", reader)
    if packed is ZSTD:
        return zstd.ZstdFile(cast("IO[bytes]", file), options=_ZSTD_OPTIONS)
    return nullcontext(file)


def _end_of_streams(file: Openable, packed: Format) -> int:
    """Where the last whole gzip member (and the zeros after it) or zstd frame of a file ends; 0 where none is whole.

    It inflates the file once more, so it is for runs that have failed.
    """
    file.seek(0)
    data = file.read(FOLLOW_BYTES)
    place, end = len(data), 0  # `place` is where the byte after `data` stands
    while data:
        stream = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP) if packed is GZIP else _zstd_stream()
        while not stream.eof:
            try:
                stream.decompress(data, FOLLOW_BYTES)
            except _DAMAGED:
                return end
            data = b""
            if stream.needs_input and not stream.eof:
                data = file.read(FOLLOW_BYTES)
                place += len(data)
                if not data:
                    return end
        data = stream.unused_data
        while packed is GZIP and not (data := data.lstrip(b"\0")) and (more := file.read(FOLLOW_BYTES)):
            data, place = more, place + len(more)
        end = place - len(data)
        if not data:
            data = file.read(FOLLOW_BYTES)
            place += len(data)
    return end


def _zstd_stream() -> zstd.ZstdDecompressor:
    return zstd.ZstdDecompressor(options=_ZSTD_OPTIONS)


def _first_data_frame(file: Openable) -> int:
    """Where the first zstd frame that is not skippable begins."""
    place = 0
    while True:
        file.seek(place)
        header = file.read(8)
        if header[:4] not in SKIPPABLE:
            return place
        place += len(header) + int.from_bytes(header[4:], "little")


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class Openable(_Readable, Protocol):
    """What is read of an open file."""

    def seek(self, offset: int, whence: int = 0, /) -> int: ...
    def tell(self) -> int: ...
    def close(self) -> None: ...
