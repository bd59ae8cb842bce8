"""The Celery app: `celery -A tasks worker`, `celery -A tasks beat`, `celery -A tasks flower`."""

from __future__ import annotations

import logging
from typing import Any

from celery import Celery
from celery.signals import after_setup_logger

__all__ = ["app"]

app = Celery("tasks", include=["tasks.rolling"])
app.config_from_object("celeryconfig")


@after_setup_logger.connect
def _show_our_lines(**_: Any) -> None:
    """Show one line a run even where the worker's own level is WARNING, its default."""
    for name in ("optimizer", "tasks"):
        logging.getLogger(name).setLevel(logging.INFO)
