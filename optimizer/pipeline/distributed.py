"""One run in the hands of many: the same line as in `pipeline.py`, cut where work passes from process to process.

    begin          looks, confirms what has not changed, else hands out an Assignment    (light, each tick)
    scan_file      scans the one file of a source, and publishes                         (heavy)
    scan_one_part  scans one part of many, and keeps what it found in Redis              (heavy, many at once)
    merge_parts    puts together what was found, and publishes                           (light, when all are in)

Invariant: one lock from the beginning to the publish. What there is to do is noted in Redis (`handed`) under the
lock's token, and only the token travels. Those who scan parts keep the lock together; whoever ends the run takes it
over with a token of its own, so that of a message that came twice only one can. Where another run is noted by then, or
somebody has published since, the rest is superseded: it does nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from typing import Final

import msgspec

from optimizer.cache.client import UNREADABLE, CacheClient
from optimizer.cache.lock import LOCK_TTL_S, SourceLock
from optimizer.config.settings import Settings
from optimizer.errors import CacheUnavailable, PartFailed, RollingError, RunLost, RunTimedOut, SourceMissing
from optimizer.models import Findings, Report
from optimizer.pipeline.parts import (
    Part,
    Progress,
    Scanned,
    ScannedPart,
    gather,
    open_input,
    parts_fingerprint,
    read_kept,
    scan_part,
)
from optimizer.pipeline.run import alone, confirm, confirm_or_scan, failed_report, publish, recorded, scan_here, skipped
from optimizer.pipeline.session import Publisher
from optimizer.scan.engine import choose_engine
from optimizer.selection.result import Found
from optimizer.selection.top_n import Selection

__all__ = ["Assignment", "PartOutcome", "begin", "handover_s", "merge_parts", "revoke", "scan_file", "scan_one_part"]

FAILURES_NAMED: Final = 3
HANDOVER_MAX_S: Final = 120.0

_log = logging.getLogger(__name__)


class Assignment(msgspec.Struct, frozen=True):
    """A run that was handed out, as it is noted in Redis.

    `run_id` is whatever its sender knows it by, `token` that of its lock, `version_before` the version that it is to
    replace (0 for none), `newest_before` the newest one that Redis or the files had then (`None` in a message of an
    earlier release), `began_s` in seconds since the epoch. `parts` are all the parts of the source, by name, none
    where it is one file; `to_scan` are the numbers of those that have to be read.
    """

    run_id: str
    token: str
    version_before: int
    began_s: float
    force: bool
    parts: list[Part] = []
    to_scan: list[int] = []
    accept: bool = False
    newest_before: int | None = None


class PartOutcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of one part: it was scanned, or failed; a failure is a result, since the others' are still wanted."""

    location: str
    scanned: ScannedPart | None = None
    error: str = ""
    details: str = ""


_ASSIGNMENT = msgspec.json.Decoder(Assignment)


def handover_s(settings: Settings) -> float:
    """How long a run that was handed out keeps the others out while nobody works at it, in seconds."""
    return min(HANDOVER_MAX_S, max(LOCK_TTL_S, 0.9 * settings.interval_s))


def begin(
    settings: Settings,
    hand_out: Callable[[Assignment], None],
    *,
    run_id: str = "",
    force: bool = False,
    accept: bool = False,
    tick: int | None = None,
    progress: Progress | None = None,
    time_limit_error: type[Exception] = TimeoutError,
    on_lost: Callable[[str, RunLost], None] = lambda _id, _error: None,
) -> Report | None:
    """Begin a run; hand it out where there is something to scan.

    Where Redis is away there is nothing to hand it out by: then the scan is done here.

    Args:
        settings: All settings of the source.
        hand_out: Sends the assignment to those who scan.
        run_id: What the sender knows the run by.
        force: Scan though nothing changed.
        accept: Publish an input though too many of its records or bots are rejected.
        tick: The number of the scheduled tick; `None` for a run by hand.
        progress: As in `optimize`.
        time_limit_error: As in `optimize`.
        on_lost: Told of a run that was handed out before and has not come back.

    Returns:
        The report of a run that ended here, `None` for one that was handed out.

    Raises:
        RollingError: The run failed; the failure is in the stream of runs too.
    """
    with recorded(settings, time_limit_error=time_limit_error) as publisher:
        if tick is not None and not publisher.take_tick(tick):
            return skipped(settings, "tick_taken")
        with alone(settings, publisher, run_id=run_id) as is_alone:
            if is_alone:
                _tell_of_lost(settings, publisher, on_lost)
                report = _begin(settings, publisher, hand_out, run_id, progress, force=force, accept=accept)
            else:
                report = skipped(settings, "already_running")
        if report is not None:
            publisher.record(report)
        return report


