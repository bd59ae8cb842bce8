"""The names of the queues: one for the runs of each source, one for parts of all sources, one for all updates.

A run scans a single file itself, in its source's queue: of several such sources on one worker, a run waits at most for
one scan of each other source until a slot is free, and ticks that come meanwhile expire. Parts of a source that has
many go to `rolling.scan`, which workers of their own may take (`-Q rolling.scan`): then runs and merges in the other
queues wait for no part. Updates go to `rolling.updates`: a worker of their own (`-Q rolling.updates`) lets them wait
for no scan.
"""

from __future__ import annotations

from typing import Final

__all__ = ["SCAN_QUEUE", "UPDATE_QUEUE", "source_queue"]

SCAN_QUEUE: Final = "rolling.scan"
UPDATE_QUEUE: Final = "rolling.updates"


def source_queue(source: str) -> str:
    """The queue of a source's runs."""
    return f"rolling.{source}"
