"""The current snapshot for asyncio: a layer over the reader of `reader.py`, whose thread refreshes.

    async with AsyncSnapshotReader.from_env() as reader:
        page = await reader.predictions()
        async for state in reader.versions():
            state.version

Data in memory is returned at once; calls that ask Redis or the files (`symbol` and `top` for other data, `runs`,
`refresh`) do so in a thread. Nothing belongs to an event loop, so a reader may be used in several loops, one after the
other, and after a fork. A lookup whose task is cancelled ends in its thread, within its timeouts. `follower` gives
access to the data in memory, for callers who cannot afford an `await` per request.

Errors: `SnapshotMissing` if there is no snapshot; nothing else.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

from optimizer.models import BotsSnapshot, PortfolioSnapshot, PredictionsSnapshot, Record, Report
from optimizer.reader.follower import Follower
from optimizer.reader.lookups import ScanStatus
from optimizer.reader.reader import SnapshotReader
from optimizer.reader.results import Answer, Changes, Snapshot, State, VersionSnapshot
from optimizer.reader.versions import Versions

if TYPE_CHECKING:
    from optimizer.config.settings import Settings
    from optimizer.reader.diagnosis import Diagnosis, Facts
    from optimizer.reader.stores import Stores
    from optimizer.storage.location import Location

__all__ = ["AsyncSnapshotReader"]


class _Batch:
    """The symbols that wait in an event loop, and the task that looks them up.

    Each call in a thread costs two switches of the GIL. One symbol per call gave 0.6 times the requests per second of
    redis-py's asyncio client.
    """

    def __init__(self) -> None:
        self.waiting: list[tuple[str, asyncio.Future[Answer[Record | None]]]] = []
        self.task: asyncio.Task[None] | None = None


class AsyncSnapshotReader:
    """Reads one source's current snapshot.

    Args:
        redis_url: The cache.
        source: The source's name.
        output_dir: Where the gz files are, if this process can see them; `None` to do without.
        interval_s: Seconds between ticks, as the fleet has it; a version is stale after three.
        max_input_age_s: The age from which the input counts as stale; 0 for none.
        traces: Whether each refresh is a span of OpenTelemetry; needs the extra `otel`.
        on_refresh: Called in the event loop after each refresh, whether or not it has found a new version.
        stores: What holds the versions in place of Redis and the files; for `optimizer.testing`.
    """

    def __init__(
        self,
        redis_url: str,
        source: str,
        output_dir: Location | None,
        *,
        interval_s: float = 30.0,
        max_input_age_s: float = 0.0,
        traces: bool = False,
        on_refresh: Callable[[], None] | None = None,
        stores: Stores | None = None,
    ) -> None:
        reader = SnapshotReader(
            redis_url,
            source,
            output_dir,
            interval_s=interval_s,
            max_input_age_s=max_input_age_s,
            traces=traces,
            stores=stores,
        )
        self._share(reader, on_refresh)

    def _share(self, reader: SnapshotReader, on_refresh: Callable[[], None] | None) -> None:
        self._reader = reader
        self._on_refresh = on_refresh
        self._loop: asyncio.AbstractEventLoop | None = None
        self._batches: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Batch] = weakref.WeakKeyDictionary()
        self.follower, self.lookups = self._reader.follower, self._reader.lookups
        if on_refresh is not None:
            self.follower.on_refresh.append(self._call_in_loop)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, *, source: str | None = None) -> AsyncSnapshotReader:
        """Make a reader from `ROLLING_*` variables; `source` selects one of several sources."""
        from optimizer.config.settings import Settings  # noqa: PLC0415 - a reader by URL needs no settings

        return cls.from_settings(Settings.from_env(os.environ if environ is None else environ, source))

    @classmethod
    def from_settings(cls, settings: Settings, *, on_refresh: Callable[[], None] | None = None) -> AsyncSnapshotReader:
        """Make a reader for the Redis, source and output directory of these settings."""
        return cls(
            settings.redis_url,
            settings.source,
            settings.output_dir,
            interval_s=settings.interval_s,
            max_input_age_s=settings.max_input_age_s,
            traces=settings.traces == "on",
            on_refresh=on_refresh,
        )

    @classmethod
    def over(
        cls, reader: SnapshotReader | AsyncSnapshotReader, *, on_refresh: Callable[[], None] | None = None
    ) -> AsyncSnapshotReader:
        """Make a reader for asyncio that shares the thread and connections of `reader`; closing it closes both."""
        threaded = reader._reader if isinstance(reader, AsyncSnapshotReader) else reader  # noqa: SLF001 - its own class
        shared = cls.__new__(cls)
        shared._share(threaded, on_refresh)  # noqa: SLF001
        return shared

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the thread and close the connections."""
        await asyncio.to_thread(self._reader.close)
        self._loop = None

    async def refresh(self) -> None:
        """Look for a new version in this call; for callers who have just published one, and for tests."""
        await self.start()
        await asyncio.to_thread(self._reader.refresh)

    async def predictions(self) -> Snapshot[PredictionsSnapshot]:
        """The top records."""
        return (await self.start()).snapshot("predictions")

    async def bots(self) -> Snapshot[BotsSnapshot]:
        """Every bot by name."""
        return (await self.start()).snapshot("bots")

    async def portfolio(self) -> Snapshot[PortfolioSnapshot]:
        """Holdings by symbol."""
        return (await self.start()).snapshot("portfolio")

    async def snapshot(self) -> VersionSnapshot:
        """Predictions, bots and portfolio of one version.

        Raises:
            SnapshotMissing: There is no version, or one of the three cannot be read in Redis or in the files.
        """
        return (await self.start()).whole()

    async def changes(self, since: int) -> Changes:
        """The changes between a version and the current one; decoded in a thread, since they may be large.

        Raises:
            ChangesMissing: They are not, or no longer, in memory; use `snapshot()`.
            SnapshotMissing: There is no version.
        """
        await self.start()
        return await asyncio.to_thread(self._reader.changes, since)

    async def manifest(self) -> State:
        """The state of the current version."""
        return (await self.start()).state()

    async def symbol(self, symbol: str) -> Answer[Record | None]:
        """The record of one symbol of the index; its `value` is `None` if there is no such symbol."""
        await self.start()
        cached = self.lookups.cached_symbol(symbol)
        return await self._look_up_together(symbol) if cached is None else cached

    async def top(self, n: int, offset: int = 0) -> Answer[list[Record]]:
        """`n` records of the index from rank `offset` on, by confidence descending, then symbol."""
        await self.start()
        cached = self.lookups.cached_top(n, offset)
        return await asyncio.to_thread(self._reader.top, n, offset) if cached is None else cached

    async def runs(self, count: int = 10, *, status: ScanStatus | None = None) -> list[Report]:
        """The newest reports, of all runs or only of published scans; none while Redis is away."""
        await self.start()
        return await asyncio.to_thread(self._reader.runs, count, status=status)

    async def facts(self) -> Facts:
        """The facts about the source now: its version, the last runs, its workers and beats."""
        await self.start()
        return await asyncio.to_thread(self._reader.facts)

    async def diagnose(self) -> Diagnosis:
        """The diagnosis of the source: what is wrong, if anything, and what to do."""
        await self.start()
        return await asyncio.to_thread(self._reader.diagnose)

    async def wait(self, timeout_s: float) -> State:
        """Wait for the first version, for `timeout_s` seconds after the first refresh; return its state.

        Raises:
            SnapshotMissing: There is none yet, or the reader was closed meanwhile; the message says why.
        """
        follower = await self.start()
        if follower.cached is None:
            with suppress(TimeoutError, StopAsyncIteration):
                async with asyncio.timeout(timeout_s):
                    return await anext(self.versions())
        return follower.state()

    def versions(self) -> AsyncIterator[State]:
        """Iterate over the current version (or the first one, once there is one) and each newer one, with `async for`.

        If versions follow each other faster than the loop's body runs, only the newest is returned. The iteration ends
        when the reader is closed.
        """
        return Versions(self._reader, self.start)

    async def start(self) -> Follower:
        """Begin to follow the source, unless this process already does; return once the first refresh is done."""
        self._loop = asyncio.get_running_loop()
        if not self._reader.is_started():
            await asyncio.to_thread(self._reader.start)
        return self.follower

    def _look_up_together(self, symbol: str) -> asyncio.Future[Answer[Record | None]]:
        """Look up a symbol together with all others that wait while Redis answers an earlier request."""
        loop = asyncio.get_running_loop()
        batch = self._batches.setdefault(loop, _Batch())
        future: asyncio.Future[Answer[Record | None]] = loop.create_future()
        batch.waiting.append((symbol, future))
        if batch.task is None or batch.task.done():
            batch.task = loop.create_task(self._answer_batches(batch))
        return future

    async def _answer_batches(self, batch: _Batch) -> None:
        try:
            while batch.waiting:
                asked, batch.waiting = batch.waiting, []
                waiting = [(symbol, future) for symbol, future in asked if not future.done()]  # else it was cancelled
                try:
                    answers = await asyncio.to_thread(self.lookups.symbols, [symbol for symbol, _ in waiting])
                except Exception as error:  # each that waits gets it
                    for _, future in waiting:
                        if not future.done():
                            future.set_exception(error)
                else:
                    for (_, future), answer in zip(waiting, answers, strict=True):
                        if not future.done():
                            future.set_result(answer)
        finally:
            batch.task = None  # the task refers to its loop, which would live as long as the reader

    def _call_in_loop(self) -> None:
        """Call `on_refresh` in the event loop that used the reader last, unless that is closed."""
        loop = self._loop
        if loop is not None and self._on_refresh is not None:
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._on_refresh)
