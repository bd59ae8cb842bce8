"""What a run has to scan, in Redis: for the workers that scan its parts, and to find runs that were lost.

A run is lost when its worker was killed, or when no worker took its messages.

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
    """What a run has to scan, as it is in Redis under the token of its lock until it ends.

    `run_id` is the id that its sender knows, `token` its lock's, `version_before` the version that it is to replace (0
    for none), `newest_before` the newest one that Redis or the files had then (`None` in one of an earlier release),
    `lineage` its `Manifest.lineage`, `began_s` in seconds since the epoch. `parts` are all the parts of the source by
    name, none where it is one file; `to_scan` are the indexes of those that have to be read.
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
    """How a run reaches other workers and its sender.

    Attributes:
        run_id: The id by which the run's sender waits for it, revokes it, and hears that it is lost.
        send_parts: Sends the parts that a run has to scan to the workers; `None` where they cannot be sent.
        tell_lost: Tells the sender of an earlier run, by its id, that the run is lost.
    """

    run_id: str
    send_parts: Callable[[Assignment], None] | None
    tell_lost: Callable[[str, RunLost], None]


_ASSIGNMENT: Final = msgspec.json.Decoder(Assignment)


def dispatch_lock_ttl_s(settings: Settings) -> float:
    """How long a distributed run keeps others out while no worker works at it, in seconds."""
    return min(DISPATCH_LOCK_MAX_S, max(LOCK_TTL_S, 0.9 * settings.interval_s))


def store_assignment(session: Session, assignment: Assignment) -> None:
    """Store what a run has to do, also if it does it here: if its worker is killed, the next run tells its sender.

    Raises:
        PublishRefused: The run is no longer the only one.
    """
    store, data = AssignmentStore(session.cache), msgspec.json.encode(assignment)
    if not session.ask(lambda: store.dispatch(assignment.token, data), absent=True):
        raise PublishRefused(LOCK_LOST)


def is_current(session: Session, assignment: Assignment) -> bool:
    """Whether nothing was published since a run was dispatched, or updates alone."""
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
    """The assignment of a run; `None` where it has ended, another took its place, or the assignment is damaged.

    Raises:
        CacheUnavailable: Redis is away, so that is not known.
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
    """Take the assignment of a lost run, once, and tell the run's sender; return the error, `None` if none is lost."""
    stored = session.ask(AssignmentStore(session.cache).take_unfinished, absent=None)
    if stored is None:
        return None
    lost = RunLost(
        "the scan of an earlier run has not come back: was its worker killed, or does none that is free take the queue "
        "of its parts? See: celery -A APP inspect active_queues, with the module of the workers' Celery app as APP"
    )
    _log.warning("⚠️ a run is lost", source=session.cache.keys.source, error=lost)
    with suppress(*UNREADABLE):  # damaged: then its id is not known
        tell_lost(_ASSIGNMENT.decode(stored).run_id, lost)
    return lost
