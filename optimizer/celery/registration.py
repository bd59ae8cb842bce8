"""Which sources an app runs, in which queues, and what of its settings our tasks have to know.

The tasks find the registration of their app as their attribute, all else by `registration_of`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Final

from celery import Celery

from optimizer.celery.broker_url import same_broker, shown_broker
from optimizer.celery.schedule import SCAN_QUEUE, source_queue
from optimizer.config.environment import with_secrets
from optimizer.config.settings import Settings
from optimizer.errors import SettingsInvalid
from optimizer.storage.location import redact_url

__all__ = ["ATTRIBUTE", "Registration", "registration_of"]

BROKER_VARIABLE: Final = "ROLLING_BROKER_URL"
# Of an app: its registration.
ATTRIBUTE: Final = "rolling_optimizer"


def registration_of(app: Celery) -> Registration:
    """The registration of an app.

    Raises:
        SettingsInvalid: It has none.
    """
    registration: Registration | None = getattr(app, ATTRIBUTE, None)
    if registration is None:
        raise SettingsInvalid(
            f"the Celery app {app.main!r} has no tasks of ours: call optimizer.celery.register(app) where it is made"
        )
    return registration


class Registration:
    """Which sources an app runs, in which queues; the tasks find it as their attribute `registration`.

    Attributes:
        app: The app.
        is_standalone: Whether it is the stand-alone app, whose settings are ours.
        queue: The queue of runs; `None` for what the app's routes say, as always in the stand-alone app.
        scan_queue: The same for parts.
        beat: Whether the app's schedule gets an entry for each source.
        pool_problem: Why this worker's pool cannot run scans; empty if it can, and in other processes.
    """

    def __init__(
        self,
        app: Celery,
        *,
        is_standalone: bool = False,
        queue: str | None = None,
        scan_queue: str | None = None,
        beat: bool = False,
        names: Sequence[str] = (),
    ) -> None:
        self.app = app
        self.is_standalone = is_standalone
        self.pool_problem = ""
        self.queue = queue
        self.scan_queue = scan_queue
        self.beat = beat
        self._names = names

    def every(self) -> list[Settings]:
        """Read the settings of the app's sources.

        Raises:
            SettingsInvalid: A variable cannot be used, or `ROLLING_BROKER_URL` is not the app's broker.
        """
        if self.is_standalone:
            return Settings.every_from_env(os.environ)
        environ = with_secrets(os.environ)
        self._check_broker(environ.pop(BROKER_VARIABLE, ""))
        every = Settings.every_from_env(environ)
        missing = set(self._names) - {settings.source for settings in every}
        if missing:
            configured = ", ".join(settings.source for settings in every)
            raise SettingsInvalid(
                f"register(source=...) names {', '.join(sorted(missing))}, which ROLLING_SOURCES or ROLLING_INPUT does "
                f"not; those that are configured: {configured}"
            )
        return [settings for settings in every if not self._names or settings.source in self._names]

    def every_or_none(self) -> list[Settings]:
        """The same; none if a variable cannot be used: worker and beat say so when they start, tasks when they run."""
        try:
            return self.every()
        except SettingsInvalid:
            return []

    def settings(self, source: str | None) -> Settings:
        """Read the settings of one source; it may be left out where there is one.

        Raises:
            SettingsInvalid: As above, or there is no such source.
        """
        return Settings.one_of(self.every(), source)

    def check_pool(self) -> None:
        """Check that this worker can run scans.

        Raises:
            SettingsInvalid: It cannot.
        """
        if self.pool_problem:
            raise SettingsInvalid(self.pool_problem)

    def scan_options(self) -> dict[str, Any]:
        """The queue of parts, where routes do not say it."""
        return {"queue": SCAN_QUEUE} if self.is_standalone else {}

    def merge_options(self, source: str) -> dict[str, Any]:
        """The queue of the merge of a source's parts, where routes do not say it."""
        return {"queue": source_queue(source)} if self.is_standalone else {}

    def shown_broker(self) -> str:
        """The app's broker for a message, without its password."""
        return shown_broker(self.app)

    def _check_broker(self, url: str) -> None:
        if url and not same_broker(self.app, url):
            raise SettingsInvalid(
                f"{BROKER_VARIABLE}={redact_url(url)!r} is not the broker of the Celery app {self.app.main!r}, "
                f"{shown_broker(self.app)}; leave it out, the app's own is used"
            )
