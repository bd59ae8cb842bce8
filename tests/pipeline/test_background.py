"""Scheduled runs in threads of a program: their ticks, their end, failures, and many processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest

import optimizer
from optimizer import Report, Settings
from optimizer.cli.dev.sample import write_sample
from optimizer.errors import SettingsInvalid
from optimizer.pipeline import background as module
from optimizer.storage.location import parse_location
from tests.support.compose import ROOT
from tests.support.published_state import NEW, OLD, assert_tidy, runs_of, symbols_shown
from tests.support.redis_servers import RedisServer, wait_until
from tests.support.rolling_files import a_record, local, write_json
from tests.support.web_server import serving

FAST: Final[dict[str, Any]] = {"interval_s": 0.2, "startup_delay_s": 0.0}


def statuses(server: RedisServer, settings: Settings) -> set[str]:
    """The outcomes of all runs so far."""
    return {report.status for report in runs_of(server, settings.source)}


def wait_for(server: RedisServer, settings: Settings, status: str, *, limit_s: float = 20.0) -> Report:
    """Wait for a run with this outcome."""
    wait_until(lambda: status in statuses(server, settings), limit_s=limit_s, what=status)
    return next(report for report in runs_of(server, settings.source) if report.status == status)


def rolling_threads() -> list[str]:
    """The names of the threads of scheduled runs, without those that a reader of an earlier test has left."""
    names = [thread.name for thread in threading.enumerate() if thread.name.startswith("rolling-")]
    return [name for name in names if name not in ("rolling-reader", "rolling-files")]


def test_a_report_that_cannot_be_passed_on_ends_no_schedule(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """If a report cannot be passed on, that is logged, the next tick is made, and its report is passed on.

    For example, standard output may be on a full disk.
    """
    write_json(settings.input, OLD)
    reports: list[Report] = []

    def pass_on(report: Report) -> None:
        reports.append(report)
        if len(reports) == 1:
            raise OSError(28, "No space left on device")

    runs = module.ScheduledRuns(replace(settings, **FAST), on_report=pass_on)
    runs.start()
    wait_until(lambda: len(reports) > 1, what="the next report")
    runs.stop()
    assert runs.wait(20)
    assert [record.message for record in caplog.records if "could not be passed on" in record.message] == [
        "[RollingOptimizer] rolling_brain: a report could not be passed on: OSError: [Errno 28] No space left on device"
    ]


def test_runs_are_made_each_interval_until_the_block_is_left(settings: Settings, redis_server: RedisServer) -> None:
    """Within a `background` block a run is made at each interval, so a later tick publishes a changed input.

    Afterwards neither a thread nor a lock is left.
    """
    settings = replace(settings, **FAST)
    write_json(settings.input, OLD)

    with optimizer.background(settings):
        wait_for(redis_server, settings, "success")
        wait_for(redis_server, settings, "unchanged")
        write_json(settings.input, NEW)
        wait_until(lambda: symbols_shown(settings) == ["NVDA", "MSFT"], what="the new input")

    assert rolling_threads() == []
    assert_tidy(settings, redis_server)


def test_the_first_run_comes_after_the_startup_delay(settings_without_redis: Settings) -> None:
    """No run is made before the startup delay has passed, and leaving the `background` block does not wait."""
    settings = replace(settings_without_redis, startup_delay_s=60)
    write_json(settings.input, OLD)
    began_s = time.monotonic()

    with optimizer.background(settings, use_cache=False):
        assert rolling_threads() == [f"rolling-{settings.source}"]

    assert time.monotonic() - began_s < 30
    assert not local(settings.output_dir).exists()


@pytest.mark.alone
def test_ticks_are_at_a_fixed_rate_and_passed_ones_are_left_out(
    settings_without_redis: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that takes two and a half intervals is followed by one at the next whole interval, not by three."""
    began: list[float] = []

    def slow(settings: Settings, **_: object) -> Report:
        began.append(time.monotonic())
        time.sleep(0.5 if len(began) == 1 else 0.0)
        return Report("unchanged", settings.source, "")

    monkeypatch.setattr(module, "optimize", slow)
    with optimizer.background(replace(settings_without_redis, **FAST)):
        wait_until(lambda: len(began) >= 4, what="four runs")

    gaps = [after - before for before, after in pairwise(began[:4])]
    assert gaps[0] > 0.55
    assert all(0.1 < gap < 0.35 for gap in gaps[1:])


