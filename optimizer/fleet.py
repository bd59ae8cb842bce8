"""One run in the hands of many: the same line as in `pipeline.py`, cut where work passes from process to process.

    begin          looks, confirms what has not changed, else hands out an Assignment    (light, each tick)
    scan_file      scans the one file of a source, and publishes                         (heavy)
    scan_one_part  scans one part of many, and keeps what it found in Redis              (heavy, many at once)
    merge_parts    puts together what was found, and publishes                           (light, when all are in)

Invariant: one lock from the beginning to the publish. Its token travels with the assignment; whoever works extends it,
and between two of them it lives on for a while by itself. Where it has gone to another run, or somebody has published
since, the rest of an assignment is superseded: it does nothing. So a lost assignment blocks the next tick for no longer
than `handover_s`, and one that is delivered twice publishes once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager

import msgspec

from optimizer.cache import LOCK_TTL_S
from optimizer.collect import Found
from optimizer.engine import choose_engine
from optimizer.errors import CacheUnavailable, PartFailed, RollingError, RunLost, RunTimedOut, SettingsInvalid
from optimizer.inputs import (
    Part,
    Progress,
    Scanned,
    ScannedPart,
    gather,
    is_part,
    open_input,
    parts_fingerprint,
    read_kept,
    scan_part,
)
from optimizer.pipeline import alone, confirm, failed_report, publish, recorded, scan_here, skipped
from optimizer.publish import Publisher
from optimizer.records import Findings, Report
from optimizer.select import Selection
from optimizer.settings import Settings

__all__ = ["Assignment", "PartOutcome", "begin", "handover_s", "merge_parts", "scan_file", "scan_one_part"]

FAILURES_NAMED = 3

_log = logging.getLogger(__name__)


class Assignment(msgspec.Struct, frozen=True):
    """A run that was handed out: small, and all that the others need to go on with it.

    `token` is that of its lock, `version_before` the version that it is to replace (0 for none), `began_s` in seconds
    since the epoch. `parts` are all the parts of the source, by name, none where it is one file; `to_scan` are the
    numbers of those that have to be read.
    """

    source: str
    token: str
    version_before: int
    began_s: float
    force: bool
    parts: list[Part] = []
    to_scan: list[int] = []


class PartOutcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of one part: it was scanned, or failed; a failure is a result, since the others' are still wanted."""

    location: str
    scanned: ScannedPart | None = None
    error: str = ""
    details: str = ""


def handover_s(settings: Settings) -> float:
    """How long an assignment may lie in a queue before the next tick takes its place."""
    return max(LOCK_TTL_S, 0.9 * settings.interval_s)


def begin(
    settings: Settings,
    hand_out: Callable[[Assignment], None],
    *,
    force: bool = False,
    tick: int | None = None,
    progress: Progress | None = None,
    time_limit_error: type[Exception] = TimeoutError,
) -> Report | None:
    """Begin a run; hand it out where there is something to scan.

    Where Redis is away there is nothing to hand it out by: then the scan is done here.

    Args:
        settings: All settings of the source.
        hand_out: Sends the assignment to those who scan.
        force: Scan though nothing changed.
        tick: The number of the scheduled tick; `None` for a run by hand.
        progress: As in `optimize`.
        time_limit_error: As in `optimize`.

    Returns:
        The report of a run that ended here, `None` for one that was handed out.

    Raises:
        RollingError: The run failed; the failure is in the stream of runs too.
    """
    with recorded(settings, time_limit_error=time_limit_error) as publisher:
        if tick is not None and not publisher.take_tick(tick):
            return skipped(settings, "tick_taken")
        report = _begin(settings, publisher, hand_out, progress, force=force)
        if report is not None:
            publisher.record(report)
        return report


def _begin(
    settings: Settings,
    publisher: Publisher,
    hand_out: Callable[[Assignment], None],
    progress: Progress | None,
    *,
    force: bool,
) -> Report | None:
    began_s = time.time()
    with alone(settings, publisher) as is_alone:
        if not is_alone:
            return skipped(settings, "already_running")
        with closing(open_input(settings)) as rolling:
            report = None if force else confirm(settings, publisher, rolling)
            if report is not None:
                return report
            if publisher.state != "up":
                return scan_here(settings, publisher, rolling, progress, force=force)
        if publisher.lost_a_run():
            lost = RunLost(
                "the scan of the last run has not come back and is made again: was its worker killed, or is there none "
                "that takes the queue rolling.scan? See: celery -A tasks inspect active_queues"
            )
            _log.warning("[RollingOptimizer] ⚠️ %s", lost)
            publisher.record(failed_report(settings, lost))
        kept = publisher.parts_kept([part.digest for part in rolling.parts])
        with publisher.handing_out(handover_s(settings)) as token:
            hand_out(
                Assignment(
                    settings.source,
                    token,
                    publisher.version_before,
                    began_s,
                    force,
                    list(rolling.parts),
                    [number for number, there in enumerate(kept) if force or not there],
                )
            )
        return None


