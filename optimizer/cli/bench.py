"""How fast a file is read here, held against the limit: inflating it and doing nothing else.

Three ways, each in a process of its own, in turn, some rounds over, so that a machine that slows down slows all alike:

- `inflate`: the compressed stream to its checked end;
- `scan`: the same, pruned, decoded and selected;
- `run`: all of it, with files and Redis, and then a second run that finds nothing changed.

`python -m optimizer.cli.bench WAY` is such a process: settings come from `ROLLING_*`, one line of JSON goes
out. Imports are not timed; peak memory is the process's, imports and all.
"""

from __future__ import annotations

import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from optimizer.cache.client import connect, translated_errors
from optimizer.cache.keys import Keys
from optimizer.config.environment import PREFIX, with_secrets, without_sources
from optimizer.config.settings import Settings
from optimizer.errors import BenchFailed, CacheUnavailable
from optimizer.pipeline.memory import peak_rss_mb
from optimizer.pipeline.parts import collect
from optimizer.pipeline.run import optimize
from optimizer.scan.engine import choose_engine
from optimizer.selection.result import Found
from optimizer.selection.top_n import Selection
from optimizer.source.opener import open_source
from optimizer.storage.location import spelled

__all__ = ["Comparison", "Measured", "Row", "compare", "measure", "measured_here", "rows_of", "table"]

ROUNDS: Final = 3
WAYS: Final = ("inflate", "scan", "run")


class Measured(msgspec.Struct, frozen=True):
    """What one way took once. MB are 10^6 bytes; `unchanged_ms` is the second run of `run`."""

    json_bytes: int
    wall_s: float
    cpu_s: float
    peak_mb: float
    unchanged_ms: float | None = None


class Row(msgspec.Struct, frozen=True):
    """One way over all rounds: medians, and how they compare to the way `inflate`."""

    way: str
    json_mb_per_s: float
    wall_s: float
    cpu_s: float
    peak_mb: float
    wall_ratio: float
    cpu_ratio: float


class Comparison(msgspec.Struct, frozen=True):
    """All ways over one file, and whether a run fits into the interval."""

    input: str
    input_bytes: int
    json_bytes: int
    engine: str
    cache: bool
    rows: list[Row]
    unchanged_ms: float
    interval_s: float
    interval_holds: bool


