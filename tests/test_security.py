"""The fleet behind passwords, TLS and ACLs, on real servers; and that no secret comes out anywhere."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, cast

import pytest
import redis
from celery import Celery, chord

from optimizer import Settings, optimize
from optimizer.connection import connect, eviction_warning
from tests.composed import ROOT
from tests.fleet import Fleet
from tests.readers import KINDS, Open
from tests.rolling import a_record, write_json
from tests.servers import Authority, RedisServer, serves_tls, wait_until
from tests.test_commands import rolling_optimizer
from tests.webs import WebServer

TASK: Final = "tasks.optimize_rolling_data"
QUEUE: Final = "rolling.rolling_brain"
TOKEN: Final = "a-made-up-token"
FAST_TICKS: Final = {"ROLLING_INTERVAL_S": "1", "ROLLING_STARTUP_DELAY_S": "0.5"}

ACL_FILE: Final = ROOT / "docs" / "redis-acl.conf"
ROLES: Final = ("admin", "worker", "beat", "sender", "flower", "router")

UrlOf = Callable[[str], str]


class Whole:
    """Worker, beat, Flower and web, each with the URLs of its role."""

    def __init__(self, directory: Path, url_of: UrlOf) -> None:
        self._url_of = url_of
        self._directory = directory
        self.settings = Settings(
            input=directory / "rolling_brain.json.gz", output_dir=directory / "out", redis_url=url_of("router")
        )
        self.fleet = Fleet(directory, self.settings, **FAST_TICKS)

    @contextmanager
    def running(self) -> Iterator[WebServer]:
        """All of them, with an input to read, from when the first scheduled run has been published."""
        write_json(self.settings.input, {"AAPL": a_record()})
        with self.fleet as fleet:
            fleet.start_worker(**self.urls("worker", "worker"))
            fleet.start_beat(**self.urls("beat"))
            fleet.start_flower(**self.urls("flower"))
            fleet.wait_for_runs(1, "success")
            token = {"ROLLING_TRIGGER_TOKEN": TOKEN}
            with WebServer(self._directory, self.settings, **self.urls("sender", "router"), **token) as web:
                yield web

    def urls(self, broker_role: str, cache_role: str = "router") -> dict[str, str]:
        """The variables of a process."""
        return {"ROLLING_BROKER_URL": self._url_of(broker_role), "ROLLING_REDIS_URL": self._url_of(cache_role)}

    def check(self, web: WebServer) -> None:
        """Whatever uses Redis does so: runs by hand on every way, both readers, and the commands."""
        commanded = rolling_optimizer(self._directory, "trigger", "--force", "--wait", **self.urls("sender"))
        assert (commanded.returncode, commanded.stdout[:8]) == (0, "success:"), commanded.stderr

        status, sent = self.fleet.flower("POST", f"/api/task/async-apply/{TASK}", {"kwargs": {"force": True}})
        assert status == 200
        info = f"/api/task/info/{sent['task-id']}"
        wait_until(lambda: self.fleet.flower("GET", info)[1].get("state") == "SUCCESS", what="the run by Flower")
        queues = self.fleet.flower("GET", "/api/queues/length")
        assert queues == (200, {"active_queues": [{"name": QUEUE, "messages": 0}]})

        run = ask(web, "POST", "/runs", b'{"force": true}')["id"]
        wait_until(lambda: ask(web, "GET", f"/runs/{run}")["state"] == "done", what="the run by the web")
        wait_until(lambda: ask(web, "GET", "/status")["origin"] == "redis", what="the web to read Redis")

        for kind in KINDS:
            with ExitStack() as stack:
                reader = Open(stack, kind)(self.settings, "redis")
                assert reader.predictions().origin == "redis"
                assert reader.symbol("AAPL").value is not None
                assert [record.symbol for record in reader.top(3, 0).value] == ["AAPL"]
                assert reader.runs(3)

        shown = rolling_optimizer(self._directory, "status", **self.urls("sender"))
        assert (shown.returncode, "from redis" in shown.stdout) == (0, True), shown.stderr
        shown = rolling_optimizer(self._directory, "config", **self.urls("sender"))
        assert shown.stdout.count(" answers") == 2, shown.stderr


def ask(web: WebServer, method: str, path: str, body: bytes | None = None) -> dict[str, Any]:
    """Ask the web with the token."""
    login = {"Authorization": f"Bearer {TOKEN}"}
    request = urllib.request.Request(f"http://127.0.0.1:{web.port}{path}", body, login, method=method)
    with urllib.request.urlopen(request, timeout=10) as answer:
        found: dict[str, Any] = json.loads(answer.read())
        return found


# ---- ACLs


@pytest.fixture
def guarded(tmp_path: Path, own_redis: RedisServer) -> UrlOf:
    """A server with the users of `docs/redis-acl.conf`; returns the URL of a role."""
    text = ACL_FILE.read_text()
    for role in ROLES:
        digest = hashlib.sha256(password(role).encode()).hexdigest()
        text = text.replace(f"#{role.upper()}-PASSWORD-SHA256", f"#{digest}")
    (tmp_path / "redis-acl.conf").write_text(text)

    def url_of(role: str) -> str:
        return f"redis://{role}:{password(role)}@127.0.0.1:{own_redis.port}/0"

    own_redis.url = url_of("admin")
    # DEBUG is off by default for everybody: on, so that it is the ACL that refuses it.
    own_redis.start("--include", str(tmp_path / "redis-acl.conf"), "--enable-debug-command", "yes")
    return url_of


def password(role: str) -> str:
    """A password of a role's own."""
    return f"password-of-{role}"


