"""The checks of a worker and a beat at their start, and what they log."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from celery import Celery

from optimizer import Settings
from tests.support.fleet import Fleet
from tests.support.redis_servers import RedisServer, wait_until
from tests.support.rolling_files import a_record, write_json

pytestmark = [pytest.mark.slow, pytest.mark.no_fork]

ROOT = Path(__file__).parents[2]


def _celery(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "celery", "-A", "tasks", *arguments]
    environ = os.environ | {"PYTHONPATH": str(ROOT)} | {"ROLLING_REDIS_URL": "redis://127.0.0.1:1/0"} | variables
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("program", ["worker", "beat"])
def test_a_misspelt_setting_ends_a_worker_and_a_beat_at_their_start(program: str) -> None:
    """A worker or a beat with a misspelt setting exits with 1 and one line, which suggests the right name."""
    done = _celery(program, ROLLING_INPT="x")
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert line.startswith("SettingsInvalid: ROLLING_INPT is not a setting. Did you mean ROLLING_INPUT?")
    assert "Traceback" not in done.stderr


def test_celery_refuses_a_bad_variable_in_one_line(tmp_path: Path) -> None:
    """`celery -A tasks worker` with a bad variable exits with 1 and an error that names it, without a traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "tasks", "worker"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "ROLLING_GZIP_LEVEL": "11"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "ROLLING_GZIP_LEVEL=11 is not between 1 and 9" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_worker_warns_of_a_broker_that_may_evict(tmp_path: Path, own_redis: RedisServer) -> None:
    """A worker whose broker may evict messages logs a warning at its start, the same as `config` prints."""
    own_redis.start("--maxmemory-policy", "allkeys-lru")
    settings = Settings(input=tmp_path / "in.json", output_dir=tmp_path / "out", redis_url=own_redis.url)
    with Fleet(tmp_path, settings) as fleet:
        fleet.start_worker()
        wait_until(lambda: any("may evict messages" in line for line in fleet.lines), what="the warning")


def test_a_worker_shows_each_run_at_its_default_log_level(tmp_path: Path, settings: Settings) -> None:
    """At its default log level, WARNING, a worker shows our INFO lines about runs and engines, but not Celery's own."""
    write_json(settings.input, {"AAPL": a_record()})
    with Fleet(tmp_path, settings) as fleet, Celery(broker=settings.redis_url, set_as_current=False) as client:
        fleet._stack.start_celery("worker", "worker")
        client.send_task("tasks.optimize_rolling_data", queue=f"rolling.{settings.source}")
        fleet.wait_for_line(r"INFO/.*✅ Optimized: ")
        fleet.wait_for_line(r"INFO/MainProcess.*: engine \w+$")
        assert not [line for line in fleet.lines if "received" in line or " ready." in line]
