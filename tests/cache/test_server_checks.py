"""What `config` and a starting worker report about a Redis, compared with what a run and Celery can do with it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import celery
import pytest
import redis

from optimizer import Settings, optimize
from optimizer.cache.client import ping
from optimizer.cache.keys import Keys
from optimizer.cache.server_checks import check_broker, check_cache, eviction_warning
from optimizer.errors import CacheUnavailable
from optimizer.snapshots.store import snapshot_store
from tests.support.command import rolling_optimizer
from tests.support.compose import ROOT
from tests.support.fleet import Fleet
from tests.support.redis_servers import RedisServer, wait_until
from tests.support.rolling_files import a_record, write_json

pytestmark = pytest.mark.slow  # each with a server of its own


def allow(*rules: str) -> Callable[[redis.Redis], object]:
    """Return a function that limits the user `default` to these ACL rules."""
    return lambda client: client.execute_command(  # type: ignore[no-untyped-call]
        "ACL", "SETUSER", "default", "reset", "on", "nopass", "+@connection", *rules
    )


def give_all_slots(client: Any) -> None:
    """Make a node in cluster mode a whole cluster."""
    client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
    wait_until(lambda: client.execute_command("CLUSTER INFO")["cluster_state"] == "ok", what="the cluster")


def nothing(_client: redis.Redis) -> None:
    """Change nothing on the server."""


class Server(NamedTuple):
    """A kind of server, and the errors that are reported for it as a cache and as a broker; empty where it works."""

    options: tuple[str, ...]
    prepare: Callable[[redis.Redis], object]
    of_cache: str
    of_broker: str


CLUSTER = "it is in cluster mode; take a Redis that is no cluster"
FORBIDDEN = "its ACL forbids it to this user; docs/redis-acl.conf has"
SERVERS = {
    "as it should be": Server((), nothing, "", ""),
    "a cluster without slots": Server(("--cluster-enabled", "yes"), nothing, CLUSTER, CLUSTER),
    "a cluster of one node": Server(("--cluster-enabled", "yes"), give_all_slots, "", CLUSTER),
    "EVAL renamed": Server(("--rename-command", "EVAL", ""), nothing, "run scripts by EVAL (unknown command", ""),
    "EVALSHA renamed": Server(
        ("--rename-command", "EVALSHA", ""), nothing, "", "run scripts by EVALSHA (unknown command"
    ),
    "INFO renamed": Server(("--rename-command", "INFO", ""), nothing, "", ""),
    "SET renamed": Server(
        ("--rename-command", "SET", "set2"), nothing, "switches it off (rename-command); allow", "allow"
    ),
    "a replica": Server(("--replicaof", "127.0.0.1", "1"), nothing, "take its master", "take its master"),
    "full": Server((), lambda client: client.config_set("maxmemory", 1), "its memory is full", "its memory is full"),
    "replicas are missing": Server(("--min-replicas-to-write", "1"), nothing, "Not enough good replicas", "Not enough"),
    "no scripts": Server((), allow("~*", "&*", "+@all", "-@scripting"), "EVAL (this user has no permissions", ""),
    "other keys": Server((), allow("~other:*", "+@all"), FORBIDDEN, ""),
    "no channels": Server((), allow("~*", "+@all"), "", ""),
}


@pytest.fixture(params=list(SERVERS.values()), ids=list(SERVERS))
def server(request: pytest.FixtureRequest, own_redis: RedisServer) -> Server:
    """Start a server of each kind, as `own_redis`."""
    server: Server = request.param
    own_redis.start(*server.options)
    with own_redis.client as client:
        server.prepare(client)
    return server


def said_of(check: Callable[[str, str], list[str]], url: str) -> str:
    """Return the error that a check raises, or an empty text."""
    try:
        check(url, "brain")
    except CacheUnavailable as error:
        return str(error)
    return ""


def test_what_is_said_of_a_cache_is_what_a_run_finds(
    settings_without_redis: Settings, own_redis: RedisServer, server: Server
) -> None:
    """`check_cache` raises no error exactly if a run can publish in this Redis, and then it leaves no key.

    Its error names what is missing, and the remedy.
    """
    settings = replace(settings_without_redis, redis_url=own_redis.url, source="brain")
    write_json(settings.input, {"AAPL": a_record()})

    said = said_of(check_cache, own_redis.url)

    assert (said == "") == (server.of_cache == "")
    assert server.of_cache in said
    assert optimize(settings).cache == ("down" if said else "published")
    if not said:
        with own_redis.client as client:
            assert client.exists(Keys("brain").probe) == 0


def test_what_is_said_of_a_broker(own_redis: RedisServer, server: Server) -> None:
    """`check_broker` raises no error if Redis can do what Celery needs; otherwise its error names what is missing."""
    said = said_of(check_broker, own_redis.url)

    assert (said == "") == (server.of_broker == "")
    assert server.of_broker in said


def test_a_user_who_may_only_read_is_told_what_that_is_enough_for(own_redis: RedisServer) -> None:
    """A user who may only read, as a router does, gets a note about who needs more, and no error."""
    own_redis.start()
    with own_redis.client as client:
        allow("~*", "&*", "+@read")(client)

    [note] = check_cache(own_redis.url, "brain")

    assert "this user may read, as routers and the web do, and not write, as workers have to" in note


def test_config_exits_as_it_works_and_names_what_is_missing(
    tmp_path: Path, own_redis: RedisServer, redis_server: RedisServer
) -> None:
    """`config` exits with 1 if the cache lacks EVAL, and with 0 if the broker only lacks INFO.

    It prints one line for a server that works, and one sentence for what is missing.
    """
    own_redis.start("--rename-command", "EVAL", "", "--rename-command", "INFO", "")
    no_scripts = rolling_optimizer(tmp_path, "config", ROLLING_REDIS_URL=own_redis.url)
    no_info = rolling_optimizer(
        tmp_path, "config", ROLLING_REDIS_URL=redis_server.url, ROLLING_BROKER_URL=own_redis.url
    )

    assert no_scripts.returncode == 1
    assert f"Redis at {own_redis.url} answers, but it is not possible to run scripts by EVAL" in no_scripts.stderr
    assert f"broker: {own_redis.url} answers" in no_scripts.stdout
    assert no_info.returncode == 0, no_info.stderr
    assert "its ACL forbids INFO, or its configuration renames it" in no_info.stdout


@pytest.mark.parametrize(
    ("process", "options"),
    [
        ("worker", ("--cluster-enabled", "yes")),
        ("beat", ("--cluster-enabled", "yes")),
        ("worker", ("--replicaof", "127.0.0.1", "1")),
    ],
)
def test_what_cannot_use_its_broker_ends_with_a_sentence(
    tmp_path: Path, own_redis: RedisServer, process: str, options: tuple[str, ...]
) -> None:
    """A worker or a beat that cannot use its broker exits with 1 and one sentence, without a traceback."""
    own_redis.start(*options)
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "tasks", process],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "ROLLING_REDIS_URL": own_redis.url},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert done.returncode == 1
    assert f"CacheUnavailable: broker: Redis at {own_redis.url} answers, but " in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_worker_says_what_its_cache_lacks_and_goes_on(
    tmp_path: Path, own_redis: RedisServer, redis_server: RedisServer
) -> None:
    """A worker whose cache cannot run scripts logs a warning and continues, since runs still write the files."""
    own_redis.start("--rename-command", "EVAL", "")
    settings = Settings(input=tmp_path / "in.json", output_dir=tmp_path / "out", redis_url=own_redis.url)
    write_json(settings.input, {"AAPL": a_record()})
    with Fleet(tmp_path, settings) as fleet:
        fleet.start_worker(ROLLING_BROKER_URL=redis_server.url)
        wait_until(lambda: any("run scripts by EVAL" in line for line in fleet.lines), what="the warning")
        with celery.Celery(broker=redis_server.url, set_as_current=False) as sender:
            sender.send_task("tasks.optimize_rolling_data", queue=f"rolling.{settings.source}")
        wait_until(snapshot_store(settings.output_dir).read_manifest, what="the files of a run")
        assert not [line for line in fleet.lines if "Redis is away" in line]


def test_a_broker_that_may_evict_is_warned_of(own_redis: RedisServer) -> None:
    """A broker that may evict causes a warning with its policy, since messages would be lost silently."""
    own_redis.start()
    ping(own_redis.url)
    assert eviction_warning(own_redis.url) is None
    with own_redis.client as client:
        client.config_set("maxmemory-policy", "allkeys-lru")

    assert "allkeys-lru" in str(eviction_warning(own_redis.url))
