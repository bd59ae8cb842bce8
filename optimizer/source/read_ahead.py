"""Read ahead: a thread produces the next chunks while the caller processes the current one.

Worth it if both sides release the GIL: igzip does while it inflates, the native pruner while it prunes. The number of
chunks ahead is limited, so memory is bounded.

An exception of the generator is raised in the caller, after the chunks before it; the iterator ends only after the
generator has ended by itself.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Final, TypeVar

__all__ = ["read_ahead"]

T = TypeVar("T")

# Enough to bridge a pause of either side, few enough to stay in the CPU cache that the cores share.
_CHUNKS_AHEAD: Final = 3
# A read that hangs on a network file system must not block a caller that has stopped reading.
_JOIN_S: Final = 5.0


@contextmanager
def read_ahead(chunks: Generator[T]) -> Generator[Iterator[T]]:
    """Yield an iterator of the chunks, which another thread produces; the thread ends with the context.

    Args:
        chunks: Used and closed on that thread only.
    """
    ready: SimpleQueue[T | BaseException | None] = SimpleQueue()
    permits: SimpleQueue[int] = SimpleQueue()  # a 1 for each chunk that may be produced, 0 to stop
    for _ in range(_CHUNKS_AHEAD):
        permits.put(1)
    thread = threading.Thread(target=_produce, args=(chunks, ready, permits), name="read-ahead", daemon=True)
    thread.start()
    try:
        yield _consume(ready, permits)
    finally:
        while not permits.empty():  # withdraw the permits for chunks that are no longer needed
            permits.get()
        permits.put(0)
        thread.join(_JOIN_S)


def _consume(ready: SimpleQueue[T | BaseException | None], permits: SimpleQueue[int]) -> Iterator[T]:
    while (chunk := ready.get()) is not None:
        if isinstance(chunk, BaseException):
            raise chunk
        permits.put(1)
        yield chunk


def _produce(chunks: Generator[T], ready: SimpleQueue[T | BaseException | None], permits: SimpleQueue[int]) -> None:
    try:
        while permits.get():
            ready.put(next(chunks))
    except StopIteration:
        ready.put(None)
    except BaseException as error:  # raised again by the thread that reads
        ready.put(error)
    finally:
        chunks.close()
