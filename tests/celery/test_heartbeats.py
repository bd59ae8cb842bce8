"""The heartbeats of real workers and beats: which are listed, which are reported missing, and the diagnosis."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from celery import Celery

from optimizer import Settings
from optimizer.cache.keys import Keys
from optimizer.celery.heartbeats import _memory_limit_bytes, _Worker
from optimizer.models import Process
from tests.support.fleet import Fleet
from tests.support.redis_servers import RedisServer, wait_until
from tests.support.rolling_files import a_record, write_json

pytestmark = pytest.mark.slow


@pytest.fixture
def fleet(settings: Settings, tmp_path: Path) -> Iterator[Fleet]:
    """A fleet with an interval of half a second, so that a process that is gone is missed after some seconds."""
    settings = replace(settings, interval_s=0.5)
    write_json(settings.input, {"AAPL": a_record()})
    variables = {"ROLLING_INTERVAL_S": "0.5", "ROLLING_STARTUP_DELAY_S": "0"}
    with Fleet(tmp_path, settings, **variables) as fleet:
        yield fleet


def listed(fleet: Fleet, kind: str) -> list[Process]:
    """Return the listed processes of a kind."""
    return [each for each in fleet.reader.facts().processes if each.kind == kind]


def test_worker_and_beat_are_listed_and_a_killed_beat_is_missed(fleet: Fleet) -> None:
    """Running workers and beats are listed; a beat that was killed is overdue, and the diagnosis names it.

    A process that ends normally leaves the list.
    """
    assert fleet.reader.diagnose().code == "no_worker"
    fleet.start_worker()
    fleet.start_beat()
    fleet.wait_for_runs(2)
    wait_until(lambda: listed(fleet, "worker") and listed(fleet, "beat"), what="both")

    (worker,), (beat,) = listed(fleet, "worker"), listed(fleet, "beat")
    source_queue = f"rolling.{fleet.settings.source}"
    assert worker.is_alive
    assert {source_queue, "rolling.scan", "rolling.updates"} <= set(worker.queues)
    # The limit at which our app replaces a child, unless the container has a lower one.
    assert worker.memory_limit_bytes is not None
    assert 0 < worker.memory_limit_bytes <= 300_000 * 1024
    assert beat.memory_limit_bytes is None
    assert beat.is_alive
    assert beat.queues == [source_queue]
    assert fleet.reader.diagnose().code == "ok"

    fleet.end("beat", signal.SIGKILL)
    wait_until(lambda: fleet.reader.diagnose().code == "no_beat", what="beat to be missed")
    diagnosis = fleet.reader.diagnose()
    assert diagnosis.text.startswith("Beat has sent nothing since ")
    assert diagnosis.since == listed(fleet, "beat")[0].seen_at

    fleet.start_beat()
    wait_until(lambda: fleet.reader.diagnose().code == "ok", what="the next beat")
    assert len(listed(fleet, "beat")) == 1  # in place of the one that was killed
    fleet.end("beat", signal.SIGTERM)
    wait_until(lambda: not listed(fleet, "beat"), what="beat to leave")

    fleet.end("worker", signal.SIGTERM)
    wait_until(lambda: not listed(fleet, "worker"), what="the worker to leave")
    assert fleet.reader.diagnose().text.startswith(f"No worker takes the queue {source_queue}. ")


def test_a_worker_without_its_broker_does_not_tell(settings: Settings, redis_server: RedisServer) -> None:
    """A worker that is not connected to its broker sends no heartbeat, since it takes no run.

    This holds although its process lives and the cache responds.
    """
    app = Celery(broker=settings.redis_url, set_as_current=False)
    key = Keys(settings.source).processes
    with redis_server.client as client:
        for task_consumer, told in ((None, 0), (object(), 1)):
            consumer = SimpleNamespace(app=app, hostname="worker@here", task_consumer=task_consumer)
            _Worker(consumer, [settings]).tell_all()
            assert client.hlen(key) == told


@pytest.mark.parametrize(
    ("container", "lowest"), [("max\n", 2_048), ("1024\n", 1_024), ("4096\n", 2_048), (None, 2_048)]
)
def test_the_lowest_limit_of_memory_counts(
    container: str | None, lowest: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reported memory limit is the lower of the container's, if it has one, and Celery's for a child, in KiB."""
    path = tmp_path / "memory.max"
    if container is not None:
        path.write_text(container)
    monkeypatch.setattr("optimizer.celery.heartbeats._CONTAINER_LIMIT", path)
    assert _memory_limit_bytes(2) == lowest
