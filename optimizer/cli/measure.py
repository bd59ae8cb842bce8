"""One measurement of `rolling-optimizer bench`, in a process that does nothing else.

`python -m optimizer.cli.measure WAY [--no-cache]` reads a file in one of three ways and prints a `Measured` as JSON;
settings come from `ROLLING_*`:

- `inflate`: the compressed stream to its checked end;
- `scan`: the same, pruned, decoded and selected;
- `run`: a whole run, with files and Redis, and then a second run that finds nothing changed.

Imports are not timed; peak memory is the process's, imports included.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from optimizer.config.settings import Settings
from optimizer.errors import BenchFailed
from optimizer.pipeline.parts import collect
from optimizer.pipeline.process import peak_rss_mb
from optimizer.pipeline.run import optimize
from optimizer.scan.engine import choose_engine
from optimizer.selection.result import ScanResult
from optimizer.selection.top_n import Selection
from optimizer.source.opener import open_input_file

__all__ = ["WAYS", "Measured", "measure", "measured_here"]

WAYS: Final = ("inflate", "scan", "run")


class Measured(msgspec.Struct, frozen=True):
    """The result of one measurement. MB are 10^6 bytes; `unchanged_ms` is the time of the second run of `run`."""

    json_bytes: int
    wall_s: float
    cpu_s: float
    peak_mb: float
    unchanged_ms: float | None = None


def measure(way: str, command: Sequence[str], environ: Mapping[str, str] | None = None) -> Measured:
    """Run a process that prints a `Measured` as JSON.

    Raises:
        BenchFailed: It printed something else; the message has the last line of its stderr.
    """
    done = subprocess.run(command, env=environ, capture_output=True, check=False)
    try:
        return msgspec.json.decode(done.stdout, type=Measured)
    except msgspec.DecodeError:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        raise BenchFailed(f"{way} ended with status {done.returncode}: {lines[-1]}") from None


def measured_here(read: Callable[[], int]) -> Measured:
    """Measure a call in this process; it returns the number of bytes of JSON that it has read."""
    wall, cpu = time.perf_counter(), time.process_time()
    json_bytes = read()
    wall_s, cpu_s = time.perf_counter() - wall, time.process_time() - cpu
    return Measured(json_bytes, wall_s, cpu_s, peak_rss_mb())


def _inflate(settings: Settings) -> int:
    with open_input_file(settings.input) as source:
        return sum(map(len, source.chunks(choose_engine(settings.engine).chunk_bytes)))


def _scan(settings: Settings) -> int:
    result = ScanResult(Selection(settings.index_symbols_limit))
    with open_input_file(settings.input) as source:
        collect(settings, choose_engine(settings.engine), source, result, None)
    return result.json_bytes


def _run(settings: Settings, *, use_cache: bool) -> int:
    report = optimize(settings, force=True, accept=True, use_cache=use_cache)
    return report.stats.json_bytes if report.stats is not None else 0


def _measure(way: str, *, use_cache: bool) -> Measured:
    settings = Settings.from_env(os.environ)
    choose_engine(settings.engine)
    if way == "inflate":
        return measured_here(lambda: _inflate(settings))
    if way == "scan":
        return measured_here(lambda: _scan(settings))
    measured = measured_here(lambda: _run(settings, use_cache=use_cache))
    began = time.perf_counter()
    optimize(settings, use_cache=use_cache)
    return msgspec.structs.replace(measured, unchanged_ms=round(1000 * (time.perf_counter() - began), 2))


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(_measure(sys.argv[1], use_cache="--no-cache" not in sys.argv)))
