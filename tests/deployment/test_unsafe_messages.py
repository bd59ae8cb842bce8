"""Messages and results that could run code when they are loaded."""

from __future__ import annotations

import json
import os
import pickle
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from celery import Celery

from optimizer import Settings
from tests.support.fleet import Fleet
from tests.support.redis_servers import RedisServer
from tests.support.rolling_files import a_record, write_json
from tests.support.web_apps import WebServer
from tests.support.whole_fleet import QUEUE, TASK, TOKEN, ask

pytestmark = pytest.mark.slow


class Trap:
    """An object that makes a directory when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        """Return the call that loads the object: it makes the directory."""
        return os.mkdir, (str(self.path),)


def test_what_is_not_json_is_not_loaded(tmp_path: Path, settings: Settings) -> None:
    """A message that is pickled, or YAML that calls a function, is not loaded, whatever content type it names.

    It makes no run, and the worker continues with the next message.
    """
    trap = tmp_path / "loaded"
    write_json(settings.input, {"AAPL": a_record()})

    with Fleet(tmp_path, settings) as fleet, Celery(broker=settings.redis_url, set_as_current=False) as client:
        fleet.start_worker()
        headers = {"task": TASK, "id": "made-up", "lang": "py", "root_id": None, "parent_id": None}
        for number, name in enumerate(("x-python-serialize", "x-yaml", "x-msgpack", "json", "made-up"), 1):
            body = b"!!python/object/apply:os.mkdir [%s]" % bytes(trap) if "yaml" in name else pickle.dumps(Trap(trap))
            with client.producer_pool.acquire() as producer:
                kind = {"content_type": f"application/{name}", "content_encoding": "binary"}
                producer.publish(body, routing_key=QUEUE, headers=headers, **kind)
            client.send_task(TASK, kwargs={"force": True}, queue=QUEUE)
            assert len(fleet.wait_for_runs(number)) == number, name
            assert not trap.exists(), name
        assert len(fleet.runs("success")) + len(fleet.runs("unchanged")) == 5


def test_a_result_that_is_not_json_is_not_loaded(tmp_path: Path, settings: Settings, redis_server: RedisServer) -> None:
    """A pickled result is not loaded: the caller gets 503, and a sentence that says that it cannot be read."""
    run, trap = "7e1f0a52-3f0e-4a35-9d0c-5b8f3c6a9e11", tmp_path / "loaded"
    with redis_server.client as client:
        client.set(f"celery-task-meta-{run}", pickle.dumps(Trap(trap)))

    variables = {"ROLLING_TRIGGER_TOKEN": TOKEN, "ROLLING_BROKER_URL": settings.redis_url}
    with WebServer(tmp_path, settings, **variables) as web:
        with pytest.raises(urllib.error.HTTPError) as caught:
            ask(web, "GET", f"/runs/{run}")
        with caught.value as answer:
            said = json.loads(answer.read())
    assert caught.value.code == 503
    assert "none of ours" in said["detail"]
    assert "Traceback" not in web.log.read_text()
    assert not trap.exists()
