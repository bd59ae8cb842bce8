"""Schedulers that teams use in place of Celery's own: each sends our ticks from the schedule that `register` adds."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest

from tests.support.redis_servers import RedisServer, wait_until
from tests.support.team import QUEUE, Team, celery_project

pytestmark = pytest.mark.slow

DJANGO: Final = {
    "shop/settings.py": """
SECRET_KEY = "made-up"
INSTALLED_APPS = ["django.contrib.contenttypes", "django_celery_beat", "shop"]
DATABASES = {{"default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": "shop.sqlite3"}}}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = {use_tz}
TIME_ZONE = "America/New_York"
CELERY_BROKER_URL = "{broker}"
CELERY_TASK_DEFAULT_QUEUE = "shop-queue"
CELERY_TIMEZONE = "America/New_York"
CELERY_BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
CELERY_BEAT_MAX_LOOP_INTERVAL = 1
""",
    "shop/__init__.py": "from .celery import app as celery_app\n",
    "shop/celery.py": """
import os

from celery import Celery
from optimizer.celery import register

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
app = Celery("shop")
app.config_from_object("django.conf:settings", namespace="CELERY")
register(app)
app.autodiscover_tasks()
""",
    "shop/tasks.py": """
from celery import shared_task

@shared_task
def note():
    print("their task")
""",
    "manage.py": """
import os, sys
from django.core.management import execute_from_command_line

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
execute_from_command_line(sys.argv)
""",
    "entries.py": """
import django, json, os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
django.setup()
from django_celery_beat.models import PeriodicTask

rows = PeriodicTask.objects.all()
print(json.dumps({row.name: [row.task, row.kwargs, row.queue] for row in rows}))
""",
}


@pytest.mark.parametrize("use_tz", [True, False])
def test_the_database_scheduler_of_django_sends_our_ticks(team: Team, redis_server: RedisServer, use_tz: bool) -> None:
    """django-celery-beat sends our ticks, with and without time zones in the database, and a version is published.

    The tick is a row that the admin shows. The scheduler drops the option `expires`, so ticks that have waited are
    skipped instead (`tick_taken`).
    """
    team.write(
        {
            name: text.format(use_tz=use_tz, broker=redis_server.url) if name == "shop/settings.py" else text
            for name, text in DJANGO.items()
        }
    )
    migrated = team.run(team.python, "manage.py", "migrate", "-v", "0")
    assert migrated.returncode == 0, migrated.stderr

    team.start_beat(app="shop")
    ticks_in(redis_server, "shop-queue", 3)  # the scheduler drops the option `expires`, so that ticks wait
    team.start_worker("-P", "solo", app="shop")
    report = team.wait_for_run()

    assert team.reader.predictions().version == report.version
    rows = team.program(DJANGO["entries.py"])
    assert rows["optimize-rolling-data-rolling_brain"][0] == "tasks.optimize_rolling_data"
    team.wait_for_line("skipped: tick_taken")
    assert not any("Couldn't add entry" in line for line in team.lines)


def test_redbeat_sends_our_ticks(team: Team, redis_server: RedisServer) -> None:
    """RedBeat sends our ticks with `expires`, from a key beside the team's own, and a version is published."""
    team.write(
        celery_project(
            broker_url=redis_server.url,
            redbeat_redis_url=redis_server.url,
            redbeat_redis_options={"socket_timeout": 5},
            beat_max_loop_interval=1,
        )
    )
    team.start_beat("-S", "redbeat.RedBeatScheduler")
    assert ticks_in(redis_server, QUEUE, 1)[0]["headers"]["expires"] is not None
    team.start_worker("-P", "solo")
    report = team.wait_for_run()

    assert team.reader.predictions().version == report.version
    team.wait_for_line("their task, by proj")
    with redis_server.client as client:
        assert {b"redbeat:theirs", b"redbeat:optimize-rolling-data-rolling_brain"} <= set(client.keys("redbeat:*"))


def ticks_in(server: RedisServer, queue: str, count: int) -> list[dict[str, Any]]:
    """Wait until a queue without a worker has at least `count` ticks; return them."""
    ticks: list[dict[str, Any]] = []

    def are_there() -> bool:
        with server.client as client:
            messages: list[Any] = [json.loads(message) for message in client.lrange(queue, 0, -1)]
        ticks[:] = [one for one in messages if one["headers"]["task"] == "tasks.optimize_rolling_data"]
        return len(ticks) >= count

    wait_until(are_there, limit_s=30, what="ticks")
    return ticks
