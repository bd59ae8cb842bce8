"""A master with a replica and three Sentinels, real processes on free ports of the loopback."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import redis

from optimizer.cache.client import connect
from optimizer.cli.dev.redis_server import redis_executable
from tests.support.ports import free_port
from tests.support.redis_servers import RedisServer, wait_until

__all__ = ["MASTER", "SentinelGroup"]

MASTER = "mymaster"
SENTINELS = 3
DOWN_AFTER_MS = 300


class SentinelGroup:
    """Two data servers, of which one is the master, and their Sentinels.

    Args:
        directory: Where all of them keep their files.
        options: Further options of the data servers.
        sentinel_lines: Further lines of the Sentinels' configuration.
        login: `user:password@` of the data servers for the URL.
        query: The query of the URL.
    """

    def __init__(
        self,
        directory: Path,
        *,
        options: Sequence[str] = (),
        sentinel_lines: Sequence[str] = (),
        login: str = "",
        query: str = "",
        scheme: str = "redis+sentinel",
    ) -> None:
        self.directory = directory
        self.servers = [RedisServer(directory / f"server-{number}") for number in range(2)]
        self.ports = [free_port() for _ in range(SENTINELS)]
        self.options = tuple(options)
        self._lines = tuple(sentinel_lines)
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        self.url = f"{scheme}://{login}{hosts}/{MASTER}/0{query}"

    def __enter__(self) -> SentinelGroup:
        first, second = self.servers
        options = (*self.options, "--repl-diskless-sync-delay", "0")  # by default the replica waits five seconds
        first.start(*options)
        second.start(*options, "--replicaof", f"127.0.0.1 {first.port}")
        for port in self.ports:
            self.start_sentinel(port)
        wait_until(self._is_ready, what="the Sentinels")
        return self

    def __exit__(self, *_: object) -> None:
        for port in self.ports:
            self.kill_sentinel(port)
        for server in self.servers:
            server.kill()

    @property
    def master(self) -> RedisServer:
        """The data server that a Sentinel names."""
        with redis.Redis(port=next(iter(self._processes))) as sentinel:
            _, port = sentinel.sentinel_get_master_addr_by_name(MASTER)
        return next(server for server in self.servers if server.port == port)

    @property
    def replica(self) -> RedisServer:
        """The other one."""
        master = self.master
        return next(server for server in self.servers if server is not master)

    def start_sentinel(self, port: int) -> None:
        """Start a Sentinel, with what it knew when it ended."""
        path = self.directory / f"sentinel-{port}.conf"
        if not path.exists():
            lines = [
                f"port {port}",
                "bind 127.0.0.1",
                f"dir {self.directory}",
                f"sentinel monitor {MASTER} 127.0.0.1 {self.servers[0].port} 2",
                f"sentinel down-after-milliseconds {MASTER} {DOWN_AFTER_MS}",
                f"sentinel failover-timeout {MASTER} 2000",
                # What they would tell each other within two seconds.
                f"sentinel myid {port:040x}",
                *(f"sentinel known-sentinel {MASTER} 127.0.0.1 {one} {one:040x}" for one in self.ports if one != port),
                f"sentinel known-replica {MASTER} 127.0.0.1 {self.servers[1].port}",
                *self._lines,
            ]
            path.write_text("\n".join(lines) + "\n")
        command = [str(redis_executable()), str(path), "--sentinel"]
        self._processes[port] = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def kill_sentinel(self, port: int) -> None:
        """Kill a Sentinel, as a crash would."""
        process = self._processes.pop(port, None)
        if process is not None:
            process.kill()
            process.wait()

    def cut_off_replica(self, key: str) -> None:
        """End the replication once the replica has a key like this; a failover has to follow within seconds.

        A suspended replica would still read from its socket what a master had sent before it was killed.
        """
        with self.replica.client as client:
            wait_until(lambda: client.keys(key), what=f"{key} in the replica")
            client.replicaof("127.0.0.1", free_port())

    def fail_over(self) -> None:
        """Kill the master, and wait until the replica is the master."""
        master, replica = self.master, self.replica
        master.kill()
        wait_until(lambda: _is_reached(self.url, replica), what="the failover")

    def _is_ready(self) -> bool:
        """Whether every Sentinel knows the others and the replica, and that has all data."""
        try:
            for port in self.ports:
                with redis.Redis(port=port) as sentinel:
                    state = sentinel.sentinel_masters()[MASTER]
                    if state["num-other-sentinels"] != SENTINELS - 1 or state["num-slaves"] != 1:
                        return False
            with self.servers[1].client as client:
                return bool(client.info("replication")["master_link_status"] == "up")
        except redis.ConnectionError:
            return False


def _is_reached(url: str, server: RedisServer) -> bool:
    """Whether a client that asks the Sentinels may write to this server."""
    with suppress(redis.RedisError), connect(url, timeout_s=1.0) as client:
        client.set("failed-over", "1", ex=1)
        return int(client.info("server")["tcp_port"]) == server.port
    return False
