"""The queue of updates in Redis, and the updates in force.

The updates of one call are one entry. One script accepts an entry, unless more would wait or be held than may. The
script that shows an entry (`flip.py`), or drops it because a guard refused it, also removes it. So each entry is
applied once.

Errors: `CacheUnavailable`, `UpdatesRefused`.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple, cast

import msgspec

from optimizer.cache.client import CacheClient
from optimizer.cache.damage import warn_of_damage
from optimizer.cache.keys import Keys, number_of
from optimizer.cache.pointer import Pointer
from optimizer.cache.scripts import DROP, END_DRAIN, ENQUEUE, READ_QUEUE
from optimizer.errors import UpdatesRefused
from optimizer.models import UNDECODABLE, HeldUpdate, QueuedUpdate, Record

__all__ = ["Call", "QueueState", "Refused", "UpdateQueue", "decode_held", "encode_held"]

# The time that a drain has, once sent, to begin and extend the flag; after that, another drain is sent.
DRAINING_TTL_S: Final = 1.0
# redis-py repeats a script within two of its timeouts.
ACCEPTED_TTL_S: Final = 15.0
# For how many refused entries the reason is kept, for their callers.
REFUSED_KEPT: Final = 100

_ENTRY: Final = msgspec.json.Decoder(QueuedUpdate)
_HELD: Final = msgspec.json.Decoder(HeldUpdate)
_encode: Final = msgspec.json.Encoder().encode


class Call(NamedTuple):
    """A call that may be repeated with the same token within some seconds, and is accepted once."""

    token: str
    again_within_s: float


class Refused(msgspec.Struct, frozen=True, array_like=True):
    """The number of an entry that a guard has refused, and why."""

    sequence: int
    reason: str


_REFUSED: Final = msgspec.json.Decoder(list[Refused])


@dataclass(frozen=True)
class QueueState:
    """The waiting entries, oldest first, and the queue's counters; `pointer` was read at the same moment.

    `newest` is the number of the newest accepted entry, `applied` the number of the last one applied or dropped.
    `tat_ms` is the theoretical arrival time of the next version, see `pipeline/pace.py`; `now_ms` is the time by Redis'
    clock, both in milliseconds since the epoch.
    """

    pointer: Pointer | None
    entries: list[QueuedUpdate]
    newest: int
    applied: int
    tat_ms: float
    refused: list[Refused]
    now_ms: float = 0.0


class UpdateQueue:
    """The queue of one source."""

    def __init__(self, cache: CacheClient) -> None:
        self._cache = cache
        self._keys = cache.keys

    def enqueue(
        self,
        records: Sequence[Record],
        removed: Sequence[str],
        *,
        queue_limit: int,
        held_limit: int,
        call: Call | None = None,
    ) -> tuple[int, bool]:
        """Append an entry; return its number, and whether nothing drains the queue.

        Args:
            records: Its records.
            removed: Its removals.
            queue_limit: How many records and removals may wait.
            held_limit: How many symbols may be held.
            call: The call, if it may come again.

        Raises:
            UpdatesRefused: That would be more.
        """
        keys, size = self._keys, len(records) + len(removed)
        entry = _encode({"records": records, "removed": removed})[1:]
        symbols = {record.symbol for record in records} | set(removed)
        call = call or Call(secrets.token_hex(16), ACCEPTED_TTL_S)
        names = (keys.queue, keys.queued, keys.updates, keys.draining, keys.accepted(call.token))
        limits = (str(size), str(queue_limit), str(held_limit))
        times_ms = (round(1000 * DRAINING_TTL_S), round(1000 * call.again_within_s), -(-time.time_ns() // 1_000_000))
        with self._cache.commands() as client:
            reply = client.eval(ENQUEUE, len(names), *names, entry, *limits, *map(str, times_ms), *symbols)
        outcome, number, *rest = cast("list[Any]", reply)
        if outcome == b"queue":
            raise UpdatesRefused(
                f"{number:,} updates wait already, and {size:,} more are beyond "
                f"ROLLING_UPDATE_QUEUE_LIMIT={queue_limit}; nothing of this call was taken. Send it again later: is a "
                "worker running, and is no version pinned?"
            )
        if outcome == b"held":
            raise UpdatesRefused(
                f"{number:,} symbols have updates that hold until the next input, and {held_limit:,} may (twice "
                "ROLLING_INDEX_SYMBOLS_LIMIT); nothing of this call was taken. Write the input: a scan takes their "
                "place"
            )
        return number, bool(rest[0])

    def read(self, *, is_last: bool = False) -> QueueState:
        """Read what waits, together with the pointer.

        The flag of a drain is extended, or deleted if this one applies what is read now, and nothing after it.
        """
        keys, ttl_ms = self._keys, "" if is_last else str(round(1000 * DRAINING_TTL_S))
        names = (keys.draining, keys.current, keys.queued, keys.queue)
        with self._cache.commands() as client:
            reply = client.eval(READ_QUEUE, len(names), *names, ttl_ms)
            pointer, numbers, entries, now = cast("list[list[bytes]]", reply)
            now_ms = int(now[0]) * 1000 + int(now[1]) / 1000 if now else 1000 * time.time()
            return replace(_state(_fields(pointer), _fields(numbers), entries, keys.source), now_ms=now_ms)

    def numbers(self) -> QueueState:
        """Read the same without the entries, for those who wait for one."""
        with self._cache.commands() as client:
            pipeline = client.pipeline()
            pipeline.hgetall(self._keys.current)
            pipeline.hgetall(self._keys.queued)
            pointer, numbers = pipeline.execute()
            return _state(pointer, numbers, [], self._keys.source)

    def applied(self) -> int:
        """Read the number of the last entry that was applied or dropped."""
        with self._cache.commands() as client:
            return number_of(cast("bytes | None", client.hget(self._keys.queued, "applied")))

    def waiting(self) -> QueueState:
        """Read the same without the pointer, for a scan, which knows it."""
        with self._cache.commands() as client:
            pipeline = client.pipeline()
            pipeline.hgetall(self._keys.queued)
            pipeline.lrange(self._keys.queue, 0, -1)
            numbers, entries = pipeline.execute()
            return _state({}, numbers, entries, self._keys.source)

    def drop(self, state: QueueState, token: str, reason: str) -> bool:
        """Remove the oldest entry, which a guard has refused; false if `publishing` is no longer held."""
        entry = state.entries[0]
        refused = [*state.refused, Refused(entry.sequence, reason)][-REFUSED_KEPT:]
        keys = (self._keys.publishing, self._keys.queue, self._keys.queued)
        numbers = (str(state.applied), str(entry.sequence), str(entry.size))
        with self._cache.commands() as client:
            return bool(client.eval(DROP, len(keys), *keys, token, *numbers, _encode(refused)))

    def end_drain(self) -> bool:
        """End a drain; false if something waits again, which it has to apply."""
        with self._cache.commands() as client:
            return bool(client.eval(END_DRAIN, 2, self._keys.queue, self._keys.draining))

    def held(self) -> dict[str, HeldUpdate]:
        """The updates in force, by symbol."""
        with self._cache.commands() as client:
            values = cast("dict[bytes, bytes | None]", client.hgetall(self._keys.updates))
            return decode_held(values, self._keys.source)


def decode_held(values: Mapping[bytes, bytes | None], source: str) -> dict[str, HeldUpdate]:
    """Decode the updates in force, without those that are damaged: then there are fewer than the manifest says."""
    held = {}
    for name, value in values.items():
        if value is None:
            continue
        try:
            held[name.decode()] = _HELD.decode(value)
        except UNDECODABLE as error:
            warn_of_damage(f"{Keys(source).updates} holds for {name!r} what is no update ({error})", source)
    return held


def encode_held(held: Mapping[str, HeldUpdate]) -> dict[Any, Any]:
    """Encode the updates in force, as fields of their key."""
    return {symbol: _encode(update) for symbol, update in held.items()}


def _state(
    pointer: dict[bytes, bytes], numbers: dict[bytes, bytes], entries: Sequence[bytes], source: str
) -> QueueState:
    refused: list[Refused] = []
    with suppress(*UNDECODABLE):
        refused = _REFUSED.decode(numbers.get(b"refused", b"[]"))
    applied = number_of(numbers.get(b"applied"))
    decoded: list[QueuedUpdate] = []
    for entry in entries:
        try:
            decoded.append(_ENTRY.decode(entry))
        except UNDECODABLE as error:
            warn_of_damage(f"{Keys(source).queue} holds what is no update ({error})", source)
            # In its place an empty one, which is removed like any other: the queue must not stop at it.
            decoded.append(QueuedUpdate(decoded[-1].sequence + 1 if decoded else applied + 1, 0, [], []))
    return QueueState(
        pointer=Pointer.from_hash(pointer),
        entries=decoded,
        newest=number_of(numbers.get(b"sequence")),
        applied=applied,
        tat_ms=float(number_of(numbers.get(b"tat_ms"))),
        refused=refused,
    )


def _fields(reply: list[bytes]) -> dict[bytes, bytes]:
    """The fields of a hash as a script returns them: each name followed by its value."""
    return dict(zip(reply[::2], reply[1::2], strict=True))
