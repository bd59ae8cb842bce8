"""`rolling-optimizer bench` measures real processes, and leaves nothing in files or Redis."""

from __future__ import annotations

import gzip
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from optimizer import Settings, optimize
from optimizer.cli.bench import compare, rows_of, table
from optimizer.cli.compression import CompressionRow, Cost, compare_compression, recommend
from optimizer.cli.compression_table import compression_table
from optimizer.cli.dev.sample import write_sample
from optimizer.cli.measure import Measured, measure
from optimizer.errors import BenchFailed
from optimizer.snapshots.format import FILE_NAMES
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
    """`bench` prints each way with its rate and its ratio to the limit, and whether the interval holds.

    No file is left behind.
    """
    done = rolling_optimizer(data, "bench", "--rounds", 1, ROLLING_REDIS_URL="redis://127.0.0.1:1")

    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[2:5]] == ["inflate", "scan", "run"]
    assert "files only: no Redis answers" in done.stdout
    assert "fits into the interval of 30 s" in done.stdout
    assert done.stderr == ""
    assert [path.name for path in (data / "data").iterdir()] == ["rolling_brain.json.gz"]


@pytest.mark.no_fork
def test_its_figures_as_json(data: Path) -> None:
    """With `--json`, standard output is one JSON text, for programs that compare figures."""
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
    """If Redis responds, `bench` publishes there under a source of its own, whose keys it deletes; other keys stay."""
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
    """The measured processes use the field mapping of the settings, not that in the environment.

    Without it the records of this input are not found.
    """
    path = data / "other.json"
    write_json(path, {"AAPL": {"score": 0.9, "now": {"price": 2.0}, "prediction": 3.0}})
    fields = "confidence=score; last_price=now.price"
    settings = Settings(input=path, fields=fields, redis_url="redis://127.0.0.1:1")

    assert compare(settings, rounds=1).rows[-1].way == "run"
    with pytest.raises(BenchFailed, match="NoRecords"):
        compare(replace(settings, fields=""), rounds=1)


@pytest.mark.parametrize(("name", "error"), [("missing.json.gz", "SourceMissing"), ("bad.json", "BenchFailed")])
def test_a_file_that_cannot_be_scanned_is_one_line(data: Path, name: str, error: str) -> None:
    """If the file cannot be scanned, `bench` exits with 1 and one line that names the error."""
    (data / "bad.json").write_text("{1}")

    done = rolling_optimizer(data, "bench", data / name, ROLLING_REDIS_URL="redis://127.0.0.1:1")

    assert done.returncode == 1
    assert done.stderr.startswith(f"rolling-optimizer: {error}: ")
    assert done.stderr.count("\n") == 1


def test_a_process_without_a_result_is_an_error() -> None:
    """A measured process that fails or prints no result is an error with the last line of its stderr."""
    with pytest.raises(BenchFailed, match="broken ended with status 3: the last word"):
        measure("broken", [sys.executable, "-c", "import sys; print('the last word', file=sys.stderr); sys.exit(3)"])
    with pytest.raises(BenchFailed, match="it said nothing"):
        measure("silent", [sys.executable, "-c", ""])


def test_medians_and_ratios() -> None:
    """Each figure has its own median, and its ratio is to the median of the limit, which is inflating."""
    taken = {
        "inflate": [Measured(1_000_000, wall, 2.0, 30.0) for wall in (1.0, 2.0, 9.0)],
        "scan": [Measured(1_000_000, wall, 3.0, peak) for wall, peak in ((3.0, 50.0), (4.0, 40.0), (2.5, 60.0))],
    }

    inflate, scan = rows_of(taken)

    assert (inflate.wall_s, inflate.wall_ratio, inflate.cpu_ratio, inflate.json_mb_per_s) == (2.0, 1.0, 1.0, 0.5)
    assert (scan.wall_s, scan.wall_ratio, scan.cpu_ratio, scan.peak_mb) == (3.0, 1.5, 1.5, 50.0)


