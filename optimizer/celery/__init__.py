"""The Celery integration: tasks for any Celery app, the stand-alone app, and senders. Only this package imports Celery.

`register` adds the tasks to your app, `create_app` makes the stand-alone app. Importing this package does not import
Celery, and has no effect: no app becomes the current one, no signal is connected, no logger or variable is set.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

from optimizer.errors import require

if TYPE_CHECKING:
    from optimizer.celery.app import create_app
    from optimizer.celery.binding import register
    from optimizer.celery.sender import CelerySender

require("optimizer.celery", "celery", "celery", "kombu")

__all__ = ["CelerySender", "create_app", "register"]

_MODULES: Final = {
    "CelerySender": "optimizer.celery.sender",
    "create_app": "optimizer.celery.app",
    "register": "optimizer.celery.binding",
}


def __getattr__(name: str) -> object:
    if name in _MODULES:
        value: object = getattr(importlib.import_module(_MODULES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
