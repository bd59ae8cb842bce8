"""Another program has modules with our names, `tasks.py` and `celeryconfig.py`, installed or in its directory."""

from __future__ import annotations

import http.client
import json
import re
import sysconfig
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest
import redis

from tests.support.installed import Venv, write_wheel
from tests.support.ports import free_port
from tests.support.redis_servers import RedisServer
from tests.support.team import Team, celery_project

pytestmark = pytest.mark.slow

TASKS: Final = """
import pathlib
from celery import Celery, shared_task

pathlib.Path("tasks-imported").touch()

app = Celery("theirs")
app.config_from_object("celeryconfig")


@shared_task
def add(x, y):
    return x + y
"""
CELERYCONFIG: Final = """
import os, pathlib

pathlib.Path("celeryconfig-imported").touch()

broker_url = result_backend = os.environ["THEIR_BROKER"]
task_default_queue = "theirs"
accept_content = ["pickle", "json"]
task_serializer = "pickle"
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """The Python of an environment with our wheel and its dependencies."""
    environment = Venv(tmp_path_factory.mktemp("environment") / "venv", "--no-deps", "--no-index", str(wheel))
    # This adds the packages of the tests' environment, without the `.pth` files there: one of those leads to the
    # repository.
    (environment.packages / "needs.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return environment.python


def test_their_installed_modules_stay_as_they_are(tmp_path: Path, wheel: Path) -> None:
    """Installing our wheel adds one package, and uninstalling it leaves every file of another program as it was."""
    environment = Venv(tmp_path / "environment")
    theirs = write_wheel(tmp_path, "theirs", {"tasks.py": TASKS, "celeryconfig.py": CELERYCONFIG})
    environment.pip("install", "--no-index", str(theirs))
    before = files_in(environment.packages)
    assert {"tasks.py", "celeryconfig.py"} <= before.keys()

    environment.pip("install", "--no-deps", "--no-index", str(wheel))
    installed = files_in(environment.packages)
    environment.pip("uninstall", "--yes", "rolling-optimizer")

    added = {name.partition("/")[0] for name in installed.keys() - before.keys()}
    assert [name for name in added if not name.endswith(".dist-info")] == ["optimizer"]
    assert before.items() <= installed.items()
    assert files_in(environment.packages) == before


MODES: Final[dict[str, dict[str, str]]] = {
    "nothing set": {},
    "PYTHONPATH": {"PYTHONPATH": "."},
    "PYTHONSAFEPATH": {"PYTHONSAFEPATH": "1"},
}
"""How Python is told of the working directory: `python -m` alone puts it first, and finds their modules there."""

WEB: Final = """
import celeryconfig, tasks
import optimizer.web
from fastapi import FastAPI
from optimizer.celery import CelerySender

app = FastAPI()
app.include_router(optimizer.web.make_router(trigger=CelerySender()), prefix="/rolling")


@app.get("/theirs")
def theirs():
    return {"queue": celeryconfig.task_default_queue, "sent": tasks.add.delay(1, 2).id}
"""
CHECKS: Final = """
import os

import celeryconfig, tasks
from optimizer.celery import CelerySender, register
from optimizer.celery.standalone import app


def test_theirs_is_theirs():
    assert tasks.app.main == "theirs"
    assert tasks.add.app is tasks.app
    assert tasks.app.conf.task_default_queue == celeryconfig.task_default_queue == "theirs"


def test_ours_is_ours():
    assert app.conf.broker_url == os.environ["ROLLING_REDIS_URL"]
    assert set(app.conf.accept_content) == {"json"}
    assert "rolling.rolling_brain" in app.amqp.queues
"""


@pytest.fixture
def beside(team: Team, python: Path, redis_server: RedisServer) -> Team:
    """The other program's directory with `tasks.py` and `celeryconfig.py`; our wheel is installed."""
    team.python = str(python)
    team.environ |= {"THEIR_BROKER": their_broker(redis_server)}
    team.write({"tasks.py": TASKS, "celeryconfig.py": CELERYCONFIG, "web.py": WEB, "test_ours.py": CHECKS})
    return team


