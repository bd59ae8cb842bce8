"""The names of the queues: one for the runs of each source, and one for the parts of all sources that have many.

A run scans a single file itself, in its source's queue: of several such sources on one worker, a run waits at most for
one scan of each other source until a slot is free, and ticks that come meanwhile expire. Parts go to `rolling.scan`,
which workers of their own may take (`-Q rolling.scan`): then runs and merges in the other queues wait for no part.
"""

from __future__ import annotations

from typing import Final

__all__ = ["SCAN_QUEUE", "source_queue"]

SCAN_QUEUE: Final = "rolling.scan"


def source_queue(source: str) -> str:
    """The queue of a source's runs."""
    return f"rolling.{source}"
