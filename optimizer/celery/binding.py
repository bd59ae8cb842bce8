"""Binds the tasks to a Celery app: to yours by `register`, to the stand-alone one by `create_app`.

    from optimizer.celery import register

    app = Celery("proj")
    app.config_from_object("proj.conf:Config")
    register(app)

Invariant: your app keeps its settings. Options that these tasks need are set only on the tasks; `beat_schedule` and
`task_routes` get entries, and lose none. Nothing is read before the app itself is configured, so its configuration may
be set before or after.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from celery import Celery
from celery.utils.collections import match_case

from optimizer.celery.heartbeats import tell_heartbeats
from optimizer.celery.registration import ATTRIBUTE, Registration
from optimizer.celery.schedule import MERGE_TASK, SCAN_TASK, TASK_NAME, UPDATE_TASK, beat_entries, time_limit_s
from optimizer.celery.startup import watch_registered, watch_standalone

__all__ = ["connect", "register"]


def register(
    app: Celery,
    *,
    queue: str | None = None,
    scan_queue: str | None = None,
    beat: bool = True,
    source: str | Sequence[str] | None = None,
) -> None:
    """Add the tasks to a Celery app, and their schedule.

    The app's broker, result backend, queues and all other settings stay as they are. An invalid `ROLLING_*` variable
    ends none of its processes: worker and beat log one error at their start, and only these tasks fail.

    Args:
        app: The app. Its configuration may be set before or after, in any style.
        queue: The queue of runs and of updates; by default from the app's routes, or its default queue.
        scan_queue: The queue of the parts of a source with many parts; by default the same.
        beat: Whether to add an entry to `beat_schedule` for each source; an existing entry of the same name stays.
        source: The source, or several by name; by default all that `ROLLING_SOURCES` or `ROLLING_INPUT` names.

    Raises:
        ValueError: The app has these tasks already, or other tasks with their names. If the app is not finalized yet,
            Celery logs the latter when it is.
    """
    if getattr(app, ATTRIBUTE, None) is not None:
        raise ValueError(
            f"register() was called before for the app {app.main!r}: call it once, with all sources: source=[...]"
        )
    names = (source,) if isinstance(source, str) else tuple(source or ())
    connect(Registration(app, queue=queue, scan_queue=scan_queue or queue, beat=beat, names=names))


def connect(registration: Registration) -> None:
    """Bind the tasks once the app is finalized, which is when Celery binds all other tasks.

    Routes and schedule are also added when it is configured: a program that only sends tasks by name never finalizes
    its app.
    """
    app = registration.app
    setattr(app, ATTRIBUTE, registration)
    if not registration.is_standalone:
        app.on_after_configure.connect(partial(_configure, registration), weak=False)
        if app.configured:
            _configure(registration)
    if app.finalized:
        _bind(registration)
    else:
        app.on_after_finalize.connect(partial(_bind, registration), weak=False)


def _bind(registration: Registration, **_: Any) -> None:
    from optimizer.celery.tasks import bind_tasks  # noqa: PLC0415 - it imports the scanner; a sender may never bind

    tell_heartbeats(registration)
    if registration.is_standalone:
        bind_tasks(registration, {})
        watch_standalone(registration.app)
    else:
        bind_tasks(registration, _own_options(registration))
        _configure(registration)  # again, since settings may have been assigned meanwhile
        watch_registered(registration)


def _configure(registration: Registration, **_: Any) -> None:
    """Put routes of these tasks before the app's routes, and their entries into its schedule.

    Routes are used because the attribute of a task for its queue is deprecated.
    """
    conf = registration.app.conf
    queues = {
        **dict.fromkeys((TASK_NAME, MERGE_TASK, UPDATE_TASK), registration.queue),
        SCAN_TASK: registration.scan_queue,
    }
    ours = {name: {"queue": queue} for name, queue in queues.items() if queue}
    theirs = conf.task_routes or ()
    theirs = theirs if isinstance(theirs, (list, tuple)) else (theirs,)
    if ours and ours not in theirs:
        _assign(conf, "task_routes", (ours, *theirs))
    every = registration.every_or_none()
    if registration.beat and every:
        entries = beat_entries(every, {"queue": registration.queue} if registration.queue else {})
        _assign(conf, "beat_schedule", {**entries, **(conf.beat_schedule or {})})


def _own_options(registration: Registration) -> dict[str, Any]:
    """Return the stand-alone app's settings as options of these tasks."""
    options: dict[str, Any] = {
        "ignore_result": False,
        "acks_late": False,
        "reject_on_worker_lost": False,
        "track_started": True,
    }
    if {"json", "application/json"}.intersection(registration.app.conf.accept_content or ()):
        options["serializer"] = "json"
    if every := registration.every_or_none():
        limit_s = time_limit_s(every)
        options |= {"soft_time_limit": limit_s, "time_limit": limit_s + 30}
    return options


def _assign(conf: Any, name: str, value: Any) -> None:
    """Assign a setting. Celery 5.4 reads it by the name with the namespace's prefix, whatever is assigned."""
    conf[name] = value
    if conf[name] is not value:
        conf[match_case(conf.prefix + name, conf.prefix)] = value
    conf.update(**{name: value})  # only this, with a keyword, notifies an existing router
