"""Publish records without a scan: they are checked here, queued in Redis, and applied by a worker.

    publish([{"symbol": "AAPL", "prediction": 187.5, "confidence": 0.91, "last_price": 182.3}], remove=["TSLA"])

Two calls of one process are applied in their order. Errors: see `publish`; all are `RollingError`s.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from functools import lru_cache, partial
from typing import Any

from optimizer.config.settings import Settings
from optimizer.errors import CacheUnavailable, SettingsInvalid, require
from optimizer.log import SourceLog
from optimizer.models import Reject, Value
from optimizer.pipeline.updates import accept_update, wait_applied

__all__ = ["Accepted", "publish", "settings_of_call"]

_log = SourceLog(__name__)


class Accepted(Value, frozen=True):
    """The result of a call.

    Attributes:
        records: Number of accepted records, which become visible together.
        removals: Number of symbols that will be removed with them.
        rejected: Each rejected record, and why, as in the report of a run; `where` is `record 3`, counted from 1, or
            a byte offset if JSON was given.
        version: The version in which readers see the update; `None` without `wait_s`, and if nothing was accepted.
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
    """Add records to the ranking, the index and everything derived from them, without a scan; remove symbols.

    A record is accepted or rejected as in a scan of a file with it. If a symbol occurs several times, in one call or in
    several, the last record is used, unless an earlier one has a later `timestamp`. The update stays in force until a
    scan of an input that was written later.

    Args:
        records: As the prediction engine writes them: mappings (or dataclasses, or msgspec structs) that have their
            symbol, a mapping of them by symbol, or the JSON of a rolling file.
        remove: Symbols to remove from the pages.
        source: The source; may be omitted if there is only one.
        settings: All settings of the source; by default from the `ROLLING_*` variables.
        wait_s: How long to wait until readers see it, in seconds; 0 does not wait.
        app: A Celery app on which `register` was called; by default the settings say the broker.

    Returns:
        What was accepted, and each record that was rejected.

    Raises:
        ExtraMissing: Celery is not installed.
        SettingsInvalid: An argument or a `ROLLING_*` variable cannot be used, or a symbol is both given and removed.
        UpdatesRefused: There is too much in this call, or too much waits; nothing of it was taken.
        SourceMalformed, SourceTorn: What was given as JSON is none; nothing of it was taken.
        CacheUnavailable: Redis does not answer. Send it again: twice has the same effect as once.
        GuardRefused: It was accepted, and dropped while this call waited: a guard refuses the version that it would
            make, or it would remove the last record.
        UpdatesPending: It was accepted, and readers do not see it within `wait_s`.
        UpdatesLost: It was accepted, and Redis lost its data while this call waited.
    """
    settings = settings_of_call(source, settings, wait_s, app)
    require("publish", "celery", "celery", "kombu")  # before anything is taken that no worker would hear of
    update, enqueued = accept_update(settings, records, remove)
    if enqueued is not None and enqueued.must_drain:
        _send_drain(settings, app)
    version = None
    if enqueued is not None and wait_s:
        version = wait_applied(
            settings,
            enqueued.sequence,
            wait_s,
            send_again=partial(_send_drain, settings, app),
            taken_from=partial(_queue, settings, app),
        )
    return Accepted(len(update.records), len(update.removed), update.rejects, version)


def settings_of_call(source: str | None, settings: Settings | None, wait_s: float, app: Any) -> Settings:
    """Return the settings that a call means; its arguments are those of `publish`.

    Raises:
        SettingsInvalid: An argument or a `ROLLING_*` variable cannot be used.
    """
    if not isinstance(wait_s, int | float) or not 0 <= wait_s < float("inf"):
        raise SettingsInvalid(f"wait_s={wait_s!r} is not a number of seconds, 0 or more")
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


def _queue(settings: Settings, app: Any) -> str:
    from optimizer.celery.updates import drain_queue  # noqa: PLC0415 - as above

    return drain_queue(app or _sender(settings.broker_url))


@lru_cache(maxsize=16)
def _sender(broker_url: str) -> Any:
    """Return a stand-alone app that sends to a broker, whatever the environment says."""
    from optimizer.celery import create_app  # noqa: PLC0415 - as above
    from optimizer.celery.config import celery_settings  # noqa: PLC0415

    return create_app(celery_settings({"ROLLING_BROKER_URL": broker_url}))
