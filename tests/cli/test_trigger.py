"""`rolling-optimizer trigger`: runs by real workers, and what it prints if no worker or no broker responds."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from optimizer import Settings
from tests.support.command import command_line, rolling_optimizer
from tests.support.compose import ROOT
from tests.support.fleet import Fleet
from tests.support.redis_servers import RedisServer
from tests.support.rolling_files import a_record, local, write_json


@pytest.mark.slow
def test_trigger_runs_on_the_fleet_and_waits_for_the_report(tmp_path: Path, settings: Settings) -> None:
    """`trigger --wait` prints the report of the run, or exits with 1 and prints the run's error in one line.

    Before that it prints the id of the run, and without `--wait` nothing else. With `--accept`, a run publishes an
    input that it refused before because of its bots.
    """
    variables = {"ROLLING_REDIS_URL": settings.redis_url}
    write_json(settings.input, {"AAPL": a_record()})
    with Fleet(tmp_path, settings) as fleet:
        fleet.start_worker()
        sent = rolling_optimizer(tmp_path, "trigger", **variables)
        fleet.wait_for_runs(1)
        waited = rolling_optimizer(tmp_path, "trigger", "--force", "--wait", **variables)
        write_json(settings.input, {"AAPL": a_record(), "bots": [{}]})
        refused = rolling_optimizer(tmp_path, "trigger", "--wait", **variables)
        accepted = rolling_optimizer(tmp_path, "trigger", "--accept", "--wait", **variables)
        local(settings.input).unlink()
        failed = rolling_optimizer(tmp_path, "trigger", "--wait", **variables)

    assert sent.returncode == 0
    assert re.fullmatch(r"sent as \S+\n", sent.stderr)
    assert sent.stdout == ""
    assert waited.stdout.startswith("success: ")
    assert refused.returncode == 1
    assert re.fullmatch(r"sent as \S+\n.*NoBots: .*\n", refused.stderr)
    assert refused.stdout == failed.stdout == ""
    assert accepted.stdout.startswith("success: ")
    assert failed.returncode == 1
    assert re.fullmatch(r"sent as \S+\n.*SourceMissing: .*\n", failed.stderr)


@pytest.mark.slow
def test_trigger_says_that_no_worker_and_no_broker_answers(tmp_path: Path, redis_server: RedisServer) -> None:
    """`trigger` exits with 1, and prints why in one line, if no worker takes the run in time or the broker is away."""
    no_worker = rolling_optimizer(
        tmp_path, "trigger", "--wait", "--timeout", 1, ROLLING_REDIS_URL=redis_server.url, ROLLING_SOURCE="unattended"
    )
    no_broker = rolling_optimizer(tmp_path, "trigger", ROLLING_REDIS_URL="redis://127.0.0.1:1/0")

    assert no_worker.returncode == no_broker.returncode == 1
    assert re.fullmatch(r"sent as \S+\n.*is a worker running on this broker\?.*\n", no_worker.stderr)
    assert re.fullmatch(r".*CacheUnavailable: .*\n", no_broker.stderr)
    assert no_worker.stdout == no_broker.stdout == ""


@pytest.mark.slow
def test_ctrl_c_ends_the_waiting_with_one_line(tmp_path: Path, own_redis: RedisServer) -> None:
    """Ctrl-C (SIGINT) ends `trigger --wait` with exit status 130 and one line that names the run that was sent.

    Before that, it has warned that no worker is seen to take the queue. The message expires, so that a worker that
    starts after the timeout drops the run.
    """
    own_redis.start()
    environ = {"PYTHONPATH": str(ROOT), "ROLLING_REDIS_URL": own_redis.url}
    with subprocess.Popen(
        command_line("trigger", "--wait", "--timeout", 50),
        cwd=tmp_path,
        env=os.environ | environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as waiting:
        assert waiting.stderr is not None
        sent = re.fullmatch(r"sent as (\S+)\n", waiting.stderr.readline())
        assert sent
        warned = waiting.stderr.readline()
        waiting.send_signal(signal.SIGINT)
        assert waiting.wait(20) == 130
        said = waiting.stderr.read()
    with own_redis.client as client:
        message = client.lindex("rolling.rolling_brain", 0)
        assert isinstance(message, bytes)

    assert warned == "no worker is seen to take the queue rolling.rolling_brain; waiting up to 50 s for one\n"
    assert said == f"rolling-optimizer: interrupted; the run {sent[1]} was sent, and is not ended\n"
    assert json.loads(message)["headers"]["expires"]
