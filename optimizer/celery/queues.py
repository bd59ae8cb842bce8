"""The names of the queues: one for the runs of each source, one for parts of all sources, one for all updates.

A run scans a single file itself, in its source's queue: with several such sources on one worker, a run waits at most
for one scan of each other source until a slot is free, and ticks that come meanwhile expire. Parts of a source with
many parts go to `rolling.scan`, which separate workers may consume (`-Q rolling.scan`), so that runs and merges in the
other queues do not wait for parts. Updates go to `rolling.updates`; with a separate worker (`-Q rolling.updates`), they
do not wait for scans.
"""

from __future__ import annotations

from typing import Final

__all__ = ["SCAN_QUEUE", "UPDATE_QUEUE", "source_queue"]

SCAN_QUEUE: Final = "rolling.scan"
UPDATE_QUEUE: Final = "rolling.updates"


def source_queue(source: str) -> str:
    """The queue of a source's runs."""
    return f"rolling.{source}"
