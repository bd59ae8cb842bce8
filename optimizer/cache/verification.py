"""Compares the current version in Redis with the snapshots in the files; each key that differs is one warning.

Errors: `CacheUnavailable`.
"""

from __future__ import annotations

import random
from typing import Final, cast

import msgspec
import redis

from optimizer.cache.client import UNREADABLE, CacheClient
from optimizer.cache.damage import warn_of_damage
from optimizer.cache.keys import PAYLOAD_KINDS, VERSION_KINDS, VERSION_TYPES, version_of
from optimizer.cache.pointer import pointer_fields
from optimizer.models import Record
from optimizer.snapshots.format import SnapshotSet

__all__ = ["is_intact", "shows"]

# Each tick reads this many ranks back, another window each time, in 0.5 ms: all 10,000 would take 50 ms.
RANKS_CHECKED: Final = 50

# TTL of a key that does not expire, and of a missing key, as a hash without fields is.
LASTING: Final = -1
ABSENT: Final = -2

_RECORD: Final = msgspec.json.Decoder(Record)


def is_intact(cache: CacheClient, version: int) -> bool:
    """Whether every value of a version exists with its type and without expiry; Redis may have evicted some.

    If updates have made a newer version since the pointer was read, it counts as intact until the next tick.
    """
    names = {cache.keys.payload(version, kind): kind_type for kind, kind_type in VERSION_TYPES.items()}
    with cache.commands() as client:
        pipeline = client.pipeline(transaction=False)
        for name in names:
            pipeline.type(name)
            pipeline.ttl(name)
        replies = pipeline.execute()
    actual = dict(zip(names, zip(replies[::2], replies[1::2], strict=True), strict=True))
    wrong = [name for name, reply in actual.items() if reply != (names[name].encode(), LASTING)]
    if wrong and _is_replaced(cache, version):
        return True
    for name in wrong:
        if actual[name][0] != b"none":
            warn_of_damage(f"{name} is of another type, or expires", cache.keys.source)
    return not wrong


def shows(cache: CacheClient, snapshots: SnapshotSet) -> bool:
    """Whether Redis shows this set, whole and without expiry.

    For the index, the number of symbols is compared and a window of ranks is read back, another one each time; for the
    updates in force, their number. A newer version that updates have made since the pointer was read is no damage.
    """
    manifest, keys = snapshots.manifest, cache.keys
    names = {kind: keys.payload(manifest.version, kind) for kind in VERSION_KINDS}
    count = manifest.snapshots["index"].count
    expected = {
        keys.current: pointer_fields(manifest, ""),
        **{names[kind]: snapshots.payloads[kind] for kind in PAYLOAD_KINDS},
        names["symbols"]: count,
        names["ranking"]: count,
        keys.updates: manifest.updates,
    }
    with cache.commands() as client:
        pipeline = client.pipeline(transaction=False)
        pipeline.hgetall(keys.current)
        for kind in PAYLOAD_KINDS:
            pipeline.get(names[kind])
        pipeline.hlen(names["symbols"])
        pipeline.zcard(names["ranking"])
        pipeline.hlen(keys.updates)
        for name in expected:
            pipeline.ttl(name)
        first = random.randint(0, max(0, count - RANKS_CHECKED))  # noqa: S311 - no secret
        pipeline.zrange(names["ranking"], first, first + RANKS_CHECKED - 1, withscores=True)
        # For a key of another type the reply is an error, which differs too.
        *replies, ranks = pipeline.execute(raise_on_error=False)
        if isinstance(replies[0], dict):
            if version_of(replies[0].get(b"version")) > manifest.version:
                return True
            replies[0][b"checked_at"] = b""  # changes at each tick
        actual = zip(replies, replies[len(expected) :], strict=False)
        wrong = [
            name
            for name, reply in zip(expected, actual, strict=True)
            if reply != (expected[name], ABSENT if expected[name] == 0 else LASTING)
        ]
        if not wrong and not _ranks_agree(client, ranks, names["symbols"]):
            wrong = [names["ranking"], names["symbols"]]
    for name in wrong:
        warn_of_damage(f"{name} is not what the files hold, or expires", cache.keys.source)
    return not wrong


def _is_replaced(cache: CacheClient, version: int) -> bool:
    """Whether the pointer names a newer version by now."""
    with cache.commands() as client:
        return version_of(cast("bytes | None", client.hget(cache.keys.current, "version"))) > version


def _ranks_agree(client: redis.Redis, ranks: list[tuple[bytes, float]], symbols: str) -> bool:
    """Whether a window of the ranking has the symbols and confidences of the index."""
    stored = cast("list[bytes | None]", client.hmget(symbols, [symbol for symbol, _ in ranks]))
    try:
        records = [_RECORD.decode(data or b"") for data in stored]
    except UNREADABLE:
        return False
    return ranks == [(record.symbol.encode(), record.confidence) for record in records]
