"""Runs on demand for the web, by Celery: a `Trigger` for `optimizer.web`.

    app.include_router(optimizer.web.make_router(settings, trigger=CelerySender()), prefix="/api")

Runs go to the broker of the `ROLLING_*` variables, or of your Celery app, whatever settings the router has. A
source has only one such run at a time, over all processes: a key in Redis holds it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple
from uuid import uuid4

import msgspec
from redis.exceptions import RedisError, ResponseError, WatchError

from optimizer.cache.keys import Keys
from optimizer.celery.results import ResultInvalid
from optimizer.celery.schedule import TASK_NAME
from optimizer.errors import CacheUnavailable, RunPending
from optimizer.models import Failure, RunState

if TYPE_CHECKING:
    import redis
    from celery import Celery

    from optimizer.celery.registration import Registration
    from optimizer.celery.run_states import RunStates

__all__ = ["SHORTEST_EXPIRY_S", "CelerySender", "SentRun"]

# A run that no worker has begun by then is dropped: its sender no longer waits, and the schedule goes on.
SHORTEST_EXPIRY_S: Final = 60.0


class _Request(msgspec.Struct, frozen=True):
    """The run that was sent last."""

    id: Annotated[str, msgspec.Meta(pattern="^[0-9a-f-]{36}$")]
    force: bool
    accept: bool = False


class SentRun(NamedTuple):
    """The id of a run, and whether it was sent by this call: an earlier one may already have read the input."""

    id: str
    is_new: bool


class CelerySender:
    """Sends runs to the workers, and reads their states.

    Args:
        app: A Celery app on which `register` was called; by default the stand-alone one.
    """

    def __init__(self, app: Celery | None = None) -> None:
        self._app = app

    def send(self, *, force: bool, accept: bool, source: str) -> str:
        """Send a run of a source and return its id; if a run that was sent here has not ended, return that run's id.

        Raises:
            RunPending: A run has not ended, and does less than this one should: it is not forced, or accepts less.
            CacheUnavailable: The broker, or the Redis that holds the pending run, cannot be reached.
            SettingsInvalid: A variable cannot be used, or `register` was not called for the app.
        """
        return self.send_or_join(force=force, accept=accept, source=source).id

    def send_or_join(self, *, force: bool, accept: bool, source: str) -> SentRun:
        """Send a run as above; return it, or the one that has not ended."""
        registration, states = self._registered()
        settings = registration.settings(source)
        expires_s = max(SHORTEST_EXPIRY_S, settings.interval_s)
        task = registration.app.tasks[TASK_NAME]
        limit_s = task.time_limit or registration.app.conf.task_time_limit or 0
        kept_s = max(expires_s, limit_s)  # after this time, a run that has begun has been killed
        request = _Request(str(uuid4()), force, accept)
        key = Keys(source).requested
        with states.sending():
            with states.notes(settings) as notes:
                earlier = _store_unless_pending(notes, key, request, kept_s, partial(_is_pending, states, expires_s))
            if earlier is None:
                kwargs = {"force": force, "accept": accept, "source": source}
                try:
                    states.expect(settings, request.id, expires_s)
                    task.apply_async(kwargs=kwargs, expires=expires_s, task_id=request.id)
                except BaseException:  # whatever it was, the run was not sent: the next call is to send one
                    with suppress(RedisError, CacheUnavailable), states.notes(settings) as notes:
                        notes.delete(key)
                    raise
                return SentRun(request.id, is_new=True)
        missing = [name for name in ("force", "accept") if getattr(request, name) > getattr(earlier, name)]
        if missing:
            raise RunPending(
                f"the run {earlier.id}, sent without {' and '.join(missing)}, has not ended: ask again then"
            )
        return SentRun(earlier.id, is_new=False)

    def state(self, run_id: str) -> RunState:
        """Read the state of a run.

        Raises:
            CacheUnavailable: Redis cannot be reached, or holds a result that no worker has written.
            SettingsInvalid: As above.
        """
        _, states = self._registered()
        with states.reading():
            result = states.read(run_id)
        error = Failure(result.error, result.details) if result.error else None
        if result.error == "TaskRevokedError":
            error = Failure("Expired", "it was revoked, or no worker has begun it in time: is one running?")
        return RunState(run_id, result.state, result.percent, result.report, error)

    def _registered(self) -> tuple[Registration, RunStates]:
        # Imported when it is used, since importing Celery takes 0.3 s.
        from optimizer.celery.registration import registration_of  # noqa: PLC0415
        from optimizer.celery.run_states import run_states  # noqa: PLC0415

        if self._app is None:
            from optimizer.celery.standalone import app  # noqa: PLC0415

            self._app = app
        registration = registration_of(self._app)
        if registration.is_standalone:
            registration.every()[0].broker()
        return registration, run_states(registration)


def _store_unless_pending(
    notes: redis.Redis, key: str, request: _Request, kept_s: float, is_pending: Callable[[str, float], bool]
) -> _Request | None:
    """Store the request and return `None`, or return the stored one if its run has not ended.

    By compare-and-set: if several processes see that the last run has ended, only one of them stores its request.
    """
    with notes.pipeline() as pipeline:
        while True:
            with suppress(WatchError):
                pipeline.watch(key)  # type: ignore[no-untyped-call]
                stored = _decode_request(pipeline, key)
                if stored is not None and is_pending(stored.id, kept_s - pipeline.pttl(key) / 1e3):
                    return stored
                pipeline.multi()
                pipeline.set(key, msgspec.json.encode(request), px=round(kept_s * 1e3))
                pipeline.execute()
                return None


def _decode_request(client: Any, key: str) -> _Request | None:
    """Read the stored request; `None` if there is none, or if the value is invalid and may be replaced."""
    try:
        return msgspec.json.decode(client.get(key) or b"null", type=_Request | None)
    except (ResponseError, msgspec.DecodeError, ValueError, RecursionError):
        return None


def _is_pending(states: RunStates, expires_s: float, run_id: str, age_s: float) -> bool:
    """Whether a run waits for a worker, or has begun and not ended."""
    try:
        state = states.read(run_id).state
    except (ResultInvalid, ResponseError):
        return False
    return state == "running" or (state == "pending" and age_s < expires_s)
