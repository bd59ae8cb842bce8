"""Read ahead: the next chunks are made on a thread of their own while the last one is worked on.

Worth it where both sides leave the interpreter to each other: igzip releases the GIL while it inflates, the native
pruner while it prunes. A few chunks are ahead at the most, so memory is bounded.

What the source raises is raised here, in its place; the end comes only after the source has ended by itself.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Final

__all__ = ["read_ahead"]

# Enough to ride over a pause of either side, few enough to stay in the cache that the cores share.
_CHUNKS_AHEAD: Final = 3
# A read of a network file system that hangs must not hold up whoever gave up on it.
_JOIN_S: Final = 5.0


@contextmanager
def read_ahead(chunks: Generator[bytes]) -> Generator[Iterator[bytes]]:
    """Give the chunks as they come from another thread, which ends with the context.

    Args:
        chunks: Is used and closed on that thread alone.
    """
    ready: SimpleQueue[bytes | BaseException | None] = SimpleQueue()
    room: SimpleQueue[int] = SimpleQueue()  # a 1 for each chunk that may be made, 0 to stop
    for _ in range(_CHUNKS_AHEAD):
        room.put(1)
    thread = threading.Thread(target=_make, args=(chunks, ready, room), name="read-ahead", daemon=True)
    thread.start()
    try:
        yield _take(ready, room)
    finally:
        while not room.empty():  # what it may still make is not wanted any more
            room.get()
        room.put(0)
        thread.join(_JOIN_S)


def _take(ready: SimpleQueue[bytes | BaseException | None], room: SimpleQueue[int]) -> Iterator[bytes]:
    while (chunk := ready.get()) is not None:
        if isinstance(chunk, BaseException):
            raise chunk
        room.put(1)
        yield chunk


def _make(chunks: Generator[bytes], ready: SimpleQueue[bytes | BaseException | None], room: SimpleQueue[int]) -> None:
    try:
        while room.get():
            ready.put(next(chunks))
    except StopIteration:
        ready.put(None)
    except BaseException as error:
        ready.put(error)
    finally:
        chunks.close()
