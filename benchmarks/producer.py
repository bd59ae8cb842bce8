"""The costs of writing a rolling file for an engine, and of a tick after some parts have changed.

`write_rolling` against `gzip.open` and `json.dump` on the same records in memory: the least of three rounds, the latter
once. Then the file of the scan's benchmark as parts: 1 % of its symbols change, in one part or anywhere, and a run in
this process takes what has changed. Exit status 1 where a goal is missed.
"""

from __future__ import annotations

import gzip
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
from isal import igzip

from benchmarks.processes import throwaway_redis
from benchmarks.scan import CASES, DIRECTORY
from optimizer import Settings, optimize
from optimizer.cli.dev.sample import write_sample
from optimizer.errors import BenchFailed
from optimizer.producer import write_rolling
from optimizer.producer.parts import part_of

__all__ = ["main"]

ROUNDS: Final = 3
SYMBOLS_IN_MEMORY: Final = 200  # of 290 KB
TICK_GOAL_S: Final = 0.3
FASTER_GOAL: Final = 5.0


class _Named(msgspec.Struct):
    symbol: str


class _Records(Mapping[str, object]):
    """The records of a file of lines, streamed, without decoding those that have not changed."""

    def __init__(self, path: Path, changed: frozenset[str] = frozenset()) -> None:
        self._path = path
        self._changed = changed

    def __iter__(self) -> Iterator[str]:
        with igzip.open(self._path) as lines:  # type: ignore[no-untyped-call]
            for line in lines:
                yield msgspec.json.decode(line, type=_Named).symbol

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __getitem__(self, symbol: str) -> object:
        raise KeyError(symbol)  # only `items` is fast enough to be used

    def items(self) -> Any:
        """Yield symbols and records."""
        with igzip.open(self._path) as lines:  # type: ignore[no-untyped-call]
            for line in lines:
                symbol = msgspec.json.decode(line, type=_Named).symbol
                if symbol in self._changed:
                    record = msgspec.json.decode(line)
                    yield symbol, record | {"prediction": record["prediction"] + 1.0}
                else:
                    yield symbol, msgspec.Raw(line.rstrip())


def main() -> int:
    """Measure, print, and return the exit status."""
    DIRECTORY.mkdir(exist_ok=True)
    lines = next(case for case in CASES if case.name == "lines")
    if not lines.path.exists():
        write_sample(lines.path, **lines.options)
    with tempfile.TemporaryDirectory(dir=DIRECTORY) as temporary:
        missed = _write(Path(temporary), lines.path)
        with throwaway_redis(Path(temporary)) as redis_url:
            missed += _tick(Path(temporary), lines.path, redis_url)
    return 1 if missed else 0


def _write(directory: Path, lines: Path) -> int:
    """Measure ways to write the same records."""
    records: dict[str, object] = {}
    for symbol, raw in _Records(lines).items():
        records[symbol] = msgspec.json.decode(raw)
        if len(records) == SYMBOLS_IN_MEMORY:
            break
    path = directory / "brain.json.gz"

    def dump() -> None:
        with gzip.open(path, "wt", encoding="utf-8") as file:
            json.dump(records, file)

    json_bytes = write_rolling(path, records).json_bytes
    print(f"{'':<34}{'MB/s':>7}{'wall s':>9}{'CPU s':>9}{'file, MB':>10}")
    print(f"{'':<34}    of {json_bytes / 1e6:,.0f} MB of JSON")
    limit_s = _line("gzip.open, json.dump", *_least(dump, 1), json_bytes, path)
    default_s = _line("write_rolling", *_least(lambda: write_rolling(path, records)), json_bytes, path)
    ways: list[dict[str, Any]] = [
        {"threads": 1},
        {"threads": 2},
        *({"level": level, "threads": 1} for level in range(4)),
    ]
    for options in ways:
        name = ", ".join(f"{option}={value}" for option, value in options.items())
        _line(f"  {name}", *_least(partial(write_rolling, path, records, **options)), json_bytes, path)
    _line("  parts=64, all new", *_least(lambda: _into_new(directory, records)), json_bytes, None)
    _line(
        "  parts=64, none changed", *_least(lambda: write_rolling(directory / "p", records, parts=64)), json_bytes, None
    )
    print(f"\nwrite_rolling is {limit_s / default_s:,.0f} times as fast (goal {FASTER_GOAL:g})\n")
    return int(limit_s / default_s < FASTER_GOAL)


def _into_new(directory: Path, records: Mapping[str, object]) -> None:
    shutil.rmtree(directory / "p", ignore_errors=True)
    write_rolling(directory / "p", records, parts=64)


def _tick(directory: Path, lines: Path, redis_url: str) -> int:
    """Measure runs after 1 % of the symbols have changed."""
    symbols = list(_Records(lines))
    count = len(symbols) // 100
    missed = 0
    print(f"{'':<34}{'parts':>7}{'MB':>9}{'wall s':>9}{'CPU s':>9}{'goal':>7}")
    for parts in (64, 1024):
        path = directory / f"parts-{parts}"
        settings = Settings(input=path / "*.json.gz", output_dir=directory / f"out-{parts}", redis_url=redis_url)
        write_rolling(path, _Records(lines), parts=parts)
        _run(f"{parts} parts, all new", settings)
        if parts == 64:
            together = [symbol for symbol in symbols if part_of(symbol, parts) == 0][:count]
            write_rolling(path, _Records(lines, frozenset(together)), parts=parts)
            missed += _run("  1 % of the symbols, in one part", settings, TICK_GOAL_S)
            write_rolling(path, _Records(lines), parts=parts)
            optimize(settings)
        anywhere = random.Random(1).sample(symbols, count)
        write_rolling(path, _Records(lines, frozenset(anywhere)), parts=parts)
        _run("  1 % of the symbols, anywhere", settings)
        _run("  nothing has changed", settings)
        shutil.rmtree(path)
    return missed


def _run(name: str, settings: Settings, goal_s: float | None = None) -> int:
    began = time.perf_counter(), time.process_time()
    report = optimize(settings)
    wall_s, cpu_s = time.perf_counter() - began[0], time.process_time() - began[1]
    if report.status not in ("success", "unchanged"):
        raise BenchFailed(f"a run did not succeed: {report}")
    scanned, megabytes = (report.stats.parts_scanned, report.stats.json_bytes / 1e6) if report.stats else (0, 0.0)
    is_missed = goal_s is not None and cpu_s > goal_s
    print(
        f"{name:<34}{scanned:>7}{megabytes:>9,.0f}{wall_s:>9.2f}{cpu_s:>9.2f}{goal_s or '':>7}"
        f"{'   MISSED' if is_missed else ''}".rstrip(),
        flush=True,
    )
    return int(is_missed)


def _least(action: Callable[[], object], rounds: int = ROUNDS) -> tuple[float, float]:
    """Return the least wall time and the least CPU time, in seconds."""
    taken = []
    for _ in range(rounds):
        began = time.perf_counter(), time.process_time()
        action()
        taken.append((time.perf_counter() - began[0], time.process_time() - began[1]))
    return min(wall_s for wall_s, _ in taken), min(cpu_s for _, cpu_s in taken)


def _line(name: str, wall_s: float, cpu_s: float, json_bytes: int, path: Path | None) -> float:
    size = f"{path.stat().st_size / 1e6:>10.1f}" if path else ""
    print(f"{name:<34}{json_bytes / 1e6 / wall_s:>7,.0f}{wall_s:>9.2f}{cpu_s:>9.2f}{size}", flush=True)
    return wall_s


if __name__ == "__main__":
    sys.exit(main())
