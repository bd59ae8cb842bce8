"""The tasks: like web views, they take settings, make one call into `optimizer.pipeline.distributed`, and report.

`optimize_rolling_data` is what beat, Flower and people send. It is light, and goes to its source's queue. What has to
be scanned goes to the queue of scans, under the same task id: whoever waits for the run finds its report there.
"""

from __future__ import annotations

import gc
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import msgspec
from celery import chord
from celery.exceptions import BackendError, Ignore, SoftTimeLimitExceeded
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from optimizer.cache.lock import dispatch_ttl_s
from optimizer.celery.app import app
from optimizer.celery.queues import SCAN_QUEUE, source_queue
from optimizer.config.redis_url import redact_url
from optimizer.config.settings import Settings
from optimizer.errors import CacheUnavailable, RollingError, RunLost, SettingsInvalid
from optimizer.models import Report
from optimizer.pipeline.distributed import Assignment, PartOutcome, begin, merge_parts, scan_file, scan_one_part
from optimizer.pipeline.parts import Progress

if TYPE_CHECKING:
    from celery import Signature, Task

__all__ = ["TASK_NAME", "merge_rolling_parts", "optimize_rolling_data", "scan_rolling_file", "scan_rolling_part"]

TASK_NAME: Final = "tasks.optimize_rolling_data"
PROGRESS_EVERY_S: Final = 1.0

_log = logging.getLogger(__name__)

# `throws`: these are outcomes, logged in one line of ours; anything else is a bug and gets its traceback.
# The default of 1,024 characters would cut the report that Flower shows.
_OPTIONS: Final = {"bind": True, "throws": (RollingError,), "resultrepr_maxsize": 16_384}


