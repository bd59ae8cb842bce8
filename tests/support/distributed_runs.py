"""Distributed runs step by step in this process: the task, the scans of the parts, and the merge."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from optimizer.cache.keys import Keys
from optimizer.config.settings import Settings
from optimizer.errors import RunLost
from optimizer.models import Report
from optimizer.pipeline.assignment import Assignment, Dispatcher
from optimizer.pipeline.distributed import PartOutcome, scan_one_part
from optimizer.pipeline.run import run_source
from tests.support.redis_servers import RedisServer

__all__ = ["dispatched", "lock_of", "lose_the_lock", "must_not_send", "run_here", "scan_all", "tell_nothing"]


def dispatched(settings: Settings, run_id: str = "", *, force: bool = False) -> Assignment:
    """Start a run that has parts to scan; return the assignment that it sends."""
    sent: list[Assignment] = []
    assert run_source(settings, Dispatcher(run_id, sent.append, tell_nothing), force=force) is None
    return sent[0]


def run_here(settings: Settings, run_id: str = "", **options: Any) -> Report:
    """Do a run that has no parts to send; return its report."""
    report = run_source(settings, Dispatcher(run_id, must_not_send, tell_nothing), **options)
    assert report is not None
    return report


def scan_all(settings: Settings, assignment: Assignment) -> list[PartOutcome]:
    """Scan the parts of an assignment that was sent; return their outcomes."""
    return [scan_one_part(settings, assignment.token, assignment.parts[index].location) for index in assignment.to_scan]


def must_not_send(assignment: Assignment) -> None:
    """Fail the test: the run has no parts to send."""
    raise AssertionError(f"{assignment} was sent")


def tell_nothing(_run_id: str, _error: RunLost) -> None:
    """Ignore the report of an earlier run that is lost."""


@contextmanager
def lock_of(server: RedisServer, settings: Settings) -> Iterator[tuple[Any, str]]:
    """Yield a client of the server, and the key of the source's lock."""
    with server.client as client:
        yield client, Keys(settings.source).lock


def lose_the_lock(server: RedisServer, settings: Settings) -> None:
    """Delete the lock, as if it had expired."""
    with lock_of(server, settings) as (client, key):
        client.delete(key)
