"""Updates: records and removals that become part of the current version without a scan.

    enqueue         puts a call's records and removals into the queue in Redis, as one entry
    apply_updates   merges what waits, and publishes it as a few versions
    wait_applied    waits until readers can see an entry

Errors: `CacheUnavailable` without Redis, `UpdatesRefused`, `UpdatesPending`, `UpdatesLost`.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from optimizer.config.settings import Settings
from optimizer.models import Record, Report

__all__ = ["Enqueued", "apply_updates", "enqueue", "wait_applied"]


class Enqueued(msgspec.Struct, frozen=True):
    """That an entry is in the queue.

    `sequence` is its number, which only rises; `must_drain` says that nothing is on its way that applies it, so that
    the caller has to send a drain.
    """

    sequence: int
    must_drain: bool


def enqueue(settings: Settings, records: Sequence[Record], removed: Sequence[str]) -> Enqueued:
    """Put records and removals into the queue as one entry: all of it is accepted, or nothing.

    Args:
        settings: All settings of the source.
        records: The records, checked; of several of one symbol the last one counts.
        removed: The symbols to remove, after the records.

    Raises:
        UpdatesRefused: More than may be in a call, wait or be held.
        CacheUnavailable: Redis does not answer; it is not known whether the entry was accepted.
    """
    raise NotImplementedError


def apply_updates(settings: Settings) -> Report | None:
    """Apply what waits in the queue, until nothing does; return the report, `None` if nothing was waiting.

    Any number of processes may do so at the same time. What a guard refuses is dropped, and named in a failed report in
    the stream of runs. Nothing is applied while a version is pinned, or before there is one.

    Raises:
        CacheUnavailable: Redis does not answer; what was not applied waits.
    """
    raise NotImplementedError


def wait_applied(settings: Settings, sequence: int, wait_s: float) -> int:
    """Wait until readers can see an entry of the queue; return the version that is current then.

    Raises:
        UpdatesPending: It is not within `wait_s`; the message says why: pinned, no version yet, or no worker.
        UpdatesLost: Redis has lost the entry.
        CacheUnavailable: Redis does not answer.
    """
    raise NotImplementedError
