"""What a prediction engine calls: write a rolling file so that it is never seen half written, and is fast to read.

Imported when a name is first asked for, and without Celery.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from optimizer.producer.result import Written
    from optimizer.producer.rolling import write_rolling

__all__ = ["Written", "write_rolling"]

_MODULES: Final = {
    "optimizer.producer.result": ("Written",),
    "optimizer.producer.rolling": ("write_rolling",),
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
