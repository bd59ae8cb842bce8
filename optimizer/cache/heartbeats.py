"""The heartbeats of workers and beats: which processes exist, and when each sent its last heartbeat.

One hash a source, with an entry for each process. The time of an entry is set by Redis, and compared with Redis' clock.
An entry stays for a day after its process has become silent, so that readers can report since when.

Errors: `CacheUnavailable`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from optimizer.cache.client import CacheClient
from optimizer.cache.clocks import FUTURE_TOLERANCE_S, text_of
from optimizer.cache.keys import number_of
from optimizer.cache.scripts import HEARTBEAT
from optimizer.models import UNDECODABLE, Process

__all__ = ["Heartbeat", "Heartbeats", "decode_processes"]

REMEMBERED_S: Final = 86_400.0
# A process is overdue after this many of its periods, plus a little for the delays of a busy machine.
OVERDUE_PERIODS: Final = 3
OVERDUE_S: Final = 2.0


class Heartbeat(msgspec.Struct, frozen=True):
    """A heartbeat: the name of the process, unique among all of its kind, and its period in seconds.

    `queues` and `memory_limit_bytes` are those of `Process`.
    """

    kind: Literal["worker", "beat"]
    name: str
    period_s: float
    queues: list[str] = msgspec.field(default_factory=list)
    memory_limit_bytes: int | None = None


_HEARTBEAT: Final = msgspec.json.Decoder(Heartbeat)


class Heartbeats:
    """The heartbeats of one source."""

    def __init__(self, cache: CacheClient) -> None:
        self._cache = cache
        self._key = cache.keys.processes

    def tell(self, heartbeat: Heartbeat) -> None:
        """Send a heartbeat of a process."""
        with self._cache.commands() as client:
            client.eval(
                HEARTBEAT,
                1,
                self._key,
                f"{heartbeat.kind} {heartbeat.name}",
                msgspec.json.encode(heartbeat),
                str(round(1000 * REMEMBERED_S)),
            )

    def leave(self, heartbeat: Heartbeat) -> None:
        """Remove a process that ends in order, so that it is not reported as silent."""
        with self._cache.commands() as client:
            client.hdel(self._key, f"{heartbeat.kind} {heartbeat.name}")


def decode_processes(entries: Mapping[bytes, bytes], now_s: float) -> list[Process]:
    """Decode the hash, the latest heartbeat first, without entries that cannot be read, such as another release's.

    Args:
        entries: The fields of the hash.
        now_s: The time by Redis' clock, in seconds since the epoch.
    """
    processes = []
    for value in entries.values():
        told_ms, _, data = value.partition(b" ")
        try:
            heartbeat = _HEARTBEAT.decode(data)
        except UNDECODABLE:
            continue
        told_s = number_of(told_ms) / 1000
        if not told_s:
            continue
        process = Process(
            kind=heartbeat.kind,
            name=heartbeat.name,
            seen_at=text_of(told_s),
            is_alive=-FUTURE_TOLERANCE_S <= now_s - told_s <= OVERDUE_PERIODS * heartbeat.period_s + OVERDUE_S,
            queues=heartbeat.queues,
            memory_limit_bytes=heartbeat.memory_limit_bytes,
        )
        processes.append((told_s, process))
    return [process for _, process in sorted(processes, key=lambda each: (-each[0], each[1].name))]
