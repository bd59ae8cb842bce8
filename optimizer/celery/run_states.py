"""The states of runs that a `CelerySender` has sent, kept until the sender has read them.

With the stand-alone app, both the results, as Celery stores them, and the note of the one pending run are in the
broker.

Another app may have any broker, and any result backend or none. So its tasks keep the state of such a run in the cache
too, in the same format, where it is followed whatever the app's result backend is. If the app's results are JSON in
Redis, they are read first, since they include tasks that could not even read the settings. Only `results.py` decodes
values.

Errors: `CacheUnavailable`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from types import TracebackType
from typing import Any, Final, Protocol

import msgspec
import redis
from celery.backends.redis import RedisBackend
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError, ResponseError

from optimizer.cache.client import CacheClient, ping
from optimizer.cache.keys import Keys
from optimizer.celery.registration import Registration
from optimizer.celery.results import MAX_RESULT_BYTES, ResultInvalid, RunResult, decode_result, read_result
from optimizer.celery.schedule import time_limit_s
from optimizer.config.settings import Settings
from optimizer.errors import CacheUnavailable
from optimizer.models import Report
from optimizer.storage.location import redact_url
from optimizer.storage.redis_url import reason_of

__all__ = ["FollowedRun", "RunStates", "run_states"]

# How long the state of a run that has ended is kept for its sender.
KEPT_S: Final = 900.0
RECONNECT_TRIES: Final = 1


class RunStates(Protocol):
    """The states of the runs of one app, for their senders."""

    def sending(self) -> AbstractContextManager[None]:
        """Return a context that checks the broker, and turns failures to send into `CacheUnavailable`."""

    def reading(self) -> AbstractContextManager[None]:
        """Return a context that turns failures to read into `CacheUnavailable`."""

    def notes(self, settings: Settings) -> AbstractContextManager[redis.Redis]:
        """Return a context with the Redis client for the note of the one pending run."""

    def expect(self, settings: Settings, run_id: str, expires_s: float) -> None:
        """Store that a run is sent, which a worker has to begin within `expires_s`."""

    def read(self, run_id: str) -> RunResult:
        """Read the state of a run; an unknown one is pending."""


def run_states(registration: Registration) -> RunStates:
    """Return the store of the states of an app's runs."""
    return _InBroker(registration) if registration.is_standalone else _InCache(registration)


class _InBroker:
    """The states as Celery keeps them for the stand-alone app."""

    def __init__(self, registration: Registration) -> None:
        self._registration = registration

    @contextmanager
    def sending(self) -> Iterator[None]:
        url = self._registration.every()[0].broker_url  # Celery's URL lacks certificates and authorities
        try:
            ping(url)  # first, since Celery would try for a while, and then end with four tracebacks
            yield
        except ResponseError as error:  # a key of another type, or an ACL that forbids the command
            raise CacheUnavailable(
                f"the broker {redact_url(url)} refuses: {error}; what it lacks is shown by: rolling-optimizer config"
            ) from error
        except (OperationalError, RedisError, OSError, RuntimeError) as error:  # RuntimeError: lost while waiting
            raise CacheUnavailable(
                f"the broker {redact_url(url)} cannot be reached: {reason_of(error)}; is it up? Its address is "
                "ROLLING_BROKER_URL, by default ROLLING_REDIS_URL"
            ) from error

    def reading(self) -> AbstractContextManager[None]:
        return self.sending()

    @contextmanager
    def notes(self, settings: Settings) -> Iterator[redis.Redis]:  # noqa: ARG002 - all sources have one broker
        yield self._registration.app.backend.client

    def expect(self, settings: Settings, run_id: str, expires_s: float) -> None:
        """Do nothing: a worker that receives the message too late stores that it was revoked."""

    def read(self, run_id: str) -> RunResult:
        return read_result(self._registration.app, run_id)


