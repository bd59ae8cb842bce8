"""Small rolling files for tests."""

from __future__ import annotations

import gzip
import json
import os
import time
from pathlib import Path
from typing import Any

from optimizer.storage.location import Location

__all__ = ["a_record", "local", "touch_later", "write_json", "write_raw"]


def a_record(**fields: Any) -> dict[str, Any]:
    """A valid record, with fields that no page shows."""
    return {
        "prediction": 101.5,
        "confidence": 0.75,
        "last_price": 100.0,
        "sentiment": "bullish",
        "target_price": 105.0,
        "stop_loss": 95.0,
        "timestamp": "2026-11-01T10:00:00Z",
        "history": [{"t": 1, "note": 'a "quoted" } ] \\ text'}, [1, [2, {"x": {}}]]],
        "features": {"f1": 1.0, "nested": {"deep": [1, 2, 3]}},
    } | fields


def local(location: Location) -> Path:
    """A location as a path, for tests that work on local files."""
    assert isinstance(location, Path)
    return location


def write_json(path: Location, value: Any) -> Path:
    """Write a value as JSON like `json.dump`, NaN included; gzipped if the name ends in `.gz`."""
    return write_raw(path, json.dumps(value).encode())


def write_raw(path: Location, data: bytes) -> Path:
    """Write bytes, gzipped if the name ends in `.gz`; replace the file by rename, as a good engine does."""
    path = local(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.new")
    partial.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    partial.rename(path)
    return path


def touch_later(path: Path) -> None:
    """Set a file's modification time to a second from now."""
    later = time.time_ns() + 1_000_000_000
    os.utime(path, ns=(later, later))
