"""The end of a run that has scanned: select, write the files, publish in Redis, and count for the report.

Errors: `NoRecords`, `NoBots` and `TooManyRejected` for a result that may not be published, `GuardRefused`,
`OutputUnwritable`, and `PublishRefused`. After any of them, the old version stays in files and Redis.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from optimizer.cache.clocks import elapsed_s, seconds_of, text_of
from optimizer.config.settings import Settings
from optimizer.config.tracing import span
from optimizer.errors import NoRecords
from optimizer.models import ChangeCounts, QueuedUpdate, Record, Report, Stats
from optimizer.pipeline.guard import check_guards
from optimizer.pipeline.parts import Progress, ScannedInput
from optimizer.pipeline.process import peak_rss_mb, user_at_host
from optimizer.pipeline.session import Session
from optimizer.pipeline.version import Predecessor, encode_version, read_predecessor
from optimizer.selection.acceptance import check_plausible
from optimizer.selection.portfolio import holdings, summaries
from optimizer.selection.top_n import top
from optimizer.selection.updates import answer, rebase
from optimizer.snapshots.format import SnapshotSet
from optimizer.snapshots.store import SnapshotStore, snapshot_store

__all__ = ["publish"]

EMPTY: Final = "an empty set never replaces a good one. Publish a record, or let the engine write the input again"
SAME_CONTENT: Final = "the input has the same content as before, so the version stays"


def publish(
    settings: Settings, session: Session, scanned: ScannedInput, *, accept: bool, progress: Progress | None = None
) -> Report:
    """Select, call the guards, write the files, then Redis; the lock is checked before either shows anything.

    An input with the same content keeps its version: only the manifest is replaced, in the files and in Redis. Updates
    in force, also those that were applied since the run began, are kept unless the input supersedes them; waiting
    updates that the input supersedes leave the queue. The version is made and staged before updates have to wait for
    it, and again only if they have made one meanwhile. `progress` is called while the user's guard runs, as if all was
    read; an exception from it ends the run.
    """
    result = scanned.result
    check_plausible(
        result,
        input_name=str(settings.input),
        bots_dir=None if settings.bots_dir is None else str(settings.bots_dir),
        max_rejected_percent=settings.max_rejected_percent,
        accept=accept,
    )
    store = snapshot_store(settings.output_dir, keep=settings.keep_versions)
    with span("select"):
        best = result.selection.finish()
        make = partial(_make, settings, session, store, scanned, best, accept=accept, progress=progress)
        session.follow_updates(store)
        made = make()
    if not made.is_equal:
        session.stage(made.snapshots)
    with session.publishing(store) as have_moved:
        if have_moved:
            made = make()
        manifest = made.snapshots.manifest
        with span("write", version=manifest.version):
            if made.is_equal:
                store.replace_manifest(manifest, before_commit=session.check_superseded)
            else:
                store.write(made.snapshots, replaced=session.newest_before, before_commit=session.check_superseded)
        with span("publish", version=manifest.version) as step:
            session.publish(made.snapshots, made.left)
            step.set(cache=session.outcome("published"))
    # If an input is scanned again by force, its version could be read before.
    is_new = made.before is None or made.before.manifest.fingerprint != scanned.fingerprint
    published_after_s = elapsed_s(scanned.landed_s, time.time()) if is_new else None
    return Report(
        "success",
        settings.source,
        made.at,
        version=manifest.version,
        cache=session.outcome("published"),
        details=SAME_CONTENT if made.is_equal else None,
        stats=_stats(scanned, made.snapshots),
        changes=ChangeCounts() if made.is_equal else manifest.changes,
        rejects=result.tallies(),
        rejected=result.rejected,
        input_age_s=elapsed_s(scanned.modified_s, seconds_of(made.at)),
        published_after_s=published_after_s,
    )


@dataclass(frozen=True)
class _Made:
    """The set that a run publishes `at` this time, after the version `before`; `left` are the entries put back."""

    before: Predecessor | None
    at: str
    snapshots: SnapshotSet
    left: list[QueuedUpdate]

    @property
    def is_equal(self) -> bool:
        """Whether the version before has the same content, and stays."""
        return self.before is not None and self.before.manifest.version == self.snapshots.manifest.version


def _make(
    settings: Settings,
    session: Session,
    store: SnapshotStore,
    scanned: ScannedInput,
    best: Sequence[Record],
    *,
    accept: bool,
    progress: Progress | None,
) -> _Made:
    """Make the run's version from the selection and the current updates, and call the guards."""
    before = read_predecessor(store, session)
    version, now = session.next_version()
    ranked, held = rebase(best, session.held, limit=settings.index_symbols_limit, modified_ms=scanned.modified_ms)
    left = answer(session.queued(), best, modified_ms=scanned.modified_ms)
    if not ranked:
        raise NoRecords(f"{settings.input}: the updates that hold have removed each of its records; {EMPTY}")
    snapshots = encode_version(
        before,
        source=settings.source,
        version=version,
        generated_at=now,
        fingerprint=scanned.fingerprint,
        input_at=None if scanned.modified_s is None else text_of(scanned.modified_s),
        ranked=ranked,
        predictions=top(ranked, limit=settings.top_symbols_limit, min_confidence=settings.min_confidence),
        bots=summaries(scanned.result.bots),
        holdings=holdings(scanned.result.bots),
        rejected=scanned.result.rejected,
        updates=held,
        gzip_level=settings.gzip_level,
        made_by=user_at_host(),
    )
    watched, read_bytes = session.watched(progress), scanned.input_bytes
    check_guards(settings, snapshots, before, accept=accept, wait=lambda: watched(read_bytes, read_bytes))
    return _Made(before, now, snapshots, left)


def _stats(scanned: ScannedInput, snapshots: SnapshotSet) -> Stats:
    counts = {kind: entry.count for kind, entry in snapshots.manifest.snapshots.items()}
    result = scanned.result
    seconds = max(0.001, time.time() - scanned.began_s)
    return Stats(
        predictions_extracted=counts["predictions"],
        bots_processed=counts["bots"],
        portfolio_holdings=counts["portfolio"],
        records_seen=result.records_seen,
        records_rejected=result.records_rejected,
        duplicates=result.duplicates,
        symbols_ignored=result.symbols_ignored,
        extras_dropped=result.extras_dropped,
        input_bytes=scanned.input_bytes,
        json_bytes=result.json_bytes,
        seconds=round(seconds, 3),
        json_mb_per_s=round(result.json_bytes / 1e6 / seconds, 1),
        peak_rss_mb=round(max(peak_rss_mb(), scanned.peak_rss_mb), 1),
        engine=scanned.engine,
        parts=max(1, len(scanned.parts)),
        parts_scanned=scanned.parts_scanned,
        bots_seen=result.bots_seen,
        bots_rejected=result.bots_rejected,
        bots_without_fields=result.bots_without_fields,
    )
