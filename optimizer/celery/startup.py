"""The checks of a worker and a beat at their start, before the first task.

A process of the stand-alone app that could do nothing useful ends with one line on stderr, where Celery would print a
traceback or fail at each tick. Conditions that may fail later, or lose data some day, are logged as warnings.

A process of another app has other tasks too, and is never ended: what is unusable is logged as an error, and these
tasks fail with a named error.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from celery import Celery
from celery.concurrency import get_implementation
from celery.signals import beat_init, worker_init, worker_ready

from optimizer.cache.client import is_away
from optimizer.cache.server_checks import check_broker, check_cache, check_no_cluster
from optimizer.celery.backends import can_join
from optimizer.celery.schedule import SCAN_QUEUE, UPDATE_QUEUE, source_queue
from optimizer.config.settings import Settings, logs_json
from optimizer.errors import CacheUnavailable, RollingError, SettingsInvalid
from optimizer.log import SourceLog, error_line
from optimizer.scan.engine import choose_engine
from optimizer.storage.location import is_pattern

if TYPE_CHECKING:
    from optimizer.celery.registration import Registration

__all__ = ["one_line_exit", "watch_registered", "watch_standalone"]

_log = SourceLog(__name__)

# Tested pools, and whether they support time limits and can end a running task.
POOLS: Final = {
    "celery.concurrency.prefork": True,
    "celery.concurrency.thread": False,
    "celery.concurrency.solo": False,
}


def watch_standalone(app: Celery) -> None:
    """Check the worker and the beat of the stand-alone app at their start."""
    _connect(app, worker_init, _check_worker)
    _connect(app, beat_init, _check_beat)
    _connect(app, worker_ready, _log_start)


def watch_registered(registration: Registration) -> None:
    """Log the results of the checks in workers and beats of another app."""

    def check_pool(worker: Any) -> None:
        registration.pool_problem = _pool_problem(get_implementation(worker.pool_cls))

    def log_worker(consumer: Any) -> None:
        every = _usable(registration)
        if registration.pool_problem:
            _log.error("⚠️ no run is made by this worker: %s", registration.pool_problem)
        elif every:
            _log_pool(consumer.pool.__module__)
            _log_engines(every)
            _log_parts(every, consumer.app)

    _connect(registration.app, worker_init, check_pool)
    _connect(registration.app, worker_ready, log_worker)
    _connect(registration.app, beat_init, lambda _: _usable(registration))


def _connect(app: Celery, signal: Any, check: Callable[[Any], object]) -> None:
    """Call a check with the signal's sender, only in processes of this app."""

    def receive(sender: Any, **_: Any) -> None:
        if sender.app is app:
            check(sender)

    signal.connect(receive, weak=False)


def _usable(registration: Registration) -> Sequence[Settings]:
    """Return the settings of an app's sources; none, with an error in the log, if a variable cannot be used."""
    try:
        every = registration.every()
        for settings in every:
            choose_engine(settings.engine)
    except SettingsInvalid as error:
        _log.error("⚠️ no run can be made, and none is scheduled, until this is corrected", error=error)
        return []
    return every


def _log_parts(every: Sequence[Settings], app: Celery) -> None:
    """Warn if parts cannot be distributed."""
    for settings in every:
        if is_pattern(settings.input) and not can_join(app):
            _log.warning(
                "the result backend of this app, %s, cannot join tasks, so that a run scans all its parts itself, one "
                "after another",
                app.backend.as_uri(),
                source=settings.source,
            )


def _check_worker(worker: Any) -> None:
    """End a worker with a misspelt setting, without its engine, or with a broker or a pool that cannot be used."""
    with one_line_exit():
        every = Settings.every_from_env(os.environ, strict=True)
        for settings in every:
            choose_engine(settings.engine)
        check_broker(every[0].broker_url, every[0].source)
    if problem := _pool_problem(get_implementation(worker.pool_cls)):
        raise SystemExit(problem)
    worker.quiet = worker.quiet or logs_json(os.environ)  # its banner is no JSON


