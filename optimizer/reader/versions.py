"""The versions of a reader for `async for`: the current one, then each newer one, until the reader is closed.

An iterator registers with the reader's thread, which wakes its event loop. It is unregistered when it is garbage
collected, so a `break`, a cancelled task and a loop that ends need no clean-up.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

from optimizer.reader.follower import Follower
from optimizer.reader.reader import SnapshotReader
from optimizer.reader.results import State

__all__ = ["Versions"]


class _Signal:
    """Wakes an iterator in its event loop, from another thread.

    It has no reference to the iterator, nor to the future that the iterator waits for: that refers to the waiting task,
    and so to the iterator.
    """

    def __init__(self, changed: asyncio.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._changed = weakref.ref(changed)
        self.closed = False

    def wake(self, _state: State | None = None) -> None:
        """Make the iterator look for a newer version."""
        changed = self._changed()
        if changed is not None:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(changed.set)

    def close(self) -> None:
        """Make the iterator end."""
        self.closed = True
        self.wake()


class Versions(AsyncIterator[State]):
    """Iterates over versions, for one task.

    Args:
        reader: The reader.
        start: Starts the reader without blocking the event loop.
    """

    def __init__(self, reader: SnapshotReader, start: Callable[[], Awaitable[Follower]]) -> None:
        self._reader = reader
        self._start = start
        self._changed = asyncio.Event()
        self._signal: _Signal | None = None
        self._last = 0

    async def __anext__(self) -> State:
        """Wait for a version newer than the last one, and return it."""
        signal, follower = self._signal, self._reader.follower
        if signal is None:
            await self._start()
            signal = self._signal = _Signal(self._changed)
            remove = self._reader.subscribe(signal.wake, on_close=signal.close)
            weakref.finalize(self, remove).atexit = False
        while not signal.closed:
            self._changed.clear()
            if follower.holds(self._last + 1):
                state = follower.state()
                self._last = state.version
                return state
            await self._changed.wait()
        raise StopAsyncIteration
