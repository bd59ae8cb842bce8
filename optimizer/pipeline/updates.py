"""The callers' side of updates: records and removals that become part of the current version without a scan.

    accept_update   checks a call's records as in a scan, and queues the valid ones as one entry
    enqueue         puts a call's records and removals into the queue in Redis, as one entry
    wait_applied    waits until readers can see an entry, after `drain.py` has published it

Errors: `CacheUnavailable` without Redis, `UpdatesRefused`, `UpdatesPending`, `UpdatesLost`; of `accept_update` those of
`read_update` too. After any of them nothing was accepted, except that a Redis which did not answer may have stored the
entry.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from typing import Any, Final

import msgspec

from optimizer.cache.client import CacheClient
from optimizer.cache.pointer import Pointer
from optimizer.cache.update_queue import Call, UpdateQueue
from optimizer.config.settings import Settings
from optimizer.errors import CacheUnavailable, GuardRefused, UpdatesLost, UpdatesPending, UpdatesRefused
from optimizer.models import Record
from optimizer.scan.engine import choose_engine
from optimizer.scan.update import Update, read_update

__all__ = ["Enqueued", "accept_update", "checked_update", "enqueue", "wait_applied"]

# The shortest and the longest time between two checks whether updates are applied.
FIRST_POLL_S: Final = 0.002
LONGEST_POLL_S: Final = 0.05
# A drain that has begun takes up to 5 s; another one does not disturb it.
SEND_AGAIN_S: Final = 1.5


class Enqueued(msgspec.Struct, frozen=True):
    """An entry that was accepted into the queue.

    `sequence` is its number, which only rises; `must_drain` says that no drain is running or sent, so that the caller
    has to send one.
    """

    sequence: int
    must_drain: bool


def accept_update(
    settings: Settings, records: Iterable[Any], remove: Iterable[str], call: Call | None = None
) -> tuple[Update, Enqueued | None]:
    """Accept an update.

    Args:
        settings: All settings of its source.
        records: As in `read_update`.
        remove: The symbols to remove.
        call: As in `enqueue`.

    Returns:
        The records, removals and rejects; and the entry in the queue, `None` if there is nothing to apply.
    """
    update = checked_update(settings, records, remove)
    if not (update.records or update.removed):
        return update, None
    return update, enqueue(settings, update.records, update.removed, call)


def checked_update(settings: Settings, records: Iterable[Any], remove: Iterable[str]) -> Update:
    """Check and map an update by the settings of its source, without queueing anything."""
    return read_update(
        records,
        remove,
        choose_engine(settings.engine),
        limit=settings.update_records_limit,
        max_record_bytes=settings.max_record_bytes,
        mapping=settings.mapping,
    )


def enqueue(
    settings: Settings, records: Sequence[Record], removed: Sequence[str], call: Call | None = None
) -> Enqueued:
    """Put records and removals into the queue as one entry, which is accepted as a whole or not at all.

    Args:
        settings: All settings of the source.
        records: The checked records; the last one of each symbol is used.
        removed: The symbols to remove, after the records.
        call: The call, if it may be repeated, as a message that is delivered twice.

    Raises:
        UpdatesRefused: A limit is exceeded: of one call, of waiting updates, or of updates in force.
        CacheUnavailable: Redis does not answer; it is not known whether the entry was accepted.
    """
    size, limit = len(records) + len(removed), settings.update_records_limit
    if size > limit:
        raise UpdatesRefused(
            f"{size:,} records and removals in one call are more than ROLLING_UPDATE_RECORDS_LIMIT={limit}; nothing of "
            "this call was taken. Send them in several calls, or write the input"
        )
    with closing(_cache(settings)) as cache:
        try:
            sequence, must_drain = UpdateQueue(cache).enqueue(
                records,
                removed,
                queue_limit=settings.update_queue_limit,
                held_limit=2 * settings.index_symbols_limit,
                call=call,
            )
        except CacheUnavailable as error:
            raise CacheUnavailable(
                f"{error} The updates may have been taken: send them again, twice has the same effect as once"
            ) from error
    return Enqueued(sequence, must_drain)


def wait_applied(
    settings: Settings,
    sequence: int,
    wait_s: float,
    *,
    send_again: Callable[[], object] = lambda: None,
    taken_from: Callable[[], str] = lambda: "the queue of updates",
) -> int:
    """Wait until readers can see an entry of the queue; return the version that is current then.

    Args:
        settings: All settings of the source.
        sequence: The number of the entry.
        wait_s: How long to wait.
        send_again: Called every `SEND_AGAIN_S`: the worker that got the message may have been killed.
        taken_from: Returns the name of the queue that a worker has to consume, for the error.

    Raises:
        GuardRefused: A guard refused the entry, or it would remove the last record; it was dropped.
        UpdatesPending: It is not visible within `wait_s`; the message says why: pinned, no version, or no worker.
        UpdatesLost: Redis has lost the entry.
        CacheUnavailable: Redis does not answer.
    """
    began_s, poll_s = time.monotonic(), FIRST_POLL_S
    until_s, again_s = began_s + wait_s, began_s + SEND_AGAIN_S
    with closing(_cache(settings)) as cache:
        queue = UpdateQueue(cache)
        while True:
            state = queue.numbers()
            for refused in state.refused:
                if refused.sequence == sequence:
                    raise GuardRefused(refused.reason)
            if state.newest < sequence:
                raise UpdatesLost(
                    f"Redis has lost the updates of {settings.source!r} that it had accepted as number {sequence}: was "
                    "it emptied, or replaced by another? Publish them again"
                )
            if state.applied >= sequence and state.pointer is not None:
                return state.pointer.version
            if time.monotonic() >= until_s:
                raise UpdatesPending(
                    f"the updates of {settings.source!r} with number {sequence} are accepted, and not shown after "
                    f"{wait_s:g} s: {_why_pending(state.pointer, taken_from)}"
                )
            if time.monotonic() >= again_s:
                send_again()
                again_s = time.monotonic() + SEND_AGAIN_S
            time.sleep(min(poll_s, max(0.0, until_s - time.monotonic())))
            poll_s = min(LONGEST_POLL_S, 1.5 * poll_s)


def _cache(settings: Settings) -> CacheClient:
    return CacheClient(settings.redis_url, settings.source, settings.interval_s, is_kept=True)


def _why_pending(pointer: Pointer | None, taken_from: Callable[[], str]) -> str:
    """Return why updates are not shown yet, and what to do."""
    if pointer is None:
        return "there is no version yet; the first scan makes one, and they are applied after it"
    if pointer.manifest.pinned is not None:
        return (
            f"version {pointer.version} is {pointer.manifest.pinned.describe()}; they are applied when it is unpinned, "
            "by: rolling-optimizer unpin"
        )
    return (
        f"no worker has applied them. Is one running that takes {taken_from()}? They are applied as soon as one does, "
        "or at the end of the next run"
    )
