"""Connections to Redis, and the translation of its many errors into `CacheUnavailable`."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, lru_cache
from typing import Any, Final

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from optimizer.cache.keys import Keys
from optimizer.errors import CacheUnavailable
from optimizer.models import UNDECODABLE
from optimizer.storage.location import redact_url
from optimizer.storage.redis_url import RedisUrl, reason_of

__all__ = [
    "NAMED",
    "READER_TIMEOUT_S",
    "UNREADABLE",
    "WRITER_TIMEOUT_S",
    "CacheClient",
    "connect",
    "is_away",
    "is_forbidden",
    "now_s",
    "ping",
    "translated_errors",
]

# By default redis-py would try ten times and block up to a minute on a server that hangs.
CONNECT_TIMEOUT_S: Final = 2.0
WRITER_TIMEOUT_S: Final = 5.0
# A lookup in a page waits at most twice this long when Redis hangs.
READER_TIMEOUT_S: Final = 0.25

# The errors of reading a damaged payload: of files, of gzip, and of decoding.
UNREADABLE: Final = (OSError, EOFError, zlib.error, *UNDECODABLE)

NAMED: Final = "Redis at "  # the prefix of an error, omitted where the text before it names Redis


def connect(url: str, *, timeout_s: float, source: str = "") -> redis.Redis:
    """Make a client with short timeouts that tries a command twice.

    Args:
        url: The URL of the Redis.
        timeout_s: How long it waits for each reply.
        source: The source whose keys are used; in a cluster, the client connects to the node that has them.
    """
    parsed = RedisUrl.parse(url)
    options: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": min(timeout_s, CONNECT_TIMEOUT_S),
        "retry": Retry(NoBackoff(), 1),
        # redis-py before 6 retries these errors only if they are listed.
        "retry_on_error": [redis.ConnectionError, redis.TimeoutError],
    }
    if parsed.moves:
        from optimizer.cache.failover import connect_to_master  # noqa: PLC0415 - a reader's process loads few modules

        return connect_to_master(parsed, Keys(source).current, options)
    return redis.Redis.from_url(parsed.for_redis_py(), **options)


def ping(url: str) -> None:
    """Check that a Redis answers.

    Raises:
        CacheUnavailable: It does not.
    """
    with translated_errors(url):
        client = connect(url, timeout_s=WRITER_TIMEOUT_S)
        try:
            client.ping()
        finally:
            client.close()


@contextmanager
def translated_errors(url: str) -> Iterator[None]:
    """Turn every failure of Redis, and of decoding its values, into `CacheUnavailable`."""
    try:
        yield
    except (redis.RedisError, *UNREADABLE) as error:
        raise CacheUnavailable(f"{NAMED}{redact_url(url)}: {reason_of(error)}") from error


def is_away(error: CacheUnavailable) -> bool:
    """Whether Redis is gone or hangs, so that each further command would cost a timeout; false if it sent an error."""
    return isinstance(error.__cause__, (redis.ConnectionError, redis.TimeoutError, TimeoutError))


def is_forbidden(error: CacheUnavailable) -> bool:
    """Whether Redis has refused a command to this user."""
    return isinstance(error.__cause__, redis.exceptions.NoPermissionError)


def now_s(client: redis.Redis) -> float:
    """The time by Redis' clock, from which readers compute ages; by this host's clock if the ACL forbids TIME."""
    try:
        seconds, microseconds = client.time()
    except redis.exceptions.NoPermissionError:
        return time.time()
    return seconds + microseconds / 1e6


@lru_cache(maxsize=16)
def _kept_connection(url: str, source: str) -> redis.Redis:
    """The client that this process keeps between calls; redis-py makes new connections after a fork."""
    return connect(url, timeout_s=WRITER_TIMEOUT_S, source=source)


class CacheClient:
    """A connection to one source's keys for a run; it opens with the first command.

    Args:
        url: The Redis of the cache.
        source: The source's name.
        interval_s: Seconds between ticks, from which several expiries follow.
        is_kept: Whether it stays open for the next call: connecting takes as long as a short call.

    Attributes:
        keys: The names of the source's keys.
        redis_up: False once a command has found Redis away or hanging.
    """

    def __init__(self, url: str, source: str, interval_s: float, *, is_kept: bool = False) -> None:
        self.url = url
        self.keys = Keys(source)
        self.interval_s = interval_s
        self.redis_up = True
        self._is_kept = is_kept

    @cached_property
    def connection(self) -> redis.Redis:
        """The client, for commands that must not change `redis_up`."""
        source = self.keys.source if RedisUrl.parse(self.url).is_cluster else ""  # elsewhere all sources share one
        if self._is_kept:
            return _kept_connection(self.url, source)
        return connect(self.url, timeout_s=WRITER_TIMEOUT_S, source=source)

    @contextmanager
    def commands(self) -> Iterator[redis.Redis]:
        """Yield the client for a few commands.

        Raises:
            CacheUnavailable: One of them has failed.
        """
        try:
            with translated_errors(self.url):
                yield self.connection
        except CacheUnavailable as error:
            self.redis_up = not is_away(error)
            raise

    def close(self) -> None:
        """Close the connections, unless they are kept."""
        if not self._is_kept:
            self.connection.close()
