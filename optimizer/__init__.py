"""Rolling Optimizer: small, fresh snapshots from one big rolling file, for routers to read from Redis.

The public names are imported when they are first asked for, so a process that only reads never imports the scanner.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from optimizer.config.settings import Settings
    from optimizer.errors import ChangesMissing, RollingError, SnapshotMissing
    from optimizer.models import BotSummary, Holding, Record, Report
    from optimizer.pipeline.background import background
    from optimizer.pipeline.run import optimize
    from optimizer.reader.async_reader import AsyncSnapshotReader
    from optimizer.reader.reader import SnapshotReader
    from optimizer.reader.results import Answer, Changes, Snapshot, State, VersionSnapshot
    from optimizer.snapshots.delta import Change, apply_change

__all__ = [
    "Answer",
    "AsyncSnapshotReader",
    "BotSummary",
    "Change",
    "Changes",
    "ChangesMissing",
    "Holding",
    "Record",
    "Report",
    "RollingError",
    "Settings",
    "Snapshot",
    "SnapshotMissing",
    "SnapshotReader",
    "State",
    "VersionSnapshot",
    "apply_change",
    "background",
    "optimize",
]

_MODULES: Final = {
    "optimizer.config.settings": ("Settings",),
    "optimizer.errors": ("ChangesMissing", "RollingError", "SnapshotMissing"),
    "optimizer.models": ("BotSummary", "Holding", "Record", "Report"),
    "optimizer.pipeline.background": ("background",),
    "optimizer.pipeline.run": ("optimize",),
    "optimizer.reader.async_reader": ("AsyncSnapshotReader",),
    "optimizer.reader.reader": ("SnapshotReader",),
    "optimizer.reader.results": ("Answer", "Changes", "Snapshot", "State", "VersionSnapshot"),
    "optimizer.snapshots.delta": ("Change", "apply_change"),
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