def scan_file(
    settings: Settings,
    assignment: Assignment,
    *,
    progress: Progress | None = None,
    time_limit_error: type[Exception] = TimeoutError,
) -> Report:
    """Scan the one file of a source, and publish.

    Raises:
        RollingError: The run failed; the old snapshots are as they were.
    """
    with _going_on(settings, assignment, time_limit_error) as (publisher, is_ours):
        if is_ours:
            with closing(open_input(settings)) as rolling:
                unchanged = None if assignment.force else confirm(settings, publisher, rolling)
                report = unchanged or scan_here(settings, publisher, rolling, progress, force=assignment.force)
        else:
            report = skipped(settings, "superseded")
        publisher.record(report)
        return report


def scan_one_part(
    settings: Settings,
    assignment: Assignment,
    location: str,
    *,
    progress: Progress | None = None,
    time_limit_error: type[Exception] = TimeoutError,
) -> PartOutcome:
    """Scan one part, and keep in Redis what was found in it; whatever goes wrong is in the outcome.

    Args:
        settings: All settings of the source.
        assignment: The run, without its parts: they would go with each of them.
        location: The part.
        progress: As in `optimize`.
        time_limit_error: As in `optimize`.
    """
    started = time.monotonic()
    try:
        if not is_part(settings, location):  # a message must not make a worker read other files
            raise SettingsInvalid(f"{location} is not one of {settings.input}")
        with Publisher(settings, use_cache=True) as publisher, publisher.lock(assignment.token) as is_held:
            if is_held is False or publisher.version_before != assignment.version_before:
                return PartOutcome(location, error="Superseded", details="another run has taken its place")
            publisher.leave_lock(handover_s(settings))
            scanned, _ = scan_part(settings, choose_engine(settings.engine), location, publisher, progress)
            if publisher.state != "up":
                raise CacheUnavailable(f"{location}: what was found in it could not be kept in Redis")
            return PartOutcome(location, scanned)
    except RollingError as error:
        return PartOutcome(location, error=type(error).__name__, details=str(error))
    except time_limit_error:
        details = f"{location}: ended by the time limit after {time.monotonic() - started:.0f} s"
        return PartOutcome(location, error=RunTimedOut.__name__, details=details)
    except Exception as error:  # a bug: the run has to fail by name all the same
        _log.exception("[RollingOptimizer] the scan of %s failed", location)
        return PartOutcome(location, error=type(error).__name__, details=f"{location}: {error}")


def merge_parts(
    settings: Settings,
    assignment: Assignment,
    outcomes: Sequence[PartOutcome],
    *,
    time_limit_error: type[Exception] = TimeoutError,
) -> Report:
    """Put together what was found in all parts, and publish.

    Raises:
        PartFailed: A part could not be scanned, or what was found in it is gone; nothing is published.
        RollingError: The run failed otherwise.
    """
    with _going_on(settings, assignment, time_limit_error) as (publisher, is_ours):
        if is_ours:
            _check_parts(settings, outcomes)
            report = publish(settings, publisher, _merged(settings, assignment, publisher, outcomes))
        else:
            report = skipped(settings, "superseded")
        publisher.record(report)
        return report


@contextmanager
def _going_on(
    settings: Settings, assignment: Assignment, time_limit_error: type[Exception]
) -> Iterator[tuple[Publisher, bool]]:
    """Go on with a run under its lock, and end it; yield whether it is still the run that it was."""
    with recorded(settings, time_limit_error=time_limit_error) as publisher:
        try:
            with alone(settings, publisher, assignment.token) as is_alone:
                is_newest = publisher.state != "up" or publisher.version_before == assignment.version_before
                yield publisher, is_alone and is_newest
        finally:
            publisher.end_handed(assignment.token)


def _check_parts(settings: Settings, outcomes: Sequence[PartOutcome]) -> None:
    failed = [outcome for outcome in outcomes if outcome.scanned is None]
    if failed:
        named = "; ".join(f"{outcome.error}: {outcome.details}" for outcome in failed[:FAILURES_NAMED])
        more = "" if len(failed) <= FAILURES_NAMED else f"; and {len(failed) - FAILURES_NAMED} more"
        raise PartFailed(f"{len(failed)} parts of {settings.input} failed, the old snapshots stay: {named}{more}")


def _merged(
    settings: Settings, assignment: Assignment, publisher: Publisher, outcomes: Sequence[PartOutcome]
) -> Scanned:
    found = Found(Selection(settings.index_symbols_limit))
    scanned = Scanned(found, "", choose_engine(settings.engine).name, assignment.began_s)
    parts = list(assignment.parts)
    for number, outcome in zip(assignment.to_scan, outcomes, strict=True):
        assert outcome.scanned is not None  # noqa: S101 - checked before
        parts[number] = outcome.scanned.part
        scanned.add_read(outcome.scanned)

    def find(part: Part) -> Findings:
        findings = read_kept(publisher, part)
        if findings is None:
            raise PartFailed(f"{part.location}: what was found in it is gone from Redis; does that evict?")
        return findings

    gather(settings, parts, find, found)
    scanned.parts, scanned.fingerprint = parts, parts_fingerprint(settings, parts)
    return scanned
