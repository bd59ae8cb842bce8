"""What a prediction engine calls: to write a rolling file, or to publish records at once, without a scan.

Imported when a name is first asked for, and without Celery.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from optimizer.producer.result import Written
    from optimizer.producer.rolling import write_rolling
    from optimizer.producer.updates import Accepted, publish

__all__ = ["Accepted", "Written", "publish", "write_rolling"]

_MODULES: Final = {
    "optimizer.producer.result": ("Written",),
    "optimizer.producer.rolling": ("write_rolling",),
    "optimizer.producer.updates": ("Accepted", "publish"),
}


def __getattr__(name: str) -> object:
    for module, names in _MODULES.items():
        if name in names:
            value: object = getattr(importlib.import_module(module), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
