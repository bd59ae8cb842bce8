"""The routers' side, for threads: the current snapshot from Redis, or from the gz files where Redis is away.

    reader = SnapshotReader.from_env()
    page = reader.predictions()
    page.value.predictions[0].symbol, page.version, page.etag, page.origin, page.age_s, page.stale

The first read looks for itself; from then on a thread of the process does, so that no page ever waits for Redis: it
reads the pointer once a second, fetches a payload once a version, and changes over to the files while Redis is away.
Only `symbol`, `top` and `runs` ask Redis in the call, for what is not held, with short timeouts. A reader may be shared
by threads; after a fork the child holds what its parent held, and gets a thread and connections of its own.

Errors: `SnapshotMissing` where there is neither; nothing else. The same for asyncio is in `async_reader.py`.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import redis

from optimizer.cache.client import READER_TIMEOUT_S, UNREADABLE, connect, translated_errors
from optimizer.config.settings import Settings
from optimizer.errors import CacheUnavailable
from optimizer.models import BotsSnapshot, PortfolioSnapshot, PredictionsSnapshot, Record, Report
from optimizer.reader.follower import Calls, Follower, Look, Plan
from optimizer.reader.lookups import LOOKUPS_AT_ONCE, Lookups, ScanStatus
from optimizer.reader.results import Answer, Snapshot, State
from optimizer.storage.location import Location

__all__ = ["SnapshotReader"]

T = TypeVar("T")


class SnapshotReader:
    """Reads one source's current snapshot.

    Args:
        redis_url: The cache.
        source: The source's name.
        output_dir: Where the gz files are, if this process can see them; `None` to do without.
        interval_s: Seconds between ticks, as the fleet has it; a version is stale after three.
    """

    def __init__(self, redis_url: str, source: str, output_dir: Location | None, *, interval_s: float = 30.0) -> None:
        self._url = redis_url
        self._follower = Follower(redis_url, source, output_dir, interval_s)
        self._lookups = Lookups(self._follower)
        self._begin_anew()
        _readers.add(self)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, *, source: str | None = None) -> SnapshotReader:
        """A reader for the settings in `ROLLING_*` variables; of which source, where there are several."""
        return cls.from_settings(Settings.from_env(os.environ if environ is None else environ, source))

    @classmethod
    def from_settings(cls, settings: Settings) -> SnapshotReader:
        """A reader for the Redis, source and output directory of these settings."""
        return cls(settings.redis_url, settings.source, settings.output_dir, interval_s=settings.interval_s)

    def close(self) -> None:
        """End the thread and close the connections."""
        self._closed.set()
        if self._refresher is not None:
            self._refresher.join()
        self._client.close()
        self._begin_anew()

    def refresh(self) -> None:
        """Look for a new version now, in this call; for those who have just published one, and for tests."""
        self._started()
        self._look()

    def predictions(self) -> Snapshot[PredictionsSnapshot]:
        """The top records."""
        return self._started().snapshot("predictions")

    def bots(self) -> Snapshot[BotsSnapshot]:
        """Every bot by name."""
        return self._started().snapshot("bots")

    def portfolio(self) -> Snapshot[PortfolioSnapshot]:
        """Holdings by symbol."""
        return self._started().snapshot("portfolio")

    def manifest(self) -> State:
        """Which version is current."""
        return self._started().state()

    def symbol(self, symbol: str) -> Answer[Record | None]:
        """The record of one symbol of the index; `None` in it where there is no such symbol."""
        return self._look_up(self._lookups.symbol(symbol))

    def top(self, n: int, offset: int = 0) -> Answer[list[Record]]:
        """`n` records of the index from rank `offset` on, by confidence descending, then symbol."""
        return self._look_up(self._lookups.top(n, offset))

    def runs(self, count: int = 10, *, status: ScanStatus | None = None) -> list[Report]:
        """The newest reports, of all runs or of scans that were published; none where Redis is away."""
        return self._look_up(self._lookups.runs(count, status))

    def _look_up(self, plan: Plan[T]) -> T:
        self._started()
        with self._at_once:
            return self._do(plan)

    # ---- the refresher

    def _begin_anew(self) -> None:
        """Drop thread, lock and connections, without a word to any of them."""
        self._lock = threading.Lock()
        self._at_once = threading.BoundedSemaphore(LOOKUPS_AT_ONCE)
        self._closed = threading.Event()
        self._refresher: threading.Thread | None = None
        self._client = connect(self._url, timeout_s=READER_TIMEOUT_S)

    def _started(self) -> Follower:
        if self._refresher is None or not self._refresher.is_alive():
            with self._lock:
                if self._refresher is None or not self._refresher.is_alive():
                    self._do(self._follower.look())
                    arguments = (weakref.ref(self), self._closed)
                    refresher = threading.Thread(target=_refresh, args=arguments, name="rolling-reader", daemon=True)
                    refresher.start()
                    self._refresher = refresher
        return self._follower

    def _look(self, version: int | None = None) -> None:
        """Look; or catch up with a version, if it is not held by then."""
        follower = self._follower
        with self._lock:
            if version is None:
                self._do(follower.look())
            elif not follower.holds(version):
                self._do(follower.catch_up())

    def _wait(self) -> float:
        return self._follower.delay_s()

    # ---- plans

    def _do(self, plan: Plan[T]) -> T:
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
                    self._look(step.version)
                else:
                    answer = self._ask(step) if isinstance(step, list) else step()
            except (CacheUnavailable, *UNREADABLE) as error:
                failure = error

    def _ask(self, calls: Calls) -> list[Any]:
        with translated_errors(self._url), self._client.pipeline(transaction=False) as pipeline:
            for name, arguments, options in calls:
                getattr(pipeline, name)(*arguments, **options)
            return list(pipeline.execute())


def _refresh(reader: weakref.ref[SnapshotReader], closed: threading.Event) -> None:
    """Look again and again, until the reader is closed or nobody has it any more."""
    while True:
        found = reader()
        if found is None:
            return
        delay_s = found._wait()  # noqa: SLF001 - the thread is the reader's own
        del found
        if closed.wait(delay_s):
            return
        found = reader()
        if found is not None:
            found._look()  # noqa: SLF001
        del found


_clients_of_parents: Final[list[redis.Redis]] = []
_readers: Final[weakref.WeakSet[SnapshotReader]] = weakref.WeakSet()


def _begin_anew_after_fork() -> None:
    """In a child: the parent's threads are not here, its locks may be held for ever, its connections are its own."""
    for reader in _readers:
        # Kept: to be let go of it would take a lock of redis-py's, which a thread of the parent may hold for ever.
        _clients_of_parents.append(reader._client)  # noqa: SLF001 - the reader's own module
        reader._begin_anew()  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew_after_fork)
