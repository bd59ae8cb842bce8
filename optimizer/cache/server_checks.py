"""Checks of a Redis as cache or broker, for `rolling-optimizer config` and the start of a worker.

The commands of a run are tried on a key that is only used here. A refusal becomes `CacheUnavailable`, with the reason
and what to do; something that works but is a risk becomes a note.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import redis

from optimizer.cache.client import WRITER_TIMEOUT_S, connect, translated_errors
from optimizer.cache.keys import Keys
from optimizer.errors import CacheUnavailable
from optimizer.storage.location import redact_url
from optimizer.storage.redis_url import CLUSTER_AS_BROKER, RedisUrl

__all__ = ["check_broker", "check_cache", "check_no_cluster", "eviction_warning"]

# Seconds for which the probe stays if it cannot be deleted.
PROBE_TTL_S: Final = 10
CLUSTER: Final = "it is in cluster mode; take a Redis that is no cluster"
CLUSTER_AS_CACHE: Final = f"{CLUSTER}, or write its URL as redis+cluster://host:6379,host2:6379"
REPLICA: Final = "it is a replica and takes no writes; take its master"
FEW_REPLICAS: Final = "it has fewer replicas than its min-replicas-to-write; start them, or lower it"
_PROBE: Final = "return redis.call('DEL', KEYS[1])"
_NO_SCRIPT: Final = "0" * 40


def check_cache(url: str, source: str) -> list[str]:
    """Try the commands of a run in its cache; return notes about risks.

    A user who may read but not write is taken for a router's.

    Raises:
        CacheUnavailable: Redis does not answer, or refuses something; the message says what, and what to do.
    """
    keys = Keys(source)
    notes = []
    with _probing(url, source) as client:
        written = _refusal(client, "SET", keys.probe, "1", "EX", PROBE_TTL_S)
        if isinstance(written, redis.exceptions.NoPermissionError):
            _raise(url, _explained(f"read {keys.current}", _refusal(client, "HGETALL", keys.current)))
            notes.append(
                f"this user may read, as routers and the web do, and not write, as workers have to ({written})"
            )
        else:
            _raise(url, _explained(f"write {keys.probe}", written))
            _raise(url, _explained("run scripts by EVAL", _refusal(client, "EVAL", _PROBE, 1, keys.probe)))
        if _mode(client)[0] == "cluster" and not RedisUrl.parse(url).is_cluster:
            notes.append(
                f"it is in cluster mode, and works as long as this node has all keys of {source}; write its URL as "
                "redis+cluster://host:6379,host2:6379"
            )
        policy = _eviction_policy(client)
        if policy is not None and policy.startswith("allkeys"):
            notes.append(
                f"warning: it may evict the current snapshots (maxmemory-policy {policy}), and routers would do "
                "without them until the next tick; set it to volatile-lru or noeviction"
            )
    return notes


def check_broker(url: str, source: str) -> list[str]:
    """Try the commands of Celery in its broker, as far as this user may send them; return notes about risks.

    Raises:
        CacheUnavailable: Redis does not answer, or refuses something; the message says what, and what to do.
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
            refused = _refusal(client, "EVALSHA", _NO_SCRIPT, 0)
            if not isinstance(refused, (redis.exceptions.NoScriptError, redis.exceptions.NoPermissionError)):
                _raise(url, _explained("run scripts by EVALSHA", refused))
    warning = eviction_warning(url)
    return [warning] if warning else []


def check_no_cluster(url: str) -> None:
    """Check that a broker is not in cluster mode: Celery sends commands with keys in several slots.

    Raises:
        CacheUnavailable: It is in cluster mode, or does not answer.
    """
    if RedisUrl.parse(url).is_cluster:
        raise CacheUnavailable(f"Redis at {redact_url(url)}: {CLUSTER_AS_BROKER}")
    with _probing(url) as client:
        _raise(url, f"Celery cannot use it as its broker: {CLUSTER}" if _mode(client)[0] == "cluster" else "")


def eviction_warning(url: str) -> str | None:
    """Return why a Redis is unsafe as a broker: it may evict messages, or its policy is unknown; `None` if it is safe.

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
def _probing(url: str, source: str = "") -> Iterator[redis.Redis]:
    with translated_errors(url):
        client = connect(url, timeout_s=WRITER_TIMEOUT_S, source=source)
        try:
            client.ping()
            yield client
        finally:
            client.close()


def _refusal(client: redis.Redis, *command: str | int) -> redis.ResponseError | None:
    """Send a command; return the error if the server refuses it, else `None`."""
    try:
        client.execute_command(*command)  # type: ignore[no-untyped-call]
    except redis.ResponseError as error:
        return error
    return None


def _explained(action: str, error: redis.ResponseError | None) -> str:
    """Describe what is not possible, why, and what to do; empty without an error."""
    if error is None:
        return ""
    text = str(error)
    if isinstance(error, redis.exceptions.ReadOnlyError):
        advice = REPLICA
    elif isinstance(error, redis.exceptions.OutOfMemoryError):
        advice = "its memory is full; raise its maxmemory, or see what fills it"
    # redis-py before 6 reports MOVED only by the first word of the message, later releases only by class.
    elif isinstance(error, (redis.exceptions.ClusterError, redis.exceptions.MovedError)) or text.startswith("MOVED "):
        advice = CLUSTER_AS_CACHE
    elif text.startswith("NOREPLICAS "):
        advice = FEW_REPLICAS
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
    """Return mode (`standalone`, `sentinel`, `cluster`) and role (`master`, `replica`); empty if HELLO is refused.

    It sends HELLO rather than INFO, since every user may send HELLO.
    """
    try:
        reply = client.execute_command("HELLO")  # type: ignore[no-untyped-call]
    except redis.ResponseError:
        return "", ""
    fields = reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
    return fields.get(b"mode", b"").decode(), fields.get(b"role", b"").decode()


def _eviction_policy(client: redis.Redis) -> str | None:
    """Return the eviction policy of a Redis; `None` if INFO is refused."""
    try:
        return str(client.info("memory").get("maxmemory_policy", "noeviction"))
    except redis.ResponseError:
        return None