@pytest.mark.slow
def test_each_role_can_do_its_work(tmp_path: Path, own_redis: RedisServer, guarded: UrlOf) -> None:
    """The shipped users have enough rights for everything that the fleet does: the server's log of refusals is empty."""
    whole = Whole(tmp_path, guarded)
    environ = whole.urls("flower")

    # What a dead worker has left behind, the next consumer puts back, be it Flower or a worker.
    for role in ("flower", "worker"):
        with Celery(broker=guarded(role), set_as_current=False) as client, own_redis.client as admin:
            client.send_task(TASK, queue=QUEUE)
            message = json.loads(cast("bytes", admin.rpop(QUEUE)))
            admin.hset("unacked", "a-tag", json.dumps([message, "", QUEUE]))
            admin.zadd("unacked_index", {"a-tag": 1})
            with client.connection() as connection:
                connection.default_channel.qos.restore_visible(interval=1)
            assert (admin.llen(QUEUE), admin.exists("unacked")) == (1, 0)
            admin.delete(QUEUE)

    with whole.running() as web:
        whole.check(web)
        assert "2 nodes online" in celery_inspect(tmp_path, environ)
        # A worker may send and answer for itself: shards of a run, and what comes of them.
        with Celery(broker=guarded("worker"), backend=guarded("worker"), set_as_current=False) as client:
            run = client.signature(TASK, kwargs={"force": True}, immutable=True, queue=QUEUE)
            assert chord([run, run, run], app=client)(run).get(timeout=20)["status"] in ("success", "skipped")

    assert not [line for line in whole.fleet.lines if "NOPERM" in line or "no permissions" in line]
    with own_redis.client as admin:
        refused = {(entry["username"], entry["object"]) for entry in admin.acl_log()}
    assert refused == {("sender", "info")}  # `config` says then that it does not know, see below


