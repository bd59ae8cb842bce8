"""Inflate blocked gzip on several threads, in order.

Blocked gzip is a file of many gzip members, each with its compressed size in a subfield of its header's extra field, so
that the next member is found without inflating:

- `MZ`, MiGz and mgzip: the size of the deflate data, 4 bytes;
- `IG`, pgzip: the size of the member, 4 bytes;
- `BC`, BGZF as bgzip writes it (SAM specification, section 4.1): the size of the member less 1, 2 bytes.

The sizes are only used to cut the file. Each piece is inflated by igzip's reader of gzip files, which checks every
CRC-32 and length. At a piece that is damaged, a member without such a size, or one too large to be held in memory, the
rest of the file is read as a single stream. So the JSON of a file, and the error for a damaged one, are the same as
with a single stream, whatever the headers say.

In: an open file. Out: JSON in buffers, each of which is reused as soon as nothing refers to it.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from io import RawIOBase
from typing import Any, BinaryIO, Final, NamedTuple, cast

from isal.isal_zlib import _GzipReader

from optimizer.source.compression import GZIP
from optimizer.source.inflate import DAMAGED, Chunk, Seekable, single_stream

__all__ = ["blocked_stream", "member_bytes"]

# The JSON that a thread inflates at a time: several members, if they are small.
JOB_BYTES: Final = 1 << 20
# The largest member, compressed or not, that is held in memory.
MAX_MEMBER_BYTES: Final = 2 << 20
# The limit of JSON inflated ahead of the caller, plus its compressed bytes.
MAX_AHEAD_BYTES: Final = 8 << 20
# Pruning takes a third of the time of inflating, so more threads would wait for it.
MAX_THREADS: Final = 6
READ_BYTES: Final = JOB_BYTES

# RFC 1952, section 2.3. The programs above write the subfield and perhaps a file name, nothing else.
_HEADER: Final = re.compile(
    rb"\x1f\x8b\x08(?:\x04|(?P<named>\x0c)).{6}(?:\x08\0(?:(?P<MZ>MZ)|IG)\x04\0.{4}|\x06\0(?P<BC>BC)\x02\0.{2})"
    rb"(?(named)[^\0]{0,255}\0)",
    re.DOTALL,
)
MAX_HEADER_BYTES: Final = 20 + 256
_TRAILER_BYTES: Final = 8
_LENGTH_BYTES: Final = 4


class _Job(NamedTuple):
    """Members that follow each other, as their headers and trailers describe them."""

    packed: memoryview
    json_bytes: int

    @property
    def held_bytes(self) -> int:
        return len(self.packed) + self.json_bytes


def blocked_stream(file: Seekable, chunk_bytes: int, threads: int) -> Generator[Chunk]:
    """Yield the JSON of a gzip file; its threads end with it.

    Args:
        file: Read once, from its current position.
        chunk_bytes: The largest chunk of a single stream; chunks of blocked gzip have at most `MAX_MEMBER_BYTES`.
        threads: The number of threads.
    """
    buffers = _Buffers()
    packed = _Packed(file, buffers)
    waiting: deque[tuple[_Job, Future[memoryview | None]]] = deque()
    ahead_bytes = 0
    threads = min(threads, MAX_THREADS)
    pool = ThreadPoolExecutor(threads, "inflate")
    try:
        while True:
            while len(waiting) <= threads and ahead_bytes < MAX_AHEAD_BYTES and (job := packed.next_job()):
                waiting.append((job, pool.submit(_inflate, job, buffers.take(job.json_bytes + 1))))
                ahead_bytes += job.held_bytes
            if not waiting:
                packed.skip_padding()
                break
            job, future = waiting.popleft()
            ahead_bytes -= job.held_bytes
            json = future.result()
            del future  # it refers to the JSON
            if json is None:
                packed.put_back([job, *(later for later, _ in waiting)])
                break
            if json:
                yield json
            del json
    finally:
        pool.shutdown(cancel_futures=True)
    yield from single_stream(packed, GZIP, chunk_bytes)


def member_bytes(data: bytes | memoryview, start: int = 0) -> int:
    """Return the size that the header of the gzip member at `start` states; 0 if it is not blocked gzip."""
    header = _HEADER.match(data, start)
    if header is None:
        return 0
    at = start + 16
    if header["BC"]:
        size = 1 + int.from_bytes(data[at : at + 2], "little")
    else:
        size = int.from_bytes(data[at : at + 4], "little")
        size += header.end() - start + _TRAILER_BYTES if header["MZ"] else 0
    return size if size > header.end() - start + _TRAILER_BYTES else 0


def _inflate(job: _Job, buffer: memoryview) -> memoryview | None:
    """Return the JSON of a job; `None` unless its bytes are exactly whole members with as much JSON as they state.

    Args:
        job: Members, which may be damaged.
        buffer: Larger than the stated JSON, so that any surplus is noticed.
    """
    # `igzip.decompress` makes this reader in the same way; it accepts bytes too, in spite of its type hints.
    reader = _GzipReader(cast("BinaryIO", job.packed))
    count = 0
    try:
        while count <= job.json_bytes and (more := reader.readinto(buffer[count:])):  # it releases the GIL
            count += more
    except DAMAGED:
        return None
    return buffer[:count] if count == job.json_bytes else None


class _Packed(RawIOBase):
    """The compressed bytes: cut into jobs first; what is left is then read as a file."""

    def __init__(self, file: Seekable, buffers: _Buffers) -> None:
        self._file = file
        self._buffers = buffers
        self._data = memoryview(b"")  # read, but in no job yet

    def next_job(self) -> _Job | None:
        """Take the next members, about `JOB_BYTES` of JSON; `None` if the next is not small and blocked gzip."""
        end = json_bytes = 0
        while True:
            self._fill(end + MAX_HEADER_BYTES)
            size = member_bytes(self._data, end)
            if not 0 < size <= MAX_MEMBER_BYTES or not self._fill(end + size):
                break
            length = int.from_bytes(self._data[end + size - _LENGTH_BYTES : end + size], "little")
            if length > MAX_MEMBER_BYTES or (end and max(end + size, json_bytes + length) > JOB_BYTES):
                break
            end += size
            json_bytes += length
        return _Job(self._take(end), json_bytes) if end else None

    def put_back(self, jobs: list[_Job]) -> None:
        """Put jobs back in front of the bytes that are left."""
        self._data = memoryview(b"".join((*(job.packed for job in jobs), self._data)))

    def skip_padding(self) -> None:
        """Skip the zeros that may follow a member."""
        while not (rest := bytes(self._data).lstrip(b"\0")) and self._data:
            self._data = memoryview(b"")
            self._fill(1)
        self._data = memoryview(rest)

    def readinto(self, buffer: Any, /) -> int:
        """Read at most `len(buffer)` of the bytes that are left."""
        if not self._data:
            return self._file.readinto(buffer) or 0
        data = self._take(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _fill(self, count: int) -> bool:
        """Read until `count` bytes are available; return whether they are."""
        held = len(self._data)
        if held < count:
            buffer = self._buffers.take(max(count, READ_BYTES))
            buffer[:held] = self._data
            while held < count and (more := self._file.readinto(buffer[held:])):
                held += more
            self._data = buffer[:held]
        return held >= count

    def _take(self, count: int) -> memoryview:
        taken, self._data = self._data[:count], self._data[count:]
        return taken


class _Buffers:
    """Reused memory: new memory costs a page fault for each 4 KiB, a quarter of the time of inflating."""

    def __init__(self) -> None:
        self._all: list[bytearray] = []

    def take(self, size: int) -> memoryview:
        """Return a buffer of `size` bytes to which there is no other reference."""
        for place, buffer in enumerate(self._all):
            try:
                buffer.append(buffer.pop())  # refused while there is a view of it
            except BufferError:
                continue
            if len(buffer) < size:
                self._all[place] = bytearray(size)
            return memoryview(self._all[place])[:size]
        self._all.append(bytearray(max(size, JOB_BYTES + 1)))
        return memoryview(self._all[-1])[:size]
