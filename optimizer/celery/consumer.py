"""The worker's consumer: accepts tasks that can be dispatched, counts dropped messages, ends revoked runs.

An error in a message is raised, and `broker.py` drops the message.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from celery import bootsteps
from celery.exceptions import NotRegistered
from celery.utils.objects import Bunch
from celery.worker import consumer, control

from optimizer.celery.broker import RECONNECT_AFTER_AT_MOST_S, dropped
from optimizer.celery.envelope import MessageInvalid, check_task
from optimizer.config.settings import Settings
from optimizer.errors import CacheUnavailable
from optimizer.log import SourceLog
from optimizer.pipeline.distributed import revoke

__all__ = ["Consumer", "DroppedMessages"]

_log = SourceLog(__name__)


class Consumer(consumer.Consumer):  # type: ignore[misc]
    """Celery's consumer, with other handlers for messages that it cannot use, and commands that end runs."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # Registered here: decorators would replace the commands of every worker that imports this module.
        ids = "[id1 [id2 [... [idN]]]]"
        control.control_command(name="revoke", variadic="task_id", signature=ids)(_revoke)
        control.control_command(
            name="terminate", variadic="task_id", args=[("signal", str)], signature=f"<signal> {ids}"
        )(_terminate)

    def on_connection_error_before_connected(self, exc: Exception) -> None:
        """Log that the broker refuses, and wait, since a new connection would be refused at once."""
        super().on_connection_error_before_connected(exc)
        time.sleep(RECONNECT_AFTER_AT_MOST_S)

    def create_task_handler(self, *arguments: Any, **options: Any) -> Callable[[Any], None]:
        """Return the handler of a queue's messages."""
        handle = super().create_task_handler(*arguments, **options)

        def on_task_received(message: Any) -> None:
            check_task(message.headers, message.body)
            handle(message)

        return on_task_received

    def on_decode_error(self, message: Any, error: Exception) -> None:  # noqa: ARG002 - Celery's signature
        """Refuse a message: Celery would log its content."""
        raise error

    def on_invalid_task(self, body: Any, message: Any, error: Exception) -> None:  # noqa: ARG002 - as above
        """Refuse a message: Celery would log its content."""
        raise error

    def on_unknown_message(self, body: Any, message: Any) -> None:  # noqa: ARG002 - as above
        """Refuse a message: Celery would log its content."""
        raise MessageInvalid("it is no task")

    def on_unknown_task(self, body: Any, message: Any, error: Exception) -> None:  # noqa: ARG002 - as above
        """Refuse a message, and fail its result, since a client that misspelt the task may wait for it."""
        name, run_id = message.headers["task"], message.headers["id"]
        request = Bunch(name=name, chord=None, root_id=None, correlation_id=None, reply_to=None, errbacks=None)
        self.app.backend.mark_as_failure(run_id, NotRegistered(name), request=request)
        raise MessageInvalid("no task has that name here") from error


class DroppedMessages(bootsteps.StartStopStep):  # type: ignore[misc]
    """Adds the messages dropped since the worker's start to `celery -A tasks inspect stats`."""

    def info(self, _consumer: Any) -> dict[str, Any]:
        """Messages dropped, by queue."""
        return {"dropped_messages": dict(dropped)}


# ---- remote control, as sent by Flower's buttons and by `celery -A tasks control`


def _revoke(state: Any, task_id: Any, terminate: bool = False, signal: str | None = None, **options: Any) -> Any:
    """Revoke task by task id (or list of ids); a run ends wherever it is."""
    run_ids = {one for one in (task_id if isinstance(task_id, list) else [task_id]) if isinstance(one, str)}
    _end_runs(run_ids)
    return control.revoke(state, sorted(run_ids), terminate, signal, **options)


def _terminate(state: Any, signal: str, task_id: Any, **_: Any) -> Any:
    """Terminate task by task id (or list of ids); a run ends wherever it is."""
    return _revoke(state, task_id, terminate=True, signal=signal)


def _end_runs(run_ids: set[str]) -> None:
    """Take the runs' locks away, without which none can publish, in whichever worker it is."""
    try:
        for settings in Settings.every_from_env(os.environ):
            for run_id in run_ids:
                revoke(settings, run_id)
    except CacheUnavailable as error:
        _log.warning("⚠️ a run may go on though it was revoked", error=error)