class _InCache:
    """The states as `FollowedRun` keeps them for any other app."""

    def __init__(self, registration: Registration) -> None:
        self._registration = registration

    @contextmanager
    def sending(self) -> Iterator[None]:
        registration = self._registration
        try:
            with registration.app.connection_for_write() as connection:
                # First, since a send would retry forever, or as long as the app's settings say.
                connection.ensure_connection(max_retries=RECONNECT_TRIES, interval_start=0, interval_step=0)
            yield
        except (OperationalError, RedisError, OSError) as error:
            raise CacheUnavailable(
                f"the broker {registration.shown_broker()} cannot be reached: {reason_of(error)}; is it up? Its "
                "address is broker_url of the Celery app"
            ) from error

    def reading(self) -> AbstractContextManager[None]:
        return nullcontext()

    @contextmanager
    def notes(self, settings: Settings) -> Iterator[redis.Redis]:
        with closing(_client(settings)) as cache, cache.commands() as client:
            yield client

    def expect(self, settings: Settings, run_id: str, expires_s: float) -> None:
        with self.notes(settings) as client:
            key = Keys(settings.source).result(run_id)
            client.set(key, _encode("PENDING"), px=round((expires_s + KEPT_S) * 1e3))

    def read(self, run_id: str) -> RunResult:
        app = self._registration.app
        if isinstance(app.backend, RedisBackend) and app.conf.result_serializer == "json":
            with suppress(RedisError, ResultInvalid):  # if it fails, or the app compresses results: the cache knows too
                result = read_result(app, run_id)
                if result.state != "pending":
                    return result
        for settings in self._registration.every():
            with self.notes(settings) as client:
                key = Keys(settings.source).result(run_id)
                data: Any = client.getrange(key, 0, MAX_RESULT_BYTES)
                if data:
                    result = decode_result(run_id, data)
                    is_late = result.state == "pending" and 0 <= client.pttl(key) <= KEPT_S * 1e3
                    return RunResult("failed", error="TaskRevokedError") if is_late else result
        return RunResult("pending")


class FollowedRun:
    """Keeps the state of a run in the cache while the `with` block executes it, if a sender waits for it.

    Args:
        registration: The app whose task does the run.
        settings: All settings of its source.
        run_id: Its id; empty for a tick, which has no sender.
    """

    def __init__(self, registration: Registration, settings: Settings, run_id: str) -> None:
        self._cache = None if registration.is_standalone or not run_id else _client(settings)
        self._run_id = run_id
        self._limit_s = time_limit_s([settings]) + KEPT_S

    def __enter__(self) -> FollowedRun:
        return self

    def __exit__(self, _type: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None:
            self.fail(error)
        if self._cache is not None:
            self._cache.close()

    def begin(self) -> None:
        """Store that the run has begun."""
        self._store("STARTED")

    def progress(self, percent: float) -> None:
        """Store how much of the input has been read."""
        self._store("PROGRESS", {"percent": percent})

    def finish(self, report: Report | None) -> None:
        """Store the report; `None` stores nothing, for a run that another task will end."""
        if report is not None:
            self._store("SUCCESS", msgspec.to_builtins(report))

    def fail(self, error: BaseException) -> None:
        """Store why the run has failed."""
        self._store("FAILURE", {"exc_type": type(error).__name__, "exc_message": [str(error)]})

    def _store(self, status: str, result: Any = None) -> None:
        if self._cache is not None and self._cache.redis_up:
            # The run itself reports a Redis that is away. XX: only if a sender waits.
            with suppress(CacheUnavailable), self._cache.commands() as client:
                key = self._cache.keys.result(self._run_id)
                client.set(key, _encode(status, result), px=round(self._limit_s * 1e3), xx=True)


def _encode(status: str, result: Any = None) -> bytes:
    return msgspec.json.encode({"status": status, "result": result})


def _client(settings: Settings) -> CacheClient:
    return CacheClient(settings.redis_url, settings.source, settings.interval_s)
