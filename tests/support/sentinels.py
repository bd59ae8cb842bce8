"""A master with a replica and three Sentinels, real processes on free ports of the loopback."""

from __future__ import annotations

import signal
import subprocess
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
OWN_LOGIN = ("requirepass", "sentinel sentinel-pass")


class SentinelGroup:
    """Two data servers, of which one is the master, and their Sentinels.

    Args:
        directory: The directory in which all processes keep their files.
        password: The password of the data servers; empty for none.
        sentinel_password: The password of the Sentinels; empty for none.
    """

    def __init__(self, directory: Path, *, password: str = "", sentinel_password: str = "") -> None:
        self.directory = directory
        self.servers = [RedisServer(directory / f"server-{number}") for number in range(2)]
        self.ports = [free_port() for _ in range(SENTINELS)]
        self._password, self._sentinel_password = password, sentinel_password
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        for server in self.servers:
            server.url = f"redis://{_login(password)}127.0.0.1:{server.port}/0"
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        query = f"?sentinel_password={sentinel_password}" if sentinel_password else ""
        self.url = f"redis+sentinel://{_login(password)}{hosts}/{MASTER}/0{query}"

    def __enter__(self) -> SentinelGroup:
        first, second = self.servers
        options: tuple[str, ...] = ("--repl-diskless-sync-delay", "0")  # by default the replica waits five seconds
        if self._password:
            options += ("--requirepass", self._password, "--masterauth", self._password)
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
        with self._sentinel(next(iter(self._processes))) as sentinel:
            _, port = sentinel.sentinel_get_master_addr_by_name(MASTER)
        return next(server for server in self.servers if server.port == port)

    @property
    def replica(self) -> RedisServer:
        """The data server that is not the master."""
        master = self.master
        return next(server for server in self.servers if server is not master)

    def start_sentinel(self, port: int) -> None:
        """Start a Sentinel; if it ran before, with the state that it had when it ended."""
        path = self.directory / f"sentinel-{port}.conf"
        if not path.exists():
            lines = [
                f"port {port}",
                "bind 127.0.0.1",
                f"dir {self.directory}",
                f"sentinel monitor {MASTER} 127.0.0.1 {self.servers[0].port} 2",
                f"sentinel down-after-milliseconds {MASTER} {DOWN_AFTER_MS}",
                f"sentinel failover-timeout {MASTER} 2000",
                # The data that the Sentinels would otherwise exchange within two seconds.
                f"sentinel myid {port:040x}",
                *(f"sentinel known-sentinel {MASTER} 127.0.0.1 {one} {one:040x}" for one in self.ports if one != port),
                f"sentinel known-replica {MASTER} 127.0.0.1 {self.servers[1].port}",
                *([f"sentinel auth-pass {MASTER} {self._password}"] if self._password else []),
                *(f"{name} {self._sentinel_password}" for name in OWN_LOGIN if self._sentinel_password),
            ]
            path.write_text("\n".join(lines) + "\n")
        command = [str(redis_executable()), str(path), "--sentinel"]
        self._processes[port] = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def suspend_sentinel(self, port: int) -> None:
        """Suspend a Sentinel: it accepts connections, and sends no replies."""
        self._processes[port].send_signal(signal.SIGSTOP)

    def kill_sentinel(self, port: int) -> None:
        """Kill a Sentinel, as a crash would."""
        process = self._processes.pop(port, None)
        if process is not None:
            process.kill()
            process.wait()

    def cut_off_replica(self, key: str) -> None:
        """Stop the replication once the replica has a key that matches this; a failover has to follow within seconds.

        It is not enough to suspend the replica: it would still read from its socket what a master had sent before it
        was killed.
        """
        with self.replica.client as client:
            wait_until(lambda: client.keys(key), what=f"{key} in the replica")
            client.replicaof("127.0.0.1", free_port())

    def fail_over(self, *, hang: bool = False) -> None:
        """Kill the master, or suspend it if `hang`, and wait until the replica is the master."""
        master, replica = self.master, self.replica
        if hang:
            master.pause()
        else:
            master.kill()
        wait_until(lambda: _is_reached(self.url, replica), what="the failover")

    def _sentinel(self, port: int) -> redis.Redis:
        return redis.Redis(port=port, password=self._sentinel_password or None)

    def _is_ready(self) -> bool:
        """Return whether every Sentinel knows the others and the replica, and the replica has all data."""
        try:
            for port in self.ports:
                with self._sentinel(port) as sentinel:
                    state = sentinel.sentinel_masters()[MASTER]
                    if state["num-other-sentinels"] != SENTINELS - 1 or state["num-slaves"] != 1:
                        return False
            with self.servers[1].client as client:
                return bool(client.info("replication")["master_link_status"] == "up")
        except redis.ConnectionError:
            return False


def _login(password: str) -> str:
    return f":{password}@" if password else ""


def _is_reached(url: str, server: RedisServer) -> bool:
    """Return whether a client that gets its server from the Sentinels may write, and has this server."""
    with suppress(redis.RedisError), connect(url, timeout_s=1.0) as client:
        client.set("failed-over", "1", ex=1)
        return int(client.info("server")["tcp_port"]) == server.port
    return False
