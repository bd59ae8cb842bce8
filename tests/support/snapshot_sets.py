"""Snapshot sets that tests write without a scan."""

from __future__ import annotations

from optimizer.models import BotSummary, Holding, Record
from optimizer.snapshots.format import KEPT_SETS, SnapshotSet, encode_set
from optimizer.snapshots.store import snapshot_store
from optimizer.storage.location import Location

__all__ = ["RECORDS", "a_set", "write"]

RECORDS = [Record("ÄÖ", 1.5, 0.9, 100.0), Record('A"/\\', -2.0, 0.25, 1e-7, "bearish", None, 5.0, 1795000000)]
BOT = BotSummary(enabled=True, equity=10.5, pnl_today=None, positions=1, last_updated="2026-11-01T10:00:00Z")


def a_set(version: int) -> SnapshotSet:
    """Return a set in which every file contains its version."""
    return encode_set(
        source="rolling_brain",
        version=version,
        generated_at=f"2026-11-01T10:00:00.{version:03d}Z",
        fingerprint=f"print-{version}",
        ranked=RECORDS,
        predictions=RECORDS[:1],
        bots={
            "alpha": BotSummary(
                enabled=True, equity=10.5, pnl_today=None, positions=1, last_updated="2026-11-01T10:00:00Z"
            )
        },
        holdings=[Holding("AAPL", 2.0, 99.5)],
        gzip_level=6,
    )


def write(output: Location, *versions: int, keep: int = KEPT_SETS) -> None:
    """Write sets one after another, as runs do."""
    store = snapshot_store(output, keep=keep)
    for version in versions:
        with store.lock() as is_acquired:
            assert is_acquired
            store.write(a_set(version))
