"""The Celery app: `celery -A tasks worker`, `celery -A tasks beat`, `celery -A tasks flower`."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

from celery import Celery
from celery.signals import after_setup_logger, worker_init, worker_ready

from optimizer.connection import eviction_warning
from optimizer.engine import choose_engine
from optimizer.errors import CacheUnavailable, SettingsInvalid
from optimizer.settings import Settings
from tasks.flower import close_flower

__all__ = ["app"]

if "flower" in sys.argv[1:]:
    close_flower(os.environ, sys.argv)

app = Celery("tasks", include=["tasks.rolling"])
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
        choose_engine(Settings.from_env(os.environ).engine)
    except SettingsInvalid as error:
        raise SystemExit(f"SettingsInvalid: {error}") from None


@worker_ready.connect
def _tell_the_engine(**_: Any) -> None:
    """Say at the start which engine scans, and loudly if it is the slow one though nobody chose it."""
    engine = choose_engine(Settings.from_env(os.environ).engine)
    log = logging.getLogger(__name__)
    if engine.warning:
        log.warning("[RollingOptimizer] ⚠️ %s", engine.warning)
    else:
        log.info("[RollingOptimizer] engine %s", engine.name)


@worker_ready.connect
def _warn_of_eviction(**_: Any) -> None:
    """Say at the start what would lose messages one day."""
    try:
        warning = eviction_warning(Settings.from_env(os.environ).broker_url)
    except CacheUnavailable as error:
        warning = f"whether the broker may evict messages cannot be found out: {error}"
    if warning:
        logging.getLogger(__name__).warning("[RollingOptimizer] %s", warning)
