"""The metrics of the sources that a process serves, from the data in Redis.

So they are the same in every process, however many workers run. Each has the label `source`. Unknown values are left
out; while Redis is away, these are all values that only Redis has.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Final, Literal, get_args

from msgspec import UNSET

from optimizer.cache.clocks import seconds_of
from optimizer.errors import GuardRefused
from optimizer.models import Origin, Report
from optimizer.reader.diagnosis import Code, Facts, diagnose
from optimizer.reader.reports import last_decided, published_after_s
from optimizer.reader.results import State
from optimizer.web.exposition import Metric, expose

__all__ = ["Observed", "render"]

STATUSES: Final = ("success", "unchanged", "skipped", "failed")
KINDS: Final[tuple[Literal["worker", "beat"], ...]] = ("worker", "beat")
LEVELS: Final = ("ok", "warning", "bad")


@dataclass(frozen=True, kw_only=True, slots=True)
class Observed:
    """The data about a source at a scrape.

    `scans` has the newest report of a published scan; `outcomes` is the number of runs by status and error, and
    `memory` the bytes that Redis uses and may use; `None` if Redis does not return them. `reads` is the number of
    responses by origin, `listeners` the number of clients of this process's events.
    """

    facts: Facts
    scans: Sequence[Report]
    outcomes: Mapping[tuple[str, str], int] | None
    memory: tuple[int, int] | None
    reads: Mapping[Origin, int]
    listeners: int


def render(sources: Sequence[Observed]) -> str:
    """Return all metrics in Prometheus's text format."""
    labels = {"version": version("rolling-optimizer"), "python": platform.python_version()}
    build = Metric("build_info", "The release of the process that is asked, and its Python.", [(labels, 1)])
    return expose([build, *(metric for observed in sources for metric in _of_source(observed))])


def _of_source(observed: Observed) -> Iterator[Metric]:
    for part in (_diagnosis, _snapshot, _runs, _last_scan, _processes, _cache):
        for metric in part(observed):
            samples = [({"source": observed.facts.source, **labels}, value) for labels, value in metric.samples]
            yield metric._replace(samples=samples)


def _diagnosis(observed: Observed) -> Iterable[Metric]:
    diagnosis = diagnose(observed.facts)
    marks = [({"code": code}, float(code == diagnosis.code)) for code in get_args(Code)]
    yield Metric("diagnosis", "1 for what is wrong, or for ok; the page says it as a sentence.", marks)
    yield _gauge("diagnosis_level", "0 ok, 1 warning: what is shown is fresh, 2 bad.", LEVELS.index(diagnosis.level))
    text = "1 where no run has made or confirmed the version for three intervals, or there is none."
    yield _gauge("snapshot_stale", text, float(observed.facts.is_stale))


def _snapshot(observed: Observed) -> Iterable[Metric]:
    state = observed.facts.state
    if state is None:
        return
    yield _gauge("snapshot_version", "The current version.", state.version)
    yield _gauge("snapshot_generated_timestamp_seconds", "When it was made.", seconds_of(state.generated_at))
    yield _gauge("snapshot_age_seconds", "Since a run last made or confirmed it.", state.age_s)
    yield _gauge(
        "last_success_timestamp_seconds", "When a run last made or confirmed it.", seconds_of(state.checked_at)
    )
    yield _gauge("snapshot_pinned", "1 where it stays until it is unpinned.", float(state.pinned is not None))
    if state.pinned is not None:
        since = [({"by": state.pinned.by}, seconds_of(state.pinned.at))]
        yield Metric("snapshot_pinned_timestamp_seconds", "Since when, and by whom.", since)
    yield _gauge("updates_held", "Updates that hold until a scan of an input that is written later.", state.updates)
    if state.input_age_s is not None:
        text = "Since the last write to the input that the current version was made from."
        yield _gauge("input_age_seconds", text, state.input_age_s)
        yield _gauge("input_stale", "1 where that is more than ROLLING_MAX_INPUT_AGE_S.", float(state.input_stale))
    yield from _rejected(state)


