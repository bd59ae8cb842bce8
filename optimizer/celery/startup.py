"""What a worker and a beat check when they start, before the first task.

A process that could do nothing useful ends with one line on stderr, where Celery would print a traceback or fail at
each tick. What may fail later, or lose data one day, is logged as a warning.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from celery.concurrency import get_implementation
from celery.signals import after_setup_logger, beat_init, worker_init, worker_ready

from optimizer.cache.client import is_away
from optimizer.cache.server_checks import check_broker, check_cache, check_no_cluster
from optimizer.celery.queues import SCAN_QUEUE, source_queue
from optimizer.config.settings import Settings
from optimizer.errors import CacheUnavailable, SettingsInvalid
from optimizer.log import SourceLog
from optimizer.scan.engine import choose_engine
from optimizer.storage.location import is_pattern

__all__ = ["connect_signals"]

_log = SourceLog(__name__)

# Pools that are tested, and whether they know time limits and can end a running task.
POOLS: Final = {
    "celery.concurrency.prefork": True,
    "celery.concurrency.thread": False,
    "celery.concurrency.solo": False,
}


def connect_signals() -> None:
    """Let Celery call the checks of this module."""
    after_setup_logger.connect(_show_info_lines)
    worker_init.connect(_check_worker)
    beat_init.connect(_check_beat)
    worker_ready.connect(_log_start)


def _show_info_lines(**_: Any) -> None:
    """Show a log line of each run even if the worker's own level is WARNING, its default."""
    logging.getLogger("optimizer").setLevel(logging.INFO)


def _check_worker(sender: Any, **_: Any) -> None:
    """End a worker with a misspelt setting, without its engine, or with a broker or a pool that cannot be used."""
    with _one_line_exit():
        every = Settings.every_from_env(os.environ, strict=True)
        for settings in every:
            choose_engine(settings.engine)
        check_broker(every[0].broker_url, every[0].source)
    _check_pool(get_implementation(sender.pool_cls))


def _check_beat(**_: Any) -> None:
    """End a beat with a misspelt setting, or with a Redis Cluster for its broker, to which it could not send a task."""
    with _one_line_exit():
        every = Settings.every_from_env(os.environ, strict=True)
        check_no_cluster(every[0].broker_url)


@contextmanager
def _one_line_exit() -> Iterator[None]:
    """Exit with one line on invalid settings and on a broker that refuses; Celery waits for one that is away."""
    try:
        yield
    except SettingsInvalid as error:
        raise SystemExit(f"SettingsInvalid: {error}") from None
    except CacheUnavailable as error:
        if not is_away(error):
            raise SystemExit(f"CacheUnavailable: broker: {error}") from None


def _check_pool(pool: Any) -> None:
    """End a worker with gevent, eventlet, or a pool that is not tested.

    A scan keeps a core busy for seconds and yields to no greenlet: neither to the one that extends the lock of its run,
    nor to those through which the worker is told to stop.
    """
    if pool.__module__ not in POOLS:
        raise SystemExit(
            f"the pool {pool.__module__}:{pool.__name__} cannot run scans: they keep a core busy, and nothing else in "
            "the worker would run meanwhile; start it with -P prefork (the default), -P threads or -P solo"
        )


def _log_start(sender: Any, **_: Any) -> None:
    """Log the engine of each source, and what is wrong with the Redis servers, the pool and the queues."""
    every = Settings.every_from_env(os.environ)
    _log_engines(every)
    _log_servers(every)
    _log_pool(sender.pool.__module__)
    _log_queues(every, [queue.name for queue in sender.task_consumer.queues])


def _log_engines(every: Sequence[Settings]) -> None:
    """Log which engine scans; as a warning if it is the slow one without being chosen."""
    for settings in every:
        engine = choose_engine(settings.engine)
        if engine.warning:
            _log.warning("⚠️ %s", engine.warning, source=settings.source)
        else:
            _log.info("engine %s", engine.name, source=settings.source)


def _log_servers(every: Sequence[Settings]) -> None:
    """Warn of what both Redis servers lack, and of what would lose messages, or what routers read, one day."""
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
    """Warn if the worker's `-Q` names none of the queues to which anything is sent."""
    of_sources = [source_queue(settings.source) for settings in every]
    if not {*of_sources, SCAN_QUEUE}.intersection(consumed):
        _log.warning(
            "⚠️ this worker takes %s, and so no run and no scan, which are sent to %s; start it "
            "without -Q, or with some of these",
            ", ".join(consumed),
            ", ".join([*of_sources, SCAN_QUEUE]),
        )
    elif not set(of_sources).intersection(consumed) and not any(is_pattern(settings.input) for settings in every):
        _log.warning(
            "⚠️ this worker takes %s, to which only the parts of a pattern are sent, and no source "
            "has a pattern as its input; single files are scanned in %s",
            SCAN_QUEUE,
            ", ".join(of_sources),
        )
