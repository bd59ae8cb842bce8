"""The routers' side, for asyncio: the same answers as `reader.py` gives to threads.

    async with AsyncSnapshotReader.from_env() as reader:
        page = await reader.predictions()

A task of the event loop keeps the held version fresh: it listens to the channel `published`, reads the pointer once a
second besides (a message may be lost), and leaves inflating and files to a thread. `follower` has what is held, for
those who cannot afford an `await` a request, and `on_look` is awaited after each look.

Errors: `SnapshotMissing` where there is no snapshot; nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, Final, TypeVar

from optimizer.cache.client import READER_TIMEOUT_S, UNREADABLE, connect_async, translated_errors
from optimizer.config.settings import Settings
from optimizer.errors import CacheUnavailable
from optimizer.models import BotsSnapshot, PortfolioSnapshot, PredictionsSnapshot, Record, Report
from optimizer.reader.follower import Calls, Follower, Look, Plan
from optimizer.reader.lookups import LOOKUPS_AT_ONCE, Lookups, ScanStatus
from optimizer.reader.results import Answer, Snapshot, State
from optimizer.storage.location import Location

__all__ = ["AsyncSnapshotReader"]

CANCEL_AGAIN_S: Final = 0.05

T = TypeVar("T")

_log = logging.getLogger(__name__)


class AsyncSnapshotReader:
    """Reads one source's current snapshot, in one event loop at a time.

    Args:
        redis_url: The cache.
        source: The source's name.
        output_dir: Where the gz files are, if this process can see them; `None` to do without.
        interval_s: Seconds between ticks, as the fleet has it; a version is stale after three.
        on_look: Awaited after each look of the refresher, whether or not it found something new.
    """

    def __init__(
        self,
        redis_url: str,
        source: str,
        output_dir: Location | None,
        *,
        interval_s: float = 30.0,
        on_look: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.follower = Follower(redis_url, source, output_dir, interval_s)
        self._lookups = Lookups(self.follower)
        self._url = redis_url
        self._on_look = on_look
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, *, source: str | None = None) -> AsyncSnapshotReader:
        """A reader for the settings in `ROLLING_*` variables; of which source, where there are several."""
        return cls.from_settings(Settings.from_env(os.environ if environ is None else environ, source))

    @classmethod
    def from_settings(
        cls, settings: Settings, *, on_look: Callable[[], Awaitable[None]] | None = None
    ) -> AsyncSnapshotReader:
        """A reader for the Redis, source and output directory of these settings."""
        return cls(
            settings.redis_url,
            settings.source,
            settings.output_dir,
            interval_s=settings.interval_s,
            on_look=on_look,
        )

    async def __aenter__(self) -> AsyncSnapshotReader:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the task and close the connections."""
        if self._is_here():
            for task in (self._refresher, self._first):
                # Said again where redis-py has taken it for its own, see `_end_if_cancelled`; this way it is faster.
                while not task.done():
                    task.cancel()
                    await asyncio.wait([task], timeout=CANCEL_AGAIN_S)
            await self._client.aclose()
        self._loop = None

    async def refresh(self) -> None:
        """Look for a new version now, in this call; for those who have just published one, and for tests."""
        await self.start()
        await self._look()

    async def predictions(self) -> Snapshot[PredictionsSnapshot]:
        """The top records."""
        return (await self.start()).snapshot("predictions")

    async def bots(self) -> Snapshot[BotsSnapshot]:
        """Every bot by name."""
        return (await self.start()).snapshot("bots")

    async def portfolio(self) -> Snapshot[PortfolioSnapshot]:
        """Holdings by symbol."""
        return (await self.start()).snapshot("portfolio")

    async def manifest(self) -> State:
        """Which version is current."""
        return (await self.start()).state()

    async def symbol(self, symbol: str) -> Answer[Record | None]:
        """The record of one symbol of the index; `None` in it where there is no such symbol."""
        return await self._look_up(self._lookups.symbol(symbol))

    async def top(self, n: int, offset: int = 0) -> Answer[list[Record]]:
        """`n` records of the index from rank `offset` on, by confidence descending, then symbol."""
        return await self._look_up(self._lookups.top(n, offset))

    async def runs(self, count: int = 10, *, status: ScanStatus | None = None) -> list[Report]:
        """The newest reports, of all runs or of scans that were published; none where Redis is away."""
        return await self._look_up(self._lookups.runs(count, status))

    async def _look_up(self, plan: Plan[T]) -> T:
        await self.start()
        async with self._at_once:
            return await self._do(plan)

    # ---- the refresher

    async def start(self) -> Follower:
        """Begin to follow the source in this event loop, if nobody has yet; return once the first look is done."""
        if not self._is_here():
            # Another loop, or the other side of a fork: connections and tasks of before are of no use here.
            self._loop, self._pid = asyncio.get_running_loop(), os.getpid()
            self._client = connect_async(self._url, timeout_s=READER_TIMEOUT_S)
            self._lock = asyncio.Lock()
            self._at_once = asyncio.Semaphore(LOOKUPS_AT_ONCE)
            self._first = self._loop.create_task(self._look())
            self._refresher = self._loop.create_task(self._follow())
        elif self._refresher.done():  # a bug has ended it; asyncio says which when the task is let go
            self._first = asyncio.get_running_loop().create_task(self._look())
            self._refresher = asyncio.get_running_loop().create_task(self._follow())
        if not self._first.done():
            await asyncio.shield(self._first)
        return self.follower

    def _is_here(self) -> bool:
        return self._loop is asyncio.get_running_loop() and self._pid == os.getpid()

    async def _look(self, version: int | None = None) -> None:
        """Look; or catch up with a version, if it is not held by then."""
        async with self._lock:
            if version is not None and self.follower.holds(version):
                return
            await self._do(self.follower.look() if version is None else self.follower.catch_up())
            if self._on_look is not None:
                await self._on_look()

    async def _follow(self) -> None:
        """Follow the channel while Redis is there, and the files while it is not."""
        await asyncio.shield(self._first)
        while True:
            try:
                with translated_errors(self._url):
                    await self._follow_channel()
            except CacheUnavailable as error:
                # An ACL may forbid the channel alone: then the pointer is read once a second, which is slower by that.
                _log.debug("not following the channel of new versions: %s", error)
            _end_if_cancelled()
            await asyncio.sleep(self.follower.delay_s())
            await self._look()

    async def _follow_channel(self) -> None:
        """Look at each message, and once a second without one; return when Redis is away."""
        async with self._client.pubsub(ignore_subscribe_messages=True) as channel:
            await channel.subscribe(self.follower.keys.published)
            while self.follower.cache_up:
                _end_if_cancelled()
                await self._look()  # after subscribing: what was published before is not missed
                await channel.get_message(timeout=self.follower.delay_s())

    # ---- plans

    async def _do(self, plan: Plan[T]) -> T:
        """Do what a plan asks for, step by step, and return what it comes to."""
        answer: Any = None
        failure: Exception | None = None
        while True:
            try:
                step = plan.send(answer) if failure is None else plan.throw(failure)
            except StopIteration as end:
                result: T = end.value
                return result
            answer, failure = None, None
            try:
                if isinstance(step, Look):
                    await self._look(step.version)
                else:
                    answer = await self.ask(step) if isinstance(step, list) else await asyncio.to_thread(step)
            except (CacheUnavailable, *UNREADABLE) as error:
                failure = error

    async def ask(self, calls: Calls) -> list[Any]:
        """The replies to calls of redis-py, sent in one pipeline.

        Raises:
            CacheUnavailable: There is none, or an error among them.
        """
        with translated_errors(self._url):
            async with self._client.pipeline(transaction=False) as pipeline:
                for name, arguments, options in calls:
                    getattr(pipeline, name)(*arguments, **options)
                return list(await pipeline.execute())


def _end_if_cancelled() -> None:
    """End a task whose cancellation redis-py has taken for its own while it connected; `asyncio.run` waits for it."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
