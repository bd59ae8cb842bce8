"""Rolling Optimizer: small, fresh snapshots from one big rolling file, for routers to read from Redis."""

from __future__ import annotations

from optimizer.errors import RollingError, SnapshotMissing
from optimizer.pipeline import optimize
from optimizer.reader import Answer, Snapshot, SnapshotReader, State
from optimizer.records import BotSummary, Holding, Record, Report
from optimizer.settings import Settings

__all__ = [
    "Answer",
    "BotSummary",
    "Holding",
    "Record",
    "Report",
    "RollingError",
    "Settings",
    "Snapshot",
    "SnapshotMissing",
    "SnapshotReader",
    "State",
    "optimize",
]
