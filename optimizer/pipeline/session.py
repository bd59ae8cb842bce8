"""A run's view of Redis: up, down or off.

Redis is where routers read, not what the files depend on. So a run whose Redis is away goes on, writes its files and
says so in its report; the next tick publishes from the files. Only a refusal stops a run: its lock is gone, or somebody
else has published since, though Redis was away when the run began.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from types import TracebackType
from typing import Final, Literal

from optimizer.cache.pointer import Pointer
from optimizer.cache.writer import Cache, Lock
from optimizer.config.settings import Settings
from optimizer.errors import CacheUnavailable, PublishRefused
from optimizer.models import Manifest, Report
from optimizer.snapshots.directory import SnapshotSet

__all__ = ["Publisher"]

LOCK_LOST: Final = "the lock was lost during the run (was it paused, or revoked?); the next tick starts anew"

_log = logging.getLogger(__name__)


class Publisher:
    """The cache of one run; every method does nothing, and says that all is well, where Redis is off or down."""

    def __init__(self, settings: Settings, *, use_cache: bool) -> None:
        self._cache = Cache(settings.redis_url, settings.source, settings.interval_s) if use_cache else None
        self._lock: Lock | None = None
        self._before: Pointer | None = None
        self.newest_before = 0  # the newest version when the run began, in Redis and in the files
        self.state: Literal["up", "down", "off"] = "up" if use_cache else "off"
        self._problem = ""

    def __enter__(self) -> Publisher:
        with self._tolerating():
            if self._live:
                self._live.mend()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._cache:
            self._cache.close()

    def take_tick(self, number: int) -> bool:
        """Take a tick for this run; false where another run has it."""
        with self._tolerating():
            if self._live:
                return self._live.take_tick(number)
        return True

    @contextmanager
    def lock(self, handed: str | None = None, *, join_s: float = 0.0, run_id: str = "") -> Iterator[bool | None]:
        """Hold the source's lock and read the pointer that the run starts from.

        Args:
            handed: The token of a run that was handed out, to go on with it.
            join_s: Where it is above 0, with others, to whom the lock is left for so many seconds.
            run_id: What the sender of a run that begins here knows it by.

        Yields whether the lock was got, false where another run is on; `None` where Redis cannot say.
        """
        with ExitStack() as stack:
            with self._tolerating():
                if self._live:
                    if handed is None:
                        lock = self._live.lock(run_id)
                    elif join_s:
                        lock = self._live.join(handed, join_s)
                    else:
                        lock = self._live.adopt(handed)
                    self._lock = stack.enter_context(lock)
                    self._before = self._live.pointer(self._lock)
            if self.state == "down" and self._cache and self._cache.answers:  # it refuses writes, and may be read
                with suppress(CacheUnavailable):
                    self._before = self._cache.pointer()
            yield self._lock.held if self._lock and self._live else None

    @property
    def version_before(self) -> int:
        """The version that the run starts from, 0 for none."""
        return self._before.version if self._before else 0

    def start_from(self, version: int) -> None:
        """Note the version in the files before the input is opened; what is newer than both at the end came between."""
        self.newest_before = max(self.newest_before, self.version_before, version)

    def newest_version(self) -> int:
        """The newest version that Redis knows of, 0 for none."""
        newest = self.version_before
        with self._tolerating():
            if self._live:
                return max(newest, self._live.newest_known())
        return newest

    def compare(self, manifest: Manifest) -> Literal["current", "behind", "other"]:
        """How Redis stands to the set in the files, which was made from the input as it is now.

        `current`: it shows this set or a newer one of the same input, and all of it. `behind`: it has to be given this
        set. `other`: it shows something else that is as new, so a new version has to be made.
        """
        with self._tolerating():
            if self._live:
                before, version = self._before, manifest.version
                is_same = before is not None and before.manifest.fingerprint == manifest.fingerprint
                if before and is_same and before.version >= version and self._live.is_intact(before.version):
                    return "current"
                is_taken = before is not None and before.version == version and not is_same
                return "other" if is_taken or self.newest_version() > version else "behind"
        return "current"

    def shows(self, snapshots: SnapshotSet) -> bool:
        """Whether Redis, where it shows this version, shows it as it is in the files, undamaged."""
        with self._tolerating():
            if self._live and self.version_before == snapshots.manifest.version:
                return self._live.shows(snapshots)
        return True

    def check_superseded(self) -> None:
        """Check, before files or Redis show anything, that the run is still the only one.

        Raises:
            PublishRefused: It is not, or Redis, where it was away before, is back and has a newer version.
        """
        with self._tolerating():
            if self._live and self._lock and not self._live.owns(self._lock):
                raise PublishRefused(LOCK_LOST)
        if self._cache:
            with suppress(CacheUnavailable):
                now = self._cache.pointer_now()
                if now is not None and now.version > self.newest_before:
                    raise PublishRefused(
                        f"Redis holds version {now.version} by now, published while this run was on; the next tick "
                        "starts anew"
                    )

    def watched(self, progress: Callable[[int, int], None] | None) -> Callable[[int, int], None]:
        """The same progress, which raises once the lock is known to be lost: what is scanned then is for nothing.

        Raises:
            PublishRefused: From the progress.
        """

        def report(done_bytes: int, total_bytes: int) -> None:
            if self._lock and self._lock.lost:
                raise PublishRefused(LOCK_LOST)
            if progress is not None:
                progress(done_bytes, total_bytes)

        return report

    def publish(self, snapshots: SnapshotSet) -> None:
        """Make a set the current one.

        Raises:
            PublishRefused: The run is no longer the only one.
        """
        with self._tolerating():
            if self._live and self._lock:
                now = self._live.now()
                self._live.publish(
                    snapshots, lock=self._lock, before=self._before, checked_at=now, in_files=self.newest_before
                )

    def outcome(self, done: str) -> str:
        """What a report says of the cache: what was done, or why it was not."""
        return done if self.state == "up" else self.state

    def mark_checked(self) -> None:
        """Note that what Redis shows is still the newest."""
        with self._tolerating():
            if self._live and self._before:
                self._live.mark_checked(self._before.version, self._live.now())

    # ---- runs that are handed out to the fleet

    @property
    def token(self) -> str:
        """That of the run's lock."""
        return self._lock.token if self._lock else ""

    @contextmanager
    def handing_out(self, assignment: bytes, keep_s: float) -> Iterator[None]:
        """While the block hands a run out, note it; after that leave the lock to those who go on, by its token.

        Args:
            assignment: What there is to do.
            keep_s: How long the lock stays when none of them shows up.

        Raises:
            CacheUnavailable: It cannot be noted, and so nobody could go on.
            PublishRefused: The run is no longer the only one.
        """
        assert self._cache is not None  # noqa: S101 - nothing is handed out without Redis
        assert self._lock is not None  # noqa: S101
        try:
            if not self._cache.note_handed(self.token, assignment):
                raise PublishRefused(LOCK_LOST)
            yield
        except BaseException:
            self.end_handed(self.token)
            raise
        self._lock.keep_s = keep_s

    def handed(self, token: str) -> bytes | None:
        """What there is to do in a run that was handed out; `None` where it has ended, or another took its place.

        Raises:
            CacheUnavailable: Nobody can say.
        """
        if self._live is None or self._cache is None:
            raise CacheUnavailable(f"what there is to scan is in Redis; the next tick does without it: {self._problem}")
        return self._cache.handed(token)

    def end_handed(self, token: str) -> None:
        """Note that a run which was handed out has ended, however."""
        with self._tolerating():
            if self._live:
                self._live.forget_handed(token)

    def take_lost(self) -> bytes | None:
        """The run that was handed out and has not ended, though nobody holds its lock; asked once."""
        with self._tolerating():
            if self._live:
                return self._live.take_handed()
        return None

    # ---- what was found in parts

    def keep_parts(self, digests: Sequence[str]) -> list[bool]:
        """Which of these parts' findings are there; they stay for longer, and those of others are deleted."""
        with self._tolerating():
            if self._live and digests:
                return self._live.keep_parts(digests)
        return [False] * len(digests)

    def part(self, digest: str) -> bytes | None:
        """What was found in a part, as it was kept."""
        with self._tolerating():
            if self._live:
                return self._live.part(digest)
        return None

    def keep_part(self, digest: str, data: bytes) -> None:
        """Keep what was found in a part."""
        with self._tolerating():
            if self._live:
                self._live.keep_part(digest, data)

    def drop_part(self, digest: str) -> None:
        """Delete what was found in a part, where it cannot be read."""
        with self._tolerating():
            if self._live:
                self._live.drop_part(digest)

    # ---- reports

    def record(self, report: Report) -> None:
        """Append the report to the stream of runs."""
        with self._tolerating():
            if self._cache and self._cache.answers:
                self._cache.add_run(report)

    @property
    def _live(self) -> Cache | None:
        """The cache, as long as nothing has failed in it."""
        return self._cache if self.state == "up" else None

    @contextmanager
    def _tolerating(self) -> Iterator[None]:
        try:
            yield
        except CacheUnavailable as error:
            self.state, self._problem = "down", str(error)
            _log.warning("[RollingOptimizer] the cache is down, the run goes on without it: %s", error)
