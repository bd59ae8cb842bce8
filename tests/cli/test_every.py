"""`rolling-optimizer run --every`: scheduled runs in the foreground, and how signals end them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from optimizer.cli.dev.sample import write_sample
from tests.support.command import rolling_optimizer
from tests.support.compose import ROOT
from tests.support.redis_servers import wait_until
from tests.support.rolling_files import a_record, write_json

pytestmark = pytest.mark.slow


class Foreground:
    """A command in the foreground, whose log lines and reports go to files."""

    def __init__(self, directory: Path, *arguments: str, **variables: str) -> None:
        self._log = directory / "log"
        self._out = directory / "out"
        with self._log.open("w") as log, self._out.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "optimizer.cli", "run", "--no-cache", *arguments],
                cwd=directory,
                env=os.environ | {"PYTHONPATH": str(ROOT), "ROLLING_STARTUP_DELAY_S": "0"} | variables,
                stdout=out,
                stderr=log,
            )

    @property
    def log(self) -> str:
        """All that it has logged so far."""
        return self._log.read_text("utf-8")

    @property
    def reports(self) -> list[dict[str, object]]:
        """The reports that `--json` has printed so far."""
        return [json.loads(line) for line in self._out.read_text("utf-8").splitlines()]

    def wait_for(self, pattern: str) -> None:
        """Wait for a log line."""
        wait_until(lambda: self.process.poll() is not None or re.search(pattern, self.log), what=pattern)
        assert re.search(pattern, self.log), self.log

    def end(self, *signals: int) -> int:
        """Send signals; return the exit status."""
        for number in signals:
            self.process.send_signal(number)
        return self.process.wait(30)


@contextmanager
def foreground(directory: Path, *arguments: str, **variables: str) -> Iterator[Foreground]:
    """Start the command, and kill it afterwards."""
    started = Foreground(directory, *arguments, **variables)
    try:
        yield started
    finally:
        started.process.kill()
        started.process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_runs_are_made_until_a_signal(data: Path, number: signal.Signals) -> None:
    """Runs are made until SIGTERM or SIGINT, with one log line each; the exit status is 0 even if runs failed."""
    with foreground(data, "--every", "0.2") as command:
        command.wait_for("✅ Optimized: ")
        command.wait_for("rolling_brain: unchanged: version ")
        (data / "data" / "rolling_brain.json.gz").rename(data / "away")
        command.wait_for('Optimization failed: {"source":"rolling_brain","error":"SourceMissing"')
        (data / "away").rename(data / "data" / "rolling_brain.json.gz")
        failed = command.log.count("\n")
        wait_until(lambda: "unchanged" in command.log.splitlines()[-1], what="a run that succeeds again")

        assert command.end(number) == 0
        assert command.log.count("\n") > failed
        assert "Traceback" not in command.log


@pytest.fixture
def slow(data: Path) -> Path:
    """A directory whose input takes a second or two to scan."""
    write_sample(data / "data" / "rolling_brain.json.gz", symbols=1_000, points=4_000)
    return data


def wait_for_the_scan(directory: Path, command: Foreground) -> None:
    """Wait until the run has its input open."""
    links = Path(f"/proc/{command.process.pid}/fd")
    read = directory / "data" / "rolling_brain.json.gz"

    def leads_to_it(link: Path) -> bool:
        with suppress(FileNotFoundError):  # it was closed after the directory was listed
            return link.samefile(read)
        return False

    wait_until(lambda: any(map(leads_to_it, links.iterdir())), what="the scan")


def test_a_run_that_is_on_ends_first(slow: Path) -> None:
    """On SIGTERM during a scan, the run is completed and published, and the exit status is 0."""
    with foreground(slow, "--every", "60", "--json", ROLLING_ENGINE="ijson") as command:
        wait_for_the_scan(slow, command)
        assert command.end(signal.SIGTERM) == 0
        assert [report["status"] for report in command.reports] == ["success"]
    assert (slow / "data" / "manifest.json").exists()


def test_a_second_signal_ends_the_run(slow: Path) -> None:
    """A second signal during a scan ends the run: nothing is published, and the exit status says which signal."""
    with foreground(slow, "--every", "60", "--json", ROLLING_ENGINE="ijson") as command:
        wait_for_the_scan(slow, command)
        assert command.end(signal.SIGTERM, signal.SIGINT) in (128 + signal.SIGTERM, 128 + signal.SIGINT)
        assert [report["error"] for report in command.reports] == ["PublishRefused"]
    assert not (slow / "data" / "manifest.json").exists()


def test_all_sources_have_runs(data: Path) -> None:
    """All sources have runs at the interval of the option, each with its name in the log; `--source` chooses one."""
    write_json(data / "data" / "b.json.gz", {"AAPL": a_record()})
    sources = "a=data/rolling_brain.json.gz; b=data/b.json.gz"
    with foreground(data, "--every", "0.2", ROLLING_SOURCES=sources, ROLLING_A__INTERVAL_S="60") as command:
        for name in "ab":
            command.wait_for(f'Optimized: {{"source":"{name}"')
            command.wait_for(f"{name}: unchanged: version ")
        assert command.end(signal.SIGTERM) == 0

    with foreground(data, "--every", "0.2", "--source", "b", ROLLING_SOURCES=sources) as command:
        command.wait_for("b: unchanged: version ")
        assert command.end(signal.SIGTERM) == 0
        assert "a: " not in command.log


def test_it_ends_when_its_reports_are_not_read_any_more(data: Path) -> None:
    """The process ends once its reports are not read any more, as with `... | head -1`; it does not stay threadless."""
    command = f"set -o pipefail; {sys.executable} -m optimizer.cli run --no-cache --every 0.1 --json | head -1"
    environ = os.environ | {"PYTHONPATH": str(ROOT), "ROLLING_STARTUP_DELAY_S": "0"}
    done = subprocess.run(
        ["bash", "-c", command], cwd=data, env=environ, capture_output=True, text=True, check=False, timeout=30
    )
    assert (done.returncode, json.loads(done.stdout)["status"]) == (0, "success")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--every", "0"], "Error: --every 0 is not between 0.1 and 86,400"),
        (["--every", "nan"], "Error: --every nan is not between 0.1 and 86,400"),
        (["--every", "x"], "'x' is not a valid float"),
        (["--every", "1", "--force"], "--force and --accept are for one run"),
        (["--every", "1", "--accept"], "--force and --accept are for one run"),
        (["--every", "1", "--source", "x"], "source='x' is not one of those that are configured"),
    ],
)
def test_wrong_usage(data: Path, arguments: list[str], said: str) -> None:
    """Wrong usage ends with exit status 2 and a message, before anything is run."""
    done = rolling_optimizer(data, "run", *arguments)
    assert done.returncode == 2
    assert said in done.stderr
