"""The capabilities of the result backend of a Celery app."""

from __future__ import annotations

from celery import Celery
from celery.backends.base import DisabledBackend
from celery.backends.rpc import RPCBackend

__all__ = ["can_join", "keeps_results"]


def can_join(app: Celery) -> bool:
    """Whether a task can be replaced by a chord: other tasks, and one that gets their results."""
    try:
        app.backend.ensure_chords_allowed()
    except NotImplementedError:  # results are off, or go only to the sender (`rpc://`)
        return False
    return True


def keeps_results(app: Celery) -> bool:
    """Whether results are stored under the ids of tasks, for any program that reads them."""
    return not isinstance(app.backend, (DisabledBackend, RPCBackend))
