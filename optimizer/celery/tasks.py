"""The tasks: like web views, they read settings, make one call into `optimizer.pipeline`, and report.

`optimize_rolling_data` is sent by beat, Flower and users. It goes to its source's queue, and scans a single file
itself. For a source with many parts, it sends the changed parts to the queue of scans, and a merge that ends the run
under the same task id, so that the run's sender finds the report there. If the app's result backend cannot join tasks,
the run scans all parts itself. `update_predictions` is in `updates.py`.

The functions belong to no app: `bind_tasks` makes an app's tasks from them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec
from celery import Celery, chord
from celery.exceptions import Ignore, SoftTimeLimitExceeded
from celery.local import Proxy
from celery.signals import task_postrun
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from optimizer.cache.lock import dispatch_ttl_s
from optimizer.celery.backends import can_join, keeps_results
from optimizer.celery.run_states import FollowedRun
from optimizer.celery.schedule import MERGE_TASK, SCAN_TASK, TASK_NAME, UPDATE_TASK
from optimizer.celery.updates import update_predictions
from optimizer.config.settings import Settings
from optimizer.errors import CacheUnavailable, RollingError, RunLost, SettingsInvalid
from optimizer.log import SourceLog, logged_run
from optimizer.models import Report
from optimizer.pipeline.assignment import Assignment, Dispatcher
from optimizer.pipeline.distributed import PartOutcome, merge_parts, scan_one_part
from optimizer.pipeline.run import Progress, run_source
from optimizer.storage.redis_url import reason_of

if TYPE_CHECKING:
    from celery import Task

    from optimizer.celery.registration import Registration

__all__ = ["TASK_NAME", "bind_tasks", "task_of"]

PROGRESS_EVERY_S: Final = 1.0

_log = SourceLog(__name__)

# `throws`: these errors are outcomes, logged in one line; anything else is a bug and gets its traceback.
# `resultrepr_maxsize`: the default of 1,024 characters would cut the report that Flower shows.
# `shared`, `lazy`: the tasks belong only to this app, not to others that are finalized later.
_OPTIONS: Final = {
    "bind": True,
    "throws": (RollingError,),
    "resultrepr_maxsize": 16_384,
    "shared": False,
    "lazy": False,
}


def bind_tasks(registration: Registration, options: Mapping[str, Any]) -> None:
    """Make the tasks of a finalized app.

    Args:
        registration: The app, and its settings.
        options: Further attributes of the tasks.

    Raises:
        ValueError: The app has another task of the same name, which Celery would keep.
    """
    for name in (TASK_NAME, SCAN_TASK, MERGE_TASK, UPDATE_TASK):
        if theirs := registration.app.tasks.get(name):
            raise ValueError(
                f"the Celery app {registration.app.main!r} has a task {name} already, {theirs.__module__}."
                f"{theirs.__name__}: give it another name, by @app.task(name=...)"
            )
    common = {**_OPTIONS, **options, "registration": registration}
    # `typing`: wrong arguments have to be a failed task that Flower shows, not an error 500 of Flower.
    run = registration.app.task(name=TASK_NAME, typing=False, **common)(optimize_rolling_data)
    scan = registration.app.task(name=SCAN_TASK, **common)(scan_rolling_part)
    merge = registration.app.task(name=MERGE_TASK, **common)(merge_rolling_parts)
    update = registration.app.task(name=UPDATE_TASK, typing=False, **common)(update_predictions)
    for task in (run, scan, merge, update):
        # An annotation for all tasks of the app may have set one of the two limits, and Celery requires soft <= hard.
        if task.time_limit and task.soft_time_limit and task.soft_time_limit > task.time_limit:
            task.soft_time_limit = task.time_limit
    task_postrun.connect(_drop_traceback, sender=run)


def task_of(app: Celery, name: str) -> Any:
    """Return a task of an app; looked up when it is used, since the app then reads its settings."""
    return Proxy(lambda: app.tasks[name])


def optimize_rolling_data(
    self: Task, force: bool = False, scheduled: bool = False, source: str | None = None, accept: bool = False
) -> dict[str, Any]:
    """Do a run, and return its report.

    Args:
        self: The task, for its id and state.
        force: Scan even if nothing changed.
        scheduled: Whether beat sent it: it claims the tick, for which only one run is made. Manual runs ignore ticks.
        source: The source; may be omitted if there is only one.
        accept: Publish an input even if too many of its records or bots are rejected, or a guard refuses it.

    Raises:
        RollingError: The run failed; the old snapshots are unchanged. The next tick tries again.
        Ignore: Its parts were sent; the merge, which has this task's id, will report.
    """
    with logged_run(self.request.id), _failure_logged(source) as about:
        for name, value in (("force", force), ("scheduled", scheduled), ("accept", accept)):
            if not isinstance(value, bool):
                raise SettingsInvalid(f"{name}={value!r} is not true or false")
        registration, run_id = self.registration, self.request.id
        settings = registration.settings(source)
        about["source"] = settings.source
        may_send = can_join(self.app) and not self.request.is_eager
        with FollowedRun(registration, settings, "" if scheduled else run_id) as followed:
            registration.check_pool()
            followed.begin()
            report = run_source(
                settings,
                Dispatcher(
                    run_id,
                    _part_sender(settings, self) if may_send else None,
                    partial(_tell_lost, registration, settings),
                ),
                force=force,
                accept=accept,
                tick=int(time.time() // settings.interval_s) if scheduled else None,
                progress=_progress(self, settings.source, followed),
                time_limit_error=SoftTimeLimitExceeded,
            )
            followed.finish(report)
        if report is None:
            raise Ignore("its parts were sent, and the merge has the same id")
        return _result(report)


def _drop_traceback(retval: object, **_: Any) -> None:
    """Break the reference cycle of an `Ignore`, its traceback, and Celery's frame, which holds it.

    The cycle keeps billiard's copies of the frames' code, 80 KB in too few objects to trigger the collector soon: a
    child grew by 20 MB in 300 dispatched runs.
    """
    if isinstance(retval, Ignore):
        retval.__traceback__ = None


def scan_rolling_part(self: Task, source: str, token: str, location: str) -> dict[str, Any]:
    """Scan one part, and return its outcome. A failure is a result too, which the merge needs."""
    try:
        self.registration.check_pool()
        settings, progress = self.registration.settings(source), _progress(self, source)
        with logged_run(self.request.parent_id):  # the id of the run that sent it
            outcome = scan_one_part(
                settings, token, location, progress=progress, time_limit_error=SoftTimeLimitExceeded
            )
    except SettingsInvalid as error:
        outcome = PartOutcome(location, error=type(error).__name__, details=str(error))
    result: dict[str, Any] = msgspec.to_builtins(outcome)
    return result


def merge_rolling_parts(self: Task, outcomes: list[dict[str, Any]], source: str, token: str) -> dict[str, Any]:
    """Merge the results of the parts, publish, and return the report.

    Raises:
        RollingError: The run failed.
    """
    with logged_run(self.request.id), _failure_logged(source):
        settings = self.registration.settings(source)
        with FollowedRun(self.registration, settings, self.request.id) as followed:
            self.registration.check_pool()
            report = merge_parts(settings, token, _decode_outcomes(outcomes), time_limit_error=SoftTimeLimitExceeded)
            followed.finish(report)
        return _result(report)


def _decode_outcomes(outcomes: list[dict[str, Any]]) -> list[PartOutcome]:
    """Decode the outcomes in a message; none if it holds anything else, so that the merge fails with a named error."""
    try:
        return msgspec.convert(outcomes, list[PartOutcome])
    except msgspec.ValidationError:
        return []


def _part_sender(settings: Settings, task: Task) -> Callable[[Assignment], None]:
    """Return a function that replaces the task by a chord of scans and merge, with its id, limits and callbacks."""
    # After this, the run is superseded anyway; a late message is in time as long as other parts are being scanned.
    options: dict[str, Any] = {"expires": dispatch_ttl_s(settings.interval_s)}
    limits: dict[str, Any] = {}
    if task.request.timelimit:
        limits["time_limit"], limits["soft_time_limit"] = task.request.timelimit

    def send_parts(assignment: Assignment) -> None:
        of_run = (settings.source, assignment.token)
        tasks, registration = task.app.tasks, task.registration
        scans = [
            tasks[SCAN_TASK]
            .s(*of_run, assignment.parts[index].location)
            .set(**registration.scan_options(), **options, **limits)
            for index in assignment.to_scan
        ]
        merge = tasks[MERGE_TASK].s(*of_run).set(**registration.merge_options(settings.source), **limits)
        try:
            with suppress(Ignore):  # Celery raises it to end a replaced task; this one first releases its locks
                task.replace(chord(scans, merge, app=task.app))
        except (OperationalError, RedisError, OSError) as error:
            raise CacheUnavailable(
                f"the broker {registration.shown_broker()} cannot be reached: {reason_of(error)}; is it up? The next "
                "tick sends the parts again"
            ) from error

    return send_parts


def _tell_lost(registration: Registration, settings: Settings, run_id: str, error: RunLost) -> None:
    """Store the failure of a lost run, for which its sender may be waiting."""
    with FollowedRun(registration, settings, run_id) as followed:
        followed.fail(error)
    if not keeps_results(registration.app):
        return
    try:
        registration.app.backend.mark_as_failure(run_id, error)
    except SoftTimeLimitExceeded:
        raise
    except Exception as failure:  # any error of a backend, which must not fail the run that goes on here
        _log.warning("the sender of %s is not told that it is lost", run_id, source=settings.source, error=failure)


def _result(report: Report) -> dict[str, Any]:
    _log.run_ended(report)
    result: dict[str, Any] = msgspec.to_builtins(report)
    return result


@contextmanager
def _failure_logged(source: str | None) -> Iterator[dict[str, str | None]]:
    """Log a run that fails, in one line; the block replaces `source` once it is known."""
    about = {"source": source}
    try:
        yield about
    except RollingError as error:
        _log.run_failed(about["source"], error)
        raise


def _progress(task: Task, source: str, followed: FollowedRun | None = None) -> Progress:
    """Report bytes read as the task's state, about once a second, until the result backend fails to take it."""
    due = time.monotonic() + PROGRESS_EVERY_S

    def report(done_bytes: int, total_bytes: int) -> None:
        nonlocal due
        if time.monotonic() < due:
            return
        due = time.monotonic() + PROGRESS_EVERY_S
        percent = round(100 * done_bytes / max(1, total_bytes), 1)
        meta = {"done_bytes": done_bytes, "total_bytes": total_bytes, "percent": percent}
        if followed is not None:
            followed.progress(percent)
        try:
            task.update_state(state="PROGRESS", meta=meta)
        except SoftTimeLimitExceeded:
            raise
        except Exception as error:  # as above
            _log.warning("progress is no longer reported", source=source, error=error)
            due = float("inf")

    return report
