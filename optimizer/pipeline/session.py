"""A run's view of Redis: up, down or off.

Routers read from Redis, but the files do not depend on it. So a run whose Redis is away goes on, writes its files and
says so in its report; the next tick publishes from the files. `Session.ask` is the one place that decides this: without
a cache, and after the first failure, each call returns a default with which a run can go on. Only a refusal stops a
run: its lock is lost, or another run has published since, even if Redis was away when the run began.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, partial
from types import TracebackType
from typing import Final, Literal, TypeVar

from optimizer.cache.client import UNREADABLE, CacheClient
from optimizer.cache.clocks import text_of
from optimizer.cache.flip import Consumed
from optimizer.cache.lock import Lock, SourceLock
from optimizer.cache.pointer import Pointer
from optimizer.cache.run_log import RunLog
from optimizer.cache.shared_output import is_shared_output
from optimizer.cache.update_queue import QueueState, UpdateQueue
from optimizer.cache.verification import shows
from optimizer.cache.writer import VersionWriter
from optimizer.config.settings import Settings
from optimizer.errors import CacheUnavailable, PublishRefused
from optimizer.log import SourceLog
from optimizer.models import HeldUpdate, Manifest, QueuedUpdate, Record, Report
from optimizer.selection.updates import merge_held
from optimizer.snapshots.format import SnapshotSet
from optimizer.snapshots.marker import Marker
from optimizer.snapshots.store import SnapshotStore
from optimizer.storage.location import Location

__all__ = ["LOCK_LOST", "Session"]

# A drain holds `publishing` for some 20 ms, and while the user's guard runs.
PUBLISHING_WAIT_S: Final = 10.0
# A version of updates is read in some 30 ms, and replaced after 250.
SHOWN_ATTEMPTS: Final = 5

LOCK_LOST: Final = "the lock was lost during the run (was it paused, or revoked?); the next tick starts anew"

NOT_SHARED: Final = "the output directory of this worker is not the one that others use: %s on %s"

_log = SourceLog(__name__)
_T = TypeVar("_T")


@cache
def _log_not_shared(source: str, output_dir: str, host: str) -> None:
    _log.warning(NOT_SHARED, output_dir, host, source=source)


class Session:
    """The Redis of one run.

    Attributes:
        cache: The connection, for stores of which only some runs need one.
        run_log: Ticks and reports.
        writer: Versions.
        queue: The waiting updates, and those in force.
        state: `up` until the first failure, then `down`; `off` without a cache.
        problem: The first failure.
        in_files: The manifest in the files when the run began.
        newest_before: The newest version in Redis and in the files when the run began, or one that updates made since.
        held: The updates in force, by symbol, as read by the last `follow_updates`.
    """

    def __init__(self, settings: Settings, *, use_cache: bool) -> None:
        self.state: Literal["up", "down", "off"] = "up" if use_cache else "off"
        self.in_files: Manifest | None = None
        self.newest_before = 0
        self.held: dict[str, HeldUpdate] = {}
        self.problem = ""
        self.cache = CacheClient(settings.redis_url, settings.source, settings.interval_s, is_kept=True)
        self.run_log = RunLog(self.cache)
        self.writer = VersionWriter(self.cache)
        self.queue = UpdateQueue(self.cache)
        self._source_lock = SourceLock(self.cache)
        self._lock: Lock | None = None
        self._before: Pointer | None = None
        self._waiting: QueueState | None = None
        self._followed: tuple[int, int] | None = None  # the version and the number of the last entry that was applied

    def __enter__(self) -> Session:
        self.ask(self.writer.mend, absent=None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ask(self.writer.discard, absent=None)
        if self.state != "off":
            self.cache.close()

    def ask(self, question: Callable[[], _T], *, absent: _T) -> _T:
        """Call a function that asks Redis; return `absent` if Redis is off or down, or fails now."""
        return self._attempt(question, absent=absent) if self.state == "up" else absent

    def _attempt(self, question: Callable[[], _T], *, absent: _T) -> _T:
        try:
            return question()
        except CacheUnavailable as error:
            self.state, self.problem = "down", str(error)
            source = self.cache.keys.source
            _log.warning("the cache is down, the run goes on without it", source=source, error=error)
            return absent

    # ---- reports

    def record(self, report: Report) -> int:
        """Append the report to the stream of runs, even if the state is `down` but Redis answers again.

        Returns:
            How many entries wait in the queue of updates.
        """
        if self.state == "off" or not self.cache.redis_up:
            return 0
        return self._attempt(lambda: self.run_log.add(report), absent=0)

    # ---- the lock

    @contextmanager
    def lock(self, token: str | None = None, *, join_s: float = 0.0, run_id: str = "") -> Iterator[bool | None]:
        """Hold the source's lock and read the pointer that the run starts from.

        Args:
            token: The token of a dispatched run, to continue it.
            join_s: If above 0, hold its lock together with other workers, and leave it to them for this many seconds.
            run_id: The id by which a run that begins here can be revoked.

        Yields:
            Whether the lock was acquired, false if another run has it; `None` if Redis is off or down.
        """
        if token is None:
            lock = self._source_lock.acquire(run_id)
        elif join_s:
            lock = self._source_lock.join(token, join_s)
        else:
            lock = self._source_lock.adopt(token)
        with ExitStack() as stack:
            self._lock = self.ask(lambda: stack.enter_context(lock), absent=None)
            self._before = self.ask(lambda: self.writer.pointer(self._lock), absent=None)
            if self.state == "down" and self.cache.redis_up:  # it refuses writes, but may be read
                with suppress(CacheUnavailable):
                    self._before = self.writer.pointer()
            yield self._lock.held if self._lock and self.state == "up" else None

    @property
    def token(self) -> str:
        """The token of the run's lock."""
        return self._lock.token if self._lock else ""

    def leave_lock(self, keep_s: float) -> None:
        """At the end, leave the lock to other processes of the run, which have `keep_s` seconds to join or adopt it."""
        if self._lock:
            self._lock.keep_s = keep_s

    def watched(self, progress: Callable[[int, int], None] | None) -> Callable[[int, int], None]:
        """Wrap a progress callback so that it ends the scan of a run that has lost its lock.

        Raises:
            PublishRefused: Raised by the callback.
        """

        def report(done_bytes: int, total_bytes: int) -> None:
            if self._lock and self._lock.lost:
                raise PublishRefused(LOCK_LOST)
            if progress is not None:
                progress(done_bytes, total_bytes)

        return report

    @contextmanager
    def publishing(self, store: SnapshotStore) -> Iterator[bool]:
        """Keep updates from making versions, and start from the last version that they made since the run began.

        Args:
            store: The files; the run holds their lock.

        Yields:
            Whether an update has been applied or dropped since the last `follow_updates`.

        Raises:
            PublishRefused: A drain publishes for too long.
        """
        with ExitStack() as stack:
            lock = SourceLock(self.cache, self.cache.keys.publishing)
            held = self.ask(lambda: stack.enter_context(lock.acquire_within(PUBLISHING_WAIT_S)), absent=None)
            if held is not None and not held.held:
                raise PublishRefused(
                    f"a drain of updates has been publishing for longer than {PUBLISHING_WAIT_S:g} s: does a guard "
                    "hang? The next tick starts anew"
                )
            yield self.follow_updates(store)

    def follow_updates(self, store: SnapshotStore) -> bool:
        """Start from the newest version that updates have made; false if nothing changed since the last call."""
        self._follow_pointer()
        followed = self.version_before, self.ask(self.queue.applied, absent=0)
        if followed == self._followed:
            return False
        self._followed, self.held = followed, self.read_held(store)
        return True

    def read_shown(self) -> tuple[Pointer, dict[str, bytes], list[Record], dict[str, HeldUpdate]] | None:
        """Read the whole current version in Redis: its payloads, its index, and the updates in force.

        If updates make others meanwhile, it is the newest of them, from which the run then continues.

        Returns:
            `None` if Redis lacks a part of it, or is away.
        """
        for _ in range(SHOWN_ATTEMPTS):
            before = self._before
            if before is None:
                return None
            shown = self.ask(partial(self.writer.read_shown, before), absent=None)
            if shown is not None:
                return before, *shown
            if not self._follow_pointer():
                return None
        return None

    def _follow_pointer(self) -> bool:
        """Continue from the version that updates have made since the run began; false if there is none.

        A version from another run is left to the last checks, which refuse this run.
        """
        before, now = self._before, self.ask(self.writer.pointer, absent=None)
        if not (before and now and now.version > before.version and now.manifest.lineage == before.manifest.lineage):
            return False
        self._before, self.newest_before = now, max(self.newest_before, now.version)
        return True

    def held_in_redis(self) -> dict[str, HeldUpdate]:
        """The updates in force in the version in Redis; none while it is away."""
        nothing: dict[str, HeldUpdate] = {}
        return self.ask(self.queue.held, absent=nothing)

    def queued(self) -> list[QueuedUpdate]:
        """The waiting updates, oldest first; none while Redis is away. More may be added at any time."""
        self._waiting = self.ask(self.queue.waiting, absent=None)
        return [] if self._waiting is None else self._waiting.entries

    def read_held(self, store: SnapshotStore) -> dict[str, HeldUpdate]:
        """The updates in force: those in Redis, and those in the files if Redis may not have them all."""
        in_files, before = self.in_files, self._before
        in_redis = self.held_in_redis()
        is_whole = before is not None and len(in_redis) == before.manifest.updates
        if is_whole and self.newest_manifest is not in_files:
            return in_redis
        return merge_held(_held_in_files(store, in_files), in_redis)

    def check_lock(self) -> None:
        """Check that the run still holds its lock.

        Raises:
            PublishRefused: It has lost the lock.
        """
        lock = self._lock
        if lock and not self.ask(lambda: self._source_lock.owns(lock), absent=True):
            raise PublishRefused(LOCK_LOST)

    def check_superseded(self) -> None:
        """Check, before files or Redis show anything, that the run has not been superseded.

        Raises:
            PublishRefused: It has been; or a Redis that was away is back and has a newer version.
        """
        self.check_lock()
        if self.state != "off":
            with suppress(CacheUnavailable):
                now = self.writer.pointer_now()
                if now is not None and now.version > self.newest_before:
                    raise PublishRefused(
                        f"Redis holds version {now.version} by now, published while this run was on; the next tick "
                        "starts anew"
                    )

    def warn_unless_shared(self, output_dir: Location, marker: Marker | None) -> str | None:
        """Return a warning, and log it once a process, if the other runs of the source write to another directory."""
        if marker is None or self.ask(lambda: is_shared_output(self.cache, marker), absent=True):
            return None
        where = (str(output_dir), socket.gethostname())
        _log_not_shared(self.cache.keys.source, *where)
        return NOT_SHARED % where

    # ---- versions

    @property
    def version_before(self) -> int:
        """The version that the run starts from, 0 for none."""
        return self._before.version if self._before else 0

    @property
    def pointer(self) -> Pointer | None:
        """The pointer that the run starts from."""
        return self._before

    @property
    def newest_manifest(self) -> Manifest | None:
        """The manifest of the newest set in the files and in Redis; at equal versions, the files' manifest."""
        in_files, in_redis = self.in_files, self._before.manifest if self._before else None
        if in_files is None or (in_redis is not None and in_redis.version > in_files.version):
            return in_redis
        return in_files

    @property
    def is_ambiguous(self) -> bool:
        """Whether files and Redis have different sets of the newest number: a change from it would be wrong for one."""
        newest, before = self.newest_manifest, self._before
        return bool(newest and before and before.version == newest.version and not before.manifest.is_same_set(newest))

    def payloads_before(self) -> dict[str, bytes] | None:
        """Predictions, bots and holdings of the pointer's version; `None` unless Redis has all of them undamaged."""
        before = self._before
        return self.ask(lambda: self.writer.payloads(before), absent=None) if before else None

    def start_from(self, in_files: Manifest | None) -> None:
        """Store the files' manifest before the input is opened; a newer version at the end was published meanwhile."""
        self.in_files = in_files
        self.newest_before = max(self.newest_before, self.version_before, in_files.version if in_files else 0)

    def newest(self) -> int:
        """The newest version that Redis knows of or the files had when the run began, 0 for none."""
        return max(self.newest_before, self.version_before, self.ask(self.writer.newest_known, absent=0))

    def next_version(self) -> tuple[int, str]:
        """Return a version above all known ones, and the current time.

        The version is this time in milliseconds since the epoch, unless the clock is behind the newest version.
        """
        newest = self.newest()
        now_ms = time.time_ns() // 1_000_000
        return max(now_ms, newest + 1), text_of(now_ms / 1000)

    def shows(self, snapshots: SnapshotSet) -> bool:
        """Whether Redis, if it shows this version, has the same values as the files, undamaged."""
        if self.version_before != snapshots.manifest.version:
            return True
        return self.ask(lambda: shows(self.cache, snapshots), absent=True)

    def confirm(self) -> None:
        """Confirm in Redis that the version that the run starts from is still the newest."""
        self.ask(lambda: self.writer.confirm(self.version_before), absent=None)

    def replace_manifest(self, manifest: Manifest) -> None:
        """Replace the manifest in Redis, if Redis shows this set.

        Raises:
            PublishRefused: The run has been superseded.
        """
        lock, before = self._lock, self._before
        if before is None or not before.manifest.is_same_set(manifest):
            return  # the next run publishes from the files
        if lock and not self.ask(lambda: self.writer.replace_manifest(manifest, lock), absent=True):
            raise PublishRefused(LOCK_LOST)

    def stage(self, snapshots: SnapshotSet) -> None:
        """Stage the values of a set in Redis; `publish` then makes it the current one."""
        if lock := self._lock:
            self.ask(lambda: self.writer.stage(snapshots, lock), absent=None)

    def publish(self, snapshots: SnapshotSet, left: Sequence[QueuedUpdate] = ()) -> None:
        """Make a set the current one.

        Args:
            snapshots: The set.
            left: For each of the first waiting entries, as read by `queued`, what the scan leaves of it.

        Raises:
            PublishRefused: The run has been superseded.
        """
        lock = self._lock
        if lock and (left or not self._replace_manifest_alone(snapshots)):
            publish = partial(
                self.writer.publish,
                snapshots,
                lock=lock,
                before=self._before,
                in_files=self.newest_before,
                is_known=not self.is_ambiguous,
                consumed=None if self._waiting is None else Consumed.by_scan(self._waiting, left),
            )
            self.ask(publish, absent=None)

    def _replace_manifest_alone(self, snapshots: SnapshotSet) -> bool:
        """Replace only the manifest, if Redis has this set with another manifest; false unless it is complete there.

        Staging 10,000 symbols again would take 50 ms of CPU, at each tick of an engine that writes equal content.
        """
        before, manifest = self._before, snapshots.manifest
        if before is None or before.manifest == manifest or not before.manifest.is_same_set(manifest):
            return False
        self.replace_manifest(manifest)
        if not self.shows(snapshots):
            return False
        self.confirm()
        return True

    def outcome(self, done: str) -> str:
        """Return the outcome that a report states for the cache: what was done, or why it was not."""
        return done if self.state == "up" else self.state


def _held_in_files(store: SnapshotStore, manifest: Manifest | None) -> dict[str, HeldUpdate]:
    """Return the updates in force in the files' set, none if it is damaged."""
    if manifest is None or not manifest.updates:
        return {}
    with suppress(*UNREADABLE):
        snapshots = store.read_set(kinds=["index"], manifest=manifest)
        if snapshots is not None and snapshots.manifest == manifest:
            return snapshots.decode_index().updates or {}
    return {}
