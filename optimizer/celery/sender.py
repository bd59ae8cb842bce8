"""Runs on demand for the web: the `Trigger` of `optimizer.web`, by Celery.

    app.include_router(optimizer.web.make_router(settings, trigger=CelerySender()), prefix="/api")

It sends to the broker and the source of the `ROLLING_*` variables, whatever settings the router has: a process has one
Celery app. Of runs sent here one a source is on at a time, however many processes send: the broker holds which.

Results are decoded by `results.py`, not by Celery: it would import the modules that a result names.
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

__all__ = ["CelerySender"]

# A run that no worker has begun by then is dropped: whoever pressed the button has gone, and ticks come by themselves.
SHORTEST_EXPIRY_S: Final = 60.0


class _Requested(msgspec.Struct, frozen=True):
    """What was sent last."""

    id: Annotated[str, msgspec.Meta(pattern="^[0-9a-f-]{36}$")]
    force: bool
    accept: bool = False


class CelerySender:
    """Sends runs to the fleet, and finds out what has become of them."""

    def send(self, *, force: bool, accept: bool, source: str) -> str:
        """Send a run of a source, unless one that was sent here has not ended; return its id.

        Raises:
            RunPending: One has not ended, and does less than this one should: it is not forced, or accepts less.
            CacheUnavailable: The broker cannot be reached.
        """
        # Celery's settings are read on import, and so only where somebody triggers.
        from optimizer.celery.app import app  # noqa: PLC0415
        from optimizer.celery.tasks import optimize_rolling_data  # noqa: PLC0415

        with _broker_answers():
            expires_s = max(SHORTEST_EXPIRY_S, Settings.from_env(os.environ, source).interval_s)
            wanted = _Requested(str(uuid4()), force, accept)
            found = _request(Keys(source).requested, wanted, expires_s)
            if found is None:
                kwargs = {"force": force, "accept": accept, "source": source}
                try:
                    optimize_rolling_data.apply_async(kwargs=kwargs, expires=expires_s, task_id=wanted.id)
                except BaseException:
                    with suppress(RedisError):
                        app.backend.client.delete(Keys(source).requested)
                    raise
                return wanted.id
        missing = [name for name, more in (("force", force > found.force), ("accept", accept > found.accept)) if more]
        if missing:
            raise RunPending(f"the run {found.id}, sent without {' and '.join(missing)}, has not ended: ask again then")
        return found.id

    def state(self, run_id: str) -> RunState:
        """What has become of it.

        Raises:
            CacheUnavailable: The broker cannot be reached, or holds a result that is none of ours.
        """
        from optimizer.web.trigger import Failure, RunState  # noqa: PLC0415 - FastAPI is an extra

        with _broker_answers():
            result = read_result(run_id)
        error = Failure(result.error, result.details) if result.error else None
        if result.error == "TaskRevokedError":
            error = Failure("Expired", "it was revoked, or no worker has begun it in time: is one running?")
        return RunState(run_id, result.state, result.percent, result.report, error)


def _request(key: str, wanted: _Requested, expires_s: float) -> _Requested | None:
    """Note what is wanted, and return `None`; or return what was sent before and has not ended.

    Compare-and-set: of several processes that see that the last one has ended, one sends the next.
    """
    from optimizer.celery.app import app  # noqa: PLC0415

    # A run that is still on by then is killed.
    kept_s = max(expires_s, app.conf.task_time_limit)
    with app.backend.client.pipeline() as pipeline:
        while True:
            with suppress(WatchError):
                pipeline.watch(key)
                found = _decode_requested(pipeline, key)
                if found is not None and _is_on(found.id, kept_s - pipeline.pttl(key) / 1e3, expires_s):
                    return found
                pipeline.multi()
                pipeline.set(key, msgspec.json.encode(wanted), px=round(kept_s * 1e3))
                pipeline.execute()
                return None


def _decode_requested(client: Any, key: str) -> _Requested | None:
    """What the key holds; `None` where it holds nothing, or something that is none of ours and may be replaced."""
    try:
        return msgspec.json.decode(client.get(key) or b"null", type=_Requested | None)
    except (ResponseError, msgspec.DecodeError, ValueError, RecursionError):
        return None


def _is_on(run_id: str, age_s: float, expires_s: float) -> bool:
    """Whether a run waits for a worker, or is at work."""
    try:
        state = read_result(run_id).state
    except (ResultInvalid, ResponseError):
        return False
    return state == "running" or (state == "pending" and age_s < expires_s)


@contextmanager
def _broker_answers() -> Iterator[None]:
    from kombu.exceptions import OperationalError  # noqa: PLC0415 - not before a run is triggered

    url = Settings.every_from_env(os.environ)[0].broker_url  # Celery's own holds neither certificates nor authorities
    try:
        ping(url)
        yield
    except ResponseError as error:  # of another type, or an ACL that forbids it
        raise CacheUnavailable(f"the broker {redact_url(url)} refuses: {error}") from error
    except (OperationalError, RedisError, OSError, RuntimeError) as error:
        raise CacheUnavailable(f"the broker {redact_url(url)} cannot be reached: {error}") from error
