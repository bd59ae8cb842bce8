"""Makes the next version in Redis from the current one and a few updates, at a cost proportional to the changes.

Redis copies the values of the current version to staged keys, where the updates are applied to the copies; then
`flip.py` makes them current. So no published version is ever changed, and a process that dies at any moment leaves the
old version, or the new one with its updates removed from the queue.

Errors: `CacheUnavailable`, also if a value of the current version is gone or damaged; `PublishRefused` from the flip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, cast

import msgspec

from optimizer.cache.client import CacheClient
from optimizer.cache.flip import STAGED_TTL_S, STAGED_TYPES, Consumed, flip, new_seal
from optimizer.cache.keys import PAYLOAD_KINDS, VERSION_TYPES, version_of
from optimizer.cache.pointer import Pointer
from optimizer.cache.scripts import STAGE_UPDATES
from optimizer.cache.update_queue import decode_held, encode_held
from optimizer.errors import CacheUnavailable
from optimizer.models import UNDECODABLE, HeldUpdate, Manifest, Record
from optimizer.snapshots.format import whole_payloads

__all__ = ["Base", "StagedIndex", "UpdateWriter"]

# A reader follows within a second, and refreshes if the version that it looks up is gone. At four versions a second,
# each with an index of 10,000 records (3 MB), some 20 exist at the same time; with the two minutes after a scan, 480.
REPLACED_TTL_S: Final = 5

_RECORD: Final = msgspec.json.Decoder(Record)
_encode: Final = msgspec.json.Encoder().encode


@dataclass(frozen=True)
class Base:
    """The data of the current version that updates need to change it.

    Attributes:
        pointer: Its pointer.
        payloads: Its predictions, or all three payloads.
        records: For each updated symbol its record in the index, `None` for none.
        held: For each updated symbol the update in force, if there is one.
        not_held: The updated symbols without an update in force.
        held_count: How many updates are in force.
        index_count: How many records the index has.
        newest_known: The newest version that Redis knows of.
    """

    pointer: Pointer
    payloads: dict[str, bytes]
    records: dict[str, Record | None]
    held: dict[str, HeldUpdate]
    not_held: set[str]
    held_count: int
    index_count: int
    newest_known: int


@dataclass(frozen=True)
class StagedIndex:
    """A staged index: the number of its records, and the symbols of the best, best first."""

    count: int
    best: list[str]


class UpdateWriter:
    """Makes the versions of one source that come from updates.

    Args:
        cache: The connection.
        token: The token in `publishing`, under which values are staged.
    """

    def __init__(self, cache: CacheClient, token: str) -> None:
        self._cache = cache
        self._keys = cache.keys
        self._token = token
        self._staged = {kind: self._keys.staged(token, kind) for kind in (*STAGED_TYPES, "seal")}
        self._seal = ""

    def read(self, pointer: Pointer, symbols: Sequence[str], kinds: Sequence[str]) -> Base:
        """Read the data of the current version that updates of these symbols need, and the payloads of these kinds."""
        keys, version = self._keys, pointer.version
        names = {kind: keys.payload(version, kind) for kind in VERSION_TYPES}
        symbols = symbols or ("",)  # for an empty call, since HMGET needs at least one field
        with self._cache.commands() as client:
            pipeline = client.pipeline(transaction=False)
            pipeline.hmget(names["symbols"], list(symbols))
            pipeline.hmget(keys.updates, list(symbols))
            pipeline.hlen(keys.updates)
            pipeline.hlen(names["symbols"])
            pipeline.zcard(names["ranking"])
            pipeline.hget(keys.flipped, "version")
            pipeline.xrevrange(keys.deltas, count=1)
            pipeline.mget([names[kind] for kind in kinds])
            records, held, held_count, index_count, ranked, flipped, changes, payloads = pipeline.execute()
            whole = whole_payloads(pointer.manifest, kinds, payloads)
            if not index_count or index_count != ranked or whole is None:  # no version is without a record
                raise CacheUnavailable(f"version {version} is not whole in Redis; the next tick mends it")
            if held_count != pointer.manifest.updates:
                raise CacheUnavailable(
                    f"of {pointer.manifest.updates} updates that hold Redis has {held_count}; the next tick mends it"
                )
            changed = changes[0][0].partition(b"-")[0] if changes else b""
            return Base(
                pointer=pointer,
                payloads=whole,
                records=dict(zip(symbols, map(_record, records), strict=True)),
                held=decode_held(dict(zip((each.encode() for each in symbols), held, strict=True)), keys.source),
                not_held={symbol for symbol, data in zip(symbols, held, strict=True) if data is None},
                held_count=held_count,
                index_count=index_count,
                newest_known=max(version_of(flipped), version_of(changed)),
            )

    def stage(
        self, version: int, changed: Mapping[str, HeldUpdate], *, limit: int, top: int, min_confidence: float
    ) -> StagedIndex:
        """Stage the index and the updates in force, with these updates applied.

        Args:
            version: The version that is changed.
            changed: The updates, by symbol.
            limit: How many records the index may have.
            top: How many of the best symbols are returned.
            min_confidence: The lowest confidence of these.
        """
        keys, staged = self._keys, self._staged
        names = (
            *(keys.payload(version, kind) for kind in ("symbols", "ranking")),
            *(staged[kind] for kind in ("symbols", "ranking", "updates", "seal")),
        )
        self._seal = new_seal()
        arguments: list[str | bytes] = [str(STAGED_TTL_S), str(limit), str(top), repr(min_confidence), self._seal]
        for symbol, update in encode_held(changed).items():
            record = changed[symbol].record
            put = (b"", "") if record is None else (_encode(record), repr(record.confidence))
            arguments += [symbol, update, *put]
        with self._cache.commands() as client:
            count, best = cast("tuple[int, list[bytes]]", client.eval(STAGE_UPDATES, len(names), *names, *arguments))
            return StagedIndex(count, [symbol.decode() for symbol in best])

    def records(self, symbols: Sequence[str]) -> list[Record]:
        """The records of symbols in the staged index."""
        if not symbols:
            return []
        with self._cache.commands() as client:
            stored = cast("list[bytes | None]", client.hmget(self._staged["symbols"], list(symbols)))
            return [_RECORD.decode(data or b"") for data in stored]

    def discard(self) -> None:
        """Delete the staged values: otherwise each refused entry would keep 3 MB (10,000 records) for three minutes."""
        with self._cache.commands() as client:
            client.delete(*self._staged.values())

    def publish(
        self,
        manifest: Manifest,
        *,
        base: Base,
        changed: int,
        predictions: bytes | None,
        change: bytes,
        consumed: Consumed,
    ) -> None:
        """Make the staged version the current one.

        Args:
            manifest: Its manifest.
            base: The version from which it was made.
            changed: How many updates are staged.
            predictions: Its predictions, `None` if they are unchanged.
            change: The entry of the stream of changes, empty for none.
            consumed: The entries that it applies.

        Raises:
            PublishRefused: `publishing` is no longer held, or another version was published since.
        """
        keys, staged, before = self._keys, self._staged, base.pointer.version
        with self._cache.commands() as client:
            pipeline = client.pipeline()
            for kind in PAYLOAD_KINDS:
                if kind == "predictions" and predictions is not None:
                    pipeline.set(staged[kind], predictions)
                else:
                    pipeline.copy(keys.payload(before, kind), staged[kind])
                pipeline.expire(staged[kind], STAGED_TTL_S)
            flip(
                pipeline,
                keys,
                manifest,
                lock_key=keys.publishing,
                token=self._token,
                seal=self._seal,
                checked_at=base.pointer.checked_at,  # of the input, which an update does not confirm
                version_before=before,
                old_versions=[before],
                old_ttl_s=REPLACED_TTL_S,
                change=change,
                updates=changed,
                consumed=consumed,
            )


def _record(data: bytes | None) -> Record | None:
    """Decode a record; `None` for a damaged one, which the update replaces."""
    with suppress(*UNDECODABLE):
        return _RECORD.decode(data or b"")
    return None
