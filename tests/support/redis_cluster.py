"""A Redis Cluster: three masters and a replica of the one that has a source's keys, on free ports of the loopback."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import redis
from redis.crc import key_slot

from optimizer.cache.keys import Keys
from tests.support.redis_servers import RedisServer, wait_until

__all__ = ["RedisCluster"]

SLOTS: Final = 16384
OPTIONS: Final = {
    "cluster-enabled": "yes",
    "cluster-node-timeout": "500",
    "repl-diskless-sync-delay": "0",  # by default the replica waits five seconds
    "cluster-replica-validity-factor": "0",  # a replica may take over however long it has been disconnected
    "cluster-allow-replica-migration": "no",  # a master without slots stays a master
}


class RedisCluster:
    """Cluster nodes; the first has the keys of a source, and the last is its replica.

    Args:
        directory: The directory in which all nodes keep their files.
        source: The source whose keys the first node has.
    """

    def __init__(self, directory: Path, source: str) -> None:
        self.nodes = [RedisServer(directory / f"node-{number}") for number in range(4)]
        self.owner = self.nodes[0]
        self.slot = key_slot(Keys(source).current.encode())
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        self.url = f"redis+cluster://{hosts}"

    def __enter__(self) -> RedisCluster:
        for node in self.nodes:
            node.start(*(word for name, value in OPTIONS.items() for word in (f"--{name}", value)))
        owner, second, third, replica = self.nodes
        ranges = {owner: [(self.slot, self.slot)], second: [(0, self.slot - 1)], third: [(self.slot + 1, SLOTS - 1)]}
        for epoch, (node, slots) in enumerate(ranges.items(), start=1):
            command(node, "CLUSTER SET-CONFIG-EPOCH", epoch)
            for first, last in slots:
                command(node, "CLUSTER ADDSLOTSRANGE", first, last)
        for node in self.nodes[1:]:
            with node.client as client:
                bus = client.config_get("cluster-port")["cluster-port"]
            command(owner, "CLUSTER MEET", "127.0.0.1", node.port, bus)
        wait_until(lambda: all(self._knows_all(node) for node in self.nodes), what="the cluster")
        command(replica, "CLUSTER REPLICATE", self.id_of(owner))
        wait_until(self._is_replicated, what="the replica of the cluster")
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.kill()

    @staticmethod
    def id_of(node: RedisServer) -> str:
        """Return the id of a node in its cluster."""
        return str(command(node, "CLUSTER MYID").decode())

    def begin_migration(self, target: RedisServer) -> None:
        """Begin to move the slot of the source to another node."""
        command(target, "CLUSTER SETSLOT", self.slot, "IMPORTING", self.id_of(self.owner))
        command(self.owner, "CLUSTER SETSLOT", self.slot, "MIGRATING", self.id_of(target))

    def move_keys(self, target: RedisServer, count: int) -> int:
        """Move at most `count` keys of the slot to another node; return how many were moved."""
        keys = command(self.owner, "CLUSTER GETKEYSINSLOT", self.slot, count)
        if keys:
            command(self.owner, "MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
        return len(keys)

    def end_migration(self, target: RedisServer) -> None:
        """Move the rest of the keys, and give the slot to the other node."""
        while self.move_keys(target, 100):
            pass
        for node in (target, self.owner):
            command(node, "CLUSTER SETSLOT", self.slot, "NODE", self.id_of(target))
        self.owner = target

    def fail_over(self) -> None:
        """Kill the node that has the keys, and wait until its replica has taken over."""
        replica = self.nodes[3]
        self.owner.kill()
        self.owner = replica
        wait_until(lambda: command(replica, "ROLE")[0] == b"master" and _is_ok(replica), what="the failover")

    def has_replicated(self, key: str) -> bool:
        """Return whether the replica has a key whose name contains this text."""
        return bool(command(self.nodes[3], "KEYS", f"*{key}*"))

    def _knows_all(self, node: RedisServer) -> bool:
        return _is_ok(node) and command(node, "CLUSTER INFO")["cluster_known_nodes"] == str(len(self.nodes))

    def _is_replicated(self) -> bool:
        with self.nodes[3].client as client:
            return bool(client.info("replication").get("master_link_status") == "up")


def command(node: RedisServer, *words: str | int | bytes) -> Any:
    """Send a command to one node."""
    with redis.Redis(port=node.port) as client:
        return client.execute_command(*words)


def _is_ok(node: RedisServer) -> bool:
    return bool(command(node, "CLUSTER INFO")["cluster_state"] == "ok")
