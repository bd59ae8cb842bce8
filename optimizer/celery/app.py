"""The Celery app of worker, beat, Flower and senders. Its settings are read from the module `celeryconfig`."""

from __future__ import annotations

import os
import sys
from typing import Any

from celery import Celery
from celery.app.amqp import AMQP

from optimizer.celery.broker import Connection
from optimizer.celery.flower import close_flower
from optimizer.celery.startup import connect_signals

__all__ = ["app"]

if "flower" in sys.argv[1:]:
    close_flower(os.environ, sys.argv)


class _Amqp(AMQP):  # type: ignore[misc]
    Connection = Connection


app = Celery("tasks", amqp=_Amqp, include=["optimizer.celery.tasks"])
app.config_from_object("celeryconfig")
app.steps["consumer"].add("optimizer.celery.consumer:DroppedMessages")  # by name: only a worker imports it
connect_signals()


@app.on_after_configure.connect
def _set_result_backend(sender: Celery, source: Any, **_: Any) -> None:
    """Ignore `CELERY_RESULT_BACKEND`, which may be another program's; `config.py` does the same for the broker."""
    sender.backend_cls = source["result_backend"]
