"""Server-sent events: one message per version, for a thousand listeners at the cost of one."""

from __future__ import annotations

import json
import resource
import signal
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from optimizer import Settings, optimize
from optimizer.web.events import KEPT_VERSIONS, QUEUE_MESSAGES, Hub
from tests.support.published_state import run_next, run_old, version_of
from tests.support.redis_servers import RedisServer, wait_until
from tests.support.rolling_files import a_record, write_json
from tests.support.web_apps import Events, WebServer

pytestmark = pytest.mark.slow

LISTENERS = 1_000


@pytest.mark.alone
def test_a_listener_gets_the_current_version_and_then_each_new_one(tmp_path: Path, settings: Settings) -> None:
    """A listener gets the current version at once and each new one within 0.9 s.

    Each is an event in the standard's form, whose id is the version.
    """
    first = version_of(run_old(settings))
    with WebServer(tmp_path, settings) as web, Events(web.port) as events:
        assert events.versions(1) == [first]
        published = time.monotonic()
        second = version_of(run_next(settings))
        assert events.versions(2) == [first, second]
        assert time.monotonic() - published < 0.9  # by the channel; the pointer alone is read once a second

        said = events.wait_for(b"\n\n")
    message = said.split(b"event: version\n")[1].split(b"\n\n")[0].splitlines()
    assert message[0] == b"id: %d" % first
    assert json.loads(message[1].removeprefix(b"data: "))["version"] == first
    assert b"content-type: text/event-stream" in said
    assert b"x-accel-buffering: no" in said


def test_a_listener_that_was_away_gets_what_it_has_missed(tmp_path: Path, settings: Settings) -> None:
    """A listener that names its last version gets all versions since, and none if that is the current one.

    A listener that names an unknown version gets the current one.
    """
    versions = [version_of(run_old(settings))]
    with WebServer(tmp_path, settings) as web:
        with Events(web.port) as events:
            for _ in range(3):
                versions.append(version_of(run_next(settings)))
                events.versions(len(versions))
        with Events(web.port, last_event_id=versions[1]) as events:
            assert events.versions(2) == versions[2:]
        for unknown in (versions[-1] + 1, 7):
            with Events(web.port, last_event_id=unknown) as events:
                assert events.versions(1) == versions[-1:]
        with Events(web.port, last_event_id=versions[-1]) as events:
            assert b"id:" not in events.wait_for(b"retry: ")
            newest = version_of(run_next(settings))
            assert events.versions(1) == [newest]


def test_a_thousand_idle_listeners_cost_redis_nothing(
    tmp_path: Path, settings_without_redis: Settings, own_redis: RedisServer
) -> None:
    """A thousand listeners need as many connections to Redis as one, and one subscription.

    All of them get a new version within 5 s.
    """
    own_redis.start()
    settings = replace(settings_without_redis, redis_url=own_redis.url)
    first = version_of(run_old(settings))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 4_096) if most > 0 else 4_096, most))
    with own_redis.client as client:
        of_the_run = _connections(client)
    with WebServer(tmp_path, settings) as web, own_redis.client as client, ExitStack() as stack:
        with Events(web.port) as events:
            events.versions(1)
        before = _connections(client)
        listeners = [stack.enter_context(Events(web.port)) for _ in range(LISTENERS)]
        assert all(listener.versions(1) == [first] for listener in listeners)
        assert f'rolling_event_listeners{{source="rolling_brain"}} {LISTENERS}\n' in web.get("/metrics")[2].decode()

        assert _connections(client) == before <= of_the_run + 2
        assert client.pubsub_numsub(f"rolling:{{{settings.source}}}:published")[0][1] == 1

        second = version_of(run_next(settings))
        published = time.monotonic()
        assert all(listener.versions(2) == [first, second] for listener in listeners)
        assert time.monotonic() - published < 5
        stack.close()
        wait_until(
            lambda: 'rolling_event_listeners{source="rolling_brain"} 0\n' in web.get("/metrics")[2].decode(),
            what="that all have gone",
        )


def _connections(client: redis.Redis) -> int:
    """The number of connections to Redis, without this one."""
    return len(client.client_list()) - 1