def _rejected(state: State) -> Iterable[Metric]:
    if state.rejected is None:
        return
    for kind, units in (("records", state.rejected.records), ("bots", state.rejected.bots)):
        yield _gauge(f"{kind}_seen", f"All {kind} of the input that the current version was made from.", units.seen)
        yield _gauge(f"{kind}_rejected", "Those of them that it leaves out: they cannot be used.", units.rejected)
    empty = state.rejected.bots.without_fields
    yield _gauge("bots_without_fields", "Bots with no value in any field that is read.", 0 if empty is UNSET else empty)


def _runs(observed: Observed) -> Iterable[Metric]:
    if observed.outcomes is not None:
        outcomes = {(status, ""): 0 for status in STATUSES} | dict(observed.outcomes)
        counts = [({"status": status, "error": error}, float(number)) for (status, error), number in outcomes.items()]
        yield Metric("runs_total", "Runs that have ended, by status, and by error if they failed.", counts, "counter")
    facts = observed.facts
    runs, failures = facts.runs, facts.failures
    if not runs:
        return
    yield _gauge("last_run_timestamp_seconds", "When the last run ended.", seconds_of(runs[0].timestamp))
    marks = [({"status": status}, float(status == runs[0].status)) for status in STATUSES]
    yield Metric("last_run_status", "1 for what became of the last run.", marks)
    in_a_row = [({"error": failures[0].error or "" if failures else ""}, float(len(failures)))]
    text = "How many of the last runs have failed, all since one that did not; by the error of the last."
    yield Metric("runs_failed_in_a_row", text, in_a_row)
    last = last_decided(runs)
    is_refused = last is not None and last.error == GuardRefused.__name__
    text = "1 where a guard refused the version of the last run that was not skipped."
    yield _gauge("guard_refused", text, float(is_refused))


def _last_scan(observed: Observed) -> Iterable[Metric]:
    scans = observed.scans
    latency_s = published_after_s(observed.facts.runs, scans)
    if latency_s is not None:
        text = "From the landing of the last new input until its version could be read."
        yield _gauge("publish_latency_seconds", text, latency_s)
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
    if rejected:
        yield Metric("last_scan_rejected", "What it rejected, by reason.", rejected)


def _processes(observed: Observed) -> Iterable[Metric]:
    facts = observed.facts
    if not facts.redis_up:
        return
    yield _gauge("workers", "Workers that live and take the source's queue.", len(facts.workers))
    yield _gauge("beats", "Beats that live and send runs of the source.", len(facts.beats))
    seen = [({"kind": kind}, seconds_of(known[0].seen_at)) for kind in KINDS if (known := facts.of_kind(kind))]
    if seen:
        yield Metric("process_seen_timestamp_seconds", "When a worker or a beat told last that it lives.", seen)
    limits = [worker.memory_limit_bytes for worker in facts.workers if worker.memory_limit_bytes]
    if limits:
        text = "What a process that makes runs may use: the lowest limit of the workers that live."
        yield _gauge("worker_memory_limit_bytes", text, min(limits))


def _cache(observed: Observed) -> Iterable[Metric]:
    yield _gauge("cache_up", "1 where Redis answers this process.", float(observed.facts.redis_up))
    if observed.memory is not None:
        used, limit = observed.memory
        yield _gauge("cache_memory_bytes", "What Redis uses.", used)
        if limit:
            yield _gauge("cache_memory_limit_bytes", "What it may use: maxmemory.", limit)
    counts = [({"origin": origin}, float(count)) for origin, count in observed.reads.items()]
    yield Metric("reads_total", "Answers over HTTP by where their version is from.", counts, "counter")
    yield _gauge("event_listeners", "Clients of this process's events.", observed.listeners)


def _gauge(name: str, text: str, value: float) -> Metric:
    return Metric(name, text, [({}, value)])
