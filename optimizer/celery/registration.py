"""The registration of an app: its sources, their queues, and the settings of the app that the tasks need.

The tasks have the registration of their app as an attribute; other code uses `registration_of`.
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
# The attribute of an app that holds its registration.
ATTRIBUTE: Final = "rolling_optimizer"


def registration_of(app: Celery) -> Registration:
    """Return the registration of an app.

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
    """The sources that an app runs, and their queues; the attribute `registration` of the tasks.

    Attributes:
        app: The app.
        is_standalone: Whether it is the stand-alone app, whose settings are made by this package.
        queue: The queue of runs; `None` to use the app's routes, as always in the stand-alone app.
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
        """Read them; none if a variable is not usable, which worker, beat and tasks report when they start."""
        try:
            return self.every()
        except SettingsInvalid:
            return []

    def settings(self, source: str | None) -> Settings:
        """Read the settings of one source, which may be omitted if there is only one.

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
        """The queue of parts, if it is not set by routes."""
        return {"queue": SCAN_QUEUE} if self.is_standalone else {}

    def merge_options(self, source: str) -> dict[str, Any]:
        """The queue of the merge of a source's parts, if it is not set by routes."""
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
