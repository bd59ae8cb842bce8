"""The whole line; `run_alone` is it in one screen.

    input -> scan (inflate, prune, decode) -> select -> snapshots -> files -> Redis

`optimize` is one run in one process: one at a time, nothing done where nothing changed, nothing published that was not
read to its checked end. `fleet.py` is the same run in the hands of many. Everything that can go wrong is a
`RollingError`, after which files and Redis are as they were.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

from optimizer.cache.clocks import text_of
from optimizer.config.settings import Settings
from optimizer.errors import RunTimedOut
from optimizer.models import Report, Stats
from optimizer.pipeline.memory import peak_rss_mb
from optimizer.pipeline.parts import Input, Progress, Scanned, open_input
from optimizer.pipeline.session import Publisher
from optimizer.scan.engine import choose_engine
from optimizer.selection.acceptance import check_plausible
from optimizer.selection.portfolio import holdings, summaries
from optimizer.selection.top_n import top
from optimizer.snapshots.format import SnapshotSet, encode_set
from optimizer.snapshots.store import snapshot_store

__all__ = [
    "Progress",
    "alone",
    "confirm",
    "confirm_or_scan",
    "failed_report",
    "optimize",
    "publish",
    "recorded",
    "run_alone",
    "scan_here",
    "skipped",
]


def optimize(
    settings: Settings,
    *,
    force: bool = False,
    accept: bool = False,
    tick: int | None = None,
    use_cache: bool = True,
    progress: Progress | None = None,
    time_limit_error: type[Exception] = TimeoutError,
) -> Report:
    """Do one run in this process.

    Args:
        settings: All settings.
        force: Scan though nothing changed.
        accept: Publish an input though too many of its records or bots are rejected.
        tick: The number of the scheduled tick (time / interval), of which only one run is made; `None` for a run by
            hand, which ignores ticks.
        use_cache: False to leave Redis alone: files only.
        progress: Called after each chunk with compressed bytes read and bytes in all.
        time_limit_error: What a time limit of the caller's raises amid the run; it is reported as `RunTimedOut`.

    Returns:
        What was done: `success`, `unchanged`, or `skipped` with the reason.

    Raises:
        RollingError: Nothing was published, and why. The failure is in the stream of runs too.
    """
    with recorded(settings, use_cache=use_cache, time_limit_error=time_limit_error) as publisher:
        if tick is not None and not publisher.take_tick(tick):
            return skipped(settings, "tick_taken")
        report = run_alone(settings, publisher, progress, force=force, accept=accept)
        publisher.record(report)
        return report


def run_alone(
    settings: Settings, publisher: Publisher, progress: Progress | None, *, force: bool, accept: bool
) -> Report:
    """One run under the lock."""
    with alone(settings, publisher) as is_alone:
        if not is_alone:
            return skipped(settings, "already_running")
        return confirm_or_scan(settings, publisher, progress, force=force, accept=accept)


def confirm_or_scan(
    settings: Settings, publisher: Publisher, progress: Progress | None, *, force: bool, accept: bool
) -> Report:
    """Look at the input; confirm what has not changed, else scan it here and publish."""
    with closing(open_input(settings)) as rolling:
        report = None if force else confirm(settings, publisher, rolling)
        return report or scan_here(settings, publisher, rolling, progress, force=force, accept=accept)


@contextmanager
def recorded(
    settings: Settings, *, use_cache: bool = True, time_limit_error: type[Exception] = TimeoutError
) -> Iterator[Publisher]:
    """What every run has round it: its view of Redis, and a report in the stream where it fails.

    Raises:
        RunTimedOut: In place of the caller's time limit.
    """
    started = time.monotonic()
    with Publisher(settings, use_cache=use_cache) as publisher:
        try:
            yield publisher
        except time_limit_error as error:
            timed_out = RunTimedOut(
                f"the run was ended by its time limit, after {time.monotonic() - started:.0f} s; raise "
                "ROLLING_INTERVAL_S, or see why the scan is slow: rolling-optimizer run --force shows its rate"
            )
            publisher.record(failed_report(settings, timed_out))
            raise timed_out from error
        except Exception as error:  # a bug too is a failed run that operators must see
            publisher.record(failed_report(settings, error))
            raise


@contextmanager
def alone(settings: Settings, publisher: Publisher, handed: str | None = None, *, run_id: str = "") -> Iterator[bool]:
    """Hold the locks of the directory and of the source; yield whether this is the only run.

    Redis decides where it can: a run that was stopped and has lost its lock there still holds the directory's. An
    object store has no lock and is always free; see `remote_snapshots.py` for two runs there without Redis.
    """
    with (
        snapshot_store(settings.output_dir).lock() as directory_is_free,
        publisher.lock(handed, run_id=run_id) as source_is_free,
    ):
        before = snapshot_store(settings.output_dir).read_manifest()
        publisher.start_from(before.version if before else 0)
        yield directory_is_free if source_is_free is None else source_is_free


def confirm(settings: Settings, publisher: Publisher, rolling: Input) -> Report | None:
    """Where nothing has changed, confirm the current set, and give it to Redis where that has none or an older one.

    Returns:
        The report; `None` where there is something to scan: a change, files that are not whole, or a Redis that shows
        another set that is as new as theirs.
    """
    manifest = snapshot_store(settings.output_dir).read_manifest()
    if manifest is None or manifest.fingerprint != rolling.fingerprint:
        return None
    snapshots = snapshot_store(settings.output_dir).read_set(manifest=manifest)
    if snapshots is None:
        return None
    standing = publisher.compare(snapshots.manifest)
    if standing == "other":
        return None
    if standing == "current" and publisher.shows(snapshots):
        publisher.mark_checked()
        done = "current"
    else:
        publisher.publish(snapshots)
        done = "republished"
    snapshot_store(settings.output_dir).mark_checked()
    publisher.keep_parts([part.digest for part in rolling.parts])
    return Report(
        "unchanged",
        settings.source,
        _now(),
        version=max(manifest.version, publisher.version_before),
        cache=publisher.outcome(done),
        rejected=manifest.rejected,
    )


def scan_here(
    settings: Settings, publisher: Publisher, rolling: Input, progress: Progress | None, *, force: bool, accept: bool
) -> Report:
    """Scan the input in this process, and publish what it holds."""
    watched = publisher.watched(progress)
    scanned = rolling.scan(choose_engine(settings.engine), publisher, watched, force=force)
    return publish(settings, publisher, scanned, accept=accept)


def publish(settings: Settings, publisher: Publisher, scanned: Scanned, *, accept: bool) -> Report:
    """Select, write the files, then Redis; the lock is checked before either shows anything."""
    found = scanned.found
    check_plausible(
        found,
        input_name=str(settings.input),
        bots_dir=None if settings.bots_dir is None else str(settings.bots_dir),
        max_rejected_percent=settings.max_rejected_percent,
        accept=accept,
    )
    ranked = found.selection.finish()
    newest = max(publisher.newest_version(), publisher.newest_before)
    snapshots = encode_set(
        source=settings.source,
        version=max(time.time_ns() // 1_000_000, newest + 1),
        generated_at=_now(),
        fingerprint=scanned.fingerprint,
        ranked=ranked,
        predictions=top(ranked, limit=settings.top_symbols_limit, min_confidence=settings.min_confidence),
        bots=summaries(found.bots),
        holdings=holdings(found.bots),
        rejected=found.rejected,
        gzip_level=settings.gzip_level,
    )
    snapshot_store(settings.output_dir).write(
        snapshots, replaced=publisher.newest_before, before_commit=publisher.check_superseded
    )
    publisher.publish(snapshots)
    publisher.keep_parts([part.digest for part in scanned.parts])
    return Report(
        "success",
        settings.source,
        snapshots.manifest.generated_at,
        version=snapshots.manifest.version,
        cache=publisher.outcome("published"),
        stats=_stats(scanned, snapshots),
        rejects=found.tallies(),
        rejected=found.rejected,
    )


def _stats(scanned: Scanned, snapshots: SnapshotSet) -> Stats:
    counts = {kind: entry.count for kind, entry in snapshots.manifest.snapshots.items()}
    found = scanned.found
    seconds = max(0.001, time.time() - scanned.began_s)
    return Stats(
        predictions_extracted=counts["predictions"],
        bots_processed=counts["bots"],
        portfolio_holdings=counts["portfolio"],
        records_seen=found.records_seen,
        records_rejected=found.records_rejected,
        duplicates=found.duplicates,
        symbols_ignored=found.symbols_ignored,
        input_bytes=scanned.input_bytes,
        json_bytes=found.json_bytes,
        seconds=round(seconds, 3),
        json_mb_per_s=round(found.json_bytes / 1e6 / seconds, 1),
        peak_rss_mb=round(max(peak_rss_mb(), scanned.peak_rss_mb), 1),
        engine=scanned.engine,
        parts=max(1, len(scanned.parts)),
        parts_scanned=scanned.parts_scanned,
        bots_seen=found.bots_seen,
        bots_rejected=found.bots_rejected,
    )


def failed_report(settings: Settings, error: Exception) -> Report:
    """The report of a run that failed."""
    return Report("failed", settings.source, _now(), error=type(error).__name__, details=str(error))


def skipped(settings: Settings, reason: str) -> Report:
    """The report of a run that had nothing to do."""
    return Report("skipped", settings.source, _now(), reason=reason)


def _now() -> str:
    return text_of(time.time())