def compare(settings: Settings, *, rounds: int = ROUNDS, tell: Callable[[str], None] = lambda _: None) -> Comparison:
    """Measure all ways over `settings.input`.

    The snapshots go into a directory of their own and, where Redis answers, under a source's name of their own, whose
    keys are deleted at the end.

    Args:
        settings: The file, the engine, the limits and Redis.
        rounds: How often.
        tell: Gets a line for each measurement.

    Raises:
        RollingError: The file cannot be read, or a way failed.
    """
    with open_source(settings.input) as source:
        input_bytes = source.size_bytes
    engine = choose_engine(settings.engine)
    cache = _redis_is_there(settings)
    taken: dict[str, list[Measured]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(prefix="rolling-bench-") as directory:
        keys = Keys(f"bench-{secrets.token_hex(4)}")
        environ = without_sources(with_secrets(os.environ)) | _variables(settings, Path(directory), keys.source)
        try:
            for number in range(rounds):
                for way in WAYS:
                    options = [] if cache else ["--no-cache"]
                    measured = measure(way, [sys.executable, "-m", "optimizer.cli.bench", way, *options], environ)
                    taken[way].append(measured)
                    tell(f"round {number + 1} of {rounds}: {way}: {measured.wall_s:.2f} s")
        finally:
            if cache:
                _delete_keys(settings, keys)
    rows = rows_of(taken)
    run = rows[WAYS.index("run")]
    return Comparison(
        input=str(settings.input),
        input_bytes=input_bytes,
        json_bytes=taken["inflate"][0].json_bytes,
        engine=engine.name,
        cache=cache,
        rows=rows,
        unchanged_ms=statistics.median(one.unchanged_ms or 0.0 for one in taken["run"]),
        interval_s=settings.interval_s,
        interval_holds=run.wall_s <= settings.interval_s,
    )


def measure(way: str, command: Sequence[str], environ: Mapping[str, str] | None = None) -> Measured:
    """Run a process that prints a `Measured` as JSON.

    Raises:
        BenchFailed: It ended otherwise; the message has the last line that it printed.
    """
    done = subprocess.run(command, env=environ, capture_output=True, check=False)
    try:
        return msgspec.json.decode(done.stdout, type=Measured)
    except msgspec.DecodeError:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        raise BenchFailed(f"{way} ended with status {done.returncode}: {lines[-1]}") from None


def measured_here(way: Callable[[], int]) -> Measured:
    """Measure a call in a process that has done nothing else; it returns the bytes of JSON that it has read."""
    wall, cpu = time.perf_counter(), time.process_time()
    json_bytes = way()
    wall_s, cpu_s = time.perf_counter() - wall, time.process_time() - cpu
    return Measured(json_bytes, wall_s, cpu_s, peak_rss_mb())


def rows_of(taken: Mapping[str, Sequence[Measured]], *, limit: str = "inflate") -> list[Row]:
    """Medians of each way, and their ratios to the way that is the limit."""

    def median(way: str, name: str) -> float:
        return float(statistics.median(getattr(one, name) for one in taken[way]))

    limit_wall_s, limit_cpu_s = median(limit, "wall_s"), median(limit, "cpu_s")
    return [
        Row(
            way=way,
            json_mb_per_s=round(taken[way][0].json_bytes / 1e6 / median(way, "wall_s"), 1),
            wall_s=round(median(way, "wall_s"), 3),
            cpu_s=round(median(way, "cpu_s"), 3),
            peak_mb=round(median(way, "peak_mb"), 1),
            wall_ratio=round(median(way, "wall_s") / limit_wall_s, 2),
            cpu_ratio=round(median(way, "cpu_s") / limit_cpu_s, 2),
        )
        for way in taken
    ]


def table(comparison: Comparison) -> str:
    """The comparison for a person."""
    sizes = f"{comparison.json_bytes / 1e6:,.1f} MB of JSON, {comparison.input_bytes / 1e6:,.1f} MB on disk"
    outputs = "files and Redis" if comparison.cache else "files only: no Redis answers"
    lines = [
        f"{comparison.input}: {sizes}; engine {comparison.engine}, {outputs}",
        f"{'':<8} {'MB/s':>7} {'wall s':>8} {'CPU s':>8} {'peak MB':>8} {'wall':>7} {'CPU':>7}",
    ]
    for row in comparison.rows:
        lines.append(  # noqa: PERF401
            f"{row.way:<8} {row.json_mb_per_s:>7,.0f} {row.wall_s:>8.2f} {row.cpu_s:>8.2f} {row.peak_mb:>8.0f} "
            f"{row.wall_ratio:>6.2f}x {row.cpu_ratio:>6.2f}x"
        )
    run_s = comparison.rows[-1].wall_s
    verdict = "fits" if comparison.interval_holds else "DOES NOT FIT"
    lines.append(f"a run of {run_s:.2f} s {verdict} into the interval of {comparison.interval_s:g} s")
    lines.append(f"a tick that finds nothing changed takes {comparison.unchanged_ms:.1f} ms")
    return "\n".join(lines)


# ---- around the measurements


def _variables(settings: Settings, directory: Path, source: str) -> dict[str, str]:
    """The settings of a run that touches nothing of the real one's."""
    return {
        f"{PREFIX}INPUT": spelled(settings.input),
        f"{PREFIX}OUTPUT_DIR": str(directory),
        f"{PREFIX}SOURCE": source,
        f"{PREFIX}REDIS_URL": settings.redis_url,
        f"{PREFIX}ENGINE": settings.engine,
    }


def _redis_is_there(settings: Settings) -> bool:
    try:
        with translated_errors(settings.redis_url), connect(settings.redis_url, timeout_s=1.0) as client:
            client.scan(count=1)  # an ACL may forbid it: then what a run leaves could not be taken away again
            return True
    except CacheUnavailable:
        return False


def _delete_keys(settings: Settings, keys: Keys) -> None:
    with translated_errors(settings.redis_url), connect(settings.redis_url, timeout_s=5.0) as client:
        for key in client.scan_iter(match=keys.every, count=1000):
            client.unlink(key)


# ---- one way, in a process of its own


def _inflate(settings: Settings) -> int:
    with open_source(settings.input) as source:
        return sum(map(len, source.chunks(choose_engine(settings.engine).chunk_bytes)))


def _scan(settings: Settings) -> int:
    found = Found(Selection(settings.index_symbols_limit))
    with open_source(settings.input) as source:
        collect(settings, choose_engine(settings.engine), source, found, None)
    return found.json_bytes


def _run(settings: Settings, *, use_cache: bool) -> int:
    report = optimize(settings, force=True, accept=True, use_cache=use_cache)
    return report.stats.json_bytes if report.stats is not None else 0


def _main(way: str, *, use_cache: bool) -> Measured:
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
    sys.stdout.buffer.write(msgspec.json.encode(_main(sys.argv[1], use_cache="--no-cache" not in sys.argv)))
