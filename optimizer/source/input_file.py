"""The open input: inflated chunk by chunk, and verified to be complete at the end.

In: the bytes of a local file, an object in a store, or a file on the web. Out: JSON in chunks of bounded size, so that
a decompression bomb costs time and no memory.

A decompressor returns nearly all bytes before it can notice a bad checksum. So nothing from `chunks` may be published
before the iterator has ended by itself and `check_unchanged` has returned.

Errors: `SourceMissing`, `SourceUnreadable`, `SourceTorn`.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from types import TracebackType
from typing import Protocol, overload

from optimizer.source.blocked import blocked_stream, member_bytes
from optimizer.source.compression import GZIP, HEAD_BYTES, refusal_of
from optimizer.source.inflate import READ_ERRORS, Chunk, Seekable, compression_of, explain, single_stream
from optimizer.storage.location import Location

__all__ = ["ByteReader", "InputFile"]


class ByteReader(Seekable, Protocol):
    """The bytes of an input as they are stored, all of one version; a read that fails raises `OSError`.

    Implemented by `LocalFile`, `StoreObject` and `WebFile`, whose constructors open the input and raise if they cannot.
    """

    @property
    def path(self) -> Location:
        """The location of the input."""

    @property
    def fingerprint(self) -> str:
        """Equal for the same version of the same input, different for any other."""

    @property
    def size_bytes(self) -> int:
        """The number of bytes as stored."""

    @property
    def modified_s(self) -> float | None:
        """When it was last written to, in seconds since the epoch, by the clock of its storage; `None` if unknown."""

    @property
    def landed_s(self) -> float | None:
        """When it appeared at its location, for example by a rename; never before `modified_s`."""

    def check_unchanged(self) -> None:
        """Check that the input is still the version that was opened.

        Raises:
            SourceTorn: It is not.
            SourceUnreadable: Its storage does not tell.
        """

    def close(self) -> None:
        """Close it."""


class InputFile:
    """An open input, in the version that was opened."""

    def __init__(self, stored: ByteReader) -> None:
        self._stored = stored
        self.path = stored.path
        self.fingerprint = stored.fingerprint

    def __enter__(self) -> InputFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close it."""
        self._stored.close()

    @property
    def size_bytes(self) -> int:
        """The number of bytes as stored; while that is unknown, the number read so far."""
        return self._stored.size_bytes

    @property
    def modified_s(self) -> float | None:
        """When it was last written to, in seconds since the epoch; `None` if unknown."""
        return self._stored.modified_s

    @property
    def landed_s(self) -> float | None:
        """When it appeared at its location, in seconds since the epoch; `None` if unknown."""
        return self._stored.landed_s

    @property
    def position_bytes(self) -> int:
        """The number of stored bytes read so far."""
        return self._stored.tell()

    @overload
    def chunks(self, chunk_bytes: int) -> Generator[bytes]: ...

    @overload
    def chunks(self, chunk_bytes: int, *, threads: int) -> Generator[Chunk]: ...

    def chunks(self, chunk_bytes: int, *, threads: int = 1) -> Generator[Chunk]:
        """Yield the JSON from its beginning, at most `chunk_bytes` at a time; end only if the last checksum was right.

        Args:
            chunk_bytes: The largest chunk.
            threads: How many may inflate blocked gzip. With more than one, a chunk may be a `memoryview` of up to
                `MAX_MEMBER_BYTES`.

        Raises (without the path, which the caller adds to the errors of all stages):
            SourceTorn: The compressed stream ended early, failed a checksum, is damaged, or has bytes after its end.
            SourceUnreadable: The disk failed; the format is not supported; a zstd frame needs a large window or a
                dictionary.
        """
        json_bytes = 0
        compression = None
        chunks: Generator[Chunk]
        try:
            self._stored.seek(0)
            head = self._stored.read(HEAD_BYTES)
            self._stored.seek(0)
            compression = compression_of(head)
            inside = compression.name if compression else ""
            if threads > 1 and compression is GZIP and member_bytes(head):
                chunks = blocked_stream(self._stored, chunk_bytes, threads)
            else:
                chunks = single_stream(self._stored, compression, chunk_bytes)
            with closing(chunks):
                for chunk in chunks:
                    if not json_bytes and (refusal := refusal_of(bytes(chunk[:HEAD_BYTES]), inside=inside)):
                        raise refusal
                    json_bytes += len(chunk)
                    yield chunk
        except READ_ERRORS as error:
            raise explain(error, self._stored, compression, json_bytes) from error

    def check_unchanged(self) -> None:
        """Check that the input is still the version that was opened.

        Raises:
            SourceTorn: It was written to or replaced, or is gone.
            SourceUnreadable: Its storage does not tell.
        """
        self._stored.check_unchanged()
