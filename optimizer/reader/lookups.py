"""Lookups, the plans of `symbol`, `top` and `runs`: from what is held, else from Redis, else from the files. No I/O.

Every answer is of the version that is held, so that no method shows an older one than another, or a newer one that the
others do not show yet. Where neither Redis nor the files have the index of that version (any more, or yet), the reader
looks for a newer one; if there is none, it is a missing snapshot: the index of an older version would be a step back,
and "no such symbol" not true.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final, Literal, TypeVar

import msgspec

from optimizer.cache.client import UNREADABLE, translated_errors
from optimizer.errors import CacheUnavailable, SnapshotMissing
from optimizer.models import Index, Origin, Record, Report
from optimizer.reader.cached_version import Held, Sight, store
from optimizer.reader.follower import READ_ATTEMPTS, Calls, Follower, Look, Plan, call
from optimizer.reader.results import Answer
from optimizer.snapshots.store import snapshot_store

__all__ = ["LOOKUPS_AT_ONCE", "Lookups", "ScanStatus"]

# More would take a connection each, and a pool that is exhausted looks like a Redis that is away. The refresher's looks
# are not among them: they must not wait in this line.
LOOKUPS_AT_ONCE: Final = 8
# No index is so long; Redis refuses numbers beyond 64 bits.
MAX_RANK: Final = 1 << 53

T = TypeVar("T")
# The one status whose reports are kept apart from the others.
ScanStatus = Literal["success"]

_RECORD: Final = msgspec.json.Decoder(Record)
_REPORT: Final = msgspec.json.Decoder(Report)


class Lookups:
    """Parts of what a follower follows."""

    def __init__(self, follower: Follower) -> None:
        self._follower = follower
        self._index: tuple[Sight, Index] | None = None

    def symbol(self, symbol: str) -> Plan[Answer[Record | None]]:
        """The record of one symbol of the index; `None` in it where there is no such symbol."""

        def from_redis(held: Held) -> Plan[Answer[Record | None] | None]:
            key = self._follower.keys.payload(held.version, "symbols")
            data, exists = yield [call("hget", key, symbol.encode("utf-8", "surrogatepass")), call("exists", key)]
            return self._answer(held, "redis", None if data is None else _RECORD.decode(data)) if exists else None

        def from_index(records: list[Record]) -> Record | None:
            return next((record for record in records if record.symbol == symbol), None)

        def from_held(held: Held) -> Answer[Record | None] | None:
            record = held.records.get(symbol)
            return None if record is None else self._answer(held, held.payloads["predictions"].origin, record)

        return self._look_up(from_held, from_redis, from_index)

    def top(self, n: int, offset: int) -> Plan[Answer[list[Record]]]:
        """`n` records of the index from rank `offset` on, by confidence descending, then symbol."""
        if n < 0 or offset < 0:
            raise ValueError(f"n={n} and offset={offset} may not be negative")
        n, offset = min(n, MAX_RANK), min(offset, MAX_RANK)

        def from_redis(held: Held) -> Plan[Answer[list[Record]] | None]:
            return self._top_from_redis(held, n, offset)

        def from_index(records: list[Record]) -> list[Record]:
            return records[offset : offset + n]

        def from_held(held: Held) -> Answer[list[Record]] | None:
            best = held.payloads.get("predictions")
            if best is None or offset + n > len(best.value.predictions):
                return None
            return self._answer(held, best.origin, best.value.predictions[offset : offset + n])

        return self._look_up(from_held, from_redis, from_index)

    def runs(self, count: int, status: ScanStatus | None) -> Plan[list[Report]]:
        """The newest reports, newest first; none where Redis is away. A report that cannot be read is left out."""
        if not self._follower.cache_up or count < 1:
            return []
        keys = self._follower.keys
        try:
            [entries] = yield [call("xrevrange", keys.runs if status is None else keys.scans, count=count)]
        except CacheUnavailable as error:
            self._follower.failed(error)
            return []
        found = []
        for _, fields in entries:
            try:
                found.append(_REPORT.decode(fields.get(b"report", b"")))
            except UNREADABLE:  # of another release
                continue
        # Who has read of a version must not be shown an older one after that.
        newest = max((report.version or 0 for report in found), default=0)
        if not self._follower.holds(newest):
            yield Look(newest)
        return found

    def _look_up(
        self,
        from_held: Callable[[Held], Answer[T] | None],
        from_redis: Callable[[Held], Plan[Answer[T] | None]],
        from_index: Callable[[list[Record]], T],
    ) -> Plan[Answer[T]]:
        """Ask wherever the version that is held may be; then look for a newer one, and ask for that."""
        follower, problem = self._follower, "not of this version"
        for _ in range(READ_ATTEMPTS):
            held = follower.current()
            found = from_held(held) or (yield from self._ask_redis(held, from_redis))
            if found is not None:
                return found
            try:
                index: Index | None = yield partial(self._read_index, held)
            except UNREADABLE as error:
                index, problem = None, f"they cannot be read: {error}"
            if index is not None:
                return self._answer(held, "files", from_index(index.symbols))
            yield Look(held.version + 1)
            if follower.held is held:
                break
        raise SnapshotMissing(
            f"no index of {follower.keys.source!r} for version {follower.current().version}, the newest that is known: "
            f"Redis: {follower.problem if not follower.cache_up else 'not of this version'}; files in "
            f"{follower.output_dir}: {problem}. The next run mends it: is the worker running?"
        )

    def _ask_redis(self, held: Held, read: Callable[[Held], Plan[Answer[T] | None]]) -> Plan[Answer[T] | None]:
        if not self._follower.cache_up or held.origin != "redis":
            return None
        try:
            with translated_errors(self._follower.url):
                return (yield from read(held))
        except CacheUnavailable as error:
            self._follower.failed(error)
            return None

    def _top_from_redis(self, held: Held, n: int, offset: int) -> Plan[Answer[list[Record]] | None]:
        keys = self._follower.keys
        ranking, key = keys.payload(held.version, "ranking"), keys.payload(held.version, "symbols")
        symbols = (yield from self._ranked_symbols(ranking, n, offset)) if n else []
        wanted: Calls = [call("exists", key, ranking)]
        replies = yield wanted + ([call("hmget", key, symbols)] if symbols else [])
        data: list[bytes | None] = replies[1] if symbols else []
        if replies[0] != 2 or None in data:
            return None
        return self._answer(held, "redis", [_RECORD.decode(item) for item in data if item is not None])

    def _ranked_symbols(self, key: str, n: int, offset: int) -> Plan[list[bytes]]:
        """Symbols of a window of the ranking.

        A sorted set orders equal scores by member ascending, and so descending when it is read from the best: the
        groups of equals that the window touches are read whole and put in order here.
        """
        [window] = yield [call("zrange", key, offset, offset + n - 1, desc=True, withscores=True)]
        if not window:
            return []
        best, worst = window[0][1], window[-1][1]
        before, groups = yield [
            call("zcount", key, f"({best!r}", "+inf"),
            call("zrangebyscore", key, repr(worst), repr(best), withscores=True),
        ]
        ordered = sorted(groups, key=lambda entry: (-entry[1], entry[0]))
        return [symbol for symbol, _ in ordered[offset - before : offset - before + n]]

    def _read_index(self, held: Held) -> Index | None:
        """The index of the version that is held, from the files, decoded once a version; blocks."""
        follower = self._follower
        if self._index is None or not held.is_at(self._index[0]):
            if follower.output_dir is None:
                return None
            found = follower.read_files(partial(snapshot_store(follower.output_dir).read_set, kinds=("index",)))
            if found is None:
                return None
            sight = Sight.of_manifest(found.manifest, "", 0.0)
            if not held.is_at(sight):
                return None
            self._index = (sight, store("index", sight.etags["index"], "files", found.payloads["index"]).value)
        return self._index[1]

    def _answer(self, held: Held, origin: Origin, value: T) -> Answer[T]:
        age_s = held.age_s()
        stale = age_s > self._follower.stale_after_s
        return Answer(
            version=held.version, etag=f"{held.version:x}", value=value, origin=origin, age_s=age_s, stale=stale
        )
