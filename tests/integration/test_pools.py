"""Pools of their workers: those that work, and those in which a run is refused while their own tasks go on."""

from __future__ import annotations

import pytest

from tests.support.redis_servers import RedisServer
from tests.support.team import FOLLOW, Team, celery_project

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_a_pool_without_greenlets_publishes(team: Team, redis_server: RedisServer, pool: str) -> None:
    """Their beat sends the ticks, one such worker makes the runs, and its own tasks besides."""
    team.write(celery_project(broker_url=redis_server.url))
    team.start_worker("-P", pool)
    team.start_beat()
    team.wait_for_run()
    team.wait_for_line("this pool knows no time limits")
    assert team.reader.symbol("AAPL").value is not None
    team.wait_for_line("their task, by proj")


def test_gevent_refuses_runs_and_makes_their_tasks(team: Team, redis_server: RedisServer) -> None:
    """The worker starts; a run fails with what to do, as its sender sees; their tasks go on before and after that."""
    team.write(celery_project(broker_url=redis_server.url))
    team.start_worker("-P", "gevent")
    team.start_beat()
    team.wait_for_line("their task, by proj")

    refusal = team.wait_for_line("gevent.*prefork")

    assert "threads" in refusal
    state = team.program(FOLLOW)
    assert (state["state"], state["error"]["error"]) == ("failed", "SettingsInvalid")
    assert "start it with -P prefork" in state["error"]["details"]
    team.wait_for_line("their task, by proj", after=len(team.lines))
    assert {run.status for run in team.reader.runs(10)} <= {"failed"}
