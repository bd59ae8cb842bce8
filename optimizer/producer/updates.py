"""Publish records without a scan: they are checked here, wait in a queue in Redis, and are applied by a worker.

    publish([{"symbol": "AAPL", "prediction": 187.5, "confidence": 0.91, "last_price": 182.3}], remove=["TSLA"])

Two calls of one process are applied in their order. Errors: see `publish`; all are `RollingError`s.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any, Final

from optimizer.config.settings import Settings
from optimizer.errors import CacheUnavailable, SettingsInvalid, UpdatesPending
from optimizer.log import SourceLog
from optimizer.models import Reject, Value
from optimizer.pipeline.accept import accept_update
from optimizer.pipeline.updates import wait_applied

__all__ = ["Accepted", "publish"]

# Of a call that waits. A drain that was begun takes up to 5 s, and is not disturbed by another.
SEND_AGAIN_S: Final = 1.5

_log = SourceLog(__name__)


class Accepted(Value, frozen=True):
    """What became of a call.

    Attributes:
        records: Number of records that were accepted, and become visible together.
        removals: Number of symbols that will be removed with them.
        rejected: Each record that was rejected, and why, as in the report of a run; `where` is `record 3`, from 1, or
            a byte where JSON was given.
        version: The version in which readers see it; only with `wait_s`.
    """

    records: int
    removals: int
    rejected: list[Reject]
    version: int | None = None


def publish(
    records: Iterable[Any] | Mapping[str, Any] | bytes | str = (),
    *,
    remove: Iterable[str] = (),
    source: str | None = None,
    settings: Settings | None = None,
    wait_s: float = 0.0,
    app: Any = None,
) -> Accepted:
    """Make records part of the ranking, the index and all that follows, without a scan; remove symbols.

    A record is accepted or rejected as by a scan of a file that holds it. Of a symbol that comes several times, and of
    calls that follow each other, the last record counts, unless one before has a later `timestamp`. All of it holds
    until a scan of an input that was written later.

    Args:
        records: As the prediction engine writes them: mappings (or dataclasses, or msgspec structs) that have their
            symbol, a mapping of them by symbol, or the JSON of a rolling file.
        remove: Symbols that are to be shown no longer.
        source: Which of several sources; may be left out where there is one.
        settings: All settings of the source; by default from the `ROLLING_*` variables.
        wait_s: How long to wait until readers see it, in seconds; 0 does not wait.
        app: A Celery app on which `register` was called; by default the settings say the broker.

    Returns:
        What was accepted, and each record that was rejected.

    Raises:
        SettingsInvalid: An argument or a `ROLLING_*` variable cannot be used, or a symbol is both given and removed.
        UpdatesRefused: There is too much in this call, or too much waits; nothing of it was taken.
        SourceMalformed, SourceTorn: What was given as JSON is none; nothing of it was taken.
        CacheUnavailable: Redis does not answer. Send it again: twice has the same effect as once.
        UpdatesPending: It was accepted, and readers do not see it within `wait_s`.
        UpdatesLost: It was accepted, and Redis lost its data while this call waited.
    """
    if not 0 <= wait_s < float("inf"):
        raise SettingsInvalid(f"wait_s={wait_s} is not a number of seconds, 0 or more")
    settings = _settings(source, settings, app)
    update, enqueued = accept_update(settings, records, remove)
    if enqueued is not None and enqueued.must_drain:
        _send_drain(settings, app)
    version = _wait(settings, enqueued.sequence, wait_s, app) if enqueued is not None and wait_s else None
    return Accepted(len(update.records), len(update.removed), update.rejects, version)


def _wait(settings: Settings, sequence: int, wait_s: float, app: Any) -> int:
    """Wait until readers see an entry; send the message again now and then: its worker may have been killed."""
    until_s = time.monotonic() + wait_s
    while (left_s := until_s - time.monotonic()) > SEND_AGAIN_S:
        with suppress(UpdatesPending):
            return wait_applied(settings, sequence, SEND_AGAIN_S)
        _send_drain(settings, app)
    return wait_applied(settings, sequence, max(0.0, left_s))


def _settings(source: str | None, settings: Settings | None, app: Any) -> Settings:
    if settings is not None:
        return Settings.one_of([settings], source)
    if app is None:
        return Settings.from_env(os.environ, source)
    from optimizer.celery.registration import registration_of  # noqa: PLC0415 - only Celery's users need it

    return registration_of(app).settings(source)


def _send_drain(settings: Settings, app: Any) -> None:
    """Send the message that makes a worker apply what waits; the next call or tick does if the broker is away."""
    from optimizer.celery.updates import send_drain  # noqa: PLC0415 - Celery takes 0.3 s

    try:
        send_drain(app or _sender(settings.broker_url), settings.source)
    except CacheUnavailable as error:
        _log.warning(
            "⚠️ updates are accepted, and wait until the next call or tick has them applied",
            source=settings.source,
            error=error,
        )


@lru_cache(maxsize=16)
def _sender(broker_url: str) -> Any:
    """Return a stand-alone app that sends to a broker, whatever the environment says."""
    from optimizer.celery import create_app  # noqa: PLC0415 - as above
    from optimizer.celery.config import celery_settings  # noqa: PLC0415

    return create_app(celery_settings({"ROLLING_BROKER_URL": broker_url}))