def _begin(
    settings: Settings,
    publisher: Publisher,
    hand_out: Callable[[Assignment], None],
    run_id: str,
    progress: Progress | None,
    *,
    force: bool,
    accept: bool,
) -> Report | None:
    began_s = time.time()
    with closing(open_input(settings)) as rolling:
        report = None if force else confirm(settings, publisher, rolling)
        if report is not None:
            return report
        if publisher.state != "up":
            return scan_here(settings, publisher, rolling, progress, force=force, accept=accept)
        parts = list(rolling.parts)
        digests = [part.digest for part in parts]
        to_scan = [number for number, there in enumerate(publisher.keep_parts(digests)) if force or not there]
        if parts and not to_scan:  # what has changed is only that parts have gone, or the settings of the output
            return scan_here(settings, publisher, rolling, progress, force=False, accept=accept)
    assignment = Assignment(
        run_id=run_id,
        token=publisher.token,
        version_before=publisher.version_before,
        began_s=began_s,
        force=force,
        parts=parts,
        to_scan=to_scan,
        accept=accept,
        newest_before=publisher.newest_before,
    )
    with publisher.handing_out(msgspec.json.encode(assignment), handover_s(settings)):
        hand_out(assignment)
    return None


def _tell_of_lost(settings: Settings, publisher: Publisher, on_lost: Callable[[str, RunLost], None]) -> None:
    noted = publisher.take_lost()
    if noted is None:
        return
    lost = RunLost(
        "the scan of an earlier run has not come back: was its worker killed, or is there none, or none that is free, "
        "that takes the queue rolling.scan? See: celery -A tasks inspect active_queues"
    )
    _log.warning("[RollingOptimizer] ⚠️ %s", lost)
    publisher.record(failed_report(settings, lost))
    with suppress(*UNREADABLE):  # damaged: then it is not known whose it was
        on_lost(_ASSIGNMENT.decode(noted).run_id, lost)


def scan_file(
    settings: Settings,
    token: str,
    *,
    progress: Progress | None = None,
    time_limit_error: type[Exception] = TimeoutError,
) -> Report:
    """Scan the one file of a source, and publish.

    Args:
        settings: All settings of the source.
        token: That of the run.
        progress: As in `optimize`.
        time_limit_error: As in `optimize`.

    Raises:
        RollingError: The run failed; the old snapshots are as they were.
    """

    def work(publisher: Publisher, assignment: Assignment) -> Report:
        return confirm_or_scan(settings, publisher, progress, force=assignment.force, accept=assignment.accept)

    return _end_run(settings, token, time_limit_error, work)


def scan_one_part(
    settings: Settings,
    token: str,
    location: str,
    *,
    progress: Progress | None = None,
    time_limit_error: type[Exception] = TimeoutError,
) -> PartOutcome:
    """Scan one part, and keep in Redis what was found in it; whatever goes wrong is in the outcome.

    Args:
        settings: All settings of the source.
        token: That of the run.
        location: The part.
        progress: As in `optimize`.
        time_limit_error: As in `optimize`.
    """
    started = time.monotonic()
    try:
        with (
            Publisher(settings, use_cache=True) as publisher,
            publisher.lock(token, join_s=handover_s(settings)) as is_held,
        ):
            assignment = _assignment(publisher, token)
            if assignment is None or not is_held:
                return PartOutcome(location, error="Superseded", details="another run has taken its place")
            # A message must not make a worker read other files.
            if location not in {part.location for part in assignment.parts}:
                raise SourceMissing(f"{location} is not one of the parts of {settings.input} that were handed out")
            watched = publisher.watched(progress)
            scanned, _ = scan_part(settings, choose_engine(settings.engine), location, publisher, watched)
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
    token: str,
    outcomes: Sequence[PartOutcome],
    *,
    time_limit_error: type[Exception] = TimeoutError,
) -> Report:
    """Put together what was found in all parts, and publish.

    Args:
        settings: All settings of the source.
        token: That of the run.
        outcomes: What became of the parts that had to be read.
        time_limit_error: As in `optimize`.

    Raises:
        PartFailed: A part could not be scanned, or what was found in it is gone; nothing is published.
        RollingError: The run failed otherwise.
    """

    def work(publisher: Publisher, assignment: Assignment) -> Report:
        _check_parts(settings, assignment, outcomes)
        merged = _merged(settings, assignment, publisher, outcomes)
        return publish(settings, publisher, merged, accept=assignment.accept)

    return _end_run(settings, token, time_limit_error, work)


