"""The tasks in a Celery app: in one of yours by `register`, in the stand-alone one by `create_app`.

    from optimizer.celery import register

    app = Celery("proj")
    app.config_from_object("proj.conf:Config")
    register(app)

Invariant: an app of yours keeps its settings. What our tasks need stands on the tasks alone; `beat_schedule` and
`task_routes` get entries, and lose none. Nothing is read before the app itself is configured, so its configuration may
be set before or after.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Final

from celery import Celery
from celery.utils.collections import match_case

from optimizer.celery.broker_url import same_broker, shown_broker
from optimizer.celery.queues import SCAN_QUEUE, source_queue
from optimizer.celery.schedule import MERGE_TASK, SCAN_TASK, TASK_NAME, beat_entries, time_limit_s
from optimizer.celery.startup import watch_registered, watch_standalone
from optimizer.config.environment import with_secrets
from optimizer.config.settings import Settings
from optimizer.errors import SettingsInvalid
from optimizer.storage.location import redact_url

__all__ = ["Registration", "register", "registration_of"]

BROKER_VARIABLE: Final = "ROLLING_BROKER_URL"
_ATTRIBUTE: Final = "rolling_optimizer"


def register(
    app: Celery,
    *,
    queue: str | None = None,
    scan_queue: str | None = None,
    beat: bool = True,
    source: str | Sequence[str] | None = None,
) -> None:
    """Add the tasks to a Celery app, and their schedule.

    The app's broker, result backend, queues and everything else stay as they are. A `ROLLING_*` variable that cannot be
    used ends none of its processes: worker and beat log one error at their start, and only our tasks fail.

    Args:
        app: The app. Its configuration may be set before or after, in any style.
        queue: The queue of runs; by default what the app's routes or its default queue say.
        scan_queue: The queue of the parts of a source that has many; by default the same.
        beat: Whether to add an entry to `beat_schedule` for each source; an entry of yours of the same name stays.
        source: The source, or several by name; by default all that `ROLLING_SOURCES` or `ROLLING_INPUT` names.

    Raises:
        ValueError: The app has them already, or tasks of its own with their names. Of an app that is not finalized yet,
            Celery logs the latter then.
    """
    if getattr(app, _ATTRIBUTE, None) is not None:
        raise ValueError(
            f"register() was called before for the app {app.main!r}: call it once, with all sources: source=[...]"
        )
    names = (source,) if isinstance(source, str) else tuple(source or ())
    registration = Registration(app, queue=queue, scan_queue=scan_queue or queue, beat=beat, names=names)
    registration.connect()


def registration_of(app: Celery) -> Registration:
    """The registration of an app.

    Raises:
        SettingsInvalid: It has none.
    """
    registration: Registration | None = getattr(app, _ATTRIBUTE, None)
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
        self._queue = queue
        self._scan_queue = scan_queue
        self._beat = beat
        self._names = names

    def connect(self) -> None:
        """Bind the tasks once the app is finalized, which is when Celery binds all others.

        Routes and schedule are added when it is configured too: a program that sends a task by its name alone never
        finalizes its app.
        """
        setattr(self.app, _ATTRIBUTE, self)
        if not self.is_standalone:
            self.app.on_after_configure.connect(self._configure, weak=False)
            if self.app.configured:
                self._configure()
        if self.app.finalized:
            self._bind()
        else:
            self.app.on_after_finalize.connect(self._bind, weak=False)

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

    def _bind(self, **_: Any) -> None:
        from optimizer.celery.tasks import bind_tasks  # noqa: PLC0415 - it imports the scanner; a sender may never bind

        if self.is_standalone:
            bind_tasks(self, {})
            watch_standalone(self.app)
        else:
            bind_tasks(self, self._own_options())
            self._configure()  # again: it may have been assigned since
            watch_registered(self)

    def _configure(self, **_: Any) -> None:
        """Put the queues of our tasks before the app's own routes, and our entries into its schedule.

        Routes, since the attribute of a task for its queue is deprecated.
        """
        conf = self.app.conf
        queues = {TASK_NAME: self._queue, MERGE_TASK: self._queue, SCAN_TASK: self._scan_queue}
        ours = {name: {"queue": queue} for name, queue in queues.items() if queue}
        theirs = conf.task_routes or ()
        theirs = theirs if isinstance(theirs, (list, tuple)) else (theirs,)
        if ours and ours not in theirs:
            _assign(conf, "task_routes", (ours, *theirs))
        every = self._every_or_none()
        if self._beat and every:
            entries = beat_entries(every, {"queue": self._queue} if self._queue else {})
            _assign(conf, "beat_schedule", {**entries, **(conf.beat_schedule or {})})

    def _every_or_none(self) -> list[Settings]:
        try:
            return self.every()
        except SettingsInvalid:  # the tasks say so when they run, worker and beat when they start
            return []

    def _own_options(self) -> dict[str, Any]:
        """What the stand-alone app has as settings, for our tasks alone."""
        options: dict[str, Any] = {
            "ignore_result": False,
            "acks_late": False,
            "reject_on_worker_lost": False,
            "track_started": True,
        }
        if {"json", "application/json"}.intersection(self.app.conf.accept_content or ()):
            options["serializer"] = "json"
        if every := self._every_or_none():
            limit_s = time_limit_s(every)
            options |= {"soft_time_limit": limit_s, "time_limit": limit_s + 30}
        return options


def _assign(conf: Any, name: str, value: Any) -> None:
    """Assign a setting. Celery 5.4 returns what its name with the namespace's prefix has, whatever is assigned."""
    conf[name] = value
    if conf[name] is not value:
        conf[match_case(conf.prefix + name, conf.prefix)] = value
    conf.update(**{name: value})  # the router that was made before is told by this alone, and by a keyword
