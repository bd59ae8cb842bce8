"""Inputs of hundreds of megabytes, made while they are read, in a process of its own that tells its peak memory.

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
from optimizer.records import Bot, Record
from optimizer.scan import scan
from optimizer.source import CHUNK_BYTES, Source

__all__ = ["Measured", "scan_file", "scan_filled"]

PROJECT = Path(__file__).parent.parent
MAX_RECORD_BYTES = 1 << 20


class Measured(NamedTuple):
    """What a scan found, how much memory it took over a scan of next to nothing, and its CPU time."""

    found: list[str]
    growth_mb: float
    cpu_s: float


def scan_filled(opening: bytes, filler: bytes, megabytes: int, closing: bytes) -> Measured:
    """Scan `opening`, then `filler` again and again for so many megabytes, then `closing`."""
    return _measure(
        {"opening": opening.decode(), "filler": filler.decode(), "megabytes": megabytes, "closing": closing.decode()}
    )


def scan_file(path: Path) -> Measured:
    """Scan a file through `Source`."""
    return _measure({"path": str(path)})


def _measure(order: dict[str, Any]) -> Measured:
    result = _run(order)
    return Measured(result["found"], result["peak_mb"] - _baseline_mb(), result["cpu_s"])


@cache
def _baseline_mb() -> float:
    peak: float = _run({"opening": "[", "filler": " ", "megabytes": 1, "closing": "]"})["peak_mb"]
    return peak


def _run(order: dict[str, Any]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.heavy"],
        input=json.dumps(order).encode(),
        stdout=subprocess.PIPE,
        check=True,
        cwd=PROJECT,
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _chunks(order: dict[str, Any]) -> Iterator[bytes]:
    if "path" in order:
        with Source(Path(order["path"])) as source:
            yield from source.chunks()
        return
    filler = order["filler"].encode()
    block = filler * (CHUNK_BYTES // len(filler))
    yield order["opening"].encode()
    for _ in range(order["megabytes"] * 1_000_000 // len(block)):
        yield block
    yield order["closing"].encode()


def _found(chunks: Iterable[bytes]) -> list[str]:
    """Symbols of records, names of bots, reasons of rejects, and the error that ended the scan."""
    found: list[str] = []
    try:
        for item in scan(chunks, max_record_bytes=MAX_RECORD_BYTES):
            found.append(_name(item))  # noqa: PERF401 - what was found before an error counts too
    except RollingError as error:
        found.append(f"{type(error).__name__}: {error}")
    return found


def _name(item: Any) -> str:
    if isinstance(item, Record):
        return item.symbol
    return item.name if isinstance(item, Bot) else str(item.reason)


def _peak_mb() -> float:
    """Peak resident memory.

    Linux keeps it per address space; `ru_maxrss` is no use there, since it survives `exec` and so begins at the peak of
    the test run that started this process.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    import resource  # noqa: PLC0415 - for systems without /proc

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    found = _found(_chunks(json.load(sys.stdin)))
    json.dump({"found": found, "peak_mb": _peak_mb(), "cpu_s": time.process_time()}, sys.stdout)
