"""Connections to Redis, and the one place where its many errors become ours."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from optimizer.cache.keys import Keys
from optimizer.config.redis_url import RedisUrl, redact_url
from optimizer.errors import CacheUnavailable
from optimizer.models import UNDECODABLE

__all__ = [
    "READER_TIMEOUT_S",
    "UNREADABLE",
    "WRITER_TIMEOUT_S",
    "check_broker",
    "check_cache",
    "check_no_cluster",
    "connect",
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

# What a probe leaves where it cannot delete it again.
PROBE_TTL_S: Final = 10
CLUSTER: Final = "it is in cluster mode; take a Redis that is no cluster"
REPLICA: Final = "it is a replica and takes no writes; take its master"
_PROBE: Final = "return redis.call('DEL', KEYS[1])"
_NO_SCRIPT: Final = "0" * 40

# What reading a damaged payload can raise: from files, from gzip, and from decoding.
UNREADABLE: Final = (OSError, EOFError, zlib.error, *UNDECODABLE)


def connect(url: str, *, timeout_s: float) -> redis.Redis:
    """A client with short timeouts and one more try."""
    return redis.Redis.from_url(
        RedisUrl.parse(url).for_redis_py(),
        socket_timeout=timeout_s,
        socket_connect_timeout=min(timeout_s, CONNECT_TIMEOUT_S),
        retry=Retry(NoBackoff(), 1),
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


def check_cache(url: str, source: str) -> list[str]:
    """Try what a run does in its cache, with a key of its own; return what one should know, if it works.

    A user who may read and not write is taken for a router's.

    Raises:
        CacheUnavailable: It does not answer, or lacks something: what, and what to do.
    """
    keys = Keys(source)
    notes = []
    with _probing(url) as client:
        written = _refusal(client, "SET", keys.probe, "1", "EX", PROBE_TTL_S)
        if isinstance(written, redis.exceptions.NoPermissionError):
            _raise(url, _explained(f"read {keys.current}", _refusal(client, "HGETALL", keys.current)))
            notes.append(
                f"this user may read, as routers and the web do, and not write, as workers have to ({written})"
            )
        else:
            _raise(url, _explained(f"write {keys.probe}", written))
            _raise(url, _explained("run scripts by EVAL", _refusal(client, "EVAL", _PROBE, 1, keys.probe)))
        if _mode(client)[0] == "cluster":
            notes.append(
                f"it is in cluster mode, and works as long as this node has all keys of {source}; take a Redis that is "
                "no cluster"
            )
        policy = _eviction_policy(client)
        if policy is not None and policy.startswith("allkeys"):
            notes.append(
                f"warning: it may evict the current snapshots (maxmemory-policy {policy}), and routers would do "
                "without them until the next tick; set it to volatile-lru or noeviction"
            )
    return notes


def check_broker(url: str, source: str) -> list[str]:
    """Try what Celery does in its broker, as far as this user may; return what one should know, if it works.

    Raises:
        CacheUnavailable: It does not answer, or lacks something: what, and what to do.
    """
    check_no_cluster(url)
    key = Keys(source).probe
    with _probing(url) as client:
        written = _refusal(client, "SET", key, "1", "EX", PROBE_TTL_S)
        if isinstance(written, redis.exceptions.NoPermissionError):  # users who only send may not, and need not
            _raise(url, REPLICA if _mode(client)[1] == "replica" else "")
        else:
            _raise(url, _explained(f"write {key}", written))
            client.delete(key)
            found = _refusal(client, "EVALSHA", _NO_SCRIPT, 0)
            if not isinstance(found, (redis.exceptions.NoScriptError, redis.exceptions.NoPermissionError)):
                _raise(url, _explained("run scripts by EVALSHA", found))
    warning = eviction_warning(url)
    return [warning] if warning else []


def check_no_cluster(url: str) -> None:
    """Check that a broker is not in cluster mode: Celery sends one command for keys of several slots.

    Raises:
        CacheUnavailable: It is, or does not answer.
    """
    with _probing(url) as client:
        _raise(url, f"Celery cannot use it as its broker: {CLUSTER}" if _mode(client)[0] == "cluster" else "")


def eviction_warning(url: str) -> str | None:
    """Why this Redis must not be a broker, if it may evict what it holds; `None` where it may not.

    An ACL need not let everybody ask: then that is what is said.

    Raises:
        CacheUnavailable: It does not answer.
    """
    with _probing(url) as client:
        policy = _eviction_policy(client)
    if policy is None:
        return (
            f"whether the broker {redact_url(url)} may evict messages is not known: its ACL forbids INFO, or its "
            "configuration renames it"
        )
    if policy == "noeviction":
        return None
    return (
        f"warning: the broker {redact_url(url)} may evict messages (maxmemory-policy {policy}); set it to noeviction, "
        "and give the cache a Redis of its own by ROLLING_REDIS_URL"
    )


@contextmanager
def _probing(url: str) -> Iterator[redis.Redis]:
    with redis_answers(url):
        client = connect(url, timeout_s=WRITER_TIMEOUT_S)
        try:
            client.ping()
            yield client
        finally:
            client.close()


def _refusal(client: redis.Redis, *command: str | int) -> redis.ResponseError | None:
    """What a server says against a command; `None` where it does it."""
    try:
        client.execute_command(*command)  # type: ignore[no-untyped-call]
    except redis.ResponseError as error:
        return error
    return None


def _explained(action: str, error: redis.ResponseError | None) -> str:
    """What cannot be done, why, and what to do; empty where it can."""
    if error is None:
        return ""
    text = str(error)
    if isinstance(error, redis.exceptions.ReadOnlyError):
        advice = REPLICA
    elif isinstance(error, redis.exceptions.OutOfMemoryError):
        advice = "its memory is full; raise its maxmemory, or see what fills it"
    elif isinstance(error, (redis.exceptions.ClusterError, redis.exceptions.MovedError)):
        advice = CLUSTER
    elif isinstance(error, redis.exceptions.NoPermissionError) or "ACL failure in script" in text:
        advice = "its ACL forbids it to this user; docs/redis-acl.conf has users with what each part needs"
    elif "unknown command" in text:
        advice = "its configuration renames the command or switches it off (rename-command); allow it"
    else:
        advice = "see its log"
    return f"it is not possible to {action} ({text.strip()}): {advice}"


def _raise(url: str, problem: str) -> None:
    if problem:
        raise CacheUnavailable(f"Redis at {redact_url(url)} answers, but {problem}")


def _mode(client: redis.Redis) -> tuple[str, str]:
    """Mode (`standalone`, `sentinel`, `cluster`) and role (`master`, `replica`); empty where it does not say.

    Of HELLO and not INFO: every user may say it.
    """
    try:
        reply = client.execute_command("HELLO")  # type: ignore[no-untyped-call]
    except redis.ResponseError:
        return "", ""
    fields = reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
    return fields.get(b"mode", b"").decode(), fields.get(b"role", b"").decode()


def _eviction_policy(client: redis.Redis) -> str | None:
    """What a Redis does when its memory is full; `None` where it does not say."""
    try:
        return str(client.info("memory").get("maxmemory_policy", "noeviction"))
    except redis.ResponseError:
        return None


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
