"""The lookups of `symbol`, `top` and `runs`: in memory, else in Redis, else in the files.

Every result is of the version in memory, so that all methods show the same version. If neither Redis nor the files have
the index of that version (any more, or yet), the lookup refreshes. If there is no newer version either, the lookup
fails with a missing snapshot: the index of an older version would be a step back, and "no such symbol" would be wrong.

Errors: `SnapshotMissing`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Literal, TypeVar

from optimizer.cache.client import NAMED, UNREADABLE
from optimizer.errors import CacheUnavailable, SnapshotMissing
from optimizer.models import Index, Origin, Process, Record, Report
from optimizer.reader.follower import Follower
from optimizer.reader.redis_store import READ_ATTEMPTS
from optimizer.reader.results import Answer, CachedVersion, Sighting

if TYPE_CHECKING:
    from optimizer.reader.diagnosis import Facts

__all__ = ["Lookups", "ScanStatus"]

# The most lookups at a time: each takes a connection, and an exhausted pool would look like a Redis that is away. The
# refresher is not counted: it must not wait for lookups.
LOOKUPS_AT_ONCE: Final = 8
# The number of reports that are read for a diagnosis: most runs find no change, or are skipped.
RUNS_READ: Final = 100
# Longer than any index; Redis refuses numbers beyond 64 bits.
MAX_RANK: Final = 1 << 53

T = TypeVar("T")
# The one status whose reports are kept apart from the others.
ScanStatus = Literal["success"]


class Lookups:
    """Lookups in the version of a follower; all but the `cached_` methods block."""

    def __init__(self, follower: Follower) -> None:
        self._follower = follower
        self._at_once = threading.BoundedSemaphore(LOOKUPS_AT_ONCE)
        self._index: tuple[Sighting, Index] | None = None

    def cached_symbol(self, symbol: str) -> Answer[Record | None] | None:
        """Return the record of one symbol, if it is in memory; else `None`."""
        answer = self._cached_symbols(self._follower.current(), [symbol])
        return None if answer is None else _part(answer, answer.value[0])

    def cached_top(self, n: int, offset: int) -> Answer[list[Record]] | None:
        """Return `n` records from rank `offset` on, if they are in memory; else `None`."""
        n, offset = _window(n, offset)
        return self._cached_top(self._follower.current(), n, offset)

    def symbol(self, symbol: str) -> Answer[Record | None]:
        """Return the record of one symbol of the index; its `value` is `None` if there is no such symbol."""
        return self.symbols([symbol])[0]

    def symbols(self, symbols: Sequence[str]) -> list[Answer[Record | None]]:
        """Return the records of symbols, in their order and of one version, by one request to Redis."""
        together = self._look_up(
            lambda cached: self._cached_symbols(cached, symbols),
            lambda version: self._follower.redis.records(version, symbols),
            lambda records: list(map({record.symbol: record for record in records}.get, symbols)),
        )
        return [_part(together, record) for record in together.value]

    def top(self, n: int, offset: int) -> Answer[list[Record]]:
        """`n` records of the index from rank `offset` on, by confidence descending, then symbol."""
        n, offset = _window(n, offset)
        return self._look_up(
            lambda cached: self._cached_top(cached, n, offset),
            lambda version: self._follower.redis.ranked(version, n, offset),
            lambda records: records[offset : offset + n],
        )

    def runs(self, count: int, status: ScanStatus | None) -> list[Report]:
        """The newest reports, newest first; none while Redis is away. A report that cannot be read is left out."""
        redis = self._follower.redis
        if not redis.up or count < 1:
            return []
        try:
            with self._at_once:
                reports = redis.reports(count, scans=status is not None)
        except CacheUnavailable:
            return []
        # A client that has read the report of a version must not be shown an older version after that.
        newest = max((report.version or 0 for report in reports), default=0)
        if not self._follower.holds(newest):
            self._follower.catch_up(newest)
        return reports

    def facts(self) -> Facts:
        """Return the facts about the source; no runs and no processes while Redis is away."""
        from optimizer.reader.diagnosis import Facts  # noqa: PLC0415 - few readers ask

        redis = self._follower.redis
        runs, processes = self.runs(RUNS_READ, None), list[Process]()
        with suppress(CacheUnavailable):
            if redis.up:
                with self._at_once:
                    processes = redis.processes()
        return Facts.of(self._follower, redis_up=redis.up, runs=runs, processes=processes)

    def _look_up(
        self,
        from_cached: Callable[[CachedVersion], Answer[T] | None],
        from_redis: Callable[[int], T | None],
        from_index: Callable[[list[Record]], T],
    ) -> Answer[T]:
        """Ask the stores for the version in memory; if they lack it, refresh, and ask for the newer version."""
        follower, problem = self._follower, "not of this version"
        with self._at_once:
            for _ in range(READ_ATTEMPTS):
                cached = follower.current()
                answer = from_cached(cached) or self._ask_redis(cached, from_redis)
                if answer is not None:
                    return answer
                try:
                    index = self._read_index(cached)
                except UNREADABLE as error:
                    index, problem = None, f"they cannot be read: {error}"
                if index is not None:
                    return self._answer(cached, "files", from_index(index.symbols))
                follower.catch_up(cached.version + 1)
                if follower.cached is cached:
                    break
        in_redis = "not of this version" if follower.redis.up else follower.redis.problem.removeprefix(NAMED)
        raise SnapshotMissing(
            f"no index of {follower.source!r} for version {follower.current().version}, the newest that is known: "
            f"Redis: {in_redis}; files in "
            f"{follower.output_dir}: {problem}. The next run mends it"
        )

    def _cached_symbols(self, cached: CachedVersion, symbols: Sequence[str]) -> Answer[list[Record | None]] | None:
        records = [cached.records.get(symbol) for symbol in symbols]
        if any(record is None for record in records):
            return None
        return self._answer(cached, cached.payloads["predictions"].origin, records)

    def _cached_top(self, cached: CachedVersion, n: int, offset: int) -> Answer[list[Record]] | None:
        best = cached.payloads.get("predictions")
        if best is None or offset + n > len(best.value.predictions):
            return None
        return self._answer(cached, best.origin, best.value.predictions[offset : offset + n])

    def _ask_redis(self, cached: CachedVersion, read: Callable[[int], T | None]) -> Answer[T] | None:
        if not self._follower.redis.up or cached.origin != "redis":
            return None
        try:
            value = read(cached.version)
        except CacheUnavailable:
            return None
        return None if value is None else self._answer(cached, "redis", value)

    def _read_index(self, cached: CachedVersion) -> Index | None:
        """Return the index of the version in memory, from the files, decoded once a version."""
        index = self._index
        if index is None or not cached.is_at(index[0]):
            files = self._follower.files
            index = None if files is None else files.load_index()
            if index is None or not cached.is_at(index[0]):
                return None
            self._index = index
        return index[1]

    def _answer(self, cached: CachedVersion, origin: Origin, value: T) -> Answer[T]:
        age_s = cached.age_s()
        return Answer(
            version=cached.version,
            etag=f"{cached.version:x}",
            value=value,
            origin=origin,
            age_s=age_s,
            stale=age_s > self._follower.stale_after_s,
        )


def _part(answer: Answer[list[T]], value: T) -> Answer[T]:
    return Answer(
        version=answer.version,
        etag=answer.etag,
        value=value,
        origin=answer.origin,
        age_s=answer.age_s,
        stale=answer.stale,
    )


def _window(n: int, offset: int) -> tuple[int, int]:
    if n < 0 or offset < 0:
        raise ValueError(f"n={n} and offset={offset} may not be negative")
    return min(n, MAX_RANK), min(offset, MAX_RANK)
