"""Runs on demand for the web, by Celery: the `Trigger` that `optimizer.web` takes.

    app.include_router(optimizer.web.make_router(settings, trigger=CelerySender()), prefix="/api")

Runs go to the broker of the `ROLLING_*` variables, whatever settings the router has: a process has one Celery app. Of
the runs that are sent here, a source has one at a time, over all processes: a key in the broker holds it.

Results are decoded by `results.py`, not by Celery, which would import the modules that a result names.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any, Final
from uuid import uuid4

import msgspec
from redis.exceptions import RedisError, ResponseError, WatchError

from optimizer.cache.client import ping
from optimizer.cache.keys import Keys
from optimizer.celery.results import ResultInvalid, read_result
from optimizer.config.settings import Settings
from optimizer.errors import CacheUnavailable, RunPending
from optimizer.storage.location import redact_url

if TYPE_CHECKING:
    from optimizer.web.trigger import RunState

__all__ = ["CelerySender", "broker_answers"]

# A run that no worker has begun by then is dropped: its sender no longer waits, and ticks come by themselves.
SHORTEST_EXPIRY_S: Final = 60.0


class _Request(msgspec.Struct, frozen=True):
    """The run that was sent last."""

    id: Annotated[str, msgspec.Meta(pattern="^[0-9a-f-]{36}$")]
    force: bool
    accept: bool = False


class CelerySender:
    """Sends runs to the workers, and reads their states."""

    def send(self, *, force: bool, accept: bool, source: str) -> str:
        """Send a run of a source, unless one that was sent here has not ended; return its id.

        Raises:
            RunPending: One has not ended, and does less than this one should: it is not forced, or accepts less.
            CacheUnavailable: The broker cannot be reached.
        """
        from optimizer.celery.schedule import TASK_NAME  # noqa: PLC0415
        from optimizer.celery.standalone import app  # noqa: PLC0415

        expires_s = max(SHORTEST_EXPIRY_S, Settings.from_env(os.environ, source).interval_s)
        request = _Request(str(uuid4()), force, accept)
        key = Keys(source).requested
        with broker_answers():
            earlier = _store_unless_pending(app, key, request, expires_s)
            if earlier is None:
                kwargs = {"force": force, "accept": accept, "source": source}
                try:
                    app.tasks[TASK_NAME].apply_async(kwargs=kwargs, expires=expires_s, task_id=request.id)
                except BaseException:
                    with suppress(RedisError):
                        app.backend.client.delete(key)
                    raise
                return request.id
        missing = [name for name in ("force", "accept") if getattr(request, name) > getattr(earlier, name)]
        if missing:
            raise RunPending(
                f"the run {earlier.id}, sent without {' and '.join(missing)}, has not ended: ask again then"
            )
        return earlier.id

    def state(self, run_id: str) -> RunState:
        """Read the state of a run.

        Raises:
            CacheUnavailable: The broker cannot be reached, or holds a result that no worker has written.
        """
        from optimizer.celery.standalone import app  # noqa: PLC0415
        from optimizer.web.trigger import Failure, RunState  # noqa: PLC0415 - FastAPI is an extra

        with broker_answers():
            result = read_result(app, run_id)
        error = Failure(result.error, result.details) if result.error else None
        if result.error == "TaskRevokedError":
            error = Failure("Expired", "it was revoked, or no worker has begun it in time: is one running?")
        return RunState(run_id, result.state, result.percent, result.report, error)


@contextmanager
def broker_answers() -> Iterator[None]:
    """Check that the broker answers, and turn the errors of Celery and Redis in the block into `CacheUnavailable`."""
    from kombu.exceptions import OperationalError  # noqa: PLC0415 - not before a run is sent

    url = Settings.every_from_env(os.environ)[0].broker_url  # Celery's own lacks certificates and authorities
    try:
        ping(url)  # first: Celery alone would try for a while, and then end with four tracebacks
        yield
    except ResponseError as error:  # a key of another type, or an ACL that forbids the command
        raise CacheUnavailable(f"the broker {redact_url(url)} refuses: {error}") from error
    except (OperationalError, RedisError, OSError, RuntimeError) as error:  # RuntimeError: lost while waiting
        raise CacheUnavailable(f"the broker {redact_url(url)} cannot be reached: {error}") from error


def _store_unless_pending(app: Any, key: str, request: _Request, expires_s: float) -> _Request | None:
    """Store the request and return `None`, or return the stored one if its run has not ended.

    Compare-and-set: if several processes see that the last run has ended, one of them stores its request.
    """
    kept_s = max(expires_s, app.conf.task_time_limit)  # after that a run that was begun has been killed
    with app.backend.client.pipeline() as pipeline:
        while True:
            with suppress(WatchError):
                pipeline.watch(key)
                stored = _decode_request(pipeline, key)
                if stored is not None and _is_pending(app, stored.id, kept_s - pipeline.pttl(key) / 1e3, expires_s):
                    return stored
                pipeline.multi()
                pipeline.set(key, msgspec.json.encode(request), px=round(kept_s * 1e3))
                pipeline.execute()
                return None


def _decode_request(client: Any, key: str) -> _Request | None:
    """Read the stored request; `None` if there is none, or anything else, which may be replaced."""
    try:
        return msgspec.json.decode(client.get(key) or b"null", type=_Request | None)
    except (ResponseError, msgspec.DecodeError, ValueError, RecursionError):
        return None


def _is_pending(app: Any, run_id: str, age_s: float, expires_s: float) -> bool:
    """Whether a run waits for a worker, or has been begun and has not ended."""
    try:
        state = read_result(app, run_id).state
    except (ResultInvalid, ResponseError):
        return False
    return state == "running" or (state == "pending" and age_s < expires_s)
