"""Blocked gzip: JSON cut into members of equal size, compressed on several threads, written in order.

Each member's header has the size of its deflate data in an extra field, as MiGz writes it (LinkedIn, `MiGzUtil.java`),
so a reader that knows it inflates members in parallel; any other gunzip sees a file of several members.

Errors: `InputUnwritable`.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from filecmp import cmp
from pathlib import Path
from types import TracebackType
from typing import Final

from isal import igzip_lib

from optimizer.producer.partial import writing

__all__ = ["MEMBER_BYTES", "Compression", "Members", "gzip_member", "same_content"]

# JSON bytes. Twice MiGz's default; larger members compress no better, and each part being written holds one in memory.
MEMBER_BYTES: Final = 1 << 20

# RFC 1952: magic, deflate, FEXTRA, no time, XFL and OS as in MiGz; an extra field of 8 bytes with the subfield
# `MZ` of 4, the size of the deflate data.
HEADER: Final = b"\x1f\x8b\x08\x04\0\0\0\0\x02\0" + b"\x08\0" + b"MZ\x04\0"
TRAILER_BYTES: Final = 8
# More than one waiting member per thread keeps the threads busy; each holds its JSON and the compressed bytes.
WAITING_PER_THREAD: Final = 2


def gzip_member(data: bytes, level: int) -> bytes:
    """Compress one member; igzip releases the GIL here."""
    body = igzip_lib.compress(data, level, igzip_lib.COMP_GZIP_NO_HDR)
    return HEADER + (len(body) - TRAILER_BYTES).to_bytes(4, "little") + body


class Compression:
    """Threads that compress members of one or more files, each appended to its file in the order of submission.

    Args:
        level: The level of igzip, 0 to 3.
        threads: The number of threads, besides the caller's.
    """

    def __init__(self, level: int, threads: int) -> None:
        self._level = level
        self._pool = ThreadPoolExecutor(threads, "write_rolling")
        self._most_waiting = WAITING_PER_THREAD * threads
        self._waiting: deque[tuple[Path, Future[bytes]]] = deque()
        self.written_bytes = 0

    def __enter__(self) -> Compression:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def submit(self, path: Path, data: bytes) -> None:
        """Compress a member to append it to an existing file; earlier members are appended meanwhile.

        Raises:
            InputUnwritable: An earlier member could not be appended.
        """
        self._waiting.append((path, self._pool.submit(gzip_member, data, self._level)))
        while len(self._waiting) > self._most_waiting:
            self._append_first()

    def finish(self) -> None:
        """Append the remaining members.

        Raises:
            InputUnwritable: A member could not be appended.
        """
        while self._waiting:
            self._append_first()

    def _append_first(self) -> None:
        path, future = self._waiting.popleft()
        member = memoryview(future.result())
        with writing(path):
            # Opened each time, since there may be more parts than a process may have open files; never created here.
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            try:
                while member:
                    written = os.write(descriptor, member)
                    member = member[written:]
                    self.written_bytes += written
            finally:
                os.close(descriptor)


class Members:
    """The JSON of one file, cut into members of the same size."""

    def __init__(self, path: Path, compression: Compression, member_bytes: int = MEMBER_BYTES) -> None:
        self._path = path
        self._compression = compression
        self._member_bytes = member_bytes
        self._buffer = bytearray()
        self.json_bytes = 0

    def write(self, data: bytes) -> None:
        """Add JSON."""
        self._buffer += data
        self.json_bytes += len(data)
        while len(self._buffer) >= self._member_bytes:
            self._submit(self._member_bytes)

    def end(self) -> None:
        """Submit the last member."""
        if self._buffer:
            self._submit(len(self._buffer))

    def _submit(self, size: int) -> None:
        with memoryview(self._buffer) as view:
            data = bytes(view[:size])
        del self._buffer[:size]
        self._compression.submit(self._path, data)


def same_content(one: Path, other: Path) -> bool:
    """Whether two files, the first of which may be damaged, hold the same JSON.

    Bytes are compared first. Another level or release of igzip compresses the same JSON to other bytes, and level 1
    does so occasionally by itself, since it reads uninitialised memory.
    """
    if cmp(one, other, shallow=False):
        return True
    checksums = _checksums(one)
    return checksums is not None and checksums == _checksums(other) and _inflated_equal(one, other)


def _checksums(path: Path) -> list[bytes] | None:
    """Return the trailers of a file's members (CRC-32, size); `None` if it was not written here, or is damaged."""
    found = []
    with path.open("rb") as file:
        while header := file.read(len(HEADER) + 4):
            if not header.startswith(HEADER):
                return None
            file.seek(int.from_bytes(header[len(HEADER) :], "little"), os.SEEK_CUR)
            found.append(file.read(TRAILER_BYTES))
    return found


def _inflated_equal(one: Path, other: Path) -> bool:
    try:
        with gzip.open(one) as first, gzip.open(other) as second:
            while piece := first.read(MEMBER_BYTES):
                if piece != second.read(MEMBER_BYTES):
                    return False
            return not second.read(1)
    except (EOFError, gzip.BadGzipFile, zlib.error):  # the first is damaged
        return False