def revoke(settings: Settings, run_id: str) -> None:
    """End a run, wherever it is: it can no longer publish, or be handed on, and the next one may begin at once.

    A scan that is on notices within some seconds.

    Raises:
        CacheUnavailable: Redis is away.
    """
    with closing(CacheClient(settings.redis_url, settings.source, settings.interval_s)) as cache:
        SourceLock(cache).revoke(run_id)


def _end_run(
    settings: Settings,
    token: str,
    time_limit_error: type[Exception],
    work: Callable[[Publisher, Assignment], Report],
) -> Report:
    """Go on with a run, alone under its lock, and end it; where it was superseded, do nothing.

    Raises:
        CacheUnavailable: Redis is away, so that is not known.
    """
    with (
        recorded(settings, time_limit_error=time_limit_error) as publisher,
        alone(settings, publisher, token) as is_ours,
    ):
        assignment = _assignment(publisher, token)
        if not is_ours or assignment is None:
            report = skipped(settings, "superseded")
        else:
            try:
                is_newest = publisher.version_before == assignment.version_before and (
                    assignment.newest_before is None or publisher.newest_before <= assignment.newest_before
                )
                publisher.start_from(assignment.newest_before or 0)
                report = work(publisher, assignment) if is_newest else skipped(settings, "superseded")
            finally:
                publisher.end_handed(token)
        publisher.record(report)
        return report


def _assignment(publisher: Publisher, token: str) -> Assignment | None:
    """What there is to do in a run; `None` where it has ended, another took its place, or what is noted is damaged.

    Raises:
        CacheUnavailable: Redis is away, so that is not known.
    """
    noted = publisher.handed(token)
    try:
        return None if noted is None else _ASSIGNMENT.decode(noted)
    except UNREADABLE as error:
        _log.warning("[RollingOptimizer] damaged in Redis, so the next tick makes the run again: handed: %s", error)
        publisher.end_handed(token)
        return None


def _check_parts(settings: Settings, assignment: Assignment, outcomes: Sequence[PartOutcome]) -> None:
    expected = [assignment.parts[number].location for number in assignment.to_scan]
    if [outcome.location for outcome in outcomes] != expected:
        raise PartFailed(f"other parts of {settings.input} came back than were handed out; they are scanned again")
    failed = [outcome for outcome in outcomes if outcome.scanned is None]
    if failed:
        named = "; ".join(f"{outcome.error}: {outcome.details}" for outcome in failed[:FAILURES_NAMED])
        more = "" if len(failed) <= FAILURES_NAMED else f"; and {len(failed) - FAILURES_NAMED} more"
        raise PartFailed(
            f"of {settings.input} {len(failed)} of {len(assignment.parts)} parts failed, the old snapshots stay: "
            f"{named}{more}"
        )


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
        if findings is None and publisher.state != "up":
            raise CacheUnavailable(f"{part.location}: Redis went away before what was found in it could be read")
        if findings is None:
            raise PartFailed(f"{part.location}: what was found in it is gone from Redis, or damaged; does that evict?")
        return findings

    gather(settings, parts, find, found)
    scanned.parts, scanned.fingerprint = parts, parts_fingerprint(settings, parts)
    return scanned
