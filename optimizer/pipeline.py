"""The whole line, in one screen.

    source -> scan (inflate, prune, decode) -> select -> snapshots -> files
                                                                 \\-> Redis

`optimize` is one run: once at a time, nothing done where nothing changed, nothing published that was not read to its
checked end. Everything that can go wrong is a `RollingError`, after which files and Redis are as they were.
"""

from __future__ import annotations

import hashlib
import logging
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from optimizer.botfiles import bots_fingerprint, read_bots
from optimizer.errors import NoRecords, RollingError, SourceError
from optimizer.publish import Publisher
from optimizer.records import Bot, Manifest, Record, Reject, RejectReason, RejectTally, Report, Stats
from optimizer.scan import scan
from optimizer.select import Selection, top
from optimizer.settings import Settings
from optimizer.snapshots import encode_set, mark_checked, output_lock, read_manifest, read_set, write_set
from optimizer.source import Source

__all__ = ["Progress", "failed_report", "optimize"]

# Compressed bytes read so far, and of how many.
Progress = Callable[[int, int], None]

# Part of the fingerprint: a new format of the snapshots makes them anew from an unchanged input.
FORMAT: Final = 1
ENGINE: Final = "ijson"
REJECTS_NAMED: Final = 3
MAX_BOTS: Final = 10_000

_log = logging.getLogger(__name__)


def optimize(
    settings: Settings,
    *,
    force: bool = False,
    tick: int | None = None,
    use_cache: bool = True,
    progress: Progress | None = None,
) -> Report:
    """Do one run.

    Args:
        settings: All settings.
        force: Scan though nothing changed.
        tick: The number of the scheduled tick (time / interval), of which only one run is made; `None` for a run by
            hand, which ignores ticks.
        use_cache: False to leave Redis alone: files only.
        progress: Called now and then with compressed bytes read and bytes in all.

    Returns:
        What was done: `success`, `unchanged`, or `skipped` with the reason.

    Raises:
        RollingError: Nothing was published, and why. The failure is in the stream of runs too.
    """
    with Publisher(settings, use_cache=use_cache) as publisher:
        if tick is not None and not publisher.take_tick(tick):
            return _skipped(settings, "tick_taken")
        try:
            report = _run_alone(settings, publisher, force, progress or _ignore)
        except RollingError as error:
            publisher.record(failed_report(settings, error))
            raise
        publisher.record(report)
        return report


def failed_report(settings: Settings, error: RollingError) -> Report:
    """The report of a run that failed."""
    return Report("failed", settings.source, _now(), error=type(error).__name__, details=str(error))


def _run_alone(settings: Settings, publisher: Publisher, force: bool, progress: Progress) -> Report:
    with output_lock(settings.output_dir) as directory_is_free, publisher.lock() as source_is_free:
        if not (directory_is_free and source_is_free):
            return _skipped(settings, "already_running")
        with Source(settings.input) as source:
            fingerprint = _fingerprint(source, settings)
            manifest = read_manifest(settings.output_dir)
            if not force and manifest is not None and manifest.fingerprint == fingerprint:
                report = _unchanged(settings, publisher, manifest)
                if report is not None:
                    return report
            return _rebuild(settings, publisher, source, fingerprint, manifest, progress)


