"""Inflate a file, and explain why it cannot be inflated to its end.

Supported are gzip (any number of members, zero padding after the last), zstd (any number of frames, also skippable
ones) and plain JSON, distinguished by magic bytes (`compression.py`).

In: the bytes of a file, from its beginning. Out: a reader of its JSON; and, when that reader fails, the reason in the
user's terms. A reader returns nearly all bytes before it can notice a bad checksum.

Errors: a reader raises one of `READ_ERRORS`; `explain` turns it into `SourceTorn` or `SourceUnreadable`.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, nullcontext
from gzip import BadGzipFile
from typing import IO, Any, Final, Protocol, cast

from isal import igzip, igzip_lib

from optimizer.errors import SourceError, SourceTorn, SourceUnreadable
from optimizer.source.compression import GZIP, HEAD_BYTES, JSON_BEGINNINGS, SKIPPABLE, ZSTD, Format
from optimizer.storage.zstandard import zstd

__all__ = ["DAMAGED", "READ_ERRORS", "Chunk", "Readable", "Seekable", "compression_of", "explain", "single_stream"]

# A chunk of JSON, whose bytes do not change as long as something refers to it.
Chunk = bytes | memoryview

# A zstd frame may ask for a window of gigabytes. 8 MiB is what RFC 8878 section 3.1.1.1.2 recommends to support.
ZSTD_WINDOW_LOG_MAX: Final = 23
# The bytes read at a time to find the end of the last whole member or frame, and how many bytes after it are shown.
TRACE_BYTES: Final = 1 << 20
SHOWN_BYTES: Final = 20

_ZSTD_OPTIONS: Final[dict[int, int]] = {zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG_MAX}
_INFLATE_ERROR = cast("type[Exception]", igzip_lib.IsalError)
# igzip raises OverflowError for a gzip header that does not end within 512 KiB.
DAMAGED: Final = (EOFError, BadGzipFile, OverflowError, _INFLATE_ERROR, zstd.ZstdError)
READ_ERRORS: Final = (OSError, *DAMAGED)


class Readable(Protocol):
    """A stream of bytes."""

    def read(self, size: int, /) -> bytes:
        """Read at most `size` bytes; none at the end."""


class Seekable(Readable, Protocol):
    """An open file."""

    def seek(self, offset: int, /) -> int:
        """Go to an offset from the beginning."""

    def tell(self) -> int:
        """The offset of the next byte."""

    def readinto(self, buffer: Any, /) -> int | None:
        """Read into a buffer at most its length; 0 at the end."""


def compression_of(head: bytes) -> Format | None:
    """Return the compression of a file by its beginning, also if it ends within the magic bytes; `None` for none."""
    possible = (known for known in (GZIP, ZSTD) if any(magic.startswith(head[: len(magic)]) for magic in known.magic))
    return next(possible, None) if head not in JSON_BEGINNINGS else None


def single_stream(file: Readable, compression: Format | None, chunk_bytes: int) -> Generator[bytes]:
    """Yield the JSON in a file, at most `chunk_bytes` at a time; the file stays open."""
    with _inflating(file, compression) as reader:
        while chunk := reader.read(chunk_bytes):
            yield chunk


def _inflating(file: Readable, compression: Format | None) -> AbstractContextManager[Readable]:
    """Return a reader of the JSON in a file; leaving the context frees the decompressor and leaves the file open."""
    if compression is GZIP:
        # igzip's reader releases the GIL while it inflates; isal_zlib.decompressobj does not, and igzip_threaded
        # (isal 1.9.1) can end a stream early without an error.
        reader = igzip.GzipFile(fileobj=file, mode="rb")  # type: ignore[no-untyped-call]
        return cast("AbstractContextManager[Readable]", reader)
    if compression is ZSTD:
        return zstd.ZstdFile(cast("IO[bytes]", file), options=_ZSTD_OPTIONS)
    return nullcontext(file)


def explain(error: Exception, file: Seekable, compression: Format | None, json_bytes: int) -> SourceError:
    """Explain why a file could not be read to its end.

    Args:
        error: The error of its reader, one of `READ_ERRORS`.
        file: The file, which may be read once more.
        compression: Its compression.
        json_bytes: The JSON read before the error.
    """
    where = f"after {json_bytes:,} bytes of JSON"
    text = str(error)
    if isinstance(error, OSError) and not isinstance(error, BadGzipFile):
        return SourceUnreadable(f"{where}: {error.strerror or error}")
    if "too much memory" in text:
        return SourceUnreadable(
            f"{where}: its zstd window is over {1 << (ZSTD_WINDOW_LOG_MAX - 20)} MiB; compress without --long"
        )
    if "Dictionary mismatch" in text:
        return SourceUnreadable(f"{where}: it is zstd that needs {_dictionary(file)}; compress without one")
    # igzip reports a header of fewer than ten bytes as too short before it checks the first two.
    if isinstance(error, EOFError) or "Not a gzipped file" in text or "Unknown frame descriptor" in text:
        torn = SourceTorn(f"{where}: the compressed file ends early; is it still being written?")
        return torn if compression is None else _trailing(file, compression, where) or torn
    if isinstance(error, BadGzipFile):
        return SourceTorn(f"{where}: gzip's check failed ({error}); the file is damaged or still being written")
    return SourceTorn(f"{where}: the compressed data is damaged ({error}), or is still being written")


def _trailing(file: Seekable, compression: Format, where: str) -> SourceError | None:
    """Return the error for bytes after the last member or frame; `None` if they may begin another one."""
    try:
        end = _end_of_streams(file, compression)
        file.seek(end)
        rest = file.read(SHOWN_BYTES)
    except READ_ERRORS:
        return None
    if not rest or any(magic.startswith(rest[: len(magic)]) for magic in compression.magic):
        return None
    return SourceTorn(
        f"{where}: the {compression.name} data ends at byte {end:,} of the file, and what follows is no "
        f"{compression.name}: {rest!r}; write the file anew, or cut it there"
    )


def _end_of_streams(file: Seekable, compression: Format) -> int:
    """Return the offset at which the last whole gzip member (with its padding) or zstd frame ends; 0 if none is whole.

    This inflates the file once more, so it is only done after an error.
    """
    file.seek(0)
    data = file.read(TRACE_BYTES)
    offset, end = len(data), 0  # `offset` is the end of `data`
    while data:
        stream = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP) if compression is GZIP else _zstd_stream()
        while not stream.eof:
            try:
                stream.decompress(data, TRACE_BYTES)
            except DAMAGED:
                return end
            data = b""
            if stream.needs_input and not stream.eof:
                data = file.read(TRACE_BYTES)
                offset += len(data)
                if not data:
                    return end
        data = stream.unused_data
        while compression is GZIP and not (data := data.lstrip(b"\0")) and (more := file.read(TRACE_BYTES)):
            data, offset = more, offset + len(more)
        end = offset - len(data)
        if not data:
            data = file.read(TRACE_BYTES)
            offset += len(data)
    return end


def _zstd_stream() -> zstd.ZstdDecompressor:
    return zstd.ZstdDecompressor(options=_ZSTD_OPTIONS)


def _dictionary(file: Seekable) -> str:
    """Return the dictionary that the first frame names, though a later frame may be the one that needs it."""
    try:
        file.seek(_first_data_frame(file))
        number = zstd.get_frame_info(file.read(HEAD_BYTES)).dictionary_id
    except READ_ERRORS:
        number = 0
    return f"dictionary {number}" if number else "a dictionary"


def _first_data_frame(file: Seekable) -> int:
    """Return the offset of the first zstd frame that is not skippable."""
    offset = 0
    while True:
        file.seek(offset)
        header = file.read(8)
        if header[:4] not in SKIPPABLE:
            return offset
        offset += len(header) + int.from_bytes(header[4:], "little")
