"""The current snapshot for threads: from Redis, or from the gz files while Redis is away.

    reader = SnapshotReader.from_env()
    page = reader.predictions()
    page.value.predictions[0].symbol, page.version, page.etag, page.origin, page.age_s, page.stale
    whole = reader.snapshot()  # all of one version; between two calls of the others, the version may change
    whole.predictions, whole.bots, whole.portfolio, whole.version

The first read refreshes in the call; from then on a thread of the process refreshes, so that no page ever waits for
Redis: it reads the pointer at each message on the channel `published` and once a second (a message may be lost),
fetches a payload once a version, and switches to the files while Redis is away. Only `symbol`, `top` and `runs` ask
Redis in the call, for data that is not in memory, with short timeouts. Threads may share a reader; a forked child keeps
the parent's version, and gets its own thread and connections.

The same thread calls the callbacks of `on_version`, after each refresh and without a lock, so a callback may use the
reader.

Errors: `SnapshotMissing` if neither store has a snapshot; nothing else. The reader for asyncio is in `async_reader.py`.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from optimizer.models import BotsSnapshot, PortfolioSnapshot, PredictionsSnapshot, Record, Report
from optimizer.reader.follower import Follower
from optimizer.reader.lookups import Lookups, ScanStatus
from optimizer.reader.results import Answer, Changes, Snapshot, State, VersionSnapshot

if TYPE_CHECKING:
    from optimizer.config.settings import Settings
    from optimizer.reader.diagnosis import Diagnosis, Facts
    from optimizer.reader.stores import NewVersions, Stores
    from optimizer.storage.location import Location

__all__ = ["SnapshotReader"]


@dataclass(eq=False, slots=True)
class _Callback:
    """A callback for new versions, and the newest version for which it needs no call."""

    call: Callable[[State], object]
    version: int
    on_close: Callable[[], object] | None


class SnapshotReader:
    """Reads one source's current snapshot.

    `follower` has the version in memory, and `lookups` implements `symbol`, `top` and `runs`.

    Args:
        redis_url: The cache.
        source: The source's name.
        output_dir: Where the gz files are, if this process can see them; `None` to do without.
        interval_s: Seconds between ticks, as the fleet has it; a version is stale after three.
        max_input_age_s: The age from which the input counts as stale; 0 for none.
        traces: Whether each refresh is a span of OpenTelemetry; needs the extra `otel`.
        stores: What holds the versions in place of Redis and the files; for `optimizer.testing`.

    Raises:
        ExtraMissing: `traces` is set, and OpenTelemetry's API is not installed.
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
        stores: Stores | None = None,
    ) -> None:
        self.follower = Follower(redis_url, source, output_dir, interval_s, stores, max_input_age_s=max_input_age_s)
        if traces:
            from optimizer.config.tracing import enable  # noqa: PLC0415 - few readers ask for it

            enable()
            self.follower.traces = True
        self._thread: threading.Thread | None = None
        # A set in the order of insertion. It needs no lock, since it is only changed and copied by single operations: a
        # finalizer may remove from it in any thread.
        self._callbacks: dict[_Callback, None] = {}
        self._begin_anew()
        _readers.add(self)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, *, source: str | None = None) -> SnapshotReader:
        """Make a reader from `ROLLING_*` variables; `source` selects one of several sources."""
        from optimizer.config.settings import Settings  # noqa: PLC0415 - a reader by URL needs no settings

        return cls.from_settings(Settings.from_env(os.environ if environ is None else environ, source))

    @classmethod
    def from_settings(cls, settings: Settings) -> SnapshotReader:
        """Make a reader for the Redis, source and output directory of these settings."""
        return cls(
            settings.redis_url,
            settings.source,
            settings.output_dir,
            interval_s=settings.interval_s,
            max_input_age_s=settings.max_input_age_s,
            traces=settings.traces == "on",
        )

    def close(self) -> None:
        """End the thread and close the connections."""
        self._closed.set()
        if self._thread is not None and self._thread is not threading.current_thread():  # else a callback closes it
            self._thread.join()
        for callback in list(self._callbacks):
            if callback.on_close is not None:
                callback.on_close()
        self.follower.redis.close()
        self.follower.begin_anew()
        self._begin_anew()

    def refresh(self) -> None:
        """Look for a new version in this call; for callers who have just published one, and for tests."""
        self.start().refresh()

    def predictions(self) -> Snapshot[PredictionsSnapshot]:
        """The top records."""
        return self.start().snapshot("predictions")

    def bots(self) -> Snapshot[BotsSnapshot]:
        """Every bot by name."""
        return self.start().snapshot("bots")

    def portfolio(self) -> Snapshot[PortfolioSnapshot]:
        """Holdings by symbol."""
        return self.start().snapshot("portfolio")

    def snapshot(self) -> VersionSnapshot:
        """Predictions, bots and portfolio of one version.

        Raises:
            SnapshotMissing: There is no version, or one of the three cannot be read in Redis or in the files.
        """
        return self.start().whole()

    def changes(self, since: int) -> Changes:
        """The changes between a version and the current one, to be applied by `optimizer.apply_change`.

        From the first call on, this process keeps the changes in memory; that call may ask Redis, later ones never do.

        Args:
            since: The version that the caller has.

        Raises:
            ChangesMissing: They are not, or no longer, in memory; use `snapshot()`.
            SnapshotMissing: There is no version.
        """
        follower = self.start()
        log, cached = follower.hold_changes(), follower.current()
        held, age_s = log.since(since, cached), cached.age_s()
        return Changes(
            version=cached.version,
            changes=[entry.stored().change for entry in held],
            origin=cached.origin,
            age_s=age_s,
            stale=age_s > follower.stale_after_s,
        )

    def manifest(self) -> State:
        """The state of the current version."""
        return self.start().state()

    def symbol(self, symbol: str) -> Answer[Record | None]:
        """The record of one symbol of the index; its `value` is `None` if there is no such symbol."""
        self.start()
        return self.lookups.symbol(symbol)

    def top(self, n: int, offset: int = 0) -> Answer[list[Record]]:
        """`n` records of the index from rank `offset` on, by confidence descending, then symbol."""
        self.start()
        return self.lookups.top(n, offset)

    def runs(self, count: int = 10, *, status: ScanStatus | None = None) -> list[Report]:
        """The newest reports, of all runs or only of published scans; none while Redis is away."""
        self.start()
        return self.lookups.runs(count, status)

    def facts(self) -> Facts:
        """The facts about the source now: its version, the last runs, its workers and beats."""
        self.start()
        return self.lookups.facts()

    def diagnose(self) -> Diagnosis:
        """The diagnosis of the source: what is wrong, if anything, and what to do."""
        from optimizer.reader.diagnosis import diagnose  # noqa: PLC0415 - few readers ask

        return diagnose(self.facts())

    # ---- new versions

    def wait(self, timeout_s: float) -> State:
        """Wait for the first version, for `timeout_s` seconds after the first refresh; return its state.

        Raises:
            SnapshotMissing: There is none yet, or the reader was closed meanwhile; the message says why.
        """
        follower = self.start()
        ended = threading.Event()
        remove = self.subscribe(lambda _state: ended.set(), on_close=ended.set)
        try:
            if follower.cached is None:
                ended.wait(timeout_s)
        finally:
            remove()
        return follower.state()

    def on_version(self, callback: Callable[[State], object]) -> Callable[[], None]:
        """Call `callback` with each version that is newer than the current one; return a function that removes it.

        It is called in the reader's thread, soon after the version is shown, never twice for a version and never for an
        older one. If versions follow each other faster than the callback returns, it gets only the newest. The next
        refresh waits until it returns. An exception that it raises is logged.

        It stays registered when the reader is closed, and in a forked child: it is called again once the reader is used
        there.
        """
        self.start()
        return self.subscribe(callback)

    def subscribe(
        self, callback: Callable[[State], object], *, on_close: Callable[[], object] | None = None
    ) -> Callable[[], None]:
        """Add a callback as `on_version` does; with an `on_close`, it is dropped at `close` and in a forked child."""
        cached, callbacks = self.follower.cached, self._callbacks
        added = _Callback(callback, 0 if cached is None else cached.version, on_close)
        callbacks[added] = None

        def remove() -> None:  # without a reference to the reader
            callbacks.pop(added, None)

        return remove

    def _call_back(self) -> None:
        for callback in list(self._callbacks):
            # A callback called before it may have removed it.
            if callback in self._callbacks and self.follower.holds(callback.version + 1):
                state = self.follower.state()
                callback.version = state.version
                try:
                    callback.call(state)
                except Exception as error:  # of the user's own: the refresher has to go on
                    from optimizer.log import SourceLog  # noqa: PLC0415 - when there is something to say

                    log = SourceLog(__name__)
                    source = self.follower.source
                    log.exception("a callback for new versions failed: %r", callback.call, source=source, error=error)

    # ---- the refresher

    def start(self) -> Follower:
        """Begin to follow the source, unless this process already does; return once the first refresh is done."""
        if not self.is_started():
            with self._starting:
                if not self.is_started():
                    listener = self.follower.redis.listener(self._closed)
                    listener.subscribe()
                    self.follower.refresh(ask_redis=self.follower.redis.up)
                    arguments = (weakref.ref(self), listener, self._closed)
                    thread = threading.Thread(target=_refresh, args=arguments, name="rolling-reader", daemon=True)
                    thread.start()
                    self._thread = thread
        return self.follower

    def is_started(self) -> bool:
        """Whether the refresher runs in this process."""
        thread = self._thread
        return thread is not None and thread.is_alive()

    def _begin_anew(self) -> None:
        """Drop the thread, the locks, and the callbacks of calls that are waiting."""
        for callback in list(self._callbacks):
            if callback.on_close is not None:
                self._callbacks.pop(callback, None)
        self.lookups = Lookups(self.follower)
        self._starting = threading.Lock()
        self._closed = threading.Event()
        self._thread = None


def _refresh(reference: weakref.ref[SnapshotReader], listener: NewVersions, closed: threading.Event) -> None:
    """Refresh until the reader is closed or garbage; `start` has done the first refresh."""
    first = True
    try:
        while (reader := reference()) is not None and not closed.is_set():
            if not first:
                listener.subscribe()
                reader.follower.refresh()
            reader._call_back()  # noqa: SLF001 - the reader's own module
            first = False
            del reader
            listener.wait()  # without a reference to the reader, which may become garbage meanwhile
    finally:
        listener.close()


_left_to_parents: Final[list[object]] = []
_readers: Final[weakref.WeakSet[SnapshotReader]] = weakref.WeakSet()


def _begin_anew_after_fork() -> None:
    """Reset the readers of a forked child: the parent's threads are gone; its locks and connections are not usable."""
    for reader in _readers:
        # Kept alive: redis-py's destructors would take locks that a thread of the parent may hold forever.
        _left_to_parents.append((reader.follower.begin_anew(), reader._thread))  # noqa: SLF001
        reader._begin_anew()  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew_after_fork)
