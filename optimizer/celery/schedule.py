"""The names of the tasks, and what follows from the intervals of the sources: `beat_schedule`, a run's time limit."""

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
    """The time limit of a task that may run any of these sources, in whole seconds as Celery has it."""
    return round(max(settings.time_limit_s for settings in every))


def beat_entries(every: Sequence[Settings], options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """One entry of `beat_schedule` a source, with more options of its message."""
    return {
        f"optimize-rolling-data-{settings.source}": {
            "task": TASK_NAME,
            "schedule": settings.interval_s,
            "kwargs": {"scheduled": True, "source": settings.source},
            # Has an effect only inside `options`: a tick that no worker took in time is dropped, so ticks never
            # accumulate.
            "options": {"expires": settings.interval_s, **options},
        }
        for settings in every
    }
