"""Runs with a broker that is no Redis, and with results in Redis, in the broker, or nowhere."""

from __future__ import annotations

from typing import Any, Final

import pytest

from tests.support.rabbitmq import RabbitServer
from tests.support.team import FOLLOW, Team, celery_project

pytestmark = pytest.mark.slow

RESULTS: Final[dict[str, dict[str, Any]]] = {
    "redis": {"result_backend": "REDIS"},
    "off": {},
    "ignored": {"result_backend": "REDIS", "task_ignore_result": True},
    "rpc": {"result_backend": "rpc://"},
}


@pytest.mark.parametrize("results", RESULTS)
def test_rabbitmq_carries_runs_and_their_sender_can_follow_them(
    team: Team, rabbitmq: RabbitServer, results: str
) -> None:
    """With RabbitMQ as broker, a run's sender sees its report, with results in Redis, in RabbitMQ, or nowhere."""
    conf = {name: team.settings.redis_url if value == "REDIS" else value for name, value in RESULTS[results].items()}
    team.write(celery_project(broker_url=rabbitmq.url, task_default_queue=f"of-{results}", **conf))
    team.start_worker()

    state = team.program(FOLLOW)

    assert state["state"] == "done", state
    assert state["report"]["status"] == "success"
    assert team.reader.predictions().version == state["report"]["version"]
    team.check()
