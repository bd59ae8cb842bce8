"""Inputs of hundreds of megabytes, generated while they are read, in a separate process that reports its peak memory.

`scan_filled` and `scan_file` run this module as a program, which takes its orders as JSON on standard input.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from optimizer.errors import RollingError
from optimizer.models import Bot, Record
from optimizer.pipeline.process import peak_rss_mb
from optimizer.scan.engine import Engine, choose_engine
from optimizer.scan.scanner import scan_items
from optimizer.source.opener import open_input_file
from tests.support.engines import current

__all__ = ["Measured", "scan_file", "scan_filled"]

CHUNK_BYTES = 64 * 1024
PROJECT = Path(__file__).parents[2]
MAX_RECORD_BYTES = 1 << 20


class Measured(NamedTuple):
    """The results of a scan, its memory in excess of a tiny scan, and its CPU time."""

    items: list[str]
    growth_mb: float
    cpu_s: float


def scan_filled(opening: bytes, filler: bytes, megabytes: int, closing: bytes) -> Measured:
    """Scan `opening`, then `filler` repeated for this many megabytes, then `closing`."""
    return _measure(
        {"opening": opening.decode(), "filler": filler.decode(), "megabytes": megabytes, "closing": closing.decode()}
    )


def scan_file(path: Path) -> Measured:
    """Scan a file through `Source`."""
    return _measure({"path": str(path)})


def _measure(order: dict[str, Any]) -> Measured:
    result = _run(order, current().name)
    return Measured(result["items"], result["peak_mb"] - _baseline_mb(current().name), result["cpu_s"])


@cache
def _baseline_mb(engine: str) -> float:
    peak: float = _run({"opening": "[", "filler": " ", "megabytes": 1, "closing": "]"}, engine)["peak_mb"]
    return peak


def _run(order: dict[str, Any], engine: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.large_inputs", engine],
        input=json.dumps(order).encode(),
        stdout=subprocess.PIPE,
        check=True,
        cwd=PROJECT,
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _chunks(order: dict[str, Any]) -> Iterator[bytes]:
    if "path" in order:
        with open_input_file(Path(order["path"])) as source:
            yield from source.chunks(CHUNK_BYTES)
        return
    filler = order["filler"].encode()
    block = filler * (CHUNK_BYTES // len(filler))
    yield order["opening"].encode()
    for _ in range(order["megabytes"] * 1_000_000 // len(block)):
        yield block
    yield order["closing"].encode()


def _scanned_items(chunks: Iterable[bytes], engine: Engine) -> list[str]:
    """Symbols of records, names of bots, reasons of rejects, and the error that ended the scan."""
    names: list[str] = []
    try:
        for item in scan_items(chunks, engine, max_record_bytes=MAX_RECORD_BYTES):
            names.append(_name(item))  # noqa: PERF401 - what was found before an error counts too
    except RollingError as error:
        names.append(f"{type(error).__name__}: {error}")
    return names


def _name(item: Any) -> str:
    if isinstance(item, Record):
        return item.symbol
    return item.name if isinstance(item, Bot) else str(item.reason)


if __name__ == "__main__":
    items = _scanned_items(_chunks(json.load(sys.stdin)), choose_engine(sys.argv[1]))
    json.dump({"items": items, "peak_mb": peak_rss_mb(), "cpu_s": time.process_time()}, sys.stdout)
