"""Follows a source: keeps the newest version that can be read, from Redis or from the files, in memory.

    refresh()       reads the pointer and the files' manifest, and loads the newest version
    snapshot(kind)  returns one payload from memory; whole() returns all

A refresh blocks, up to the timeouts of the two stores. A lock admits one at a time; the version in memory is replaced
by one assignment, so any thread may read it without the lock.

Invariant: of the versions in memory, in Redis and in the files, a process holds the newest one that can be read whole,
and never goes back to an older one. Each refresh asks Redis, and a directory. An object store, where each request costs
money, is asked at the first refresh and whenever Redis shows nothing, a version older than the one in memory, or a
version that no run has confirmed for one and a half intervals.

Errors: `SnapshotMissing` if there is a version neither in Redis nor in the files.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from optimizer.cache.client import NAMED, UNREADABLE
from optimizer.cache.keys import PAYLOAD_KINDS
from optimizer.errors import CacheUnavailable, SnapshotMissing
from optimizer.reader.redis_store import RedisStore
from optimizer.reader.results import CachedVersion, Payload, Sighting, Snapshot, State, VersionSnapshot

if TYPE_CHECKING:
    from optimizer.reader.changes import ChangeLog
    from optimizer.reader.file_store import FileStore
    from optimizer.reader.stores import CacheStore, Stores, VersionFiles
    from optimizer.storage.location import Location

__all__ = ["Follower"]

STALE_INTERVALS: Final = 3
# How long a process that holds changes waits for Redis, if it answers, to show a version that the files already have.
REDIS_PATIENCE_S: Final = 5.0


class Follower:
    """Follows a source.

    Args:
        redis_url: The cache.
        source: The source's name.
        output_dir: The directory or URL of the gz files, if this process can see them.
        interval_s: Seconds between ticks; a version that no run has confirmed for three intervals is stale.
        max_input_age_s: The age from which the input counts as stale; 0 for none.
        stores: The stores to use in place of Redis and the files; for `optimizer.testing`.
    """

    def __init__(
        self,
        redis_url: str,
        source: str,
        output_dir: Location | None,
        interval_s: float,
        stores: Stores | None = None,
        *,
        max_input_age_s: float = 0.0,
    ) -> None:
        self.cached: CachedVersion | None = None
        self.source = source
        self.output_dir = output_dir
        self.redis_url = redis_url
        self.interval_s = interval_s
        self.max_input_age_s = max_input_age_s
        self.stale_after_s = STALE_INTERVALS * interval_s
        self.redis: CacheStore
        self.files: VersionFiles | None
        if stores is not None:
            self.redis, self.files = stores
        else:
            self.redis = RedisStore(redis_url, source, self.stale_after_s)
            self.files = _file_store(output_dir, self.stale_after_s)
        # Called with a version before it is shown, by the thread that refreshes; the result becomes its `prepared`.
        self.prepare: Callable[[CachedVersion], Any] | None = None
        # Each is called after each refresh, by the same thread.
        self.on_refresh: list[Callable[[], None]] = []
        # The changes, once something in this process has asked for them.
        self.changes: ChangeLog | None = None
        # Whether each refresh is a span of OpenTelemetry.
        self.traces = False
        self._files_problem = f"none in {output_dir}"
        self._waits: tuple[int, float] = (0, 0.0)  # a version that is held back, and since when
        self._lock = threading.Lock()

    def begin_anew(self) -> object:
        """Make a new lock and new connections; return the old ones, still open: after a fork they are the parent's."""
        self._lock = threading.Lock()
        return self.redis.connect()

    def prepare_with(self, prepare: Callable[[CachedVersion], Any]) -> None:
        """Call this function with each version from now on, beginning with the current one, to set its `prepared`."""
        with self._lock:
            self.prepare = prepare
            if self.cached is not None:
                self.cached = replace(self.cached, prepared=prepare(self.cached))

    def hold_changes(self) -> ChangeLog:
        """Return the changes, which are kept from now on; the first call refreshes to load them."""
        if self.changes is None:
            from optimizer.reader.changes import ChangeLog  # noqa: PLC0415 - most readers never ask for changes

            with self._lock:
                if self.changes is None:
                    self.changes = ChangeLog()
                    self._refresh(ask_redis=self.redis.up)
        return self.changes

    # ---- what is held

    def current(self) -> CachedVersion:
        """Return the version in memory.

        Raises:
            SnapshotMissing: There is none.
        """
        cached = self.cached
        if cached is None:
            in_redis = self.redis.problem.removeprefix(NAMED)
            raise SnapshotMissing(
                f"no snapshot of {self.source!r}: Redis: {in_redis}; files: {self._files_problem}. "
                "To publish one, run: rolling-optimizer run"
            )
        return cached

    def snapshot(self, kind: str) -> Snapshot[Any]:
        """Return one payload of the version in memory.

        Raises:
            SnapshotMissing: There is no version, or this payload cannot be read from either store.
        """
        cached = self.current()
        payload = self._payload(cached, kind)
        age_s = cached.age_s()
        return Snapshot(
            version=cached.version,
            etag=payload.etag,
            gz=payload.gz,
            value=payload.value,
            origin=payload.origin,
            age_s=age_s,
            stale=age_s > self.stale_after_s,
            rejected=cached.manifest.rejected,
        )

    def whole(self) -> VersionSnapshot:
        """Return all payloads of the version in memory.

        Raises:
            SnapshotMissing: There is no version, or one of its payloads cannot be read from either store.
        """
        cached = self.current()
        predictions, bots, portfolio = (self._payload(cached, kind).value for kind in PAYLOAD_KINDS)
        age_s = cached.age_s()
        return VersionSnapshot(
            version=cached.version,
            generated_at=cached.manifest.generated_at,
            predictions=predictions,
            bots=bots,
            portfolio=portfolio,
            origin=cached.origin,
            age_s=age_s,
            stale=age_s > self.stale_after_s,
            rejected=cached.manifest.rejected,
        )

    def state(self) -> State:
        """Return the state of the version in memory."""
        cached = self.current()
        age_s, input_age_s, pinned = cached.age_s(), cached.input_age_s(), cached.manifest.pinned
        return State(
            version=cached.version,
            generated_at=cached.manifest.generated_at,
            checked_at=cached.sighting.checked_at,
            origin=cached.origin,
            age_s=age_s,
            stale=age_s > self.stale_after_s,
            rejected=cached.manifest.rejected,
            pinned=pinned,
            restored_from=cached.manifest.restored_from,
            updates=cached.manifest.updates,
            input_at=cached.manifest.input_at,
            input_age_s=input_age_s,
            input_stale=pinned is None and input_age_s is not None and 0 < self.max_input_age_s < input_age_s,
        )

    def holds(self, version: int) -> bool:
        """Whether this version or a newer one is in memory."""
        return self.cached is not None and self.cached.version >= version

    def _payload(self, cached: CachedVersion, kind: str) -> Payload:
        payload = cached.payloads.get(kind)
        if payload is None:
            raise SnapshotMissing(
                f"no {kind} of {self.source!r}: Redis holds it damaged or not at all; files: {self.output_dir} "
                "has not this version or cannot be read. The next publish mends it, or run: rolling-optimizer run"
            )
        return payload

    # ---- refresh

    def refresh(self, *, ask_redis: bool = True) -> None:
        """Load the newest version; the one in memory stays if no newer one can be read."""
        with self._lock:
            if self.traces:
                self._refresh_in_span(ask_redis=ask_redis)
            else:
                self._refresh(ask_redis=ask_redis)

    def catch_up(self, version: int) -> None:
        """Refresh for a lookup, unless `version` or a newer one is in memory; while Redis is away, only from files."""
        with self._lock:
            if not self.holds(version):
                self._refresh(ask_redis=self.redis.up)

    def _refresh(self, *, ask_redis: bool) -> None:
        cached, shown_by_redis, shown_by_files = self.cached, None, None
        newest: CachedVersion | None = None
        if ask_redis:
            with suppress(CacheUnavailable):  # the reason is in `problem`
                shown_by_redis, newest = self.redis.read(cached)
                # Before the version is shown, so that the changes that lead to it are there by then.
                if self.changes is not None and shown_by_redis is not None:
                    self.changes.read(self.redis, shown_by_redis.version)
        if self.files is not None and self._needs_files(shown_by_redis, newest):
            self._files_problem = f"none in {self.output_dir}"
            try:
                shown_by_files = self.files.see()
                if (
                    shown_by_files is not None
                    and not self._is_older(shown_by_files)
                    and not _covers(newest, shown_by_files)
                    and not self._waits_for_change(shown_by_redis, shown_by_files)
                ):
                    newest = _better(shown_by_redis, newest, self._load_files(self.files, shown_by_files))
            except UNREADABLE as error:
                self._files_problem = f"{self.output_dir} cannot be read: {error}"
        # If a payload of a newer version cannot be read, the old version stays: it is whole, and its age is shown.
        if newest is None or (cached is not None and cached.is_whole and not newest.is_whole):
            newest = cached
        if newest is not None:
            earlier = None if cached is None else cached.sighting
            sighting = newest.sighting.confirmed_by(earlier, shown_by_redis, shown_by_files)
            if sighting is not newest.sighting:
                newest = replace(newest, sighting=sighting)
            if self.prepare is not None and newest is not cached:
                newest = replace(newest, prepared=self.prepare(newest))
            self.cached = newest
        for call in self.on_refresh:
            call()

    def _refresh_in_span(self, *, ask_redis: bool) -> None:
        from optimizer.config.tracing import span  # noqa: PLC0415 - few readers ask for it

        with span("refresh", source=self.source) as step:
            self._refresh(ask_redis=ask_redis)
            if self.cached is not None:
                step.set(version=self.cached.version, origin=self.cached.origin)

    def _is_older(self, sighting: Sighting) -> bool:
        return self.cached is not None and sighting.version < self.cached.version

    def _waits_for_change(self, shown_by_redis: Sighting | None, shown_by_files: Sighting) -> bool:
        """Whether a version in the files, which a run writes first, is held back until Redis has the change to it.

        Otherwise a process that keeps changes would send each version that it sees in between as a whole.
        """
        cached = self.cached
        if self.changes is None or cached is None or shown_by_redis is None or shown_by_files.version <= cached.version:
            return False
        if self._waits[0] != shown_by_files.version:
            self._waits = (shown_by_files.version, time.monotonic())
        return time.monotonic() - self._waits[1] < REDIS_PATIENCE_S

    def _needs_files(self, shown_by_redis: Sighting | None, newest: CachedVersion | None) -> bool:
        assert self.files is not None  # noqa: S101 - the caller has asked
        if not self.files.costs_requests:
            return True
        if self.cached is None or shown_by_redis is None or newest is None or not newest.is_whole:
            return True
        return time.monotonic() - shown_by_redis.checked_s > self.stale_after_s / 2

    def _load_files(self, files: VersionFiles, shown: Sighting) -> CachedVersion | None:
        """Load the version in the files, which is not older than the one in memory."""
        cached = self.cached
        if cached is not None and cached.is_whole and cached.is_at(shown):
            return cached if cached.origin == "files" else cached.from_("files")
        return files.load(shown)


def _file_store(output_dir: Location | None, stale_after_s: float) -> FileStore | None:
    if output_dir is None:
        return None
    from optimizer.reader.file_store import FileStore  # noqa: PLC0415 - a reader of Redis alone needs no storage

    return FileStore(output_dir, stale_after_s)


def _covers(redis: CachedVersion | None, shown_by_files: Sighting) -> bool:
    """Whether the version from Redis makes reading the files unnecessary."""
    return redis is not None and redis.is_whole and redis.version >= shown_by_files.version


def _better(
    shown_by_redis: Sighting | None, redis: CachedVersion | None, files: CachedVersion | None
) -> CachedVersion | None:
    """Return the newest version that one store, or both together, have whole; never a mixture of two versions."""
    if shown_by_redis is None or redis is None or files is None:
        return redis or files
    if redis.version != files.version:
        return files if files.version > redis.version or not redis.is_whole else redis
    same = {kind: payload for kind, payload in files.payloads.items() if payload.etag == shown_by_redis.etag(kind)}
    filled = CachedVersion.load(shown_by_redis, "redis", {**same, **redis.payloads})
    return filled if filled.is_whole else files
