"""Rolling Optimizer: small, fresh snapshots from one big rolling file, for routers to read from Redis."""

from __future__ import annotations

from optimizer.answers import Answer, Snapshot, State
from optimizer.async_reader import AsyncSnapshotReader
from optimizer.errors import RollingError, SnapshotMissing
from optimizer.pipeline import optimize
from optimizer.reader import SnapshotReader
from optimizer.records import BotSummary, Holding, Record, Report
from optimizer.settings import Settings

__all__ = [
    "Answer",
    "AsyncSnapshotReader",
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
