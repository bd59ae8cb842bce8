"""The thread that watches a source: changes that the kernel does not announce, and the end of the thread."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from optimizer import Settings
from optimizer.celery import CelerySender, create_app
from optimizer.watch.watcher import Watcher
from tests.support.redis_servers import RedisServer, wait_until
from tests.support.rolling_files import a_record, local, write_json

pytestmark = pytest.mark.slow

QUEUE = "rolling.rolling_brain"


@pytest.fixture
def watcher(settings: Settings, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watcher]:
    """A watcher to which no change is announced, as of writes by other hosts on a network file system."""

    def silent(*_: object, **__: object) -> Iterator[set[object]]:
        while True:
            time.sleep(0.01)
            yield set()

    monkeypatch.setattr("optimizer.watch.local_place.watch", silent)
    monkeypatch.setenv("ROLLING_REDIS_URL", redis_server.url)
    monkeypatch.setenv("ROLLING_INPUT", str(settings.input))
    watching = Watcher(settings, CelerySender(create_app()), rest_s=0.8)
    watching.start()
    yield watching
    watching.stop()
    assert watching.wait(5)


def test_what_is_not_announced_is_seen_within_a_second(
    watcher: Watcher, settings: Settings, redis_server: RedisServer
) -> None:
    """Without an announcement, a run is sent for a new file within 3 s.

    A file that is written in place every 0.2 s is checked again before it counts as resting (after 0.8 s), so no run is
    sent for it.
    """
    with redis_server.client as broker:
        wait_until(lambda: watcher.is_well)
        write_json(settings.input, {"AAPL": a_record()})
        wait_until(lambda: broker.llen(QUEUE) == 1, limit_s=3)
        run = json.loads(broker.rpop(QUEUE) or b"")["headers"]["id"]
        failure = {"exc_type": "SourceTorn", "exc_message": ["torn"]}
        broker.set(f"celery-task-meta-{run}", json.dumps({"status": "FAILURE", "result": failure}))
        wait_until(lambda: watcher._runs._run is None, what="the end of the run, for which the next one waits")
        until_s = time.monotonic() + 2.5
        number = 0
        while time.monotonic() < until_s:
            number += 1
            with local(settings.input).open("ab") as file:
                file.write(b"x")
            time.sleep(0.2)  # the pace of the engine, which pauses for less than the rest
            assert broker.llen(QUEUE) == 0, f"after {number} writes"
