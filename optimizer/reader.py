"""The routers' side: the current snapshot from Redis, or from the gz files where Redis is away.

    reader = SnapshotReader.from_env()
    page = reader.predictions()
    page.value.predictions[0].symbol, page.version, page.etag, page.origin

Every answer says which version it is, and its `origin`: `redis` or `files`. A payload is fetched and decoded once a
version and held; a call costs one small read of the pointer. Timeouts are short: a page must not wait for a dead Redis.
A reader may be shared by threads. The asyncio twin and the refresher belong to the web layer, not here.

Errors: `SnapshotMissing` where there is neither; nothing else.
"""

from __future__ import annotations

import gzip
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Generic, Literal, TypeVar, cast

import msgspec

from optimizer.connection import UNREADABLE, connect, is_away, redis_answers
from optimizer.errors import CacheUnavailable, SnapshotMissing
from optimizer.keys import Keys, Pointer
from optimizer.records import (
    BotsSnapshot,
    Index,
    Manifest,
    PortfolioSnapshot,
    PredictionsSnapshot,
    Record,
    Report,
)
from optimizer.settings import Settings
from optimizer.snapshots import manifest_age_s, read_manifest, read_set

__all__ = ["Answer", "Origin", "Snapshot", "SnapshotReader", "State"]

# Two tries of this at the worst: what a page may wait when Redis hangs.
READER_TIMEOUT_S: Final = 0.25
# After a failure the files answer at once, and Redis is asked again only this much later.
RETRY_AFTER_S: Final = 1.0
READ_ATTEMPTS: Final = 3
# No index is so long; Redis refuses numbers beyond 64 bits.
MAX_RANK: Final = 1 << 53

Origin = Literal["redis", "files"]
T = TypeVar("T")


@dataclass(frozen=True)
class State:
    """Which version is current, from where, and how old.

    `age_s` is the time since a run last made or confirmed it; `generated_at` is when it was made.
    """

    version: int
    generated_at: str
    age_s: float
    origin: Origin


@dataclass(frozen=True)
class Snapshot(Generic[T]):
    """One whole snapshot: `gz` as stored, `value` decoded; `etag` is the SHA-256 of `gz` in hex."""

    version: int
    etag: str
    origin: Origin
    gz: bytes
    value: T


@dataclass(frozen=True)
class Answer(Generic[T]):
    """Part of a snapshot; `etag` stands for the version, which never changes once it is published."""

    version: int
    etag: str
    origin: Origin
    value: T


_DECODERS: Final[Mapping[str, Callable[[bytes], Any]]] = {
    "predictions": msgspec.json.Decoder(PredictionsSnapshot).decode,
    "bots": msgspec.json.Decoder(BotsSnapshot).decode,
    "portfolio": msgspec.json.Decoder(PortfolioSnapshot).decode,
    "index": msgspec.json.Decoder(Index).decode,
}
_RECORD: Final = msgspec.json.Decoder(Record)
_REPORT: Final = msgspec.json.Decoder(Report)


