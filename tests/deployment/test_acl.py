"""The users of `docs/redis-acl.conf`: each has the rights that its work needs, and no others."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, cast

import pytest
import redis
from celery import Celery, chord

from optimizer.cache.client import connect
from optimizer.cache.keys import Keys
from optimizer.cache.server_checks import eviction_warning
from optimizer.celery import CelerySender, register
from optimizer.errors import CacheUnavailable
from tests.support.acl_users import ACL_FILE, REFUSED_TO_CONFIG, ROLES, acl_of, secrets_in
from tests.support.redis_servers import RedisServer, wait_until, written
from tests.support.whole_fleet import QUEUE, TASK, UrlOf, WholeFleet, celery_inspect

pytestmark = pytest.mark.slow


@pytest.fixture
def second_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A second Redis, not started yet."""
    server = RedisServer(tmp_path / "second")
    yield server
    server.kill()


@pytest.mark.parametrize("servers", [1, 2])
def test_each_role_can_do_its_work(
    tmp_path: Path, own_redis: RedisServer, guarded: UrlOf, second_redis: RedisServer, servers: int
) -> None:
    """The shipped users have all rights that the fleet needs, on one server and on two.

    The ACL logs of the servers have no refused commands except those that `config` tries.
    """
    cache = own_redis if servers == 1 else second_redis

    def cache_url_of(role: str) -> str:
        return guarded(role).replace(f":{own_redis.port}/", f":{cache.port}/")

    if cache is second_redis:
        cache.url = cache_url_of("admin")
        cache.start(*own_redis.options)
    # One file on one server, and many parts on two: both paths through the fleet.
    whole = WholeFleet(
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
        # A worker may send tasks and store their results, as it does for the parts of a run.
        with Celery(broker=guarded("worker"), backend=guarded("worker"), set_as_current=False) as client:
            run = client.signature(TASK, kwargs={"force": True}, immutable=True, queue=QUEUE)
            assert chord([run, run, run], app=client)(run).get(timeout=20)["status"] in ("success", "skipped")

    assert not [line for line in whole.fleet.lines if "NOPERM" in line or "no permissions" in line]
    with own_redis.client as broker_admin, cache.client as cache_admin:
        log = broker_admin.acl_log() + cache_admin.acl_log()
        assert cache_admin.get(Keys("rolling_brain").reads("redis"))  # the reads that the web has counted
    # `config` tries what a worker needs, and reports what these users may do, see `tests/cache/test_client.py`.
    refused = {(entry["username"], entry["object"]) for entry in log}
    assert refused == REFUSED_TO_CONFIG


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
# Keys that a run has stored and not published.
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
UPDATES_OF_OTHERS: Final = (
    "LRANGE rolling:{x}:queue 0 -1",
    "HGETALL rolling:{x}:queued",
    "HGETALL rolling:{x}:updates",
    "GET rolling:{x}:draining",
    "GET rolling:{x}:publishing",
    "RPUSH rolling:{x}:queue {}",
)
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
REFUSED["beat"] += (
    "EVAL return(redis.call('HSET',KEYS[1],'version',1)) 1 rolling:{x}:current",
    "EVAL return(redis.call('DEL',KEYS[1])) 1 rolling:{x}:processes",
    "DEL rolling:{x}:processes",
)
REFUSED["engine"] = (
    *WRITES_TO_THE_CACHE,
    *READS_OF_QUEUES,
    *WRITES_OF_RESULTS,
    *ORDERS,
    *EVENTS,
    *SECRETS_OF_THE_CACHE,
    *GROWTH_OF_THE_CACHE,
    "EVAL return(redis.call('SET','rolling:{x}:lock',1)) 0",
    "EVAL return(1) 1 rolling:{x}:lock",
    "EVAL return(redis.call('LPOP',KEYS[1])) 1 rolling:{x}:queue",
    "EVAL return(redis.call('HSET',KEYS[1],'AAPL','{}')) 1 rolling:{x}:updates",
    "LRANGE rolling:{x}:queue 0 -1",
    "LPOP rolling:{x}:queue",
    "DEL rolling:{x}:queue",
    "HGETALL rolling:{x}:updates",
    "HSET rolling:{x}:updates AAPL {}",
    "SET rolling:{x}:publishing 1",
    "LPUSH rolling.updates 1",
    "GET rolling:{x}:1:predictions",
    "SUBSCRIBE rolling:{x}:published",
    "INFO",
)
REFUSED["router"] += ("HSET rolling:{x}:processes beat 1",)
REFUSED["router"] += (*UPDATES_OF_OTHERS, *SECRETS_OF_THE_CACHE, *GROWTH_OF_THE_CACHE, "GET rolling:{x}:requested")
REFUSED["sender"] += (
    *UPDATES_OF_OTHERS,
    *SECRETS_OF_THE_CACHE,
    *GROWTH_OF_THE_CACHE,
    "SET rolling:{x}:requested:more 1",
    "APPEND rolling:{x}:requested 1",
    "SETRANGE celery-task-meta-x 0 1",
)


@pytest.mark.parametrize("role", REFUSED)
def test_no_role_can_do_more(guarded: UrlOf, role: str) -> None:
    """Redis refuses each role every command that the role has no use for."""
    with connect(guarded(role), timeout_s=2) as client:
        allowed = [command for command in (*REFUSED_TO_ALL, *REFUSED[role]) if not is_refused(client, command)]
    assert allowed == []


def is_refused(client: redis.Redis, command: str) -> bool:
    """Return whether Redis refuses the command because the user lacks the rights."""
    try:
        client.execute_command(*command.split())  # type: ignore[no-untyped-call]
    except redis.exceptions.NoPermissionError:
        return True
    except redis.exceptions.ResponseError as error:
        # The second wording is of Redis 7.0.
        return any(said in str(error) for said in ("ACL failure in script", "The user executing the script can't"))
    return False


def test_a_sender_by_another_app_needs_the_rights_that_are_written_there(
    tmp_path: Path, own_redis: RedisServer, guarded: UrlOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sender by another Celery app stores its note and the states of its runs in the cache.

    The user `router` may do so only with the additional rights that a comment in `docs/redis-acl.conf` lists.
    """
    for name, value in (("INPUT", "a.json"), ("OUTPUT_DIR", str(tmp_path / "out")), ("REDIS_URL", guarded("router"))):
        monkeypatch.setenv(f"ROLLING_{name}", value)
    app = Celery("proj", broker="memory://", set_as_current=False)
    register(app)
    sender = CelerySender(app)
    with pytest.raises(CacheUnavailable, match="permissions"):
        sender.send(force=False, accept=False, source="a")
    (rights,) = re.findall(r"^# (\+multi .*)$", ACL_FILE.read_text(), re.MULTILINE)
    with own_redis.client as admin:
        admin.execute_command("ACL", "SETUSER", "router", *re.findall(r"\(.*?\)|\S+", rights))
    run_id = sender.send(force=False, accept=False, source="a")
    assert sender.send(force=False, accept=False, source="a") == run_id
    assert sender.state(run_id).state == "pending"


@pytest.mark.parametrize("name", ["default", "unknown"])
def test_no_client_connects_without_a_user(own_redis: RedisServer, guarded: UrlOf, name: str) -> None:
    """No client logs in as `default`, with or without a password, since that user is off, nor as an unknown user.

    A client without a password is the user `default`.
    """
    for url in (f"redis://127.0.0.1:{own_redis.port}", guarded(name)):
        with connect(url, timeout_s=2) as client, pytest.raises(redis.exceptions.AuthenticationError):
            client.ping()


@pytest.mark.parametrize("role", ROLES)
def test_the_shipped_file_does_not_start_a_server_until_every_password_is_given(
    tmp_path: Path, own_redis: RedisServer, role: str
) -> None:
    """A server does not start while the password of one role is missing, since a placeholder does not become one."""
    (tmp_path / "redis-acl.conf").write_text(acl_of(set(ROLES) - {role}))
    with pytest.raises(AssertionError, match="redis ended with exit status 1"):
        own_redis.start("--include", str(tmp_path / "redis-acl.conf"))


@pytest.mark.usefixtures("guarded")
def test_its_users_can_be_loaded_into_a_server_that_runs(tmp_path: Path, own_redis: RedisServer) -> None:
    """The users' lines, selected as the head of the file describes, are a file for `ACL LOAD` in a running server."""
    users = re.findall(r"^user .*$", (tmp_path / "redis-acl.conf").read_text(), re.MULTILINE)
    (tmp_path / "users.acl").write_text("\n".join(users))
    own_redis.kill()
    own_redis.start("--aclfile", str(tmp_path / "users.acl"))
    with own_redis.client as admin:
        assert admin.acl_load()
        assert sorted(admin.acl_users()) == sorted((*ROLES, "default"))


def test_a_server_with_these_users_comes_back_with_all_its_data(own_redis: RedisServer, guarded: UrlOf) -> None:
    """A server with these users that is killed and started again has the data of transactions and of scripts.

    Redis reads them from its append-only file as the user `default`, which is off.
    """
    with connect(guarded("worker"), timeout_s=2) as worker:
        worker.pipeline().set("rolling:{x}:a", 1).set("rolling:{x}:b", 1).execute()
        worker.eval("for _, key in ipairs(KEYS) do redis.call('SET', key, 1) end", 2, "rolling:{x}:c", "rolling:{x}:d")
    wait_until(lambda: b"rolling:{x}:d" in written(own_redis), what="the write of the file")
    own_redis.kill()
    own_redis.start(*own_redis.options)
    with own_redis.client as admin:
        assert [admin.exists(f"rolling:{{x}}:{name}") for name in "abcd"] == [1, 1, 1, 1]


def test_a_user_that_may_not_ask_whether_the_broker_evicts_is_told_so(guarded: UrlOf) -> None:
    """A user without the right to `INFO` gets a warning that says so and shows no password.

    The broker is not reported as away.
    """
    assert eviction_warning(guarded("worker")) is None
    said = eviction_warning(guarded("sender"))
    assert said is not None
    assert "its ACL forbids INFO" in said
    assert not secrets_in(said)