def test_our_commands_use_our_settings(beside: Team, python: Path, redis_server: RedisServer) -> None:
    """`up`, `trigger` and `status`, as a command or by `python -m`, import none of the other program's modules.

    Nothing is sent to its broker.
    """
    command = str(python.with_name("rolling-optimizer"))
    beside.start("up", command, "up", PYTHONPATH=".")
    beside.wait_for_run()
    for mode in MODES.values():
        for called in ([command], [beside.python, "-m", "optimizer.cli"]):
            done = beside.run(*called, "trigger", "--force", "--wait", "--timeout", "30", **mode)
            assert done.returncode == 0, done.stderr
            assert "version" in done.stdout
        done = beside.run(beside.python, "-m", "optimizer.cli", "status", **mode)
        assert done.returncode == 0, done.stderr

    assert list(beside.directory.glob("*-imported")) == []
    assert keys_of(their_broker(redis_server)) == set()


@pytest.mark.parametrize("mode", MODES)
def test_their_pytest_sees_both(beside: Team, mode: str) -> None:
    """Tests of the other program, which import its modules and ours, pass in each way of starting Python."""
    variables = MODES[mode] | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = beside.run(beside.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_ours.py", **variables)
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


def test_their_web_and_ours_in_one_process(beside: Team, redis_server: RedisServer) -> None:
    """In one web process with our router, our run is sent to our queue, and the other program's task to its own."""
    port = str(free_port())
    token = "made-up"
    beside.start("web", beside.python, "-m", "uvicorn", "web:app", "--port", port, ROLLING_TRIGGER_TOKEN=token)
    beside.wait_for_line("web.*Uvicorn running")

    sent = ask(port, "POST", "/rolling/runs", token)
    theirs = ask(port, "GET", "/theirs", token)

    assert sent["id"]
    assert theirs["queue"] == "theirs"
    with redis_server.client as client:
        assert client.llen("rolling.rolling_brain") == 1
        assert client.llen("theirs") == 0
        client.select(5)
        assert client.llen("theirs") == 1
        assert client.llen("rolling.rolling_brain") == 0


@pytest.mark.parametrize("mode", MODES)
def test_their_worker_is_theirs(beside: Team, redis_server: RedisServer, mode: str) -> None:
    """`celery -A tasks worker` in the other program's directory runs its app, with its broker and queue.

    None of our tasks are in it.
    """
    beside.start_worker("-P", "solo", app="tasks", C_FORCE_ROOT="1", **MODES[mode])
    printed = "\n".join(beside.lines)
    assert their_broker(redis_server).removeprefix("redis://") in printed
    assert "tasks.add" in printed
    assert re.findall(r"\.> (\S+) +exchange=", printed) == ["theirs"]
    assert "optimize_rolling_data" not in printed


def test_our_tasks_in_their_app_beside_such_modules(beside: Team, redis_server: RedisServer) -> None:
    """With `register` in the other program's app, messages go to its broker; our Redis has only keys of the source."""
    beside.write(celery_project(broker_url=their_broker(redis_server)))
    beside.start_worker("-B", PYTHONPATH=".")
    beside.wait_for_run()
    ours = keys_of(redis_server.url)
    assert ours
    assert all(key.startswith(b"rolling:") for key in ours)
    assert b"_kombu.binding.proj-queue" in keys_of(their_broker(redis_server))


def their_broker(server: RedisServer) -> str:
    """The URL of the other program's broker: another database of the same server."""
    return server.url.removesuffix("/0") + "/5"


def ask(port: str, method: str, path: str, token: str) -> Any:
    """Send a request to the other program's web; return the decoded response."""
    with closing(http.client.HTTPConnection("127.0.0.1", int(port), timeout=10)) as connection:
        connection.request(method, path, headers={"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status < 300, body
        return json.loads(body)


def keys_of(url: str) -> set[bytes]:
    """The keys in a database."""
    with redis.Redis.from_url(url) as client:
        return set(client.keys())


def files_in(directory: Path) -> dict[str, bytes]:
    """Return each file with its content, without the files that Python caches."""
    paths = [path for path in directory.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in paths}
