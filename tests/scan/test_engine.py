"""The choice of the engine, what is reported about it, and the project where no compiler was available."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from optimizer import Settings, optimize
from optimizer.cli.dev.sample import SHAPES, Shape, write_sample
from optimizer.models import Report
from optimizer.scan.engine import choose_engine
from tests.support.engines import NAMES, require_engine
from tests.support.fleet import Fleet
from tests.support.installed import copy_sources
from tests.support.rolling_files import a_record, write_json

ROOT = Path(__file__).parents[2]


@pytest.fixture
def without_kernel(tmp_path: Path) -> Path:
    """A copy of the project in which the kernel is not compiled."""
    bare = tmp_path / "bare"
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    for name in ("optimizer", "tasks"):
        shutil.copytree(ROOT / name, bare / name, ignore=ignored)
    shutil.copy(ROOT / "celeryconfig.py", bare)
    # Without this file, an editable install would still find the compiled kernel.
    (bare / "optimizer" / "_prune.py").write_text("raise ImportError('it was not compiled')")
    return bare


def command(directory: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command line of the project in a directory."""
    return subprocess.run(
        [sys.executable, "-m", "optimizer.cli", *arguments],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(directory)} | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def stripped(report: Report) -> object:
    """The parts of a report that describe the input."""
    assert report.stats is not None
    return (report.stats.records_seen, report.stats.duplicates, report.stats.json_bytes, report.rejects)


@pytest.mark.no_cover
@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", [{}, {"indent": True}, {"lean": True}, {"nan": True}], ids=str)
def test_both_engines_write_the_same_snapshots(tmp_path: Path, shape: Shape, options: dict[str, Any]) -> None:
    """Runs with both engines over a sample write the same files except for their times, and the same report."""
    require_engine("native")
    source = tmp_path / "rolling_brain.json.gz"
    write_sample(source, symbols=1_500, points=3, shape=shape, **options)
    results = []
    for name in NAMES:
        settings = Settings(input=source, output_dir=tmp_path / name, engine=name, index_symbols_limit=400)
        report = optimize(settings, use_cache=False)
        assert report.stats is not None
        assert report.stats.engine == name
        paths = sorted((tmp_path / name / "current").glob("*.json.gz"))
        texts = [gzip.decompress(path.read_bytes()).replace(report.timestamp.encode(), b"now") for path in paths]
        results.append((stripped(report), texts))

    assert len(results[0][1]) == 4
    assert results[0] == results[1]


def test_the_native_engine_is_the_default() -> None:
    """Where the native engine is available, it is the default and has no warning."""
    engine = require_engine("native")

    assert choose_engine("auto") == engine
    assert engine.warning is None


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system pins no process to a core")
def test_on_one_core_nothing_is_read_ahead(tmp_path: Path) -> None:
    """On one core no second thread reads ahead, since both would only take turns; the outcome is the same."""
    require_engine("native")
    source = tmp_path / "rolling_brain.json.gz"
    write_sample(source, symbols=300)
    program = (
        "import os, sys, threading; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); from pathlib import Path; "
        "from optimizer import Settings, optimize; from optimizer.scan.engine import choose_engine; "
        "settings = Settings(input=Path(sys.argv[1]), output_dir=Path(sys.argv[2])); seen = []; "
        "count = lambda *_: seen.append(threading.active_count()); "
        "report = optimize(settings, use_cache=False, progress=count); "
        "print(choose_engine('auto').ahead, max(seen), report.stats.records_seen)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, source, tmp_path / "out"], capture_output=True, text=True, check=True
    )

    assert done.stdout.split() == ["False", "1", "300"]


@pytest.mark.slow
@pytest.mark.no_fork
def test_without_it_runs_work_and_workers_say_so(
    without_kernel: Path, tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the kernel, `auto` scans with the slow engine.

    A worker's log says at its start what that means and what to do.
    """
    write_json(settings.input, {"AAPL": a_record()})
    done = command(without_kernel, "run", "--no-cache", "--input", str(settings.input), "--output-dir", str(tmp_path))

    assert done.returncode == 0, done.stderr
    assert "engine ijson" in done.stdout
    monkeypatch.chdir(without_kernel)  # where Celery looks first
    with Fleet(tmp_path, settings) as fleet:
        fleet.start_worker()
        line = fleet.wait_for_line("scans run on the slow engine")
    assert "BUILD_EXTENSION=yes pip install" in line
    assert "WARNING" in line


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("run", "--no-cache"), ("worker",)])
def test_asked_for_and_not_there_it_refuses_to_start(without_kernel: Path, arguments: tuple[str, ...]) -> None:
    """If `ROLLING_ENGINE=native` and there is no kernel, neither a command nor a worker starts.

    The setting is a promise, which may not be broken silently.
    """
    if arguments == ("worker",):
        done = subprocess.run(
            [sys.executable, "-m", "celery", "-A", "tasks", "worker"],
            cwd=without_kernel,
            env=os.environ | {"PYTHONPATH": str(without_kernel), "ROLLING_ENGINE": "native"},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode != 0
    else:
        done = command(without_kernel, *arguments, ROLLING_ENGINE="native")
        assert done.returncode == 2

    assert "ROLLING_ENGINE=native, but the native engine is not there" in done.stderr
    assert "Traceback" not in done.stderr


def build(directory: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Make a wheel of a copy of the project."""
    source, built = str(copy_sources(directory)), str(directory / "dist")
    command = [sys.executable, "-m", "uv", "build", "--wheel", "--out-dir", built, source]
    return subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variables", "built", "compiled"),
    [
        ({}, True, True),
        ({"CC": "false"}, True, False),
        ({"CC": "false", "BUILD_EXTENSION": "yes"}, False, False),
        ({"BUILD_EXTENSION": "no"}, True, False),
        ({"BUILD_EXTENSION": "maybe"}, False, False),
    ],
    ids=str,
)
def test_what_an_install_does(tmp_path: Path, variables: dict[str, str], *, built: bool, compiled: bool) -> None:
    """A build works without a compiler, unless `BUILD_EXTENSION=yes` requires the extension; an unknown value fails."""
    if compiled and not shutil.which("cc"):
        pytest.skip("needs a C compiler")
    done = build(tmp_path, **variables)

    assert (done.returncode == 0) == built, done.stderr
    if built:
        (wheel,) = (tmp_path / "dist").glob("*.whl")
        listed = subprocess.run(
            [sys.executable, "-m", "zipfile", "-l", wheel], capture_output=True, text=True, check=True
        )
        assert ("_prune.abi3.so" in listed.stdout) == compiled
        assert "prune.c" not in listed.stdout
