"""The end of a run that has scanned: select, write the files, publish in Redis, and count for the report.

Errors: `NoRecords`, `NoBots` and `TooManyRejected` for a result that is not acceptable, `GuardRefused`,
`OutputUnwritable`, and `PublishRefused`. The old version stays in files and Redis.
"""

from __future__ import annotations

import time

from optimizer.cache.clocks import text_of
from optimizer.config.settings import Settings
from optimizer.models import Report, Stats
from optimizer.pipeline.guard import check_guards
from optimizer.pipeline.memory import peak_rss_mb
from optimizer.pipeline.parts import Progress, ScannedInput
from optimizer.pipeline.session import Session
from optimizer.selection.acceptance import check_plausible
from optimizer.selection.portfolio import holdings, summaries
from optimizer.selection.top_n import top
from optimizer.snapshots.format import SnapshotSet, encode_set
from optimizer.snapshots.store import snapshot_store

__all__ = ["publish"]


def publish(
    settings: Settings, session: Session, scanned: ScannedInput, *, accept: bool, progress: Progress | None = None
) -> Report:
    """Select, ask the guards, write the files, then Redis; the lock is checked before either shows anything.

    `progress` is called while a guard of the user's is on, as if all was read; what it raises ends the run.
    """
    result = scanned.result
    check_plausible(
        result,
        input_name=str(settings.input),
        bots_dir=None if settings.bots_dir is None else str(settings.bots_dir),
        max_rejected_percent=settings.max_rejected_percent,
        accept=accept,
    )
    ranked = result.selection.finish()
    newest = max(session.newest_version(), session.newest_before)
    snapshots = encode_set(
        source=settings.source,
        version=max(time.time_ns() // 1_000_000, newest + 1),
        generated_at=text_of(time.time()),
        fingerprint=scanned.fingerprint,
        ranked=ranked,
        predictions=top(ranked, limit=settings.top_symbols_limit, min_confidence=settings.min_confidence),
        bots=summaries(result.bots),
        holdings=holdings(result.bots),
        rejected=result.rejected,
        gzip_level=settings.gzip_level,
    )
    store = snapshot_store(settings.output_dir, keep=settings.keep_versions)
    watched = session.watched(progress)
    current = store.read_set()
    check_guards(
        settings,
        snapshots,
        None if current is None else current.manifest,
        lambda: None if current is None else current.content(),
        accept=accept,
        wait=lambda: watched(scanned.input_bytes, scanned.input_bytes),
    )
    store.write(snapshots, replaced=session.newest_before, before_commit=session.check_superseded)
    session.publish(snapshots)
    return Report(
        "success",
        settings.source,
        snapshots.manifest.generated_at,
        version=snapshots.manifest.version,
        cache=session.outcome("published"),
        stats=_stats(scanned, snapshots),
        rejects=result.tallies(),
        rejected=result.rejected,
    )


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
