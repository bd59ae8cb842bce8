"""The names of the tasks and of their queues, and what follows from intervals: the entries of beat, time limits.

There is one queue for the runs of each source, one for parts of all sources, and one for all updates. A run scans a
single file itself, in its source's queue: of several such sources on one worker, a run waits at most for one scan of
each other source until a slot is free, and ticks that come meanwhile expire. Parts of a source that has many go to
`rolling.scan`, which workers of their own may take (`-Q rolling.scan`): then runs and merges in the other queues wait
for no part. Updates go to `rolling.updates`: a worker of their own (`-Q rolling.updates`) lets them wait for no scan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from optimizer.config.settings import Settings

__all__ = [
    "MERGE_TASK",
    "SCAN_QUEUE",
    "SCAN_TASK",
    "TASK_NAME",
    "UPDATE_QUEUE",
    "UPDATE_TASK",
    "beat_entries",
    "source_queue",
    "time_limit_s",
]

TASK_NAME: Final = "tasks.optimize_rolling_data"
SCAN_TASK: Final = "tasks.scan_rolling_part"
MERGE_TASK: Final = "tasks.merge_rolling_parts"
UPDATE_TASK: Final = "tasks.update_predictions"

SCAN_QUEUE: Final = "rolling.scan"
UPDATE_QUEUE: Final = "rolling.updates"


def source_queue(source: str) -> str:
    """The queue of a source's runs."""
    return f"rolling.{source}"


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