def test_compression_is_measured_on_the_snapshots_that_are_there(data: Path) -> None:
    """`bench --compression` measures each level of each library on the current snapshots, and changes no file.

    The bytes of a level are those that the library really writes.
    """
    environ = {"ROLLING_REDIS_URL": "redis://127.0.0.1:1"}
    assert rolling_optimizer(data, "run", "--no-cache", **environ).returncode == 0
    before = {path: path.stat().st_mtime_ns for path in (data / "data").rglob("*")}

    done = rolling_optimizer(data, "bench", "--compression", "--rounds", 1, "--json", **environ)

    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in (data / "data").rglob("*")} == before
    figures = json.loads(done.stdout)
    rows = {(row["library"], row["level"]): row for row in figures["rows"]}
    names = {library: sum(name == library for name, _ in rows) for library in ("isal", "zlib", "zstd")}
    assert names == {"isal": 4, "zlib": 9, "zstd": 22}
    zlib_6, plain = rows["zlib", 6], {}
    for kind, name in FILE_NAMES.items():
        stored = (data / "data" / name).read_bytes()
        plain[kind] = gzip.decompress(stored)
        assert (figures["bytes"][kind], figures["json_bytes"][kind]) == (len(stored), len(plain[kind]))
        assert zlib_6["files"][kind]["bytes"] == len(gzip.compress(plain[kind], 6))
        assert zlib_6["files"][kind]["cpu_ms"] > 0
    downloads = sum(zlib_6["files"][kind]["bytes"] for kind in ("predictions", "bots", "portfolio"))
    assert zlib_6["downloads"]["bytes"] == downloads
    assert zlib_6["downloads"]["ratio"] == 1.0
    assert zlib_6["day_mb"] == pytest.approx(downloads * 2_880 / 1e6)
    assert figures["gzip_level"] == 6


def test_compression_as_a_table(
    settings: Settings, redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the files are elsewhere, the snapshots in Redis are measured, and a missing library is a row that says so."""
    monkeypatch.setitem(sys.modules, "zlib_ng.gzip_ng", None)  # where it is installed, its import fails too
    write_sample(local(settings.input), symbols=20)
    optimize(settings)
    with redis_server.client as client:
        before = sorted(client.keys())
        of_files = compare_compression(settings, rounds=1)
        of_redis = compare_compression(replace(settings, output_dir=tmp_path / "none"), rounds=1)
        assert sorted(client.keys()) == before
    assert (of_redis.origin, of_redis.version) == ("Redis", of_files.version)
    assert of_redis.json_bytes == of_files.json_bytes
    assert (of_redis.bytes, of_redis.counts) == (of_files.bytes, of_files.counts)

    lines = compression_table(of_redis).splitlines()

    assert sum(line.startswith("zstd ") for line in lines) == 2 * 22
    assert [line for line in lines if line.startswith(f"now {of_redis.bytes['predictions']:>19,}")]
    missing = [line.split(maxsplit=1) for line in lines if line.startswith("zlib-ng")]
    assert missing == [["zlib-ng", "not installed: pip install zlib-ng"]]
    assert lines[-1].startswith("The index is always compressed by isal 2")


def test_without_snapshots_there_is_nothing_to_compress(tmp_path: Path) -> None:
    """Without snapshots, `--compression` fails with an error that names where it has searched and what to do.

    A PATH is wrong usage, since snapshots are measured and not a file.
    """
    environ = {"ROLLING_REDIS_URL": "redis://127.0.0.1:1", "ROLLING_OUTPUT_DIR": str(tmp_path / "none")}
    done = rolling_optimizer(tmp_path, "bench", "--compression", **environ)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("rolling-optimizer: SnapshotMissing: ")
    assert all(text in last for text in ("redis://127.0.0.1:1", str(tmp_path / "none"), "rolling-optimizer run"))
    done = rolling_optimizer(tmp_path, "bench", "--compression", "other.json.gz", **environ)
    assert (done.returncode, "leave PATH out" in done.stderr) == (2, True)


def test_the_level_that_is_recommended_is_the_cheapest_near_the_smallest() -> None:
    """The recommended level is the cheapest one within 5 % of the smallest size.

    Of zstd, only levels that take no more CPU than the gzip level in force are considered. isal 0 cannot be set.
    """

    def row(library: str, level: int, size: int, cpu_ms: float) -> CompressionRow:
        cost = Cost(cpu_ms, cpu_ms, 0.1, size, 1.0)
        return CompressionRow(library, level, {}, cost, cost, 1.0)

    rows = [row("isal", 0, 100, 0.1), *(row("isal", n, 1_200, 0.5) for n in (1, 2, 3))]
    rows += [row("zlib", 4 + n, size, 8.0 + 2 * n) for n, size in enumerate((1_100, 1_050, 1_040, 1_000, 1_001, 1_002))]
    rows += [row("zstd", 1, 950, 1.0), row("zstd", 2, 906, 9.0), row("zstd", 3, 860, 10.5), row("zstd", 4, 500, 99.0)]

    assert [(best.library, best.level) for best in recommend(rows, 5)] == [("zlib", 5), ("zstd", 1)]
    assert recommend(rows, 6)[1].level == 3
    assert recommend(rows, 1)[1].level == 1
