"""The whole line; `_run_alone` is it in one screen.

    source -> scan (inflate, prune, decode) -> select -> snapshots -> files -> Redis

`optimize` is one run: one at a time, nothing done where nothing changed, nothing published that was not read to its
checked end. Everything that can go wrong is a `RollingError`, after which files and Redis are as they were.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import Final

from optimizer.ahead import read_ahead
from optimizer.botfiles import bots_fingerprint, read_bots
from optimizer.collect import Found
from optimizer.engine import Engine, choose_engine
from optimizer.errors import NoRecords, RunTimedOut, SourceError
from optimizer.memory import peak_rss_mb
from optimizer.outputs import mark_checked, output_lock, read_manifest, read_set, write_set
from optimizer.publish import Publisher
from optimizer.records import Manifest, Report, Stats
from optimizer.scan import scan
from optimizer.select import Selection, top
from optimizer.settings import Settings
from optimizer.snapshots import SnapshotSet, encode_set
from optimizer.source import Source, open_source

__all__ = ["Progress", "collect", "failed_report", "optimize"]

# Compressed bytes read so far, and of how many.
Progress = Callable[[int, int], None]

# Part of the fingerprint: a new format of the snapshots makes them anew from an unchanged input.
FORMAT: Final = 1


def optimize(
    settings: Settings,
    *,
    force: bool = False,
    tick: int | None = None,
    use_cache: bool = True,
    progress: Progress | None = None,
    time_limit_error: type[Exception] = TimeoutError,
) -> Report:
    """Do one run.

    Args:
        settings: All settings.
        force: Scan though nothing changed.
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
    started = time.monotonic()
    with Publisher(settings, use_cache=use_cache) as publisher:
        if tick is not None and not publisher.take_tick(tick):
            return _skipped(settings, "tick_taken")
        try:
            report = _run_alone(settings, publisher, progress, force=force)
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
        publisher.record(report)
        return report


def _run_alone(settings: Settings, publisher: Publisher, progress: Progress | None, *, force: bool) -> Report:
    started = time.monotonic()
    engine = choose_engine(settings.engine)
    with output_lock(settings.output_dir) as directory_is_free, publisher.lock() as source_is_free:
        # Redis decides where it can: a run that was stopped and has lost its lock there still holds the directory's.
        # An object store has no lock and is always free. See `remote_snapshots.py` for two runs there without Redis.
        if not (directory_is_free if source_is_free is None else source_is_free):
            return _skipped(settings, "already_running")
        with open_source(settings.input) as source:
            fingerprint = _fingerprint(source, settings)
            before = read_manifest(settings.output_dir)
            if before is not None and before.fingerprint == fingerprint and not force:
                report = _confirm(settings, publisher, before)
                if report is not None:
                    return report
            found = Found(Selection(settings.index_symbols_limit))
            collect(settings, engine, source, found, progress)
            input_bytes = source.size_bytes
        snapshots = _encode(settings, found, fingerprint, newest=max(publisher.newest_version(), _version(before)))
        write_set(settings.output_dir, snapshots, fence=publisher.check_lock)
        publisher.publish(snapshots, checked_at=snapshots.manifest.generated_at)
    return Report(
        "success",
        settings.source,
        snapshots.manifest.generated_at,
        version=snapshots.manifest.version,
        cache=publisher.outcome("published"),
        stats=_stats(found, snapshots, engine, input_bytes, time.monotonic() - started),
        rejects=found.tallies(),
    )


def collect(settings: Settings, engine: Engine, source: Source, found: Found, progress: Progress | None) -> None:
    """Read the input to its checked end, and the bot files."""

    def counted(chunks: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            found.json_bytes += len(chunk)
            if progress is not None:
                progress(source.position_bytes, source.size_bytes)
            yield chunk

    chunks = source.chunks(engine.chunk_bytes)
    try:
        with read_ahead(chunks) if engine.ahead else closing(chunks) as ahead:
            for item in scan(counted(ahead), engine, max_record_bytes=settings.max_record_bytes):
                found.take(item)
    except SourceError as error:
        source.check_unchanged()  # a file that was written to explains whatever else is wrong with it
        raise type(error)(f"{source.path}: {error}") from error
    source.check_unchanged()
    if settings.bots_dir is not None:
        # After the input: a bot file is newer than the section that names the same bot.
        for bot in read_bots(settings.bots_dir, max_record_bytes=settings.max_record_bytes):
            found.take(bot)
    if not found.records_used:
        raise NoRecords(f"{source.path} holds no usable record, the old snapshots stay: {found.summary()}")


def _encode(settings: Settings, found: Found, fingerprint: str, *, newest: int) -> SnapshotSet:
    ranked = found.selection.finish()
    return encode_set(
        source=settings.source,
        version=max(time.time_ns() // 1_000_000, newest + 1),
        generated_at=_now(),
        fingerprint=fingerprint,
        ranked=ranked,
        predictions=top(ranked, limit=settings.top_symbols_limit, min_confidence=settings.min_confidence),
        bots=found.bots,
        gzip_level=settings.gzip_level,
    )


def _confirm(settings: Settings, publisher: Publisher, manifest: Manifest) -> Report | None:
    """Confirm the current set, and give it back to Redis where that lost it; `None` where the files are not whole."""
    snapshots = read_set(settings.output_dir)
    if snapshots is None:
        return None
    now = _now()
    if publisher.holds(manifest.fingerprint):
        publisher.mark_checked(now)
        done = "current"
    else:
        publisher.publish(snapshots, checked_at=now)
        done = "republished"
    mark_checked(settings.output_dir)
    return Report("unchanged", settings.source, now, version=manifest.version, cache=publisher.outcome(done))


def _fingerprint(source: Source, settings: Settings) -> str:
    """What the snapshots depend on: the input, the bot files, and the settings that shape the output."""
    options = (
        FORMAT,
        settings.top_symbols_limit,
        settings.min_confidence,
        settings.index_symbols_limit,
        settings.gzip_level,
        settings.max_record_bytes,
    )
    bots = bots_fingerprint(settings.bots_dir) if settings.bots_dir else "none"
    return f"{source.fingerprint}+bots-{bots}+options-{hashlib.sha256(repr(options).encode()).hexdigest()[:16]}"


def _stats(found: Found, snapshots: SnapshotSet, engine: Engine, input_bytes: int, seconds: float) -> Stats:
    counts = {kind: entry.count for kind, entry in snapshots.manifest.snapshots.items()}
    return Stats(
        predictions_extracted=counts["predictions"],
        bots_processed=counts["bots"],
        portfolio_holdings=counts["portfolio"],
        records_seen=found.records_seen,
        records_rejected=found.records_rejected,
        duplicates=found.selection.duplicates,
        input_bytes=input_bytes,
        json_bytes=found.json_bytes,
        seconds=round(seconds, 3),
        json_mb_per_s=round(found.json_bytes / 1e6 / seconds, 1),
        peak_rss_mb=round(peak_rss_mb(), 1),
        engine=engine.name,
    )


def failed_report(settings: Settings, error: Exception) -> Report:
    """The report of a run that failed."""
    return Report("failed", settings.source, _now(), error=type(error).__name__, details=str(error))


def _skipped(settings: Settings, reason: str) -> Report:
    return Report("skipped", settings.source, _now(), reason=reason)


def _version(manifest: Manifest | None) -> int:
    return manifest.version if manifest else 0


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
