"""The versions of a reader for `async for`: the current one, then each newer one, until the reader is closed.

An iterator registers with the reader's thread, which wakes its event loop. It is removed when it is garbage, so that a
`break`, a task that is cancelled and a loop that ends need no clean-up.
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
    """Wakes an iterator in its event loop; without a reference to the iterator."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.changed = asyncio.Event()
        self.closed = False

    def on_version(self, _state: State) -> None:
        """Wake it, from another thread."""
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self.changed.set)

    def on_close(self) -> None:
        """End it, from another thread."""
        self.closed = True
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self.changed.set)


class Versions(AsyncIterator[State]):
    """Iterates over versions, for one task.

    Args:
        reader: The reader.
        start: Starts it, without blocking the event loop.
    """

    def __init__(self, reader: SnapshotReader, start: Callable[[], Awaitable[Follower]]) -> None:
        self._reader = reader
        self._start = start
        self._signal: _Signal | None = None
        self._last = 0

    async def __anext__(self) -> State:
        """Wait for a version that is newer than the last one, and return it."""
        signal, follower = self._signal, self._reader.follower
        if signal is None:
            await self._start()
            signal = self._signal = _Signal()
            remove = self._reader.subscribe(signal.on_version, on_close=signal.on_close)
            weakref.finalize(self, remove).atexit = False
        while not signal.closed:
            signal.changed.clear()
            if follower.holds(self._last + 1):
                state = follower.state()
                self._last = state.version
                return state
            await signal.changed.wait()
        raise StopAsyncIteration
