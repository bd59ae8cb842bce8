"""Lookups, the plans of `symbol`, `top` and `runs`: from what is held, else from Redis, else from the files. No I/O.

One small question to Redis, for the version that is held; where that has expired meanwhile, for the next one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, TypeVar

import msgspec

from optimizer.answers import Answer, Origin
from optimizer.connection import UNREADABLE, redis_answers
from optimizer.errors import CacheUnavailable, SnapshotMissing
from optimizer.follow import READ_ATTEMPTS, Calls, Follower, Plan, call
from optimizer.held import Held, Stored, store
from optimizer.outputs import read_manifest, read_set
from optimizer.records import Index, Record, Report

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
        self._index: tuple[int, Stored] | None = None

    def symbol(self, symbol: str) -> Plan[Answer[Record | None]]:
        """The record of one symbol of the index; `None` in it where there is no such symbol."""
        held = self._follower.current()
        record = held.records.get(symbol)
        if record is not None:
            return self._answer(held.version, held.payloads["predictions"].origin, record)
        found = yield from self._lookup(held, lambda version: self._symbol_from_redis(version, symbol))
        if found is not None:
            return found
        version, index = yield from self._index_from_files()
        record = next((record for record in index.symbols if record.symbol == symbol), None)
        return self._answer(version, "files", record)

    def top(self, n: int, offset: int) -> Plan[Answer[list[Record]]]:
        """`n` records of the index from rank `offset` on, by confidence descending, then symbol."""
        if n < 0 or offset < 0:
            raise ValueError(f"n={n} and offset={offset} may not be negative")
        n, offset = min(n, MAX_RANK), min(offset, MAX_RANK)
        held = self._follower.current()
        best = held.payloads.get("predictions")
        if best is not None and offset + n <= len(best.value.predictions):
            return self._answer(held.version, best.origin, best.value.predictions[offset : offset + n])
        found = yield from self._lookup(held, lambda version: self._top_from_redis(version, n, offset))
        if found is not None:
            return found
        version, index = yield from self._index_from_files()
        return self._answer(version, "files", index.symbols[offset : offset + n])

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
        yield from self._catch_up(max((report.version or 0 for report in found), default=0))
        return found

    def _lookup(self, held: Held, read: Callable[[int], Plan[Answer[T] | None]]) -> Plan[Answer[T] | None]:
        """Ask Redis for a part of the version that is held, or of the next one where it has expired by now."""
        if not self._follower.cache_up or held.origin != "redis":
            return None
        version = held.version
        try:
            for _ in range(READ_ATTEMPTS):
                with redis_answers(self._follower.url):
                    found = yield from read(version)
                if found is not None:
                    yield from self._catch_up(version)
                    return found
                pointer = yield from self._follower.pointer()
                if pointer is None:
                    return None
                version = pointer.version
        except CacheUnavailable as error:
            self._follower.failed(error)
        return None

    def _catch_up(self, version: int) -> Plan[None]:
        """Hold what a lookup has seen: whoever saw a version never sees an older one again."""
        held = self._follower.held
        if version and (held is None or held.version < version):
            yield from self._follower.look()

    def _symbol_from_redis(self, version: int, symbol: str) -> Plan[Answer[Record | None] | None]:
        key = self._follower.keys.payload(version, "symbols")
        data, exists = yield [call("hget", key, symbol.encode("utf-8", "surrogatepass")), call("exists", key)]
        return self._answer(version, "redis", None if data is None else _RECORD.decode(data)) if exists else None

    def _top_from_redis(self, version: int, n: int, offset: int) -> Plan[Answer[list[Record]] | None]:
        ranking, key = self._follower.keys.payload(version, "ranking"), self._follower.keys.payload(version, "symbols")
        symbols = (yield from self._ranked_symbols(ranking, n, offset)) if n else []
        wanted: Calls = [call("exists", key, ranking)]
        replies = yield wanted + ([call("hmget", key, symbols)] if symbols else [])
        data: list[bytes | None] = replies[1] if symbols else []
        if replies[0] != 2 or None in data:
            return None
        return self._answer(version, "redis", [_RECORD.decode(item) for item in data if item is not None])

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

    def _index_from_files(self) -> Plan[tuple[int, Index]]:
        follower, problem = self._follower, "none"
        found = None
        try:
            found = yield self._read_index
        except UNREADABLE as error:
            problem = f"they cannot be read: {error}"
        if found is None:
            raise SnapshotMissing(
                f"no index of {follower.keys.source!r}: Redis: {follower.problem}; files in {follower.output_dir}: "
                f"{problem}. Is the worker running? See its log, or run: rolling-optimizer run"
            )
        version, index = found
        yield from self._catch_up(version)
        return version, index.value

    def _read_index(self) -> tuple[int, Stored] | None:
        """The index from the files, decoded once a version; blocks."""
        manifest = None if self._follower.output_dir is None else read_manifest(self._follower.output_dir)
        if manifest is None or self._follower.output_dir is None:
            return None
        if self._index is None or self._index[0] != manifest.version:
            found = read_set(self._follower.output_dir, kinds=("index",))
            if found is None:
                return None
            entry = found.manifest.snapshots["index"]
            self._index = (found.manifest.version, store("index", entry.sha256, "files", found.payloads["index"]))
        return self._index

    def _answer(self, version: int, origin: Origin, value: T) -> Answer[T]:
        age_s = self._follower.current().age_s()
        stale = age_s > self._follower.stale_after_s
        return Answer(version=version, etag=f"{version:x}", value=value, origin=origin, age_s=age_s, stale=stale)
