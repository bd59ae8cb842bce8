"""The Celery app, settings from `celeryconfig.py`, and what a worker says at its start."""

from __future__ import annotations

import gc
import logging
import os
import sys
from typing import Any, Final

from celery import Celery
from celery.app.amqp import AMQP
from celery.signals import after_setup_logger, beat_init, worker_init, worker_process_init, worker_ready
from kombu.connection import Connection

from optimizer.connection import check_broker, check_cache, check_no_cluster, is_away
from optimizer.engine import choose_engine
from optimizer.errors import CacheUnavailable, SettingsInvalid
from optimizer.settings import Settings
from tasks.flower import close_flower

__all__ = ["app"]

_log = logging.getLogger(__name__)

if "flower" in sys.argv[1:]:
    close_flower(os.environ, sys.argv)

# Celery itself waits two seconds longer each time, up to 30, and has no setting for that: after a minute without the
# broker a worker would miss the next quarter of one.
RECONNECT_AFTER_S: Final = 0.5
RECONNECT_AFTER_AT_MOST_S: Final = 2.0


class _Connection(Connection):
    """A connection that looks for its broker every two seconds, however long that is away."""

    def ensure_connection(self, *arguments: Any, **options: Any) -> Any:
        """Connect; wait for the broker where it is away."""
        pace = {
            "interval_start": RECONNECT_AFTER_S,
            "interval_step": RECONNECT_AFTER_S,
            "interval_max": RECONNECT_AFTER_AT_MOST_S,
        }
        return super().ensure_connection(*arguments, **(pace | options))  # type: ignore[no-untyped-call]


class _Amqp(AMQP):  # type: ignore[misc]
    Connection = _Connection


app = Celery("tasks", amqp=_Amqp, include=["tasks.rolling"])
app.config_from_object("celeryconfig")


@after_setup_logger.connect
def _show_our_lines(**_: Any) -> None:
    """Show one line a run even where the worker's own level is WARNING, its default."""
    for name in ("optimizer", "tasks"):
        logging.getLogger(name).setLevel(logging.INFO)


@worker_init.connect
def _refuse_without_the_engine(**_: Any) -> None:
    """End a worker whose engine is not there: it would fail at each tick, and nobody would see why it is slow."""
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


@worker_process_init.connect
def _forget_the_start_in_collections(**_: Any) -> None:
    """Let the garbage collector of a child leave alone what Celery has made before its first task.

    A collection takes 9 ms with it and next to nothing without; each run that goes on elsewhere makes one, see
    `rolling.py`.
    """
    gc.freeze()


@worker_ready.connect
def _tell_the_engine(**_: Any) -> None:
    """Say at the start which engine scans, and loudly if it is the slow one though nobody chose it."""
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
