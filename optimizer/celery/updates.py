"""Updates by Celery: the task that accepts and applies them, and the message that makes a worker apply waiting updates.

A message without records, as `publish` of `optimizer.producer` sends it, applies the waiting updates in Redis. Any
number of such messages do no harm, and if one is lost, the next one, or the next tick, applies the updates.

`update_predictions` belongs to no app; `tasks.bind_tasks` makes a task from it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

import msgspec
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from optimizer.cache.clocks import text_of
from optimizer.cache.update_queue import Call
from optimizer.celery.registration import registration_of
from optimizer.celery.schedule import UPDATE_TASK
from optimizer.errors import CacheUnavailable, RollingError
from optimizer.log import SourceLog, logged_run
from optimizer.models import Reject, RejectTally, Report
from optimizer.pipeline.drain import apply_updates
from optimizer.pipeline.updates import Enqueued, accept_update, wait_applied
from optimizer.scan.fragment import shown
from optimizer.selection.acceptance import describe_tally
from optimizer.storage.redis_url import reason_of

if TYPE_CHECKING:
    from celery import Celery, Task

    from optimizer.config.settings import Settings

__all__ = ["drain_queue", "send_drain", "update_predictions"]

# A worker that comes back drops older messages, since one is enough.
DRAIN_EXPIRES_S: Final = 60.0
# How long an update by a message waits for another process that is applying it.
APPLIED_WITHIN_S: Final = 10.0
# kombu's default time after which it delivers the messages of a dead worker again.
VISIBILITY_TIMEOUT_S: Final = 3600.0
# A broker that is away must not delay a prediction engine: one retry, for a connection that broke while it was idle.
_RETRY: Final = {"max_retries": 1, "interval_start": 0.0, "interval_step": 0.0, "interval_max": 0.0}

_log = SourceLog(__name__)
_reason = attrgetter("reason")


def send_drain(app: Celery, source: str) -> None:
    """Send the message that makes a worker apply waiting updates.

    Raises:
        CacheUnavailable: The broker cannot be reached.
    """
    try:
        app.tasks[UPDATE_TASK].apply_async(
            kwargs={"source": source}, expires=DRAIN_EXPIRES_S, ignore_result=True, retry=True, retry_policy=_RETRY
        )
    except (OperationalError, RedisError, OSError) as error:
        broker = registration_of(app).shown_broker()
        raise CacheUnavailable(f"the broker {broker} cannot be reached: {reason_of(error)}") from error


def drain_queue(app: Celery) -> str:
    """Describe the queue of `send_drain` and its broker, for messages."""
    queue = app.amqp.router.route({}, UPDATE_TASK).get("queue")
    return f"the queue {getattr(queue, 'name', queue)} of {registration_of(app).shown_broker()}"


def update_predictions(self: Task, records: Any = (), remove: Any = (), source: str | None = None) -> dict[str, Any]:
    """Accept an update, apply it with all other waiting updates, and return the report.

    Args:
        self: The task.
        records: A list of records, or an object of them by symbol, as the prediction engine writes them.
        remove: Symbols to remove.
        source: The source; may be omitted if there is only one.

    Returns:
        The report of the applied updates, with each rejected record of this update in `rejects`.

    Raises:
        SettingsInvalid, UpdatesRefused, SourceMalformed, SourceTorn: Nothing was accepted: an argument is invalid, or a
            limit is exceeded.
        GuardRefused: It was accepted, then dropped: a guard refuses the version that it would make.
        UpdatesPending: It was accepted, and waits.
        CacheUnavailable: Redis is away.
    """
    with logged_run(self.request.id):
        return _update(self, records, remove, source)


def _update(task: Task, records: Any, remove: Any, source: str | None) -> dict[str, Any]:
    about = "a source that is not named" if source is None else shown(source)
    try:
        settings = task.registration.settings(source)
        about = settings.source
        update, enqueued = accept_update(settings, records, remove, _call(task))
        report = _apply(settings, enqueued)
    except RollingError as error:
        _log.error("⚠️ an update failed", source=about, error=error)
        raise
    rejects = _tallies(update.rejects)
    for tally in rejects:  # logged, since a sender that ignores results does not see them
        _log.warning("an update has records that are rejected: %s", describe_tally(tally), source=about)
    result: dict[str, Any] = msgspec.to_builtins(msgspec.structs.replace(report, rejects=rejects))
    return result


def _call(task: Task) -> Call | None:
    """Return the message as a call, accepted once even if redelivered: again, it would undo later updates."""
    if not task.request.id:
        return None  # called as a function
    options = task.app.conf.broker_transport_options or {}
    again_within_s = options.get("visibility_timeout", VISIBILITY_TIMEOUT_S) + DRAIN_EXPIRES_S
    return Call(hashlib.sha256(task.request.id.encode("utf-8", "backslashreplace")).hexdigest(), again_within_s)


def _apply(settings: Settings, enqueued: Enqueued | None) -> Report:
    report = apply_updates(settings)
    if report is not None:
        if enqueued is not None and report.updated is not None and report.updated.refused:
            wait_applied(settings, enqueued.sequence, 0)  # raises if a guard has refused this one
        return report
    now = text_of(time.time())
    if enqueued is None:
        return Report("skipped", settings.source, now, reason="no_updates")
    # Another process has taken it from the queue.
    version = wait_applied(settings, enqueued.sequence, APPLIED_WITHIN_S)
    return Report("success", settings.source, now, version)


def _tallies(rejects: Sequence[Reject]) -> list[RejectTally]:
    """Return all rejects by reason: of one call they are few enough to be named each."""
    by_reason = groupby(sorted(rejects, key=_reason), _reason)
    return [RejectTally(reason, len(group), group) for reason, found in by_reason for group in [list(found)]]