def test_a_failed_run_is_logged_and_the_next_tick_heals(
    settings: Settings, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """After a run that failed, the thread continues and the next tick publishes; the log has the error's name."""
    settings = replace(settings, **FAST)

    with optimizer.background(settings):
        wait_for(redis_server, settings, "failed")
        write_json(settings.input, OLD)
        wait_for(redis_server, settings, "success")

    assert any('"error":"SourceMissing"' in message for message in caplog.messages)


def test_a_bug_in_a_run_does_not_end_the_runs(
    settings_without_redis: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An unexpected error in a run is logged with its traceback, and the next run is made."""
    calls: list[int] = []

    def broken(settings: Settings, **_: object) -> Report:
        calls.append(1)
        if len(calls) == 1:
            raise ZeroDivisionError("a bug")
        return Report("unchanged", settings.source, "")

    monkeypatch.setattr(module, "optimize", broken)
    with optimizer.background(replace(settings_without_redis, **FAST)):
        wait_until(lambda: len(calls) >= 2, what="another run")

    record = next(record for record in caplog.records if "a scheduled run failed" in record.getMessage())
    assert record.exc_info is not None
    assert "ZeroDivisionError: a bug" in record.getMessage()


def test_without_redis_files_are_written(settings_without_redis: Settings) -> None:
    """With `use_cache=False` a run writes the files and needs no Redis."""
    settings = replace(settings_without_redis, **FAST, redis_url="redis://127.0.0.1:1/0")
    write_json(settings.input, OLD)

    with optimizer.background(settings, use_cache=False):
        wait_until((local(settings.output_dir) / "manifest.json").exists, what="the files")
    assert symbols_shown(settings) == ["MSFT", "AAPL"]


def test_no_settings_are_refused() -> None:
    """`background` without settings is refused: nothing would ever run, and nothing would report it."""
    with pytest.raises(SettingsInvalid, match="has no settings"), optimizer.background():
        pass


def test_several_sources_have_a_thread_each(settings_without_redis: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each source has its own thread, so one whose input hangs does not delay the other.

    Leaving the `background` block does not wait for ever for the source that hangs.
    """
    monkeypatch.setattr(module, "ABORT_S", 0.1)
    good = replace(settings_without_redis, **FAST)
    write_json(good.input, OLD)
    other = local(good.output_dir).parent / "other"
    with serving() as pages:
        pages.hangs = True
        hanging = Settings(input=parse_location(f"{pages.url}/intraday.json"), output_dir=other, **FAST)
        with optimizer.background(hanging, good, use_cache=False, stop_s=0.1):
            assert sorted(rolling_threads()) == ["rolling-intraday", "rolling-rolling_brain"]
            wait_until((local(good.output_dir) / "manifest.json").exists, what="the other source")
            wait_until(lambda: pages.asked, what="the input that hangs")
        assert rolling_threads() == ["rolling-intraday"]
    wait_until(lambda: not rolling_threads(), what="the end of what hung")


@pytest.fixture
def slow(settings: Settings) -> Settings:
    """Settings of a scan that takes a second or two."""
    write_sample(local(settings.input), symbols=1_000, points=4_000)
    return replace(settings, engine="ijson", startup_delay_s=0.0)


def wait_for_the_scan(server: RedisServer, settings: Settings) -> None:
    """Wait until a run holds the lock."""
    with server.client as client:
        wait_until(lambda: client.exists(f"rolling:{{{settings.source}}}:lock"), what="a run")


@pytest.mark.slow
def test_leaving_the_block_waits_for_a_run(slow: Settings, redis_server: RedisServer) -> None:
    """Leaving a `background` block waits until a run that has begun has published."""
    with optimizer.background(slow, stop_s=60):
        wait_for_the_scan(redis_server, slow)

    assert statuses(redis_server, slow) == {"success"}


@pytest.mark.slow
def test_a_run_that_takes_too_long_to_wait_for_is_ended(slow: Settings, redis_server: RedisServer) -> None:
    """If a run is not over `stop_s` seconds after the block is left, it is ended and publishes nothing.

    It releases its lock and reports why.
    """
    with optimizer.background(slow, stop_s=0):
        wait_for_the_scan(redis_server, slow)

    [report] = runs_of(redis_server, slow.source)
    assert (report.status, report.error) == ("failed", "PublishRefused")
    assert "the process ended during the run" in (report.details or "")
    assert rolling_threads() == []
    assert not (local(slow.output_dir) / "manifest.json").exists()
    assert_tidy(slow, redis_server)


@pytest.mark.slow
def test_a_run_has_the_time_limit_of_a_task(
    slow: Settings, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that exceeds the time limit of a task fails with `RunTimedOut`.

    The limit is ten intervals, and at least a minute; here it is a second.
    """
    monkeypatch.setattr(Settings, "time_limit_s", 1.0)
    with optimizer.background(replace(slow, interval_s=0.1), stop_s=60):
        report = wait_for(redis_server, slow, "failed")

    assert report.error == "RunTimedOut"


# ---- many processes, as a server that forks before it serves has them

PREFORK = """
import os, signal, sys, threading, time
from pathlib import Path
from typing import Any, Final
import optimizer

settings = optimizer.Settings.from_env(os.environ)

def serve():
    while not Path("stop").exists():
        time.sleep(0.02)

def names():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("rolling-")]

children = []
"""
EACH_CHILD = """
for number in range(3):
    child = os.fork()
    if child == 0:
        with optimizer.background(settings):
            serve()
        os._exit(0)
    children.append(child)
"""
IN_THE_PARENT = """
with optimizer.background(settings):
    while not Path("amid").exists():
        time.sleep(0.01)
    for number in range(3):
        child = os.fork()
        if child == 0:
            break
        children.append(child)
    else:
        serve()
        assert len(names()) == 1, names()
    if not children or child == 0:
        assert names() == [], names()
        began = time.monotonic()
if child == 0:  # the child has left the block too
    assert time.monotonic() - began < 2
    serve()
    os._exit(0)
"""
JOIN = """
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


def prefork(directory: Path, settings: Settings, program: str) -> subprocess.Popen[bytes]:
    """Start a program that forks three children."""
    environ = {
        "ROLLING_INPUT": str(settings.input),
        "ROLLING_OUTPUT_DIR": str(settings.output_dir),
        "ROLLING_REDIS_URL": settings.redis_url,
        "ROLLING_INTERVAL_S": "0.5",
        "ROLLING_STARTUP_DELAY_S": "0",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PREFORK + program + JOIN]
    return subprocess.Popen(command, cwd=directory, env=os.environ | environ)


@pytest.mark.slow
@pytest.mark.alone
def test_many_processes_make_one_run_per_tick(tmp_path: Path, settings: Settings, redis_server: RedisServer) -> None:
    """Three children with a thread each make one run per tick: each tick is one report, whichever child made it."""
    write_json(settings.input, {"AAPL": a_record()})
    began_s = time.time()
    process = prefork(tmp_path, settings, EACH_CHILD)
    wait_until(lambda: len(runs_of(redis_server, settings.source)) >= 6, what="six runs")
    (tmp_path / "stop").touch()

    assert process.wait(20) == 0
    ticks = (time.time() - began_s) / 0.5
    reports = runs_of(redis_server, settings.source)
    assert {report.status for report in reports} == {"success", "unchanged"}
    assert [report.status for report in reports].count("success") == 1
    assert 6 <= len(reports) <= ticks + 2


@pytest.mark.slow
def test_a_forked_child_has_no_thread_and_the_parents_goes_on(
    tmp_path: Path, settings: Settings, redis_server: RedisServer
) -> None:
    """If a process forks within a `background` block during a scan, a child has no thread and leaves the block at once.

    The parent's runs continue.
    """
    write_sample(local(settings.input), symbols=1_000, points=2_000)
    process = prefork(tmp_path, settings, IN_THE_PARENT)
    wait_for_the_scan(redis_server, settings)
    (tmp_path / "amid").touch()
    wait_for(redis_server, settings, "success")
    before = len(runs_of(redis_server, settings.source))
    wait_until(lambda: len(runs_of(redis_server, settings.source)) >= before + 2, what="more runs")
    (tmp_path / "stop").touch()

    assert process.wait(20) == 0
