"""Clients of a Redis whose address changes: the master that Sentinels name, or the cluster node with a source's slot.

All keys of a source are in one slot, so one node at a time has them. A client asks for the address of that node each
time it connects, and sends every command there: scripts, transactions and the channel work as with a single server. A
server that has become a replica, has given the slot away, or lacks replicas since another is the master replies with an
error: the connection is closed, and the command is tried once more with the new address.

While a slot migrates, Redis refuses scripts that name a key that is not on both nodes, and redirects the others one by
one. Neither is followed: readers keep the version that they have, and the next tick publishes.

Errors: those of redis-py; `redis.ResponseError` if Sentinels answer but do not know the master.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

import redis
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.exceptions import AskError, ClusterDownError, MovedError, TryAgainError
from redis.retry import Retry
from redis.sentinel import (
    MasterNotFoundError,
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)

from optimizer.storage.redis_url import RedisUrl, reason_of

__all__ = ["connect_to_master"]

# The longest chain of redirects: a node with outdated slots, the previous owner, and the node that has the keys.
REDIRECTS: Final = 3
# Each is asked once: one that hangs costs one timeout, the next may answer, and the whole search is done twice.
ONCE: Final = {"retry": Retry(NoBackoff(), 0)}
LOGIN: Final = "; a Sentinel's own login is sentinel_username and sentinel_password in the query of the URL"
MIGRATING: Final = "TRYAGAIN the cluster is moving the keys of this source to another node"

Address = tuple[str, int]


def connect_to_master(url: RedisUrl, key: str, options: dict[str, Any]) -> redis.Redis:
    """Make a client of the server that has a key; it connects with the first command.

    Args:
        url: Sentinels or nodes of a cluster.
        key: Any key of the source; Sentinels need none.
        options: The timeouts and retries of each connection.
    """
    masters: _Masters = SentinelMasters(url, options) if url.master else ClusterMasters(url, key, options)
    connection_class = _SslConnection if url.is_tls else _Connection
    pool = SentinelConnectionPool(  # type: ignore[no-untyped-call]
        url.master, masters, connection_class=connection_class, **_connection_options(url), **options
    )
    return redis.Redis.from_pool(pool)


class _Masters(Protocol):
    """The interface by which redis-py's pool gets an address; it must leave no lock or connection to a forked child."""

    def discover_master(self, name: str) -> Address:
        """Return the address of the master."""


class SentinelMasters:
    """Asks Sentinels; the one that answered last is asked first the next time."""

    def __init__(self, url: RedisUrl, options: dict[str, Any]) -> None:
        self._nodes = url.nodes()
        self._options = url.options_of_sentinels() | options | ONCE

    def discover_master(self, name: str) -> Address:
        """Return the address of the master of this name.

        Raises:
            redis.ConnectionError: No Sentinel answers, or the master is down and no replica has taken over yet.
            redis.ResponseError: A Sentinel answers but does not know the master.
        """
        known: set[str] = set()
        problems = []
        for node in self._nodes:
            try:
                states = self._ask(*node)
            except (redis.ConnectionError, redis.TimeoutError) as error:
                advice = LOGIN if isinstance(error, redis.AuthenticationError) else ""
                problems.append(f"{node[0]}:{node[1]}: {reason_of(error)}{advice}")
                continue
            known.update(states)
            state = states.get(name)
            if state is not None and state["is_master"] and not state["is_sdown"]:
                self._nodes = [node, *(each for each in self._nodes if each != node)]
                return state["ip"], state["port"]
        if name in known:
            raise MasterNotFoundError(f"its Sentinels have no master {name!r} that is up; they may be electing one")
        if known:
            raise redis.ResponseError(f"its Sentinels know no master {name!r}, but {', '.join(sorted(known))}")
        raise MasterNotFoundError(f"no Sentinel answers ({'; '.join(problems)})")

    def _ask(self, host: str, port: int) -> dict[str, dict[str, Any]]:
        """Return the masters that a Sentinel knows, by their names."""
        sentinel = redis.Redis(host=host, port=port, **self._options)
        try:
            masters: dict[str, dict[str, Any]] = sentinel.sentinel_masters()  # type: ignore[assignment]
        finally:
            sentinel.close()
        return masters


