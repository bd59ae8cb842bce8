"""Pools of a team's workers: those that make runs, and those that refuse them while the team's own tasks continue."""

from __future__ import annotations

import pytest

from tests.support.redis_servers import RedisServer
from tests.support.team import FOLLOW, Team, celery_project

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_a_pool_without_greenlets_publishes(team: Team, redis_server: RedisServer, pool: str) -> None:
    """A worker with the pool `threads` or `solo` executes the runs that the team's beat sends, and the team's tasks.

    It warns that this pool knows no time limits.
    """
    team.write(celery_project(broker_url=redis_server.url))
    team.start_worker("-P", pool)
    team.start_beat()
    team.wait_for_run()
    team.wait_for_line("this pool knows no time limits")
    assert team.reader.symbol("AAPL").value is not None
    team.wait_for_line("their task, by proj")


def test_gevent_refuses_runs_and_makes_their_tasks(team: Team, redis_server: RedisServer) -> None:
    """A worker with the pool `gevent` starts and executes the team's own tasks, before and after a run that fails.

    The log and the sender of the run get an error that says what to do.
    """
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
