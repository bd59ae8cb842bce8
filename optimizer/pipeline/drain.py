"""The drain: makes versions from the waiting updates, at most a few a second.

Each version has all updates that wait at that moment. A drain does not take the lock of the runs, which a scan holds
for seconds, but `publishing`, which serialises drains and the ends of runs; the flip compares the pointer.

Errors: `CacheUnavailable` without Redis, `GuardRefused`, `PublishRefused`; updates that were not applied stay queued.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import closing
from typing import Final

import msgspec

from optimizer.cache.client import CacheClient
from optimizer.cache.clocks import seconds_of, text_of
from optimizer.cache.flip import Consumed
from optimizer.cache.lock import SourceLock
from optimizer.cache.run_log import RunLog
from optimizer.cache.update_queue import QueueState, UpdateQueue
from optimizer.cache.update_writer import Base, UpdateWriter
from optimizer.config.settings import Settings
from optimizer.errors import GuardRefused, NoRecords, PublishRefused, RollingError
from optimizer.log import SourceLog
from optimizer.models import Manifest, QueuedUpdate, Report, UpdateCounts
from optimizer.pipeline.confirm import catch_up_if_free
from optimizer.pipeline.guard import check_guards
from optimizer.pipeline.pace import delay_ms, next_tat_ms
from optimizer.pipeline.update_version import NextVersion, decode_predictions, encode_updated
from optimizer.pipeline.version import Predecessor
from optimizer.selection.acceptance import check_removed
from optimizer.selection.updates import Merged, merge, symbols_of
from optimizer.snapshots.format import CONTENT_KINDS, SnapshotSet
from optimizer.snapshots.store import snapshot_store

__all__ = ["apply_updates"]

# The end of a run holds `publishing` while it writes the files.
PUBLISHING_WAIT_S: Final = 10.0
# While it waits, it reads the queue this often, so that its flag does not expire and no second drain is sent.
LOCK_WAIT_S: Final = 0.5
# After this long, a drain leaves later entries to another one, so that its task ends within its time limit.
DRAIN_S: Final = 5.0
# How often a drain starts again after another version was published between its read and its flip.
ATTEMPTS: Final = 3
# Writing the files holds the locks of the runs for some 100 ms, in which a tick is skipped, and adds a kept version.
FILES_FOLLOW_S: Final = 5.0
OUTDATED_NAMED: Final = 10

_log = SourceLog(__name__)


def apply_updates(settings: Settings) -> Report | None:
    """Apply the waiting updates until none is left; return the report, `None` if none was waiting.

    Any number of processes may do so at the same time. An entry that a guard refuses is dropped, and named in a failed
    report in the stream of runs. Nothing is applied while a version is pinned, or before there is one.

    Raises:
        GuardRefused: A guard also refuses the current version, as a broken guard does; the rest stays queued.
        PublishRefused: Something else publishes for too long, or repeatedly; the rest stays queued.
        CacheUnavailable: Redis does not answer; the rest stays queued.
    """
    with closing(CacheClient(settings.redis_url, settings.source, settings.interval_s, is_kept=True)) as cache:
        drain = _Drain(settings, cache)
        report = drain.run()
    if report is not None and report.status == "success" and _are_old(drain.in_files):
        try:
            catch_up_if_free(settings)
        except RollingError as error:  # the next tick tries again
            _log.warning("the files could not catch up with updates", source=settings.source, error=error)
    return report


class _Drain:
    """The state of one drain of the queue; `in_files` is the files' manifest, read before its last step."""

    def __init__(self, settings: Settings, cache: CacheClient) -> None:
        self._settings = settings
        self.in_files: Manifest | None = None
        self._store = snapshot_store(settings.output_dir)
        self._cache = cache
        self._queue = UpdateQueue(cache)
        self._lock = SourceLock(cache, cache.keys.publishing)
        self._report: Report | None = None
        self._counts = UpdateCounts()
        self._until_s = time.monotonic() + DRAIN_S
        self._last: float = math.inf  # the number of the last entry that this drain applies
        self._attempts = 0
        self._locked_out_s = 0.0  # for how long something else has been publishing

    def run(self) -> Report | None:
        self._step()  # at once: the sender of a drain has queued an entry
        while True:
            state = self._read()
            if not state.entries or state.entries[0].sequence > self._last:
                if self._last < math.inf or self._queue.end_drain():
                    return self._report
            elif waits_for := _waits_for(state, self.in_files):
                return self._report or Report("skipped", self._settings.source, text_of(time.time()), reason=waits_for)
            else:
                time.sleep(delay_ms(state.tat_ms, state.now_ms) / 1000)
                self._step()

    def _read(self) -> QueueState:
        """Read the queue; entries accepted after `DRAIN_S` are left to another drain."""
        is_last = time.monotonic() >= self._until_s
        state = self._queue.read(is_last=is_last)
        if is_last:
            self._last = min(self._last, state.newest)
        return state

    def _step(self) -> None:
        """Make a version from the waiting entries, unless another drain has just done so or a run publishes."""
        wait_s = min(LOCK_WAIT_S, PUBLISHING_WAIT_S)
        try:
            with self._lock.acquire_within(wait_s) as lock:
                if not lock.held:
                    self._locked_out_s += wait_s
                    if self._locked_out_s < PUBLISHING_WAIT_S:
                        return
                    self._attempts = ATTEMPTS - 1
                    raise PublishRefused(
                        f"a run of {self._settings.source!r} has been publishing for longer than "
                        f"{PUBLISHING_WAIT_S:g} s; the updates wait, and the next tick applies them"
                    )
                self._locked_out_s = 0.0
                # Read before the pointer: a run writes the files first, and may have been killed after that.
                self.in_files = self._store.read_manifest()
                state = self._read()
                is_due = not delay_ms(state.tat_ms, state.now_ms)
                if state.entries and is_due and not _waits_for(state, self.in_files):
                    self._apply(state, lock.token)
        except PublishRefused:
            self._attempts += 1
            if self._attempts == ATTEMPTS:
                raise

    def _apply(self, state: QueueState, token: str) -> None:
        """Publish a version with the oldest entries: all, or as many as the guards accept; or drop one."""
        entries = state.entries
        while refused := self._publish(state, entries, token):
            if len(entries) == 1:
                self._drop(state, token, refused)
                return
            entries = entries[: len(entries) // 2]  # a single entry may be the reason; the others follow

    def _publish(self, state: QueueState, entries: Sequence[QueuedUpdate], token: str) -> RollingError | None:
        """Publish entries, or return why they are refused.

        Raises:
            GuardRefused: The current version is refused too, so the refusal says nothing about the entries.
        """
        settings, pointer = self._settings, state.pointer
        assert pointer is not None  # noqa: S101 - asked before
        writer = UpdateWriter(self._cache, token)
        base = writer.read(pointer, sorted(symbols_of(entries)), CONTENT_KINDS if settings.guard else ("predictions",))
        # Updates in force come first: after a rollback they are newer than the current version.
        current = base.records | {symbol: held.record for symbol, held in base.held.items()}
        merged = merge(entries, current)
        staged = writer.stage(
            pointer.version,
            merged.held,
            limit=settings.index_symbols_limit,
            top=settings.top_symbols_limit,
            min_confidence=settings.min_confidence,
        )
        shown = decode_predictions(base)
        known = {record.symbol: record for record in shown.predictions}
        known |= {symbol: update.record for symbol, update in merged.held.items() if update.record is not None}
        known |= {
            record.symbol: record for record in writer.records([each for each in staged.best if each not in known])
        }
        following = encode_updated(
            base,
            shown=shown,
            best=[known[each] for each in staged.best],
            changed=merged.held,
            settings=settings,
            version=max(int(state.now_ms), 1 + max(pointer.version, base.newest_known)),
            now_s=state.now_ms / 1000,
        )
        refused = self._refusal(base, staged.count, following)
        if refused is not None:
            writer.discard()
            self._check_shown(base)
            return refused
        writer.publish(
            following.manifest,
            base=base,
            changed=len(merged.held),
            predictions=following.predictions,
            change=following.change,
            consumed=Consumed(
                applied_before=state.applied,
                entries=len(entries),
                records=sum(entry.size for entry in entries),
                applied=entries[-1].sequence,
                tat_ms=round(next_tat_ms(state.tat_ms, state.now_ms)),
            ),
        )
        self._count(merged, following.manifest, _waited_s(entries, state.now_ms / 1000))
        return None

    def _refusal(self, base: Base, count: int, following: NextVersion) -> RollingError | None:
        """Return why a version with `count` symbols may not follow, or `None`."""
        settings = self._settings
        if not count:
            return NoRecords(
                f"updates would remove the last record of {settings.source!r}; an empty set never replaces a good one"
            )
        # A limit that was lowered since the last scan removes records too.
        before = min(base.index_count, settings.index_symbols_limit)
        try:
            check_removed(count, before, max_drop_percent=settings.max_drop_percent)
            check_guards(settings, following.set_with(base), _predecessor(base), accept=False)
        except GuardRefused as error:
            return error
        return None

    def _check_shown(self, base: Base) -> None:
        """Ask the guards about the current version: a broken guard refuses that too."""
        manifest = base.pointer.manifest
        try:
            check_guards(self._settings, SnapshotSet(manifest, base.payloads), _predecessor(base), accept=False)
        except GuardRefused as error:
            raise GuardRefused(f"the updates wait, since what is shown would be refused too: {error}") from None

    def _count(self, merged: Merged, manifest: Manifest, waited_s: float) -> None:
        """Add a published version to the report."""
        counts, changed = self._counts, sum(update.record is not None for update in merged.held.values())
        self._counts = UpdateCounts(
            versions=counts.versions + 1,
            changed=counts.changed + changed,
            removed=counts.removed + len(merged.held) - changed,
            outdated=counts.outdated + len(merged.outdated),
            first_outdated=[*counts.first_outdated, *merged.outdated][:OUTDATED_NAMED],
            refused=counts.refused,
            held=manifest.updates,
            waited_s=max(counts.waited_s, waited_s),
        )
        self._report = Report(
            "success",
            self._settings.source,
            manifest.generated_at,
            version=manifest.version,
            cache="published",
            rejected=manifest.rejected,
            changes=manifest.changes,
            updated=self._counts,
        )

    def _drop(self, state: QueueState, token: str, error: Exception) -> None:
        """Drop the oldest entry, with a failed report in the stream of runs."""
        entry = state.entries[0]
        named = [*(record.symbol for record in entry.records), *entry.removed]
        others = f" and {len(named) - OUTDATED_NAMED:,} more" if len(named) > OUTDATED_NAMED else ""
        names = f"{', '.join(named[:OUTDATED_NAMED])}{others}"
        details = f"the update of {names} was dropped: {error}"
        if not self._queue.drop(state, token, details):
            raise PublishRefused("publishing is no longer held by this drain")
        self._counts = msgspec.structs.replace(self._counts, refused=self._counts.refused + entry.size)
        failed = Report(
            "failed",
            self._settings.source,
            text_of(time.time()),
            version=None if state.pointer is None else state.pointer.version,
            error=type(error).__name__,
            details=details,
            updated=self._counts,
        )
        RunLog(self._cache).add(failed)
        _log.warning("the update of %s was dropped", names, source=self._settings.source, error=error)
        if self._report is None or self._report.status == "failed":
            self._report = failed
        else:
            self._report = msgspec.structs.replace(self._report, updated=self._counts)


def _predecessor(base: Base) -> Predecessor:
    manifest = base.pointer.manifest
    return Predecessor(manifest, SnapshotSet(manifest, base.payloads), is_in_redis=True)


def _are_old(in_files: Manifest | None) -> bool:
    return in_files is not None and time.time() - seconds_of(in_files.generated_at) > FILES_FOLLOW_S


def _waits_for(state: QueueState, in_files: Manifest | None) -> str:
    """Return why updates cannot be applied now, empty if they can."""
    pointer = state.pointer
    if pointer is None:
        return "no_version"
    if in_files is not None and in_files.version > pointer.version:
        return "no_version"  # Redis was away: the next tick publishes the files, which are newer
    is_pinned = pointer.manifest.pinned is not None
    return "pinned" if is_pinned else ""


def _waited_s(entries: Sequence[QueuedUpdate], now_s: float) -> float:
    """Return how long the oldest entry has waited; a damaged entry has no time."""
    return max((round(now_s - entry.at_ms / 1000, 3) for entry in entries if entry.at_ms), default=0.0)
