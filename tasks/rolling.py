"""The task: like a web view, it takes settings, makes one call, and reports."""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec
from celery.exceptions import BackendError, SoftTimeLimitExceeded
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from optimizer.errors import RollingError, SettingsInvalid
from optimizer.pipeline import Progress, optimize
from optimizer.settings import Settings
from tasks.celeryapp import app

if TYPE_CHECKING:
    from celery import Task

__all__ = ["TASK_NAME", "optimize_rolling_data"]

TASK_NAME: Final = "tasks.optimize_rolling_data"
PROGRESS_EVERY_S: Final = 1.0

_log = logging.getLogger(__name__)


# `throws`: these are outcomes, logged in one line of ours; anything else is a bug and gets its traceback.
# The default of 1,024 characters would cut the report that Flower shows. `typing`: arguments that do not fit are to be
# a failed task that Flower shows, not an error 500 of its own.
@app.task(bind=True, name=TASK_NAME, throws=(RollingError,), resultrepr_maxsize=16_384, typing=False)
def optimize_rolling_data(self: Task, force: bool = False, scheduled: bool = False) -> dict[str, Any]:
    """Do one run and return its report.

    Args:
        self: The task, for its id and state.
        force: Scan though nothing changed.
        scheduled: Sent by beat: take the tick, of which only one run is made. A run by hand ignores ticks.

    Raises:
        RollingError: The run failed; the old snapshots are as they were. The next tick is the retry.
    """
    try:
        for name, value in (("force", force), ("scheduled", scheduled)):
            if not isinstance(value, bool):
                raise SettingsInvalid(f"{name}={value!r} is not true or false")
        settings = Settings.from_env(os.environ)
        tick = int(time.time() // settings.interval_s) if scheduled else None
        report = optimize(
            settings, force=force, tick=tick, progress=_progress(self), time_limit_error=SoftTimeLimitExceeded
        )
    except RollingError as error:
        line = msgspec.json.encode({"error": type(error).__name__, "details": str(error)}).decode()
        _log.error("[RollingOptimizer] ⚠️ Optimization failed: %s", line)
        raise
    if report.status == "success":
        _log.info("[RollingOptimizer] ✅ Optimized: %s", msgspec.json.encode(report.stats).decode())
    else:
        _log.info("[RollingOptimizer] %s: %s", report.status, report.reason or f"version {report.version}")
    result: dict[str, Any] = msgspec.to_builtins(report)
    return result


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
