"""Accept an update: its records are checked as in a scan, and the valid ones are queued as one entry.

Errors: those of `read_update` and `enqueue`. After any of them nothing was accepted, except that a Redis which did not
answer may have stored the entry.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from optimizer.cache.update_queue import Call
from optimizer.config.settings import Settings
from optimizer.pipeline.updates import Enqueued, enqueue
from optimizer.scan.engine import choose_engine
from optimizer.scan.update import Update, read_update

__all__ = ["accept_update", "checked_update"]


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
