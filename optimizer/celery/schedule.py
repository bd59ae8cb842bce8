"""The names of tasks and queues, and the values derived from the sources' intervals: `beat_schedule`, the time limit.

There is one queue for the runs of each source, one for parts of all sources, and one for all updates. A run scans a
single file itself, in its source's queue: with several such sources on one worker, a run waits at most for one scan of
each other source until a slot is free, and ticks that come meanwhile expire. Parts of a source with many parts go to
`rolling.scan`, which separate workers may consume (`-Q rolling.scan`), so that runs and merges in the other queues do
not wait for parts. Updates go to `rolling.updates`; with a separate worker (`-Q rolling.updates`), they do not wait for
scans.
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