# `typing`: arguments that do not fit are to be a failed task that Flower shows, not an error 500 of its own.
@app.task(name=TASK_NAME, typing=False, **_OPTIONS)
def optimize_rolling_data(
    self: Task, force: bool = False, scheduled: bool = False, source: str | None = None, accept: bool = False
) -> dict[str, Any]:
    """Begin a run, and return its report if there was nothing to scan.

    Args:
        self: The task, for its id and state.
        force: Scan though nothing changed.
        scheduled: Sent by beat: take the tick, of which only one run is made. A run by hand ignores ticks.
        source: Which of several sources; may be left out where there is one.
        accept: Publish an input though too many of its records or bots are rejected.

    Raises:
        RollingError: The run failed; the old snapshots are as they were. The next tick is the retry.
        Ignore: The run goes on elsewhere, under this task's id.
    """
    with _told():
        for name, value in (("force", force), ("scheduled", scheduled), ("accept", accept)):
            if not isinstance(value, bool):
                raise SettingsInvalid(f"{name}={value!r} is not true or false")
        settings = Settings.from_env(os.environ, source)
        report = begin(
            settings,
            _hand_out(settings, self),
            run_id=self.request.id,
            force=force,
            accept=accept,
            tick=int(time.time() // settings.interval_s) if scheduled else None,
            progress=_progress(self),
            time_limit_error=SoftTimeLimitExceeded,
            on_lost=_fail,
        )
    if report is None:
        # billiard describes each `Ignore` by copies of its frames' code, about 80 KB in cycles, too few objects for the
        # collector to come soon: a child grew by 60 MB. So the one before goes now.
        gc.collect()
        raise Ignore("its scan goes on under the same id")
    return _result(report)


@app.task(name="tasks.scan_rolling_file", **_OPTIONS)
def scan_rolling_file(self: Task, source: str, token: str) -> dict[str, Any]:
    """Scan the one file of a source, publish, and return the report.

    Raises:
        RollingError: The run failed.
    """
    with _told():
        settings = Settings.from_env(os.environ, source)
        report = scan_file(settings, token, progress=_progress(self), time_limit_error=SoftTimeLimitExceeded)
    return _result(report)


@app.task(name="tasks.scan_rolling_part", **_OPTIONS)
def scan_rolling_part(self: Task, source: str, token: str, location: str) -> dict[str, Any]:
    """Scan one part, and return what became of it. A failure too is a result: the merge has to hear of it."""
    try:
        settings, progress = Settings.from_env(os.environ, source), _progress(self)
        outcome = scan_one_part(settings, token, location, progress=progress, time_limit_error=SoftTimeLimitExceeded)
    except SettingsInvalid as error:
        outcome = PartOutcome(location, error=type(error).__name__, details=str(error))
    result: dict[str, Any] = msgspec.to_builtins(outcome)
    return result


@app.task(name="tasks.merge_rolling_parts", **_OPTIONS)
def merge_rolling_parts(
    self: Task,  # noqa: ARG001 - as the others
    outcomes: list[dict[str, Any]],
    source: str,
    token: str,
) -> dict[str, Any]:
    """Put the parts together, publish, and return the report.

    Raises:
        RollingError: The run failed.
    """
    with _told():
        settings = Settings.from_env(os.environ, source)
        report = merge_parts(settings, token, _of_parts(outcomes), time_limit_error=SoftTimeLimitExceeded)
    return _result(report)


def _of_parts(outcomes: list[dict[str, Any]]) -> list[PartOutcome]:
    """What came back of the parts; what is none of ours counts as nothing that came back."""
    try:
        return msgspec.convert(outcomes, list[PartOutcome])
    except msgspec.ValidationError:
        return []


def _hand_out(settings: Settings, task: Task) -> Callable[[Assignment], None]:
    """Send what there is to scan in place of the task: with its id, its time limits, and whatever is to follow it."""
    # What comes later is superseded anyway; and what comes late is in time, as long as the others of the run go on.
    options: dict[str, Any] = {"expires": dispatch_ttl_s(settings.interval_s)}
    if task.request.timelimit:
        options["time_limit"], options["soft_time_limit"] = task.request.timelimit

    def scans_of(assignment: Assignment) -> Signature:
        run = (settings.source, assignment.token)
        if not assignment.parts:
            return scan_rolling_file.s(*run).set(queue=SCAN_QUEUE, **options)
        scans = [
            scan_rolling_part.s(*run, assignment.parts[number].location).set(queue=SCAN_QUEUE, **options)
            for number in assignment.to_scan
        ]
        queue = source_queue(settings.source)
        limits = {name: options[name] for name in options.keys() - {"expires"}}
        return chord(scans, merge_rolling_parts.s(*run).set(queue=queue, **limits))

    def hand_out(assignment: Assignment) -> None:
        try:
            with suppress(Ignore):  # so Celery ends the task that was replaced; here it has a report to make first
                task.replace(scans_of(assignment))
        except (OperationalError, RedisError, OSError) as error:
            broker = redact_url(settings.broker_url)
            raise CacheUnavailable(f"the broker {broker} cannot be reached: {error}") from error

    return hand_out


def _fail(run_id: str, error: RunLost) -> None:
    """Let whoever waits for a lost run know."""
    try:
        app.backend.mark_as_failure(run_id, error)
    except (RedisError, OperationalError, BackendError, OSError) as failure:
        _log.warning("who waits for %s is not told that it is lost: %s", run_id, failure)


def _result(report: Report) -> dict[str, Any]:
    if report.status == "success":
        _log.info("[RollingOptimizer] ✅ Optimized: %s", msgspec.json.encode(report.stats).decode())
    else:
        _log.info("[RollingOptimizer] %s: %s", report.status, report.reason or f"version {report.version}")
    result: dict[str, Any] = msgspec.to_builtins(report)
    return result


@contextmanager
def _told() -> Iterator[None]:
    """Tell the log of a run that fails, in one line."""
    try:
        yield
    except RollingError as error:
        line = msgspec.json.encode({"error": type(error).__name__, "details": str(error)}).decode()
        _log.error("[RollingOptimizer] ⚠️ Optimization failed: %s", line)
        raise


def _progress(task: Task) -> Progress:
    """Report bytes read as the task's state, about once a second, until the result backend fails to take it."""
    due = time.monotonic() + PROGRESS_EVERY_S

    def report(done_bytes: int, total_bytes: int) -> None:
        nonlocal due
        if time.monotonic() < due:
            return
        due = time.monotonic() + PROGRESS_EVERY_S
        percent = round(100 * done_bytes / max(1, total_bytes), 1)
        meta = {"done_bytes": done_bytes, "total_bytes": total_bytes, "percent": percent}
        try:
            task.update_state(state="PROGRESS", meta=meta)
        except (RedisError, OperationalError, BackendError, OSError) as error:
            _log.warning("progress is no longer reported: %s", error)
            due = float("inf")

    return report
