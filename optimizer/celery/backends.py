"""What the result backend of any Celery app can do."""

from __future__ import annotations

from celery import Celery
from celery.backends.base import DisabledBackend
from celery.backends.rpc import RPCBackend

__all__ = ["can_join", "keeps_results"]


def can_join(app: Celery) -> bool:
    """Whether a task can be replaced by others and one that gets their results: a chord."""
    try:
        app.backend.ensure_chords_allowed()
    except NotImplementedError:  # results are off, or go to the sender alone (`rpc://`)
        return False
    return True


def keeps_results(app: Celery) -> bool:
    """Whether results are stored under the ids of tasks, for any program that reads them."""
    return not isinstance(app.backend, (DisabledBackend, RPCBackend))
