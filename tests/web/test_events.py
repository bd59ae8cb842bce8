"""Server-sent events: a message a version, for a thousand listeners at the price of one."""

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
    """At once, as an event of the standard's form, whose id is the version."""
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
    """Every version since its last, so nothing where it has the current one; that one where it names none of ours."""
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
    """As many connections as without a listener, one subscription; and all of them hear of a new version."""
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
    """Connections to the server, without this one."""
    return len(client.client_list()) - 1


def test_listeners_are_told_when_redis_goes_and_comes(
    tmp_path: Path, settings_without_redis: Settings, own_redis: RedisServer
) -> None:
    """And a new version is heard of after a restart, on the same stream."""
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
    """They are ended, and their clients reconnect by themselves."""
    run_old(settings)
    with WebServer(tmp_path, settings) as web:
        events = [Events(web.port) for _ in range(5)]
        for listener in events:
            listener.versions(1)
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
    """Plain uvicorn, which waits for open connections before it tells an app that it ends."""
    run_old(settings)
    (tmp_path / "host.py").write_text(host)
    command = ["-m", "uvicorn", "--app-dir", str(tmp_path), "host:app"]
    with WebServer(tmp_path, settings, command=command) as web, Events(web.port) as events:
        events.versions(1)
        started = time.monotonic()
        assert web.stop() == -signal.SIGTERM  # as uvicorn ends
        assert time.monotonic() - started < 4
        assert "Traceback" not in web.log.read_text()


def test_who_does_not_read_loses_the_oldest() -> None:
    """A queue holds a few messages, whatever its listener does, and the newest is among them."""
    hub = Hub()
    queue = hub.join(None)
    for version in range(1, 1_000):
        hub.publish(version, "2026-11-01T10:00:00Z")
        hub.publish(version, "2026-11-01T10:00:00Z")  # the second time is no news

    messages = [queue.get_nowait() for _ in range(queue.qsize())]
    assert len(messages) == QUEUE_MESSAGES
    assert b"id: 999\n" in (messages[-1] or b"")
    late = hub.join(999 - KEPT_VERSIONS + 1)
    missed = [late.get_nowait() for _ in range(late.qsize())]
    assert len(missed) == KEPT_VERSIONS  # how soon to come back, then every version since, oldest first
    for version, message in enumerate(missed[1:], 999 - KEPT_VERSIONS + 2):
        assert b"id: %d\n" % version in (message or b"")
    assert hub.join(1).qsize() == 2  # too long ago: how soon to come back, and the current version
    hub.leave(queue)
    assert len(hub) == 2
