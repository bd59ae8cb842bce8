"""A run distributed over several workers: how its parts are scanned and merged.

    run_source       confirms an unchanged input, else stores the assignment and sends the parts       (`run.py`)
    scan_one_part    scans one part and stores its result                        (many at the same time)
    merge_parts      merges the results and publishes                            (once all parts are scanned)

Invariant: one lock from the beginning to the publish. The run's assignment is in Redis under the lock's token, and
messages contain only the token. Workers that scan parts share the lock; the merge takes it over with a new token, so a
redelivered message cannot end the run twice. A worker that finds another assignment, or a version published since, does
nothing: its run is superseded.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from typing import Final

import msgspec

from optimizer.cache.client import CacheClient
from optimizer.cache.lock import SourceLock
from optimizer.cache.parts import PartStore
from optimizer.config.settings import Settings
from optimizer.config.tracing import enable, span
from optimizer.errors import CacheUnavailable, PartFailed, RollingError, RunTimedOut, SourceMissing
from optimizer.log import SourceLog
from optimizer.models import Manifest, PartResult, Report
from optimizer.pipeline.assignment import Assignment, dispatch_lock_ttl_s, end_assignment, is_current, read_assignment
from optimizer.pipeline.confirm import keep_pinned
from optimizer.pipeline.parts import (
    Part,
    Progress,
    ScannedInput,
    ScannedPart,
    merge_results,
    part_digest,
    scan_part,
)
from optimizer.pipeline.publish import publish
from optimizer.pipeline.run import run_locked, skipped
from optimizer.pipeline.session import Session
from optimizer.scan.engine import choose_engine
from optimizer.selection.result import ScanResult
from optimizer.selection.top_n import Selection

__all__ = ["PartOutcome", "merge_parts", "revoke", "scan_one_part"]

FAILURES_NAMED: Final = 3

_log = SourceLog(__name__)


class PartOutcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """How the scan of one part ended. A failure is an outcome too: the results of the other parts stay useful."""

    location: str
    scanned: ScannedPart | None = None
    error: str = ""
    details: str = ""


def scan_one_part(
    settings: Settings,
    token: str,
    location: str,
    *,
    progress: Progress | None = None,
    time_limit_error: type[Exception] = TimeoutError,
) -> PartOutcome:
    """Scan one part and store its result in Redis; any failure is returned in the outcome.

    Args:
        settings: All settings of the source.
        token: The run's token.
        location: The part.
        progress: As in `optimize`.
        time_limit_error: As in `optimize`.
    """
    started = time.monotonic()
    if settings.traces == "on":
        enable()
    try:
        with (
            Session(settings, use_cache=True) as session,
            session.lock(token, join_s=dispatch_lock_ttl_s(settings)) as is_held,
        ):
            assignment = read_assignment(session, token)
            if assignment is None or not is_held:
                return PartOutcome(location, error="Superseded", details="another run has taken its place")
            # A message must not make a worker read files outside the source.
            if location not in {part.location for part in assignment.parts}:
                raise SourceMissing(f"{location} is not one of the parts of {settings.input} that were sent")
            engine = choose_engine(settings.engine)
            with span("scan", source=settings.source, part=location, engine=engine.name) as step:
                scanned, _ = scan_part(settings, engine, location, session, session.watched(progress))
                step.set(json_bytes=scanned.json_bytes)
            if session.state != "up":
                raise CacheUnavailable(
                    f"{location}: what was found in it could not be kept in Redis: {session.problem}; the next tick "
                    "scans it again"
                )
            return PartOutcome(location, scanned)
    except RollingError as error:
        return PartOutcome(location, error=type(error).__name__, details=settings.reworded(str(error)))
    except time_limit_error:
        details = f"{location}: ended by the time limit after {time.monotonic() - started:.0f} s"
        return PartOutcome(location, error=RunTimedOut.__name__, details=details)
    except Exception as error:  # a bug: the run has to fail with a named error too
        _log.exception("the scan of %s failed", location, source=settings.source, error=error)
        return PartOutcome(location, error=type(error).__name__, details=f"{location}: {error}")


def merge_parts(
    settings: Settings,
    token: str,
    outcomes: Sequence[PartOutcome],
    *,
    time_limit_error: type[Exception] = TimeoutError,
) -> Report:
    """Merge the results of all parts, and publish.

    Args:
        settings: All settings of the source.
        token: The run's token.
        outcomes: How the scans of the parts that had to be read ended.
        time_limit_error: As in `optimize`.

    Raises:
        PartFailed: A part could not be scanned, or its result is gone; nothing is published.
        CacheUnavailable: Redis is away, so it is not known whether the run is still the current one.
        RollingError: The run failed otherwise.
    """

    def merge(session: Session, _before: Manifest | None) -> Report:
        assignment = read_assignment(session, token)
        if assignment is None:
            return skipped(settings, "superseded")
        try:
            pinned = keep_pinned(settings, session)
            if pinned is not None:
                return pinned
            if not is_current(session, assignment):
                return skipped(settings, "superseded")
            session.newest_before = max(session.newest_before, assignment.newest_before or 0)
            _check_outcomes(settings, assignment, outcomes)
            return publish(
                settings, session, _merged(settings, assignment, session, outcomes), accept=assignment.accept
            )
        finally:
            end_assignment(session, token)

    return run_locked(settings, merge, token=token, time_limit_error=time_limit_error)


def revoke(settings: Settings, run_id: str) -> None:
    """End a run, wherever it is: it can no longer publish or be continued, and the next one may begin at once.

    A scan in progress notices within some seconds.

    Raises:
        CacheUnavailable: Redis is away.
    """
    with closing(CacheClient(settings.redis_url, settings.source, settings.interval_s)) as cache:
        SourceLock(cache).revoke(run_id)


def _check_outcomes(settings: Settings, assignment: Assignment, outcomes: Sequence[PartOutcome]) -> None:
    expected = [assignment.parts[index].location for index in assignment.to_scan]
    if [outcome.location for outcome in outcomes] != expected:
        raise PartFailed(f"other parts of {settings.input} came back than were sent; they are scanned again")
    failed = [outcome for outcome in outcomes if outcome.scanned is None]
    if failed:
        named = "; ".join(f"{outcome.error}: {outcome.details}" for outcome in failed[:FAILURES_NAMED])
        more = "" if len(failed) <= FAILURES_NAMED else f"; and {len(failed) - FAILURES_NAMED} more"
        raise PartFailed(
            f"of {settings.input} {len(failed)} of {len(assignment.parts)} parts failed, the old snapshots stay: "
            f"{named}{more}"
        )


def _check_settings(settings: Settings, parts: Sequence[Part]) -> None:
    """Check that every part was scanned with the settings of this process: other results cannot be merged.

    Raises:
        PartFailed: A part was scanned with other settings.
    """
    for part in parts:
        if part.digest != part_digest(settings, part.location, part.fingerprint):
            raise PartFailed(
                f"{part.location}: scanned by a worker with other settings than the one that merges; give all workers "
                "the same ROLLING_FIELDS, ROLLING_BOT_FIELDS, ROLLING_POSITION_FIELDS, ROLLING_INDEX_SYMBOLS_LIMIT and "
                "ROLLING_MAX_RECORD_BYTES, and the same release"
            )


def _merged(
    settings: Settings, assignment: Assignment, session: Session, outcomes: Sequence[PartOutcome]
) -> ScannedInput:
    scanned = ScannedInput(
        ScanResult(Selection(settings.index_symbols_limit)), "", choose_engine(settings.engine).name, assignment.began_s
    )
    parts = list(assignment.parts)
    for index, outcome in zip(assignment.to_scan, outcomes, strict=True):
        assert outcome.scanned is not None  # noqa: S101 - checked before
        parts[index] = outcome.scanned.part
        scanned.count(outcome.scanned)
    _check_settings(settings, parts)
    stored = PartStore(session.cache).load([part.digest for part in parts])

    def result_of(part: Part) -> tuple[Part, PartResult]:
        result = session.ask(lambda: next(stored), absent=None)
        if result is None and session.state != "up":
            raise CacheUnavailable(
                f"{part.location}: Redis went away before what was found in it could be read: {session.problem}; the "
                "next tick goes on from the parts that it holds"
            )
        if result is None:
            raise PartFailed(f"{part.location}: what was found in it is gone from Redis, or damaged; does that evict?")
        return part, result

    merge_results(scanned, settings, session, parts, result_of)
    scanned.take_parts(settings, parts)
    return scanned
