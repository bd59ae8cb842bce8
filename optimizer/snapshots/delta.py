"""What changed between two versions of the predictions. Pure."""

from __future__ import annotations

import gzip

import msgspec

from optimizer.models import PredictionsSnapshot, Record

__all__ = ["delta_between"]


def delta_between(old_version: int, old: bytes, new_version: int, new: bytes) -> bytes:
    """The delta as JSON: the versions, the records that are new or not as before, the symbols that are gone.

    Args:
        old_version: The version before.
        old: Its predictions snapshot, gzipped.
        new_version: The version after.
        new: Its predictions snapshot, gzipped.

    Returns:
        Nothing where nothing has changed.
    """
    before, after = _by_symbol(old), _by_symbol(new)
    changed = [record for symbol, record in after.items() if before.get(symbol) != record]
    removed = sorted(before.keys() - after.keys())
    if not changed and not removed:
        return b""
    return msgspec.json.encode({"version": new_version, "before": old_version, "changed": changed, "removed": removed})


def _by_symbol(data: bytes) -> dict[str, Record]:
    snapshot = msgspec.json.decode(gzip.decompress(data), type=PredictionsSnapshot)
    return {record.symbol: record for record in snapshot.predictions}