class ClusterMasters:
    """Asks nodes of a cluster which one has a key; the node that answered last is asked first the next time."""

    def __init__(self, url: RedisUrl, key: str, options: dict[str, Any]) -> None:
        self._key = key
        self._nodes = url.nodes()
        self._options = _connection_options(url) | options | ONCE
        self._class = redis.SSLConnection if url.is_tls else redis.Connection

    def discover_master(self, _name: str) -> Address:
        """Return the address of the node that has the key.

        It sends HGETALL of the pointer, which every user of the cache may; CLUSTER SLOTS would need one more right.

        Raises:
            redis.ConnectionError: No node answers.
            redis.ResponseError: A node refuses the login, or refuses the command to this user.
        """
        problems: dict[Address, str] = {}
        for node in self._nodes:
            address: Address | None = node
            # A node with outdated slots redirects to the previous owner: each node is asked directly, and only once.
            for _ in range(REDIRECTS):
                if address is None or address in problems:
                    break
                asked = address
                try:
                    address = self._redirect(*asked)
                except redis.RedisError as error:
                    if isinstance(error, redis.AuthenticationError) or not _is_passing(error):
                        raise
                    problems[asked] = reason_of(error)
                else:
                    if address is None:
                        self._nodes = [node, *(each for each in self._nodes if each != node)]
                        return asked
        said = "; ".join(f"{host}:{port}: {problem}" for (host, port), problem in problems.items())
        raise MasterNotFoundError(f"the node of the cluster that has the keys does not answer ({said})")

    def _redirect(self, host: str, port: int) -> Address | None:
        """Return the address to which a node redirects for the key; `None` if it has the slot itself."""
        pool = redis.ConnectionPool(connection_class=self._class, host=host, port=port, **self._options)
        client = redis.Redis.from_pool(pool)
        try:
            client.hgetall(self._key)
        except redis.ResponseError as error:
            moved = _moved_to(error)
            if moved is not None:
                return moved[0] or host, moved[1]  # the host is empty if the cluster does not know it
            if not _is_migrating(error):  # during a migration the node still has the slot
                raise
        finally:
            client.close()
        return None


def _connection_options(url: RedisUrl) -> dict[str, Any]:
    """Login, database and TLS of the data servers, as redis-py reads them from the URL of any one of them."""
    options = parse_url(url.servers()[0].for_redis_py())  # type: ignore[no-untyped-call]
    return {name: value for name, value in options.items() if name not in ("host", "port", "connection_class")}


# redis-py before 6 reports these cluster errors only by the first word of the message, later releases only by class.


def _moved_to(error: redis.ResponseError) -> Address | None:
    """Return the address of the slot in a redirect; `None` for another error."""
    words = str(error).split()
    if not isinstance(error, MovedError) and words[:1] != ["MOVED"]:
        return None
    host, _, port = words[-1].rpartition(":")
    return host, int(port)


def _is_migrating(error: redis.ResponseError) -> bool:
    return isinstance(error, (AskError, TryAgainError)) or str(error).startswith(("ASK ", "TRYAGAIN "))


def _is_passing(error: redis.RedisError) -> bool:
    """Whether another node, or this one a moment later, may answer."""
    kinds = (redis.ConnectionError, redis.TimeoutError, ClusterDownError)
    return isinstance(error, kinds) or str(error).startswith("CLUSTERDOWN ")


class _Redirected:
    """Closes a connection to a node that has given the slot away, so that the command is retried on the new node."""

    _sock: Any
    connection_pool: Any

    def connect(self) -> None:
        """Connect to the current master, once: the caller that sends a command tries twice."""
        if self._sock is None:
            self.connect_to(self.connection_pool.get_master_address())  # type: ignore[attr-defined]

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        """Send a command; redis-py 8 by itself would reconnect to the last address, whatever is there now."""
        self.connect()
        super().send_packed_command(command, check_health)  # type: ignore[misc]

    def read_response(self, *arguments: Any, **options: Any) -> Any:
        """Read a response; a redirect in it is not followed: the next connection asks for the address."""
        try:
            return super().read_response(*arguments, **options)  # type: ignore[misc]
        except redis.ResponseError as error:
            moved = _moved_to(error)
            if moved is not None:
                self.disconnect()  # type: ignore[attr-defined]
                raise redis.ConnectionError(f"the cluster has moved the keys to {moved[0]}:{moved[1]}") from None
            if _is_migrating(error):
                raise redis.ResponseError(MIGRATING) from None
            # An old master that is back, or is cut off: until a Sentinel reaches it, this error is all that it sends.
            if str(error).startswith("NOREPLICAS ") and self.connection_pool.get_master_address() != self._address:
                self.disconnect()  # type: ignore[attr-defined]
                raise redis.ConnectionError("another server has become the master") from None
            raise

    @property
    def _address(self) -> Address:
        return self.host, self.port  # type: ignore[attr-defined]


class _Connection(_Redirected, SentinelManagedConnection):
    """A connection to the master."""


class _SslConnection(_Redirected, SentinelManagedSSLConnection):
    """The same with TLS."""
