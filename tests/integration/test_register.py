"""Our tasks in a team's Celery app, by three lines, however the app is configured, and with its settings unchanged."""

from __future__ import annotations

from typing import Any, Final

import pytest

from tests.support.redis_servers import RedisServer
from tests.support.team import FOLLOW, QUEUE, Team, celery_project

pytestmark = pytest.mark.slow

CONFIGURED: Final = {
    "class": 'app.config_from_object("proj.conf:Config")\nregister(app)',
    "module": 'app.config_from_object("proj.plain")\nregister(app)',
    "namespace": 'app.config_from_object("proj.spaced", namespace="CELERY")\nregister(app)',
    "registered first": 'register(app)\napp.config_from_object("proj.conf:Config")',
    "set one by one": "app.conf.update(proj.plain.as_dict())\nregister(app)",
}
PLAIN: Final = """
broker_url = "{broker}"
task_default_queue = "proj-queue"
beat_schedule = {{"theirs": {{"task": "proj.tasks.note", "schedule": 0.5}}}}


def as_dict():
    return {{name: value for name, value in globals().items() if name.startswith(("broker", "task", "beat"))}}
"""
SPACED: Final = """
CELERY_BROKER_URL = "{broker}"
CELERY_TASK_DEFAULT_QUEUE = "proj-queue"
CELERY_BEAT_SCHEDULE = {{"theirs": {{"task": "proj.tasks.note", "schedule": 0.5}}}}
"""
APP: Final = """
import proj.plain
from celery import Celery
from optimizer.celery import register

app = Celery("proj")
{configured}
app.autodiscover_tasks(["proj"])
"""

SETTINGS: Final = """
import json
from celery import Celery
from proj.conf import Config

app = Celery("proj")
app.config_from_object(Config)
before = {name: repr(value) for name, value in app.conf.items()}

from proj.celery import app
from proj.tasks import note

app.finalize()
note.delay()
print(json.dumps([before, {name: repr(value) for name, value in app.conf.items()}]))
"""
LIMIT: Final = """
from proj.celery import app

app.finalize()
print(app.tasks["tasks.optimize_rolling_data"].time_limit)
"""
STANDALONE: Final = """
import logging

from celery import shared_task
from optimizer.celery import CelerySender, standalone

sender = CelerySender()


@shared_task(bind=True)
def note(self):
    print(f"their task, by {self.app.main}, optimizer at {logging.getLevelName(logging.getLogger('optimizer').level)}")
"""


@pytest.mark.parametrize("style", CONFIGURED)
def test_a_worker_and_a_beat_of_theirs_publish(team: Team, redis_server: RedisServer, style: str) -> None:
    """However the app is configured, our run and the team's task go to its default queue, and no other is made."""
    team.write(celery_project(broker_url=redis_server.url))
    team.write(
        {
            "proj/celery.py": APP.format(configured=CONFIGURED[style]),
            "proj/plain.py": PLAIN.format(broker=redis_server.url),
            "proj/spaced.py": SPACED.format(broker=redis_server.url),
        }
    )
    team.start_worker("-B")
    report = team.wait_for_run()

    assert team.reader.predictions().version == report.version
    assert [record.symbol for record in team.reader.predictions().value.predictions] == ["MSFT", "AAPL"]
    team.wait_for_line(f"their task, by proj in {QUEUE}")
    with redis_server.client as client:
        bound = {key.decode().removeprefix("_kombu.binding.") for key in client.keys("_kombu.binding.*")}
    assert bound - {"celery.pidbox", "celeryev"} == {QUEUE}


def test_their_app_stays_as_it_is(team: Team, redis_server: RedisServer) -> None:
    """Of the app's settings only `beat_schedule` is changed, and the team's shared task is sent to the team's queue."""
    team.write(celery_project(broker_url=redis_server.url, timezone="America/New_York", accept_content=["pickle"]))
    before, after = team.program(SETTINGS)
    assert before.pop("beat_schedule") != after.pop("beat_schedule")
    assert before == after
    with redis_server.client as client:
        assert client.llen(QUEUE) == 1


def test_settings_of_theirs_for_all_tasks_hold_for_ours(team: Team, redis_server: RedisServer) -> None:
    """A time limit for all tasks, if shorter, applies to our task; runs with compressed results are followed."""
    conf: dict[str, Any] = {"task_annotations": {"*": {"time_limit": 30}}, "result_compression": "gzip"}
    team.write(celery_project(broker_url=redis_server.url, result_backend=redis_server.url, **conf))
    team.start_worker()
    assert team.program(FOLLOW)["state"] == "done"
    assert team.program(LIMIT) == 30


def test_the_stand_alone_app_has_no_effect_on_their_worker(team: Team, redis_server: RedisServer) -> None:
    """If a team's module imports the stand-alone app, say for a sender, that app's checks do not end the worker.

    The level of our loggers stays unset.
    """
    team.write(celery_project("", broker_url=redis_server.url))
    team.write({"proj/tasks.py": STANDALONE})
    team.environ["ROLLING_TOP_SYMBOLS_LIMIT"] = "many"
    team.start_worker("-B")
    team.wait_for_line("their task, by proj, optimizer at NOTSET")
    assert not any("ROLLING_TOP_SYMBOLS_LIMIT" in line for line in team.lines)
