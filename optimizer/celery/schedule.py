"""The names of the tasks, and the values derived from the sources' intervals: `beat_schedule`, a run's time limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from optimizer.config.settings import Settings

__all__ = ["MERGE_TASK", "SCAN_TASK", "TASK_NAME", "UPDATE_TASK", "beat_entries", "time_limit_s"]

TASK_NAME: Final = "tasks.optimize_rolling_data"
SCAN_TASK: Final = "tasks.scan_rolling_part"
MERGE_TASK: Final = "tasks.merge_rolling_parts"
UPDATE_TASK: Final = "tasks.update_predictions"


def time_limit_s(every: Sequence[Settings]) -> int:
    """Return the time limit of a task that may run any of these sources, in whole seconds as Celery expects."""
    return round(max(settings.time_limit_s for settings in every))


def beat_entries(every: Sequence[Settings], options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return one entry of `beat_schedule` per source, with further options of its message."""
    return {
        f"optimize-rolling-data-{settings.source}": {
            "task": TASK_NAME,
            "schedule": settings.interval_s,
            "kwargs": {"scheduled": True, "source": settings.source},
            # Only effective inside `options`: a tick that no worker received in time is dropped, so that ticks never
            # accumulate.
            "options": {"expires": settings.interval_s, **options},
        }
        for settings in every
    }