def celery_inspect(directory: Path, environ: dict[str, str]) -> str:
    """What `celery inspect ping` says."""
    command = [sys.executable, "-m", "celery", "-A", "tasks", "inspect", "ping", "-t", "2"]
    done = subprocess.run(
        command, env=os.environ | environ, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    return done.stdout + done.stderr


# Beside what every user is refused: whatever lists, changes or stops the server.
REFUSED_TO_ALL: Final = (
    "KEYS *",
    "SCAN 0",
    "RANDOMKEY",
    "CONFIG GET *",
    "CONFIG SET maxmemory 1",
    "FLUSHALL",
    "FLUSHDB",
    "SWAPDB 0 1",
    "ACL LIST",
    "ACL SETUSER router +@all",
    "SHUTDOWN NOSAVE",
    "DEBUG SLEEP 0",
    "CLIENT LIST",
    "CLIENT KILL TYPE normal",
    "MONITOR",
    "REPLICAOF NO ONE",
    "MODULE LIST",
    "SCRIPT FLUSH",
    "FUNCTION FLUSH",
    "SAVE",
    "GET elsewhere",
    "SET elsewhere 1",
    "PUBLISH elsewhere 1",
    "SUBSCRIBE elsewhere",
)
WRITES_TO_THE_CACHE: Final = (
    "SET rolling:{x}:lock 1",
    "DEL rolling:{x}:current",
    "EXPIRE rolling:{x}:current 1",
    "HSET rolling:{x}:current version 1",
    "XADD rolling:{x}:runs * report {}",
    "RENAME rolling:{x}:a rolling:{x}:b",
    "PUBLISH rolling:{x}:published 1",
)
READS_OF_THE_CACHE: Final = ("GET rolling:{x}:1:bots", "HGETALL rolling:{x}:current", "SUBSCRIBE rolling:{x}:published")
READS_OF_QUEUES: Final = (
    "LRANGE rolling.x 0 -1",
    "LINDEX rolling.x 0",
    "RPOP rolling.x",
    "BRPOP rolling.x 1",
    "DEL rolling.x",
    "COPY rolling.x rolling.y",
)
ORDERS: Final = ("PUBLISH /0.celery.pidbox 1",)
EVENTS: Final = ("PSUBSCRIBE /0.celeryev/*",)
WRITES_OF_RESULTS: Final = ("SET celery-task-meta-x 1", "DEL celery-task-meta-x", "PUBLISH celery-task-meta-x 1")
SCRIPTS: Final = ("EVAL return(redis.call('SET','rolling:{x}:lock',1)) 0", "EVAL return(1) 1 rolling:{x}:lock")
REFUSED: Final = {
    "worker": (),
    "beat": (*WRITES_TO_THE_CACHE, *READS_OF_THE_CACHE, *READS_OF_QUEUES, *ORDERS, *EVENTS, *WRITES_OF_RESULTS, *SCRIPTS),
    "sender": (
        *(*WRITES_TO_THE_CACHE, *READS_OF_THE_CACHE, *READS_OF_QUEUES, *ORDERS, *EVENTS, *WRITES_OF_RESULTS, *SCRIPTS),
        "HGETALL unacked",
    ),
    "flower": (*WRITES_TO_THE_CACHE, *READS_OF_THE_CACHE, *READS_OF_QUEUES, *WRITES_OF_RESULTS, *SCRIPTS),
    "router": (
        *(*WRITES_TO_THE_CACHE, *READS_OF_QUEUES, *ORDERS, *EVENTS, *WRITES_OF_RESULTS, *SCRIPTS),
        "LPUSH rolling.x 1",
        "GET celery-task-meta-x",
        "HGETALL unacked",
        "INFO",
    ),
}


@pytest.mark.parametrize("role", REFUSED)
def test_no_role_can_do_more(own_redis: RedisServer, guarded: UrlOf, role: str) -> None:
    """Every command that a role has no use for is refused, by the server and by name."""
    with own_redis.client as admin:
        admin.lpush("rolling.x", "a message")
        admin.hset("rolling:{x}:current", "version", "1")
    with connect(guarded(role), timeout_s=2) as client:
        allowed = [command for command in (*REFUSED_TO_ALL, *REFUSED[role]) if not is_refused(client, command)]
    assert allowed == []


def is_refused(client: redis.Redis, command: str) -> bool:
    """Whether the user may not do this."""
    try:
        client.execute_command(*command.split())
    except redis.exceptions.NoPermissionError:
        return True
    except redis.exceptions.ResponseError as error:
        return "ACL failure in script" in str(error)
    return False


@pytest.mark.parametrize("name", ["default", "nobody"])
def test_nobody_comes_in_without_a_user(own_redis: RedisServer, guarded: UrlOf, name: str) -> None:
    """The user `default`, who is anybody without a password, is off."""
    assert guarded(name)
    with redis.Redis(port=own_redis.port) as client, pytest.raises(redis.exceptions.AuthenticationError):
        client.ping()
    with connect(guarded(name), timeout_s=2) as client, pytest.raises(redis.exceptions.AuthenticationError):
        client.ping()


def test_the_shipped_file_does_not_start_a_server_until_every_password_is_given(own_redis: RedisServer) -> None:
    """A placeholder is no password that somebody could leave as it is."""
    with pytest.raises(AssertionError, match="redis"):
        own_redis.start("--include", str(ACL_FILE))


def test_its_users_can_be_loaded_into_a_server_that_runs(
    tmp_path: Path, own_redis: RedisServer, guarded: UrlOf
) -> None:
    """As a file for `ACL LOAD`, made as its head says."""
    users = re.findall(r"^user .*$", (tmp_path / "redis-acl.conf").read_text(), re.MULTILINE)
    (tmp_path / "users.acl").write_text("\n".join(users))
    own_redis.kill()
    own_redis.start("--aclfile", str(tmp_path / "users.acl"))
    with own_redis.client as admin:
        assert admin.acl_load()
        assert sorted(admin.acl_users()) == sorted((*ROLES, "default"))


def test_who_may_not_ask_whether_the_broker_evicts_is_told_so(guarded: UrlOf) -> None:
    """It is not taken for a broker that is away."""
    assert eviction_warning(guarded("worker")) is None
    said = eviction_warning(guarded("sender"))
    assert said is not None
    assert "its ACL forbids INFO" in said
    assert password("sender") not in said
