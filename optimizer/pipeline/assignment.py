"""The assignment of a run, stored in Redis: for the workers that scan its parts, and to detect lost runs.

A run is lost if its worker was killed, or if no worker took its messages.

Errors: `CacheUnavailable`, `PublishRefused`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import msgspec

from optimizer.cache.client import UNREADABLE
from optimizer.cache.lock import LOCK_TTL_S, AssignmentStore
from optimizer.config.settings import Settings
from optimizer.errors import CacheUnavailable, PublishRefused, RunLost
from optimizer.log import SourceLog
from optimizer.pipeline.parts import Part
from optimizer.pipeline.session import LOCK_LOST, Session

__all__ = [
    "Assignment",
    "Dispatcher",
    "dispatch_lock_ttl_s",
    "end_assignment",
    "is_current",
    "read_assignment",
    "store_assignment",
    "take_lost_assignment",
]

DISPATCH_LOCK_MAX_S: Final = 120.0

_log = SourceLog(__name__)


class Assignment(msgspec.Struct, frozen=True):
    """The input that a run has to scan, stored in Redis under the token of its lock until the run ends.

    `run_id` is the id that its sender knows, `token` its lock's. `version_before` is the version that the run
    will replace (0 for none), `newest_before` the newest one in Redis or the files when it began (`None` from an
    earlier release), `lineage` its `Manifest.lineage`. `began_s` is in seconds since the epoch. `parts` are all parts
    of the source in the order of names, empty if it is one file; `to_scan` are the indexes of those that have to be
    read.
    """

    run_id: str
    token: str
    version_before: int
    began_s: float
    force: bool
    parts: list[Part] = []
    to_scan: list[int] = []
    accept: bool = False
    newest_before: int | None = None
    lineage: int | None = None


@dataclass(frozen=True)
class Dispatcher:
    """The means by which a run reaches other workers and its sender.

    Attributes:
        run_id: The id by which the run's sender waits for it, revokes it, and is notified if it is lost.
        send_parts: Sends the parts that a run has to scan to the workers; `None` if they cannot be sent.
        tell_lost: Notifies the sender of an earlier run, by its id, that the run is lost.
    """

    run_id: str
    send_parts: Callable[[Assignment], None] | None
    tell_lost: Callable[[str, RunLost], None]


_ASSIGNMENT: Final = msgspec.json.Decoder(Assignment)


def dispatch_lock_ttl_s(settings: Settings) -> float:
    """Seconds for which a distributed run excludes other runs while no worker works on it."""
    return min(DISPATCH_LOCK_MAX_S, max(LOCK_TTL_S, 0.9 * settings.interval_s))


def store_assignment(session: Session, assignment: Assignment) -> None:
    """Store the assignment of a run, even if this process does it: if it is killed, the next run notifies the sender.

    Raises:
        PublishRefused: The run no longer holds the lock.
    """
    store, data = AssignmentStore(session.cache), msgspec.json.encode(assignment)
    if not session.ask(lambda: store.dispatch(assignment.token, data), absent=True):
        raise PublishRefused(LOCK_LOST)


def is_current(session: Session, assignment: Assignment) -> bool:
    """Whether nothing but updates was published since a run was dispatched."""
    pointer, in_files = session.pointer, session.in_files
    lineage = None if pointer is None else pointer.manifest.lineage
    is_in_lineage = lineage is not None and lineage == assignment.lineage
    if session.version_before != assignment.version_before and not is_in_lineage:
        return False
    newest = assignment.newest_before
    if newest is None or session.newest_before <= newest:
        return True
    return is_in_lineage and (in_files is None or in_files.version <= newest or in_files.lineage == lineage)


def end_assignment(session: Session, token: str) -> None:
    """Delete the assignment of a run that ends."""
    session.ask(lambda: AssignmentStore(session.cache).end(token), absent=None)


def read_assignment(session: Session, token: str) -> Assignment | None:
    """Return the assignment of a run; `None` if it has ended, was superseded, or its assignment is damaged.

    Raises:
        CacheUnavailable: Redis is away, so the assignment is not known.
    """
    if session.state != "up":
        raise CacheUnavailable(f"what there is to scan is in Redis; the next tick does without it: {session.problem}")
    stored = AssignmentStore(session.cache).read(token)
    try:
        return None if stored is None else _ASSIGNMENT.decode(stored)
    except UNREADABLE as error:
        source = session.cache.keys.source
        _log.warning("damaged in Redis, so the next tick makes the run again: handed", source=source, error=error)
        end_assignment(session, token)
        return None


def take_lost_assignment(session: Session, tell_lost: Callable[[str, RunLost], None]) -> RunLost | None:
    """Take the assignment of a lost run, once, and notify its sender; return the error, `None` if no run is lost."""
    stored = session.ask(AssignmentStore(session.cache).take_unfinished, absent=None)
    if stored is None:
        return None
    lost = RunLost(
        "the scan of an earlier run has not come back: was its worker killed, was Redis away when it ended, or does no "
        "free worker take the queue of its parts? See: celery -A APP inspect active_queues, with the module of the "
        "workers' Celery app as APP"
    )
    _log.warning("⚠️ a run is lost", source=session.cache.keys.source, error=lost)
    with suppress(*UNREADABLE):  # a damaged assignment has no readable id
        tell_lost(_ASSIGNMENT.decode(stored).run_id, lost)
    return lost
