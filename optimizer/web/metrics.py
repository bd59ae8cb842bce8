"""Prometheus's text format, from what Redis holds: the same in every process, however many workers run.

No prometheus_client: its registry is for values that a process counts, and exports the web server's own as well; these
are a few values that other processes have counted, two lines each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final

from msgspec import UNSET

from optimizer.errors import GuardRefused, SnapshotMissing
from optimizer.models import Origin, Report
from optimizer.reader.follower import Follower
from optimizer.reader.results import InputTimes, last_decided

__all__ = ["MEDIA_TYPE", "render"]

MEDIA_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

Sample = tuple[Mapping[str, str], float]

_ESCAPES: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


def render(
    follower: Follower, runs: Sequence[Report], scans: Sequence[Report], reads: Mapping[Origin, int], listeners: int
) -> str:
    """All metrics.

    Args:
        follower: What the process's reader holds.
        runs: The newest reports, newest first.
        scans: The newest of a scan that was published.
        reads: Answers by origin.
        listeners: Clients of this process's events.
    """
    of_runs = (_last_run(runs), _last_scan(scans), _input(runs, scans))
    parts = (_snapshot(follower), *of_runs, _process(follower, reads, listeners))
    return "".join(text for part in parts for text in part)


def _snapshot(follower: Follower) -> Iterable[str]:
    try:
        state = follower.state()
    except SnapshotMissing:
        return
    yield _gauge("snapshot_version", "The current version.", state.version)
    yield _gauge("snapshot_generated_timestamp_seconds", "When it was made.", _seconds(state.generated_at))
    yield _gauge("snapshot_age_seconds", "Since a run last made or confirmed it.", state.age_s)
    yield _gauge("snapshot_stale", "1 where that is more than three intervals.", float(state.stale))
    yield _gauge("last_success_timestamp_seconds", "When a run last made or confirmed it.", _seconds(state.checked_at))
    yield _gauge("snapshot_pinned", "1 where it stays until it is unpinned.", float(state.pinned is not None))
    if state.pinned is not None:
        since = [({"by": state.pinned.by}, _seconds(state.pinned.at))]
        yield _metric("snapshot_pinned_timestamp_seconds", "gauge", "Since when, and by whom.", since)
    yield _gauge("updates_held", "Updates that hold until a scan of an input that is written later.", state.updates)
    if state.rejected is None:
        return
    for kind, units in (("records", state.rejected.records), ("bots", state.rejected.bots)):
        yield _gauge(f"{kind}_seen", f"All {kind} of the input that the current version was made from.", units.seen)
        yield _gauge(f"{kind}_rejected", "Those of them that it leaves out: they cannot be used.", units.rejected)
    empty = state.rejected.bots.without_fields
    yield _gauge("bots_without_fields", "Bots with no value in any field that is read.", 0 if empty is UNSET else empty)


def _last_run(runs: Sequence[Report]) -> Iterable[str]:
    if not runs:
        return
    yield _gauge("last_run_timestamp_seconds", "When the last run ended.", _seconds(runs[0].timestamp))
    statuses = ("success", "unchanged", "skipped", "failed")
    marks = [({"status": status}, float(status == runs[0].status)) for status in statuses]
    yield _metric("last_run_status", "gauge", "1 for what became of the last run.", marks)
    last = last_decided(runs)
    is_refused = last is not None and last.error == GuardRefused.__name__
    text = "1 where a guard refused the version of the last run that was not skipped."
    yield _gauge("guard_refused", text, float(is_refused))


def _last_scan(scans: Sequence[Report]) -> Iterable[str]:
    if not scans or scans[0].stats is None:
        return
    stats = scans[0].stats
    for name, text, value in (
        ("duration_seconds", "How long the last scan took.", stats.seconds),
        ("input_bytes", "Compressed bytes that it read.", stats.input_bytes),
        ("json_bytes", "Bytes of JSON that it read.", stats.json_bytes),
        ("json_bytes_per_second", "Its rate.", stats.json_mb_per_s * 1e6),
        ("peak_memory_bytes", "The peak of its process's memory so far.", stats.peak_rss_mb * 1e6),
        ("records", "Records that it saw.", stats.records_seen),
        ("duplicates", "Records whose symbol it had seen.", stats.duplicates),
        ("symbols_ignored", "Records whose own symbol is not their key, which counts.", stats.symbols_ignored),
        ("extras_dropped", "Values of extra fields that cannot be passed on.", stats.extras_dropped),
        ("predictions", "Records in the snapshot.", stats.predictions_extracted),
        ("bots", "Bots in the snapshot.", stats.bots_processed),
        ("holdings", "Holdings in the snapshot.", stats.portfolio_holdings),
    ):
        yield _gauge(f"last_scan_{name}", text, value)
    rejected = [({"reason": str(tally.reason)}, float(tally.count)) for tally in scans[0].rejects]
    yield _metric("last_scan_rejected", "gauge", "What it rejected, by reason.", rejected)


def _input(runs: Sequence[Report], scans: Sequence[Report]) -> Iterable[str]:
    times = InputTimes.of(runs, scans)
    if times.input_age_s is not None:
        text = "Since the last write to the input that a run published or confirmed last."
        yield _gauge("input_age_seconds", text, times.input_age_s)
    if times.published_after_s is not None:
        text = "From the landing of the last new input until its version could be read."
        yield _gauge("published_after_seconds", text, times.published_after_s)


def _process(follower: Follower, reads: Mapping[Origin, int], listeners: int) -> Iterable[str]:
    yield _gauge("cache_up", "1 where Redis answers this process.", float(follower.redis.up))
    counts = [({"origin": origin}, float(count)) for origin, count in reads.items()]
    yield _metric("reads_total", "counter", "Answers over HTTP by where their version is from.", counts)
    yield _gauge("event_listeners", "Clients of this process's events.", listeners)


def _gauge(name: str, text: str, value: float) -> str:
    return _metric(name, "gauge", text, [({}, value)])


def _metric(name: str, kind: str, text: str, samples: Iterable[Sample]) -> str:
    """A metric with its samples."""
    lines = [f"# HELP rolling_{name} {text}", f"# TYPE rolling_{name} {kind}"]
    for labels, value in samples:
        shown = ",".join(f'{label}="{content.translate(_ESCAPES)}"' for label, content in labels.items())
        number = int(value) if float(value).is_integer() else value
        lines.append(f"rolling_{name}{{{shown}}} {number}" if shown else f"rolling_{name} {number}")
    return "\n".join(lines) + "\n"


def _seconds(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp).timestamp()
