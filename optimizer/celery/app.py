"""The Celery app, settings from `celeryconfig.py`, and what a worker says at its start."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any, Final

from celery import Celery
from celery.app.amqp import AMQP
from celery.concurrency import get_implementation
from celery.signals import after_setup_logger, beat_init, worker_init, worker_ready

from optimizer.cache.client import is_away
from optimizer.cache.server_checks import check_broker, check_cache, check_no_cluster
from optimizer.celery.broker import Connection
from optimizer.celery.flower import close_flower
from optimizer.celery.queues import SCAN_QUEUE, source_queue
from optimizer.config.settings import Settings
from optimizer.errors import CacheUnavailable, SettingsInvalid
from optimizer.scan.engine import choose_engine
from optimizer.storage.location import is_pattern

__all__ = ["app"]

_log = logging.getLogger(__name__)

if "flower" in sys.argv[1:]:
    close_flower(os.environ, sys.argv)


class _Amqp(AMQP):  # type: ignore[misc]
    Connection = Connection


app = Celery("tasks", amqp=_Amqp, include=["optimizer.celery.tasks"])
app.config_from_object("celeryconfig")


@app.on_after_configure.connect
def _keep_to_our_broker(sender: Celery, source: Any, **_: Any) -> None:
    """Leave `CELERY_RESULT_BACKEND` to other programs; for the broker `celeryconfig.py` does the same."""
    sender.backend_cls = source["result_backend"]


app.steps["consumer"].add("optimizer.celery.consumer:DroppedMessages")  # by name: only a worker imports it


@after_setup_logger.connect
def _show_our_lines(**_: Any) -> None:
    """Show one line a run even where the worker's own level is WARNING, its default."""
    for name in ("optimizer", "tasks"):
        logging.getLogger(name).setLevel(logging.INFO)


# Pools that are tested, and whether they know time limits and can end a task that runs.
POOLS: Final = {
    "celery.concurrency.prefork": True,
    "celery.concurrency.thread": False,
    "celery.concurrency.solo": False,
}


@worker_init.connect
@beat_init.connect
def _refuse_misspelt_settings(**_: Any) -> None:
    """End a worker or a beat that would leave a setting aside; other programs that import this are only warned."""
    try:
        Settings.every_from_env(os.environ, strict=True)
    except SettingsInvalid as error:
        raise SystemExit(f"SettingsInvalid: {error}") from None


@worker_init.connect
def _refuse_without_the_engine(**_: Any) -> None:
    """End a worker whose engine is not there: it would fail at each tick."""
    try:
        for settings in Settings.every_from_env(os.environ):
            choose_engine(settings.engine)
    except SettingsInvalid as error:
        raise SystemExit(f"SettingsInvalid: {error}") from None


@worker_init.connect
def _refuse_a_broker_that_cannot_be_used(**_: Any) -> None:
    """End a worker whose broker answers and lacks what Celery needs, in one line: Celery would by a traceback."""
    first = Settings.every_from_env(os.environ)[0]
    try:
        check_broker(first.broker_url, first.source)
    except CacheUnavailable as error:
        if not is_away(error):  # else Celery waits for it
            raise SystemExit(f"CacheUnavailable: broker: {error}") from None


@beat_init.connect
def _refuse_a_broker_that_is_a_cluster(**_: Any) -> None:
    """End a beat that could never send a task, and would log a long traceback at each tick."""
    try:
        check_no_cluster(Settings.every_from_env(os.environ)[0].broker_url)
    except CacheUnavailable as error:
        if not is_away(error):
            raise SystemExit(f"CacheUnavailable: broker: {error}") from None


@worker_init.connect
def _refuse_pools_of_greenlets(sender: Any, **_: Any) -> None:
    """End a worker with gevent, eventlet, or a pool that is not known here.

    A scan keeps a core busy for seconds and yields to no greenlet: not to the one that extends the lock of its run, nor
    to those by which the worker hears that it is to stop.
    """
    pool = get_implementation(sender.pool_cls)
    if pool.__module__ not in POOLS:
        raise SystemExit(
            f"the pool {pool.__module__}:{pool.__name__} cannot run scans: they keep a core busy, and nothing else in "
            "the worker would run meanwhile; start it with -P prefork (the default), -P threads or -P solo"
        )


@worker_ready.connect
def _tell_the_engine(**_: Any) -> None:
    """Say at the start which engine scans, and warn of the slow one if it was not chosen."""
    for settings in Settings.every_from_env(os.environ):
        engine = choose_engine(settings.engine)
        if engine.warning:
            _log.warning("[RollingOptimizer] ⚠️ %s: %s", settings.source, engine.warning)
        else:
            _log.info("[RollingOptimizer] %s: engine %s", settings.source, engine.name)


@worker_ready.connect
def _warn_of_redis(**_: Any) -> None:
    """Say at the start what both Redis lack, and what would lose messages, or what routers read, one day."""
    every = Settings.every_from_env(os.environ)
    checks = [
        ("broker", check_broker, every[0].broker_url, every[0].source),
        *(("cache", check_cache, one.redis_url, one.source) for one in every),
    ]
    for role, check, url, source in checks:
        try:
            told = check(url, source)
        except CacheUnavailable as error:
            told = [str(error)]
        for problem in told:
            _log.warning("[RollingOptimizer] %s: %s", role, problem)


@worker_ready.connect
def _warn_of_pools_without_time_limits(sender: Any, **_: Any) -> None:
    """Say at the start what a run that hangs will do."""
    if not POOLS[sender.pool.__module__]:
        _log.warning(
            "[RollingOptimizer] ⚠️ this pool knows no time limits, and cannot end a run amid its scan: one that hangs "
            "stays until the worker is restarted; -P prefork (the default) can"
        )


@worker_ready.connect
def _warn_of_other_queues(sender: Any, **_: Any) -> None:
    """Say at the start when the worker has nothing to do here: its `-Q` names no queue to which anything is sent."""
    every = Settings.every_from_env(os.environ)
    taken = [queue.name for queue in sender.task_consumer.queues]
    of_sources = [source_queue(settings.source) for settings in every]
    if not {*of_sources, SCAN_QUEUE}.intersection(taken):
        _log.warning(
            "[RollingOptimizer] ⚠️ this worker takes %s, and so no run and no scan, which are sent to %s; start it "
            "without -Q, or with some of these",
            ", ".join(taken),
            ", ".join([*of_sources, SCAN_QUEUE]),
        )
    elif not set(of_sources).intersection(taken) and not any(is_pattern(settings.input) for settings in every):
        _log.warning(
            "[RollingOptimizer] ⚠️ this worker takes %s, to which only the parts of a pattern are sent, and no source "
            "has a pattern as its input; single files are scanned in %s",
            SCAN_QUEUE,
            ", ".join(of_sources),
        )
