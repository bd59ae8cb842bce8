"""Clients of a Redis that moves: of the master that Sentinels name, or of the node that has a source's slot of a cluster.

All keys of a source are in one slot, so one node at a time has them. A client asks for the address of that node whenever
it connects, and sends every command there: scripts, transactions and the channel work as with a single server. When the
server has become a replica, or has given the slot away, it says so; the connection is closed and the command is tried
once more with the new address.

While a slot migrates, Redis refuses scripts that name a key that is not on both nodes, and redirects the others one by
one. Neither is followed: readers keep what they hold, and the next tick publishes.

Errors: those of redis-py; `redis.ResponseError` if Sentinels answer and do not know the master.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

import redis
from redis.connection import parse_url
from redis.exceptions import AskError, ClusterDownError, MovedError, TryAgainError
from redis.sentinel import (
    MasterNotFoundError,
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)

from optimizer.config.redis_url import RedisUrl

__all__ = ["connect_to_master"]

# A node that is behind, the one before, and the one that has the keys.
REDIRECTS: Final = 3
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
    pool = SentinelConnectionPool(
        url.master, masters, connection_class=connection_class, **_connection_options(url), **options
    )
    return redis.Redis.from_pool(pool)


class _Masters(Protocol):
    """What redis-py's pool asks for an address; it must leave no lock and no connection to a forked child."""

    def discover_master(self, name: str) -> Address:
        """Return where the master is."""


class SentinelMasters:
    """Asks Sentinels; the one that has answered is asked first the next time."""

    def __init__(self, url: RedisUrl, options: dict[str, Any]) -> None:
        self._nodes = url.nodes()
        self._options = url.options_of_sentinels() | options

    def discover_master(self, name: str) -> Address:
        """Return where the master of this name is.

        Raises:
            redis.ConnectionError: No Sentinel answers, or the master is down and no replica has taken over yet.
            redis.ResponseError: A Sentinel answers and does not know the master.
        """
        asked = Sentinel(self._nodes, sentinel_kwargs=self._options)
        try:
            host, port = asked.discover_master(name)
            first = asked.sentinels[0].connection_pool.connection_kwargs
            answered = (first["host"], first["port"])
            self._nodes = [answered, *(node for node in self._nodes if node != answered)]
            return host, port
        except MasterNotFoundError as error:
            raise self._explained(name, asked, error) from None
        finally:
            for sentinel in asked.sentinels:
                sentinel.close()

    def _explained(self, name: str, asked: Sentinel, error: MasterNotFoundError) -> redis.RedisError:
        problems = []
        for (host, port), sentinel in zip(self._nodes, asked.sentinels, strict=True):
            try:
                known = sorted(sentinel.sentinel_masters())
            except (redis.ConnectionError, redis.TimeoutError) as problem:
                problems.append(f"{host}:{port}: {problem}")
                continue
            if name in known:
                return MasterNotFoundError(
                    f"its Sentinels have no master for {name!r} that is up; they may be electing one"
                )
            return redis.ResponseError(f"its Sentinels know no master {name!r}, but {', '.join(known) or 'none'}")
        return MasterNotFoundError(f"no Sentinel answers ({'; '.join(problems)})")


class ClusterMasters:
    """Asks nodes of a cluster for the one that has a key; the one that has answered is asked first the next time."""

    def __init__(self, url: RedisUrl, key: str, options: dict[str, Any]) -> None:
        self._key = key
        self._nodes = url.nodes()
        self._options = _connection_options(url) | options
        self._class = redis.SSLConnection if url.is_tls else redis.Connection

    def discover_master(self, _name: str) -> Address:
        """Return where the node is that has the key.

        By HGETALL of the pointer, which every user of the cache may send, where CLUSTER SLOTS needs one more right.

        Raises:
            redis.ConnectionError: No node answers.
            redis.ResponseError: A node refuses: the login, or the command to this user.
        """
        problems: dict[Address, str] = {}
        for node in self._nodes:
            address: Address | None = node
            # A node that has not heard yet of a move sends on to the one before: each is asked itself, and once.
            for _ in range(REDIRECTS):
                if address is None or address in problems:
                    break
                asked = address
                try:
                    address = self._redirect(*asked)
                except redis.AuthenticationError:
                    raise
                except (redis.ConnectionError, redis.TimeoutError, ClusterDownError) as error:
                    problems[asked] = str(error)
                else:
                    if address is None:
                        self._nodes = [node, *(each for each in self._nodes if each != node)]
                        return asked
        said = "; ".join(f"{host}:{port}: {problem}" for (host, port), problem in problems.items())
        raise MasterNotFoundError(f"the node of the cluster that has the keys does not answer ({said})")

    def _redirect(self, host: str, port: int) -> Address | None:
        """Return where a node sends a client for the key; `None` if it has the slot itself."""
        pool = redis.ConnectionPool(connection_class=self._class, host=host, port=port, **self._options)
        client = redis.Redis.from_pool(pool)
        try:
            client.hgetall(self._key)
        except MovedError as moved:
            return moved.host or host, moved.port  # without a host where the cluster does not know its own
        except AskError:  # it has the slot as long as it migrates
            return None
        finally:
            client.close()
        return None


def _connection_options(url: RedisUrl) -> dict[str, Any]:
    """Login, database and TLS of the data servers, as redis-py reads them from the URL of any one of them."""
    options = parse_url(url.servers()[0].for_redis_py())
    return {name: value for name, value in options.items() if name not in ("host", "port", "connection_class")}


class _Redirected:
    """Closes a connection to a node that has given the slot away, so that the command is tried with the new one."""

    _sock: Any

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        """Send a command; redis-py 8 alone would connect to the last address again, whatever is there now."""
        if self._sock is None:
            self.connect()  # type: ignore[attr-defined]
        super().send_packed_command(command, check_health)  # type: ignore[misc]

    def read_response(self, *arguments: Any, **options: Any) -> Any:
        """Read a response; an address in it is not followed: the next connection asks for it."""
        try:
            return super().read_response(*arguments, **options)  # type: ignore[misc]
        except MovedError as moved:
            self.disconnect()  # type: ignore[attr-defined]
            raise redis.ConnectionError(f"the cluster has moved the keys to {moved.host}:{moved.port}") from None
        except (AskError, TryAgainError):
            raise redis.ResponseError(MIGRATING) from None


class _Connection(_Redirected, SentinelManagedConnection):
    """A connection to the master."""


class _SslConnection(_Redirected, SentinelManagedSSLConnection):
    """The same with TLS."""
