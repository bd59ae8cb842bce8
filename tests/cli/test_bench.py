"""`rolling-optimizer bench`: figures of real processes, without a trace in files or Redis."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from optimizer import Settings, optimize
from optimizer.cli.bench import compare, rows_of, table
from optimizer.cli.dev.sample import write_sample
from optimizer.cli.measure import Measured, measure
from optimizer.errors import BenchFailed
from tests.support.command import rolling_optimizer
from tests.support.redis_servers import RedisServer
from tests.support.rolling_files import local, write_json

pytestmark = pytest.mark.slow


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A directory with a small input where the settings expect it."""
    write_sample(tmp_path / "data" / "rolling_brain.json.gz", symbols=50, points=10)
    return tmp_path


def test_it_prints_a_table(data: Path) -> None:
    """Each way with its rate and its ratio to the limit, and whether the interval holds."""
    done = rolling_optimizer(data, "bench", "--rounds", 1, ROLLING_REDIS_URL="redis://127.0.0.1:1")

    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[2:5]] == ["inflate", "scan", "run"]
    assert "files only: no Redis answers" in done.stdout
    assert "fits into the interval of 30 s" in done.stdout
    assert done.stderr == ""
    assert [path.name for path in (data / "data").iterdir()] == ["rolling_brain.json.gz"]


def test_its_figures_as_json(data: Path) -> None:
    """Standard output is one JSON text, for programs that compare figures."""
    path = data / "other.json"
    json_bytes = write_sample(path, symbols=20, points=1)

    done = rolling_optimizer(data, "bench", path, "--json", "--rounds", 1, ROLLING_REDIS_URL="redis://127.0.0.1:1")

    figures = json.loads(done.stdout)
    assert figures["json_bytes"] == figures["input_bytes"] == json_bytes
    assert [row["way"] for row in figures["rows"]] == ["inflate", "scan", "run"]
    assert all(row["wall_s"] >= 0 and row["cpu_s"] >= 0 and 10 < row["peak_mb"] < 200 for row in figures["rows"])
    assert figures["rows"][0]["wall_ratio"] == 1.0
    assert figures["interval_holds"] is True
    assert 0 < figures["unchanged_ms"] < 1_000


def test_real_runs_are_left_alone(settings: Settings, redis_server: RedisServer) -> None:
    """If Redis answers, the runs of the bench publish there, under a source of their own whose keys are deleted."""
    write_sample(local(settings.input), symbols=20)
    optimize(settings)
    with redis_server.client as client:
        before = sorted(client.keys())
        lines: list[str] = []

        comparison = compare(settings, rounds=2, tell=lines.append)

        assert sorted(client.keys()) == before
    assert comparison.cache
    assert len(lines) == 6
    assert "files and Redis" in table(comparison)


def test_a_sources_own_mapping_is_measured(data: Path) -> None:
    """The processes get the mapping of the settings, not what the environment says: records are found by it alone."""
    path = data / "other.json"
    write_json(path, {"AAPL": {"score": 0.9, "now": {"price": 2.0}, "prediction": 3.0}})
    fields = "confidence=score; last_price=now.price"
    settings = Settings(input=path, fields=fields, redis_url="redis://127.0.0.1:1")

    assert compare(settings, rounds=1).rows[-1].way == "run"
    with pytest.raises(BenchFailed, match="NoRecords"):
        compare(replace(settings, fields=""), rounds=1)


@pytest.mark.parametrize(("name", "error"), [("missing.json.gz", "SourceMissing"), ("bad.json", "BenchFailed")])
def test_a_file_that_cannot_be_scanned_is_one_line(data: Path, name: str, error: str) -> None:
    """With the error of the file."""
    (data / "bad.json").write_text("{1}")

    done = rolling_optimizer(data, "bench", data / name, ROLLING_REDIS_URL="redis://127.0.0.1:1")

    assert done.returncode == 1
    assert done.stderr.startswith(f"rolling-optimizer: {error}: ")
    assert done.stderr.count("\n") == 1


def test_a_process_without_a_result_is_an_error() -> None:
    """The message has the last line of its stderr."""
    with pytest.raises(BenchFailed, match="broken ended with status 3: the last word"):
        measure("broken", [sys.executable, "-c", "import sys; print('the last word', file=sys.stderr); sys.exit(3)"])
    with pytest.raises(BenchFailed, match="it said nothing"):
        measure("silent", [sys.executable, "-c", ""])


def test_medians_and_ratios() -> None:
    """Each figure has its own median, and its ratio to the median of the limit."""
    taken = {
        "inflate": [Measured(1_000_000, wall, 2.0, 30.0) for wall in (1.0, 2.0, 9.0)],
        "scan": [Measured(1_000_000, wall, 3.0, peak) for wall, peak in ((3.0, 50.0), (4.0, 40.0), (2.5, 60.0))],
    }

    inflate, scan = rows_of(taken)

    assert (inflate.wall_s, inflate.wall_ratio, inflate.cpu_ratio, inflate.json_mb_per_s) == (2.0, 1.0, 1.0, 0.5)
    assert (scan.wall_s, scan.wall_ratio, scan.cpu_ratio, scan.peak_mb) == (3.0, 1.5, 1.5, 50.0)