def test_listeners_are_told_when_redis_goes_and_comes(
    tmp_path: Path, settings_without_redis: Settings, own_redis: RedisServer
) -> None:
    """Listeners get a status event when Redis stops and when it is back, and new versions on the same stream."""
    own_redis.start()
    settings = replace(settings_without_redis, redis_url=own_redis.url)
    first = version_of(run_old(settings))
    with WebServer(tmp_path, settings) as web, Events(web.port) as events:
        assert events.versions(1) == [first]
        own_redis.kill()
        events.wait_for(b'event: status\ndata: {"cache_up":false}\n\n')
        with Events(web.port) as late:
            late.wait_for(b'{"cache_up":false}')
        own_redis.start()
        events.wait_for(b'event: status\ndata: {"cache_up":true}\n\n')
        write_json(settings.input, {"NVDA": a_record()})
        second = version_of(optimize(settings))
        assert events.versions(2) == [first, second]


def test_open_streams_do_not_hold_up_a_server_that_stops(tmp_path: Path, settings: Settings) -> None:
    """A server that stops ends its open streams and exits within 4 s.

    Their clients were told to reconnect after two seconds.
    """
    run_old(settings)
    with WebServer(tmp_path, settings) as web:
        events = [Events(web.port) for _ in range(5)]
        for listener in events:
            listener.versions(1)
            listener.wait_for(b"retry: 2000\n\n")
        started = time.monotonic()
        assert web.stop() == 0
        assert time.monotonic() - started < 4
        for listener in events:
            assert listener.socket.recv(65_536) in (b"0\r\n\r\n", b"")
            listener.socket.close()
        assert "Traceback" not in web.log.read_text()


INCLUDED = """
import optimizer.web
from fastapi import FastAPI
app = FastAPI()
app.include_router(optimizer.web.router)
"""
MOUNTED = """
import optimizer.web
from fastapi import FastAPI
app = FastAPI()
app.mount("/", optimizer.web.create_app())
"""


@pytest.mark.parametrize("host", [INCLUDED, MOUNTED], ids=["included", "mounted"])
def test_open_streams_do_not_hold_up_the_server_of_another_app(tmp_path: Path, settings: Settings, host: str) -> None:
    """Plain uvicorn that serves another app with our routes stops within 4 s, though streams are open.

    It waits for open connections before it reports to an app that it ends.
    """
    run_old(settings)
    (tmp_path / "host.py").write_text(host)
    command = ["-m", "uvicorn", "--app-dir", str(tmp_path), "host:app"]
    with WebServer(tmp_path, settings, command=command) as web, Events(web.port) as events:
        events.versions(1)
        started = time.monotonic()
        assert web.stop() == -signal.SIGTERM  # uvicorn ends by the signal itself
        assert time.monotonic() - started < 4
        assert "Traceback" not in web.log.read_text()


def test_who_does_not_read_loses_the_oldest() -> None:
    """The queue of a listener that does not read keeps the newest `QUEUE_MESSAGES` messages and drops the oldest.

    A listener that joins gets the versions since its own, up to `KEPT_VERSIONS`, and otherwise the current one.
    """
    hub = Hub()
    queue = hub.join(None)
    for version in range(1, 1_000):
        hub.publish(version, "2026-11-01T10:00:00Z")
        hub.publish(version, "2026-11-01T10:00:00Z")  # a version that was published before sends no message

    messages = [queue.get_nowait() for _ in range(queue.qsize())]
    assert len(messages) == QUEUE_MESSAGES
    assert b"id: 999\n" in (messages[-1] or b"")
    late = hub.join(999 - KEPT_VERSIONS + 1)
    missed = [late.get_nowait() for _ in range(late.qsize())]
    assert len(missed) == KEPT_VERSIONS  # the retry delay, then every version since, oldest first
    for version, message in enumerate(missed[1:], 999 - KEPT_VERSIONS + 2):
        assert b"id: %d\n" % version in (message or b"")
    assert hub.join(1).qsize() == 2  # too long ago: the retry delay and the current version
    hub.leave(queue)
    assert len(hub) == 2
