"""The Redis client: `CacheUnavailable` if Redis does not respond, the texts of its errors, and Unix sockets."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from optimizer.cache.client import CacheClient, ping
from optimizer.cache.lock import AssignmentStore, Lock, SourceLock
from optimizer.cache.parts import PartStore
from optimizer.cache.run_log import RunLog
from optimizer.cache.server_checks import eviction_warning
from optimizer.cache.verification import is_intact, shows
from optimizer.cache.writer import VersionWriter
from optimizer.errors import CacheUnavailable
from optimizer.models import Report
from optimizer.storage.redis_url import reason_of
from tests.support.cache_writers import NOW, SOURCE, a_cache, a_set, publish, version_shown
from tests.support.redis_servers import RedisServer


def test_a_redis_that_does_not_answer_is_unavailable(own_redis: RedisServer) -> None:
    """If Redis does not respond, every operation raises `CacheUnavailable` with the URL, without its password."""
    url, shown = (own_redis.url.replace("redis://", f"redis://user:{password}@") for password in ("secret", "***"))
    asking: list[Callable[[CacheClient], object]] = [
        lambda cache: RunLog(cache).take_tick(1),
        lambda cache: VersionWriter(cache).pointer(),
        lambda cache: is_intact(cache, 1),
        lambda cache: shows(cache, a_set(1)),
        lambda cache: VersionWriter(cache).mend(),
        lambda cache: PartStore(cache).renew(["digest"]),
        lambda cache: AssignmentStore(cache).read("token"),
        lambda cache: VersionWriter(cache).newest_known(),
        lambda cache: VersionWriter(cache).confirm(1),
        lambda cache: RunLog(cache).add(Report("skipped", SOURCE, NOW)),
        lambda cache: SourceLock(cache).owns(Lock(held=True, token="token")),
        lambda cache: SourceLock(cache).acquire().__enter__(),
        lambda cache: VersionWriter(cache).publish(a_set(1), lock=Lock(held=True, token=""), before=None),
    ]
    with a_cache(url) as cache:
        for ask in asking:
            with pytest.raises(CacheUnavailable, match=re.escape(shown)) as raised:
                ask(cache)
            assert "secret" not in str(raised.value)
    for check in (ping, eviction_warning):
        with pytest.raises(CacheUnavailable, match=re.escape(shown)) as raised:
            check(url)
        assert "secret" not in str(raised.value)


def test_an_error_names_redis_once(own_redis: RedisServer, tmp_path: Path) -> None:
    """An error contains the address of Redis once; the host and port, or the path, that redis-py adds are removed."""
    for url, reason in (
        (own_redis.url, "Connection refused"),
        (f"unix://{tmp_path}/no.sock?db=0", "No such file or directory"),
    ):
        with pytest.raises(CacheUnavailable) as raised:
            ping(url)
        assert str(raised.value) == f"Redis at {url}: {reason}"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Error 111 connecting to 127.0.0.1:1. Connection refused.", "Connection refused"),
        ("Error 1 connecting to a.b:2. [SSL: BAD] no (_ssl.c:1006).", "[SSL: BAD] no (_ssl.c:1006)"),
        ("Error it is late connecting to a.b:2.", "it is late"),
        ("Error connecting to a.b:2.", "no connection"),
        ("Timeout connecting to server", "Timeout connecting to server"),
        ("", "ConnectionError"),
    ],
)
def test_the_reason_of_an_error_has_no_address(text: str, reason: str) -> None:
    """The address is removed from an error's text, in every form that redis-py uses; any other text stays."""
    assert reason_of(ConnectionError(text)) == reason


def test_a_unix_socket_is_a_way_to_redis(own_redis: RedisServer, tmp_path: Path) -> None:
    """Redis is reached on a Unix socket by the schemes of redis-py (`unix`) and of Celery (`redis+socket`)."""
    path = tmp_path / "redis.sock"
    own_redis.start("--unixsocket", str(path))

    for scheme in ("unix", "redis+socket"):
        with a_cache(f"{scheme}://{path}") as cache:
            publish(cache, a_set((version_shown(cache) or 0) + 1))
    with a_cache(own_redis.url) as cache:
        assert version_shown(cache) == 2
