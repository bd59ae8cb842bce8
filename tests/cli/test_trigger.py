"""`rolling-optimizer trigger`: a run by real workers, and what is said without them."""

from __future__ import annotations

from pathlib import Path

import pytest

from optimizer import Settings
from tests.support.command import rolling_optimizer
from tests.support.fleet import Fleet
from tests.support.redis_servers import RedisServer
from tests.support.rolling_files import a_record, local, write_json


@pytest.mark.slow
def test_trigger_runs_on_the_fleet_and_waits_for_the_report(tmp_path: Path, settings: Settings) -> None:
    """`--wait` prints the report, or the failure in one line; without it only the id is printed."""
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
    assert "sent as " in sent.stderr
    assert waited.stdout.startswith("success: ")
    assert refused.returncode == 1
    assert "NoBots: " in refused.stderr
    assert accepted.stdout.startswith("success: ")
    assert failed.returncode == 1
    assert "SourceMissing: " in failed.stderr
    assert "Traceback" not in failed.stderr


def test_trigger_says_that_no_worker_and_no_broker_answers(tmp_path: Path, redis_server: RedisServer) -> None:
    """No worker, and no broker, are one line each."""
    no_worker = rolling_optimizer(
        tmp_path, "trigger", "--wait", "--timeout", 1, ROLLING_REDIS_URL=redis_server.url, ROLLING_SOURCE="unattended"
    )
    no_broker = rolling_optimizer(tmp_path, "trigger", ROLLING_REDIS_URL="redis://127.0.0.1:1/0")

    assert no_worker.returncode == no_broker.returncode == 1
    assert "is a worker running on this broker?" in no_worker.stderr
    assert "CacheUnavailable: " in no_broker.stderr
    assert "Traceback" not in no_worker.stderr + no_broker.stderr