class SnapshotReader:
    """Reads one source's current snapshot.

    Args:
        redis_url: The cache.
        source: The source's name.
        output_dir: Where the gz files are, if this process can see them; `None` to do without.
    """

    def __init__(self, redis_url: str, source: str, output_dir: Path | None) -> None:
        self._url = redis_url
        self._keys = Keys(source)
        self._output_dir = output_dir
        self._client = connect(redis_url, timeout_s=READER_TIMEOUT_S)
        self._held: dict[str, Snapshot[Any]] = {}  # the last of each kind; one assignment, so threads need no lock
        self._redis_rests_until = 0.0

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> SnapshotReader:
        """A reader for the settings in `ROLLING_*` variables."""
        return cls.from_settings(Settings.from_env(os.environ if environ is None else environ))

    @classmethod
    def from_settings(cls, settings: Settings) -> SnapshotReader:
        """A reader for the Redis, source and output directory of these settings."""
        return cls(settings.redis_url, settings.source, settings.output_dir)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def predictions(self) -> Snapshot[PredictionsSnapshot]:
        """The top records."""
        return self._snapshot("predictions")

    def bots(self) -> Snapshot[BotsSnapshot]:
        """Every bot by name."""
        return self._snapshot("bots")

    def portfolio(self) -> Snapshot[PortfolioSnapshot]:
        """Holdings by symbol."""
        return self._snapshot("portfolio")

    def manifest(self) -> State:
        """Which version is current."""
        return self._ask(self._state_from_redis, self._state_from_files)

    def symbol(self, symbol: str) -> Answer[Record | None]:
        """The record of one symbol of the index; `None` in it where there is no such symbol."""
        return self._ask(lambda: self._symbol_from_redis(symbol), lambda: self._symbol_from_files(symbol))

    def top(self, n: int, offset: int = 0) -> Answer[list[Record]]:
        """`n` records of the index from rank `offset` on, by confidence descending, then symbol."""
        if n < 0 or offset < 0:
            raise ValueError(f"n={n} and offset={offset} may not be negative")
        n, offset = min(n, MAX_RANK), min(offset, MAX_RANK)
        return self._ask(lambda: self._top_from_redis(n, offset), lambda: self._top_from_files(n, offset))

    def runs(self, count: int = 10) -> list[Report]:
        """The newest reports, newest first; none where Redis is away: the files keep no history."""
        if time.monotonic() < self._redis_rests_until:
            return []
        try:
            with redis_answers(self._url):
                entries = cast(
                    "list[tuple[bytes, dict[bytes, bytes]]]", self._client.xrevrange(self._keys.runs, count=count)
                )
                return [_REPORT.decode(fields.get(b"report", b"")) for _, fields in entries]
        except CacheUnavailable as error:
            self._rest(error)
            return []

    # ---- Redis first, files second

    def _ask(self, redis_way: Callable[[], T | None], files_way: Callable[[], T | None]) -> T:
        problem = "it holds no snapshot"
        if time.monotonic() >= self._redis_rests_until:
            try:
                with redis_answers(self._url):
                    found = redis_way()
                if found is not None:
                    return found
            except CacheUnavailable as error:
                self._rest(error)
                problem = str(error)
        else:
            problem = "it did not answer a moment ago"
        try:
            found = files_way()
        except UNREADABLE as error:
            raise SnapshotMissing(
                f"the files in {self._output_dir} cannot be read: {error}; Redis: {problem}"
            ) from error
        if found is None:
            raise SnapshotMissing(
                f"no snapshot of {self._keys.source!r}: Redis: {problem}; files: none in {self._output_dir}. "
                "Is the worker running? See its log, or run: rolling-optimizer run"
            )
        return found

    def _rest(self, error: CacheUnavailable) -> None:
        """Leave a Redis that is away alone for a while; one that answers with an error is asked again."""
        if is_away(error):
            self._redis_rests_until = time.monotonic() + RETRY_AFTER_S

    def _snapshot(self, kind: str) -> Snapshot[Any]:
        return self._ask(lambda: self._snapshot_from_redis(kind), lambda: self._snapshot_from_files(kind))

    # ---- Redis

    def _pointer(self) -> Pointer | None:
        return Pointer.from_hash(cast("dict[bytes, bytes]", self._client.hgetall(self._keys.current)))

    def _state_from_redis(self) -> State | None:
        pointer = self._pointer()
        if pointer is None:
            return None
        checked = datetime.fromisoformat(pointer.checked_at)
        return State(pointer.version, pointer.generated_at, (datetime.now(UTC) - checked).total_seconds(), "redis")

    def _snapshot_from_redis(self, kind: str) -> Snapshot[Any] | None:
        for _ in range(READ_ATTEMPTS):
            pointer = self._pointer()
            if pointer is None:
                return None
            etag = pointer.etags[kind]
            held = self._held.get(kind)
            if held is not None and (held.version, held.etag, held.origin) == (pointer.version, etag, "redis"):
                return held
            data = cast("bytes | None", self._client.get(self._keys.payload(pointer.version, kind)))
            if data is not None:
                return self._hold(kind, pointer.version, etag, "redis", data)
            # It was replaced and has expired between the two reads: the pointer names another by now.
        return None

    def _symbol_from_redis(self, symbol: str) -> Answer[Record | None] | None:
        for _ in range(READ_ATTEMPTS):
            pointer = self._pointer()
            if pointer is None:
                return None
            key = self._keys.payload(pointer.version, "symbols")
            pipeline = self._client.pipeline(transaction=False)
            pipeline.hget(key, symbol.encode("utf-8", "surrogatepass"))
            pipeline.exists(key)
            data, exists = pipeline.execute()
            if exists:
                value = None if data is None else _RECORD.decode(data)
                return Answer(pointer.version, _etag(pointer.version), "redis", value)
        return None

    def _top_from_redis(self, n: int, offset: int) -> Answer[list[Record]] | None:
        for _ in range(READ_ATTEMPTS):
            pointer = self._pointer()
            if pointer is None:
                return None
            ranking = self._keys.payload(pointer.version, "ranking")
            symbols = self._ranked_symbols(ranking, n, offset)
            key = self._keys.payload(pointer.version, "symbols")
            data = cast("list[bytes | None]", self._client.hmget(key, symbols)) if symbols else []
            if None not in data and self._client.exists(key, ranking) == 2:
                records = [_RECORD.decode(item) for item in data if item is not None]
                return Answer(pointer.version, _etag(pointer.version), "redis", records)
        return None

    def _ranked_symbols(self, key: str, n: int, offset: int) -> list[bytes]:
        """Symbols of a window of the ranking.

        A sorted set orders equal scores by member ascending, and so descending when it is read from the best: the
        groups of equals that the window touches are read whole and put in order here.
        """
        if n == 0:
            return []
        window = cast(
            "list[tuple[bytes, float]]", self._client.zrange(key, offset, offset + n - 1, desc=True, withscores=True)
        )
        if not window:
            return []
        best, worst = window[0][1], window[-1][1]
        pipeline = self._client.pipeline(transaction=False)
        pipeline.zcount(key, f"({best!r}", "+inf")
        pipeline.zrangebyscore(key, repr(worst), repr(best), withscores=True)
        before, groups = pipeline.execute()
        ordered = sorted(groups, key=lambda entry: (-entry[1], entry[0]))
        return [symbol for symbol, _ in ordered[offset - before : offset - before + n]]

    # ---- files

    def _snapshot_from_files(self, kind: str) -> Snapshot[Any] | None:
        found = self._read_files(kind)
        if found is None:
            return None
        manifest, data = found
        etag = manifest.snapshots[kind].sha256
        held = self._held.get(kind)
        if held is not None and (held.version, held.etag, held.origin) == (manifest.version, etag, "files"):
            return held
        return self._hold(kind, manifest.version, etag, "files", data)

    def _state_from_files(self) -> State | None:
        if self._output_dir is None:
            return None
        manifest = read_manifest(self._output_dir)
        if manifest is None:
            return None
        return State(manifest.version, manifest.generated_at, manifest_age_s(self._output_dir), "files")

    def _symbol_from_files(self, symbol: str) -> Answer[Record | None] | None:
        index = self._snapshot_from_files("index")
        if index is None:
            return None
        found = next((record for record in index.value.symbols if record.symbol == symbol), None)
        return Answer(index.version, _etag(index.version), "files", found)

    def _top_from_files(self, n: int, offset: int) -> Answer[list[Record]] | None:
        index = self._snapshot_from_files("index")
        if index is None:
            return None
        return Answer(index.version, _etag(index.version), "files", index.value.symbols[offset : offset + n])

    def _read_files(self, kind: str) -> tuple[Manifest, bytes] | None:
        if self._output_dir is None:
            return None
        found = read_set(self._output_dir, kinds=(kind,))
        return None if found is None else (found.manifest, found.payloads[kind])

    def _hold(self, kind: str, version: int, etag: str, origin: Origin, data: bytes) -> Snapshot[Any]:
        snapshot = Snapshot(version, etag, origin, data, _DECODERS[kind](gzip.decompress(data)))
        self._held[kind] = snapshot
        return snapshot


def _etag(version: int) -> str:
    return f"{version:x}"