def _rebuild(
    settings: Settings,
    publisher: Publisher,
    source: Source,
    fingerprint: str,
    before: Manifest | None,
    progress: Progress,
) -> Report:
    """Scan, select, write, publish."""
    started = time.monotonic()
    found = _collect(settings, source, progress)
    ranked = found.selection.ranked()
    now = _now()
    snapshots = encode_set(
        source=settings.source,
        version=max(time.time_ns() // 10**6, publisher.newest_version() + 1, before.version + 1 if before else 0),
        generated_at=now,
        fingerprint=fingerprint,
        ranked=ranked,
        predictions=top(ranked, limit=settings.top_symbols_limit, min_confidence=settings.min_confidence),
        bots=list(found.bots.values()),
        gzip_level=settings.gzip_level,
    )
    publisher.check_lock()
    write_set(settings.output_dir, snapshots)
    published = publisher.publish(snapshots, checked_at=now)
    seconds = time.monotonic() - started
    counts = {kind: entry.count for kind, entry in snapshots.manifest.snapshots.items()}
    return Report(
        "success",
        settings.source,
        now,
        version=snapshots.manifest.version,
        cache="published" if published else publisher.state,
        stats=Stats(
            predictions_extracted=counts["predictions"],
            bots_processed=counts["bots"],
            portfolio_holdings=counts["portfolio"],
            records_seen=found.records_seen,
            records_rejected=found.records_rejected,
            duplicates=found.selection.duplicates,
            input_bytes=source.size_bytes,
            json_bytes=found.json_bytes,
            seconds=round(seconds, 3),
            json_mb_per_s=round(found.json_bytes / 1e6 / seconds, 1),
            peak_rss_mb=_peak_rss_mb(),
            engine=ENGINE,
        ),
        rejects=found.tallies(),
    )


def _collect(settings: Settings, source: Source, progress: Progress) -> _Found:
    """Read the input to its checked end."""
    found = _Found(Selection(settings.index_symbols_limit))

    def counted() -> Iterator[bytes]:
        for chunk in source.chunks():
            found.json_bytes += len(chunk)
            progress(source.position_bytes, source.size_bytes)
            yield chunk

    try:
        for item in scan(counted(), max_record_bytes=settings.max_record_bytes):
            found.take(item)
    except SourceError as error:
        source.check_unchanged()  # a file that was written to explains whatever else is wrong with it
        if str(source.path) in str(error):
            raise
        raise type(error)(f"{source.path}: {error}") from error
    source.check_unchanged()
    if settings.bots_dir is not None:
        for bot in read_bots(settings.bots_dir, max_record_bytes=settings.max_record_bytes):
            found.take(bot)
    if found.records_seen == found.records_rejected:
        reasons = "; ".join(f"{tally.count:,} x {tally.reason} ({tally.first[0].details})" for tally in found.tallies())
        raise NoRecords(
            f"{source.path} holds no usable record: {found.records_seen:,} seen" + (f", {reasons}" if reasons else "")
        )
    return found


@dataclass
class _Found:
    """What a scan has found so far."""

    selection: Selection
    bots: dict[str, Bot] = field(default_factory=dict)
    rejects: dict[RejectReason, tuple[int, list[Reject]]] = field(default_factory=dict)
    records_seen: int = 0
    records_rejected: int = 0
    json_bytes: int = 0

    def take(self, item: Record | Bot | Reject) -> None:
        if isinstance(item, Record):
            self.records_seen += 1
            self.selection.add(item)
        elif isinstance(item, Reject):
            of_record = item.reason is not RejectReason.BOT
            self.records_seen += of_record
            self.records_rejected += of_record
            count, first = self.rejects.get(item.reason, (0, []))
            self.rejects[item.reason] = (count + 1, first if len(first) >= REJECTS_NAMED else [*first, item])
        elif len(self.bots) < MAX_BOTS or item.name in self.bots:
            self.bots[item.name] = item  # a bot file is newer than the section that names the same bot
        else:
            self.take(Reject(RejectReason.BOT, item.name, "", f"more than {MAX_BOTS:,} bots"))

    def tallies(self) -> list[RejectTally]:
        """Rejects by reason, the most frequent first."""
        ordered = sorted(self.rejects.items(), key=lambda entry: (-entry[1][0], entry[0]))
        return [RejectTally(reason, count, first) for reason, (count, first) in ordered]


def _unchanged(settings: Settings, publisher: Publisher, manifest: Manifest) -> Report | None:
    """Confirm the current set, and give it back to Redis where that lost it; `None` where the files are not whole."""
    snapshots = read_set(settings.output_dir)
    if snapshots is None:
        return None
    now = _now()
    if publisher.holds(manifest.fingerprint):
        publisher.mark_checked(now)
        cache = "current" if publisher.state == "up" else publisher.state
    else:
        cache = "republished" if publisher.publish(snapshots, checked_at=now) else publisher.state
    mark_checked(settings.output_dir)
    return Report("unchanged", settings.source, now, version=manifest.version, cache=cache)


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


def _skipped(settings: Settings, reason: str) -> Report:
    return Report("skipped", settings.source, _now(), reason=reason)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _peak_rss_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6, 1)


def _ignore(done_bytes: int, total_bytes: int) -> None:
    pass
