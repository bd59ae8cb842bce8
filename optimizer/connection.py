"""Connections to Redis, and the one place where its many errors become ours."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import msgspec
import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from optimizer.errors import CacheUnavailable
from optimizer.urls import RedisUrl, redact_url

__all__ = [
    "READER_TIMEOUT_S",
    "UNREADABLE",
    "WRITER_TIMEOUT_S",
    "cache_eviction_warning",
    "connect",
    "connect_async",
    "eviction_warning",
    "is_away",
    "is_forbidden",
    "ping",
    "redis_answers",
]

# redis-py alone would try ten times and block up to a minute on a server that hangs.
CONNECT_TIMEOUT_S: Final = 2.0
WRITER_TIMEOUT_S: Final = 5.0
# Two tries of this at the worst: what a lookup in a page may wait when Redis hangs.
READER_TIMEOUT_S: Final = 0.25

# What reading a damaged payload can raise: from gzip, and from msgspec, which has no error of its own for bad UTF-8.
UNREADABLE: Final = (OSError, EOFError, zlib.error, msgspec.DecodeError, UnicodeDecodeError)


def connect(url: str, *, timeout_s: float) -> redis.Redis:
    """A client with short timeouts and one more try."""
    return redis.Redis.from_url(
        RedisUrl.parse(url).for_redis_py(),
        socket_timeout=timeout_s,
        socket_connect_timeout=min(timeout_s, CONNECT_TIMEOUT_S),
        retry=Retry(NoBackoff(), 1),
    )


def connect_async(url: str, *, timeout_s: float) -> redis.asyncio.Redis:
    """The same for asyncio; it belongs to the event loop that first uses it."""
    return redis.asyncio.Redis.from_url(
        RedisUrl.parse(url).for_redis_py(),
        socket_timeout=timeout_s,
        socket_connect_timeout=min(timeout_s, CONNECT_TIMEOUT_S),
        retry=AsyncRetry(NoBackoff(), 1),
    )


def ping(url: str) -> None:
    """Check that a Redis answers.

    Raises:
        CacheUnavailable: It does not.
    """
    with redis_answers(url):
        client = connect(url, timeout_s=WRITER_TIMEOUT_S)
        try:
            client.ping()
        finally:
            client.close()


def eviction_warning(url: str) -> str | None:
    """Why this Redis must not be a broker, if it may evict what it holds; `None` where it may not.

    An ACL need not let everybody ask: then that is what is said.

    Raises:
        CacheUnavailable: It does not answer.
    """
    policy = _eviction_policy(url)
    if policy is None:
        return f"whether the broker {redact_url(url)} may evict messages is not known: its ACL forbids INFO"
    if policy == "noeviction":
        return None
    return (
        f"the broker {redact_url(url)} may evict messages (maxmemory-policy {policy}); set it to noeviction, and give "
        "the cache a Redis of its own by ROLLING_REDIS_URL"
    )


def cache_eviction_warning(url: str) -> str | None:
    """Why this Redis should not be the cache, if it may evict what never expires: the current version.

    Raises:
        CacheUnavailable: It does not answer.
    """
    policy = _eviction_policy(url)
    if policy is None or not policy.startswith("allkeys"):
        return None
    return (
        f"the cache {redact_url(url)} may evict the current snapshots (maxmemory-policy {policy}), and routers would "
        "do without them until the next tick; set it to volatile-lru or noeviction"
    )


def _eviction_policy(url: str) -> str | None:
    """What a Redis does when its memory is full; `None` where the user may not know."""
    with redis_answers(url):
        client = connect(url, timeout_s=WRITER_TIMEOUT_S)
        try:
            return str(client.info("memory").get("maxmemory_policy", "noeviction"))
        except redis.exceptions.NoPermissionError:
            return None
        finally:
            client.close()


@contextmanager
def redis_answers(url: str) -> Iterator[None]:
    """Turn every way in which Redis can fail, and what it holds can be unreadable, into `CacheUnavailable`."""
    try:
        yield
    except (redis.RedisError, *UNREADABLE) as error:
        raise CacheUnavailable(f"Redis at {redact_url(url)}: {error or type(error).__name__}") from error


def is_away(error: CacheUnavailable) -> bool:
    """Whether Redis is gone or hangs, so that asking again would cost a timeout; else it answered with an error."""
    return isinstance(error.__cause__, (redis.ConnectionError, redis.TimeoutError, TimeoutError))


def is_forbidden(error: CacheUnavailable) -> bool:
    """Whether Redis has refused a command to this user."""
    return isinstance(error.__cause__, redis.exceptions.NoPermissionError)