def _check_beat(_beat: Any) -> None:
    """End a beat with a misspelt setting, or with a Redis Cluster as its broker, to which it could not send tasks."""
    with one_line_exit():
        every = Settings.every_from_env(os.environ, strict=True)
        check_no_cluster(every[0].broker_url)


@contextmanager
def one_line_exit() -> Iterator[None]:
    """Exit with one line, in place of a traceback, on invalid settings and on a broker that refuses.

    Celery waits for a broker that is away.
    """
    try:
        yield
    except SettingsInvalid as error:
        raise _exit(error) from None
    except CacheUnavailable as error:
        if not is_away(error):
            raise _exit(CacheUnavailable(f"broker: {error}")) from None


def _exit(error: RollingError) -> SystemExit:
    return SystemExit(error_line("", error, as_json=logs_json(os.environ)))


def _pool_problem(pool: Any) -> str:
    """Return why a pool cannot run scans: gevent, eventlet, or one that is not tested; empty if it can.

    A scan keeps a core busy for seconds and yields to no greenlet: neither to the one that extends the lock of its run,
    nor to those that handle a request to stop the worker.
    """
    if pool.__module__ in POOLS:
        return ""
    return (
        f"the pool {pool.__module__}:{pool.__name__} cannot run scans: they keep a core busy, and nothing else in "
        "the worker would run meanwhile; start it with -P prefork (the default), -P threads or -P solo"
    )


def _log_start(consumer: Any) -> None:
    """Log the engine of each source, and problems of the Redis servers, the pool and the queues."""
    every = Settings.every_from_env(os.environ)
    _log_engines(every)
    _log_servers(every)
    _log_pool(consumer.pool.__module__)
    _log_queues(every, [queue.name for queue in consumer.task_consumer.queues])


def _log_engines(every: Sequence[Settings]) -> None:
    """Log the engine of scans, as a warning if it is the slow one without having been chosen."""
    for settings in every:
        engine = choose_engine(settings.engine)
        if engine.warning:
            _log.warning("⚠️ %s", engine.warning, source=settings.source)
        else:
            _log.info("engine %s", engine.name, source=settings.source)


def _log_servers(every: Sequence[Settings]) -> None:
    """Warn of problems of both Redis servers, and of risks to lose messages or current snapshots."""
    checks = [
        ("broker", check_broker, every[0].broker_url, every[0].source),
        *(("cache", check_cache, settings.redis_url, settings.source) for settings in every),
    ]
    for role, check, url, source in checks:
        try:
            problems = check(url, source)
        except CacheUnavailable as error:
            problems = [str(error)]
        for problem in problems:
            _log.warning(f"{role}: %s", problem, source=source)


def _log_pool(name: str) -> None:
    """Warn of a pool without time limits."""
    if not POOLS[name]:
        _log.warning(
            "⚠️ this pool knows no time limits, and cannot end a run amid its scan: one that hangs "
            "stays until the worker is restarted; -P prefork (the default) can"
        )


def _log_queues(every: Sequence[Settings], consumed: Sequence[str]) -> None:
    """Warn if the worker's `-Q` names no queue to which messages are sent."""
    of_sources = [source_queue(settings.source) for settings in every]
    every_queue = [*of_sources, SCAN_QUEUE, UPDATE_QUEUE]
    if not set(every_queue).intersection(consumed):
        _log.warning(
            "⚠️ this worker takes %s, and so no run, no scan and no update, which are sent to %s; start it "
            "without -Q, or with some of these",
            ", ".join(consumed),
            ", ".join(every_queue),
        )
    elif not {*of_sources, UPDATE_QUEUE}.intersection(consumed) and not any(
        is_pattern(settings.input) for settings in every
    ):
        _log.warning(
            "⚠️ this worker takes %s, to which only the parts of a pattern are sent, and no source "
            "has a pattern as its input; single files are scanned in %s",
            SCAN_QUEUE,
            ", ".join(of_sources),
        )
