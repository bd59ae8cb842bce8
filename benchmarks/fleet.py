"""A source of many parts over a real fleet: the rate of one core, of two, and the cost of a change of one part.

Eight parts, written once into `.bench/parts/` (2.3 GB of JSON in all), a Redis, and a worker that takes every queue:
with one child on one core, then with two on two. Each run is forced and sent as users send it; medians of three.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Final

from benchmarks.processes import running, throwaway_redis
from benchmarks.scan import DIRECTORY
from optimizer import Settings, SnapshotReader
from optimizer.cli.dev.sample import write_sample
from optimizer.errors import BenchFailed
from optimizer.models import Stats

__all__ = ["main"]

PARTS: Final = 8
ROUNDS: Final = 3
RUN_LIMIT_S: Final = 120.0


def main() -> int:
    """Measure, print, and return the exit status."""
    directory = DIRECTORY / "parts"
    directory.mkdir(parents=True, exist_ok=True)
    for number in range(PARTS):
        path = directory / f"{number}.json.gz"
        if not path.exists():
            write_sample(path, symbols=1_000, points=2_700, seed=number)
    with tempfile.TemporaryDirectory() as temporary, throwaway_redis(Path(temporary)) as redis_url:
        settings = Settings(input=directory / "*.json.gz", output_dir=Path(temporary, "out"), redis_url=redis_url)
        print(f"{'':<26}{'JSON, MB':>9}{'s':>7}{'MB/s':>7}{'peak of a child, MB':>21}")
        one = _runs("one core, one child", settings, cores={0}, children=1)
        cores = os.sched_getaffinity(0)
        two = _runs(f"{len(cores)} cores, as many children", settings, cores=cores, children=len(cores))
    print(f"\n{len(cores)} cores are {two / one:.2f} times one")
    return 0


def _runs(name: str, settings: Settings, *, cores: set[int], children: int) -> float:
    """Measure forced runs, then a run after a part has changed; return the rate of the forced runs in MB/s."""
    environ = os.environ | {
        "ROLLING_INPUT": str(Path(str(settings.input)).absolute()),
        "ROLLING_OUTPUT_DIR": str(settings.output_dir),
        "ROLLING_REDIS_URL": settings.redis_url,
    }
    pinned = ["taskset", "-c", ",".join(map(str, cores)), sys.executable]
    options = ["-c", str(children), "--without-mingle", "-f", os.devnull]
    with running([*pinned, "-m", "celery", "-A", "tasks", "worker", *options], environ):
        forced = [_run(settings, environ, "--force") for _ in range(ROUNDS)]
        (DIRECTORY / "parts" / "0.json.gz").touch()
        changed = _run(settings, environ)
    middle = sorted(forced, key=lambda stats: stats.seconds)[ROUNDS // 2]
    _line(name, middle)
    _line("  one part has changed", changed)
    return statistics.median(stats.json_mb_per_s for stats in forced)


def _run(settings: Settings, environ: dict[str, str], *options: str) -> Stats:
    """Trigger a run, and return its figures."""
    command = [sys.executable, "-m", "optimizer.cli", "trigger", "--wait", "--timeout", f"{RUN_LIMIT_S:g}", *options]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    with closing(SnapshotReader.from_settings(settings)) as reader:
        stats = reader.runs(1)[0].stats if done.returncode == 0 else None
    if stats is None:
        raise BenchFailed(f"a run did not succeed: {done.stdout}{done.stderr}")
    return stats


def _line(name: str, stats: Stats) -> None:
    megabytes = stats.json_bytes / 1e6
    figures = f"{megabytes:>9,.0f}{stats.seconds:>7.2f}{stats.json_mb_per_s:>7,.0f}{stats.peak_rss_mb:>21.0f}"
    print(f"{name:<26}{figures}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
