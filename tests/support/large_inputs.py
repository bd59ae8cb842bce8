"""Inputs of hundreds of megabytes, generated while they are read, in a separate process that reports its peak memory.

`scan_filled` and `scan_file` run this module as a program, one for each engine. It reads orders as lines of JSON on
standard input and forks for each: a child has its own address space, whose peak begins at the memory of the imports.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
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
    """The results of a scan, and its memory in excess of a tiny scan."""

    items: list[str]
    growth_mb: float


def scan_filled(opening: bytes, filler: bytes, megabytes: int, closing: bytes) -> Measured:
    """Scan `opening`, then `filler` repeated for this many megabytes, then `closing`."""
    return _measure(
        {"opening": opening.decode(), "filler": filler.decode(), "megabytes": megabytes, "closing": closing.decode()}
    )


def scan_file(path: Path) -> Measured:
    """Scan a file, opened by `open_input_file`."""
    return _measure({"path": str(path)})


def _measure(order: dict[str, Any]) -> Measured:
    result = _run(order, current().name)
    return Measured(result["items"], result["peak_mb"] - _baseline_mb(current().name))


@cache
def _baseline_mb(engine: str) -> float:
    peak: float = _run({"opening": "[", "filler": " ", "megabytes": 1, "closing": "]"}, engine)["peak_mb"]
    return peak


def _run(order: dict[str, Any], engine: str) -> dict[str, Any]:
    scanner = _scanner(engine)
    assert scanner.stdin is not None
    assert scanner.stdout is not None
    scanner.stdin.write(json.dumps(order).encode() + b"\n")
    scanner.stdin.flush()
    result: dict[str, Any] = json.loads(scanner.stdout.readline())
    return result


@cache
def _scanner(engine: str) -> subprocess.Popen[bytes]:
    """Start the process that forks; it ends with this one, which closes its standard input."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.large_inputs", engine],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=PROJECT,
    )
    atexit.register(process.communicate)
    return process


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


def _answer(order: dict[str, Any], engine: Engine) -> None:
    """Print the items of a scan and the peak memory of this process."""
    items = _scanned_items(_chunks(order), engine)
    print(json.dumps({"items": items, "peak_mb": peak_rss_mb()}), flush=True)


def _serve(engine: Engine) -> None:
    """Fork for each order; if a child fails, which prints why, end with an error instead of reading further orders."""
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _answer(json.loads(line), engine)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        if status:
            sys.exit(f"the scan of {line[:200]} ended with {os.waitstatus_to_exitcode(status)}")


if __name__ == "__main__":
    _serve(choose_engine(sys.argv[1]))
