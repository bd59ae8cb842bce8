"""Runs on demand for the web: the `Trigger` of `optimizer.web`, by Celery.

app.include_router(optimizer.web.make_router(settings, trigger=CelerySender()), prefix="/api")

It sends to the broker and the source of the `ROLLING_*` variables, whatever settings the router has: a process has one
Celery app.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import msgspec
from redis.exceptions import RedisError

from optimizer.connection import ping
from optimizer.errors import CacheUnavailable
from optimizer.records import Report
from optimizer.settings import Settings
from optimizer.urls import redact_url

if TYPE_CHECKING:
    from optimizer.web.trigger import RunState

__all__ = ["CelerySender"]

# A run that no worker has begun by then is dropped: whoever pressed the button has gone, and ticks come by themselves.
SHORTEST_EXPIRY_S: Final = 60.0


class CelerySender:
    """Sends runs to the fleet, and finds out what has become of them."""

    def send(self, *, force: bool, source: str) -> str:
        """Send a run of a source; return its id."""
        # Celery's settings are read on import, and so only where somebody triggers.
        from tasks.rolling import optimize_rolling_data  # noqa: PLC0415

        with _broker_answers():
            expires_s = max(SHORTEST_EXPIRY_S, Settings.from_env(os.environ, source).interval_s)
            kwargs = {"force": force, "source": source}
            return str(optimize_rolling_data.apply_async(kwargs=kwargs, expires=expires_s).id)

    def state(self, run_id: str) -> RunState:
        """What has become of it."""
        from optimizer.web.trigger import Failure, RunState  # noqa: PLC0415 - FastAPI is an extra
        from tasks import app  # noqa: PLC0415

        with _broker_answers():
            meta = app.backend.get_task_meta(run_id)
            status, result = meta["status"], meta["result"]
            if status == "SUCCESS":
                return RunState(run_id, "done", 100.0, msgspec.convert(result, Report))
        if status == "FAILURE":
            return RunState(run_id, "failed", error=Failure(type(result).__name__, str(result)))
        if status == "REVOKED":
            return RunState(
                run_id,
                "failed",
                error=Failure("Expired", "it was revoked, or no worker has begun it in time: is one running?"),
            )
        if status == "PROGRESS":
            return RunState(run_id, "running", result["percent"])
        return RunState(run_id, "running" if status == "STARTED" else "pending")


@contextmanager
def _broker_answers() -> Iterator[None]:
    from kombu.exceptions import KombuError, OperationalError  # noqa: PLC0415 - not before somebody triggers

    url = Settings.every_from_env(os.environ)[0].broker_url  # Celery's own holds neither certificates nor authorities
    try:
        ping(url)
        yield
    except (OperationalError, RedisError, OSError, RuntimeError) as error:
        raise CacheUnavailable(f"the broker {redact_url(url)} cannot be reached: {error}") from error
    except (KombuError, msgspec.ValidationError) as error:  # somebody else has written there
        raise CacheUnavailable(f"the broker {redact_url(url)} holds a result that is none of ours: {error}") from error
