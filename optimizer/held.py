"""What both readers share, without I/O: the version that a process holds, and how to find out about the next one.

Whatever needs Redis or a file is written as a plan, a generator: it yields `Calls` (calls of redis-py that go out in
one pipeline, answered by the list of their replies) or a function that may block (answered by what it returns), and the
shells in `reader.py` and `async_reader.py` do what it asks for, each in its own way. A failure of Redis comes back into
the plan as `CacheUnavailable`. So there is one text of what a reader does, for threads and for asyncio.

    look()          the refresher's step: read the pointer; fetch, inflate and decode what is new; else the files
    snapshot(kind)  what is held, at once; symbol() and top() ask Redis only for what is not held

Errors: `SnapshotMissing` where there is neither a version in Redis nor one in the files.
"""

from __future__ import annotations

import gzip
import random
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from optimizer.answers import Answer, Origin, Snapshot, State
from optimizer.connection import UNREADABLE, is_away, redis_answers
from optimizer.errors import CacheUnavailable, SnapshotMissing
from optimizer.keys import PAYLOAD_KINDS, Keys, Pointer
from optimizer.records import BotsSnapshot, Index, Manifest, PortfolioSnapshot, PredictionsSnapshot, Record, Report
from optimizer.snapshots import manifest_age_s, read_manifest, read_set

__all__ = ["Calls", "Core", "Held", "Plan", "Stored", "call"]

# How often the pointer is read: one small HASH. It tells what a lost message would have told, and the age.
POLL_S: Final = 1.0
# While Redis is away it is asked this much later, then twice as much each time up to the longest, and a little at
# random: a fleet of routers must not come back all at the same moment.
FIRST_RETRY_S: Final = 0.25
LONGEST_RETRY_S: Final = 2.0
STALE_INTERVALS: Final = 3
READ_ATTEMPTS: Final = 3
# No index is so long; Redis refuses numbers beyond 64 bits.
MAX_RANK: Final = 1 << 53

Calls = list[tuple[str, tuple[Any, ...], dict[str, Any]]]
T = TypeVar("T")
Plan = Generator[Calls | Callable[[], Any], Any, T]

_DECODERS: Final[Mapping[str, Callable[[bytes], Any]]] = {
    "predictions": msgspec.json.Decoder(PredictionsSnapshot).decode,
    "bots": msgspec.json.Decoder(BotsSnapshot).decode,
    "portfolio": msgspec.json.Decoder(PortfolioSnapshot).decode,
    "index": msgspec.json.Decoder(Index).decode,
}
_RECORD: Final = msgspec.json.Decoder(Record)
_REPORT: Final = msgspec.json.Decoder(Report)


def call(name: str, *arguments: Any, **options: Any) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """One call of a redis-py method, of either kind of client."""
    return name, arguments, options


@dataclass(frozen=True, slots=True)
class Stored:
    """One payload in memory: as stored, inflated, and decoded. `etag` is the SHA-256 of `gz`."""

    etag: str
    origin: Origin
    gz: bytes
    plain: bytes
    value: Any


@dataclass(frozen=True, slots=True)
class Held:
    """One version, whole; never changed, only replaced. `checked_s` is in seconds since the epoch."""

    version: int
    generated_at: str
    checked_s: float
    origin: Origin
    payloads: Mapping[str, Stored]
    records: Mapping[str, Record]  # the predictions by symbol

    def age_s(self) -> float:
        """Seconds since a run last made or confirmed this version."""
        return max(0.0, time.time() - self.checked_s)


class Core:
    """A source's held version, and the plans for everything else.

    Args:
        redis_url: The cache, for messages.
        source: The source's name.
        output_dir: Where the gz files are, if this process can see them.
        interval_s: Seconds between ticks; a version that none has confirmed for three of them is stale.
    """

    def __init__(self, redis_url: str, source: str, output_dir: Path | None, interval_s: float) -> None:
        self.held: Held | None = None
        self.cache_up = True  # until the first call fails; then only `look` asks again
        self.keys = Keys(source)
        self.stale_after_s = STALE_INTERVALS * interval_s
        self._url = redis_url
        self._output_dir = output_dir
        self._index: tuple[int, Stored] | None = None
        self._failures = 0
        self._problem = "nobody has looked yet"

    # ---- what is held

    def current(self) -> Held:
        """The version that is held.

        Raises:
            SnapshotMissing: There is none.
        """
        held = self.held
        if held is None:
            raise SnapshotMissing(
                f"no snapshot of {self.keys.source!r}: Redis: {self._problem}; files: none in {self._output_dir}. "
                "Is the worker running? See its log, or run: rolling-optimizer run"
            )
        return held

    def stored(self, kind: str) -> Stored:
        """One payload of the version that is held.

        Raises:
            SnapshotMissing: There is none, or this part of it cannot be read anywhere.
        """
        found = self.current().payloads.get(kind)
        if found is None:
            raise SnapshotMissing(
                f"no {kind} of {self.keys.source!r}: Redis holds it damaged or not at all; files: {self._output_dir} "
                "has not this version or cannot be read. The next publish mends it, or run: rolling-optimizer run"
            )
        return found

    def snapshot(self, kind: str) -> Snapshot[Any]:
        """One payload as an answer."""
        held, found = self.current(), self.stored(kind)
        age_s = held.age_s()
        return Snapshot(
            version=held.version,
            etag=found.etag,
            gz=found.gz,
            value=found.value,
            origin=found.origin,
            age_s=age_s,
            stale=age_s > self.stale_after_s,
        )

    def state(self) -> State:
        """Which version is held."""
        held = self.current()
        age_s = held.age_s()
        checked = datetime.fromtimestamp(held.checked_s, UTC).isoformat(timespec="milliseconds")
        return State(
            version=held.version,
            generated_at=held.generated_at,
            checked_at=checked.replace("+00:00", "Z"),
            origin=held.origin,
            age_s=age_s,
            stale=age_s > self.stale_after_s,
        )

    def _answer(self, version: int, origin: Origin, value: T) -> Answer[T]:
        age_s = self.current().age_s()
        stale = age_s > self.stale_after_s
        return Answer(version=version, etag=f"{version:x}", value=value, origin=origin, age_s=age_s, stale=stale)

    # ---- lookups: from memory, else Redis, else files

    def symbol(self, symbol: str) -> Plan[Answer[Record | None]]:
        """The record of one symbol of the index; `None` in it where there is no such symbol."""
        held = self.current()
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
        held = self.current()
        best = held.payloads.get("predictions")
        if best is not None and offset + n <= len(best.value.predictions):
            return self._answer(held.version, best.origin, best.value.predictions[offset : offset + n])
        found = yield from self._lookup(held, lambda version: self._top_from_redis(version, n, offset))
        if found is not None:
            return found
        version, index = yield from self._index_from_files()
        return self._answer(version, "files", index.symbols[offset : offset + n])

    def runs(self, count: int) -> Plan[list[Report]]:
        """The newest reports, newest first; none where Redis is away. A report that cannot be read is left out."""
        if not self.cache_up or count < 1:
            return []
        try:
            [entries] = yield [call("xrevrange", self.keys.runs, count=count)]
        except CacheUnavailable as error:
            self._failed(error)
            return []
        found = []
        for _, fields in entries:
            try:
                found.append(_REPORT.decode(fields.get(b"report", b"")))
            except UNREADABLE:  # of another release
                continue
        return found

    def _lookup(self, held: Held, read: Callable[[int], Plan[Answer[T] | None]]) -> Plan[Answer[T] | None]:
        """Ask Redis for a part of the version that is held, or of the next one where it has expired by now."""
        if not self.cache_up or held.origin != "redis":
            return None
        version = held.version
        try:
            for _ in range(READ_ATTEMPTS):
                with redis_answers(self._url):
                    found = yield from read(version)
                if found is not None:
                    return found
                pointer = yield from self._pointer()
                if pointer is None:
                    return None
                version = pointer.version
        except CacheUnavailable as error:
            self._failed(error)
        return None

    def _symbol_from_redis(self, version: int, symbol: str) -> Plan[Answer[Record | None] | None]:
        key = self.keys.payload(version, "symbols")
        data, exists = yield [call("hget", key, symbol.encode("utf-8", "surrogatepass")), call("exists", key)]
        return self._answer(version, "redis", None if data is None else _RECORD.decode(data)) if exists else None

    def _top_from_redis(self, version: int, n: int, offset: int) -> Plan[Answer[list[Record]] | None]:
        ranking, key = self.keys.payload(version, "ranking"), self.keys.payload(version, "symbols")
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
        found = yield self._read_index
        if found is None:
            raise SnapshotMissing(
                f"no index of {self.keys.source!r}: Redis: {self._problem}; files: none in {self._output_dir}. "
                "Is the worker running? See its log, or run: rolling-optimizer run"
            )
        version, index = found
        return version, index.value

    def _read_index(self) -> tuple[int, Stored] | None:
        """The index from the files, decoded once a version; blocks."""
        manifest = None if self._output_dir is None else read_manifest(self._output_dir)
        if manifest is None or self._output_dir is None:
            return None
        if self._index is None or self._index[0] != manifest.version:
            found = read_set(self._output_dir, kinds=("index",))
            if found is None:
                return None
            entry = found.manifest.snapshots["index"]
            self._index = (found.manifest.version, _store("index", entry.sha256, "files", found.payloads["index"]))
        return self._index

    # ---- the refresher's step

    def delay_s(self) -> float:
        """How long to wait until the next look."""
        if self.cache_up:
            return POLL_S
        delay_s = min(LONGEST_RETRY_S, FIRST_RETRY_S * 2.0 ** min(self._failures - 1, 10))
        return delay_s * random.uniform(0.8, 1.2)  # noqa: S311 - no secret

    def look(self) -> Plan[None]:
        """Find out which version is current, and hold it; what is held stays where nothing better is found."""
        found: Held | None = None
        try:
            with redis_answers(self._url):
                found = yield from self._from_redis()
            self.cache_up, self._failures = True, 0
            problem = "it holds no snapshot that can be read"
        except CacheUnavailable as error:
            self._failed(error)
            problem = str(error)
        if found is None:
            try:
                found = yield self._from_files
            except UNREADABLE as error:
                problem += f"; the files cannot be read: {error}"
        self._problem = problem
        held = self.held
        # A replica that lags, after a failover, names an older version that nobody has confirmed since.
        if found and held and found.version < held.version and found.checked_s <= held.checked_s:
            return
        if found:
            self.held = found

    def _failed(self, error: CacheUnavailable) -> None:
        """Leave a Redis that is away to the refresher; one that answers with an error is asked again."""
        if is_away(error):
            self.cache_up = False
            self._failures += 1

    def _pointer(self) -> Plan[Pointer | None]:
        [fields] = yield [call("hgetall", self.keys.current)]
        return Pointer.from_hash(fields)

    def _from_redis(self) -> Plan[Held | None]:
        pointer = yield from self._pointer()
        for _ in range(READ_ATTEMPTS):
            if pointer is None:
                return None
            payloads = self._known(pointer)
            wanted = [kind for kind in PAYLOAD_KINDS if kind not in payloads]
            replies: list[bytes | None] = []
            if wanted:
                replies = yield [call("get", self.keys.payload(pointer.version, kind)) for kind in wanted]
            if None not in replies:
                break
            # It was replaced and has expired between the two reads, or was evicted: the pointer tells.
            before, pointer = pointer, (yield from self._pointer())
            if pointer is not None and pointer.version == before.version:
                break
        if pointer is None:
            return None
        data = {kind: item for kind, item in zip(wanted, replies, strict=True) if item is not None}
        payloads |= yield lambda: _store_each(pointer.etags, data)
        if len(payloads) < len(PAYLOAD_KINDS):
            files: Held | None = yield self._from_files
            if files is not None and files.version == pointer.version:
                payloads = {**files.payloads, **payloads}
            elif files is not None:
                return files  # of one version, where a mixture would be none
        checked = datetime.fromisoformat(pointer.checked_at)
        return _hold(pointer.version, pointer.generated_at, checked.timestamp(), "redis", payloads)

    def _known(self, pointer: Pointer) -> dict[str, Stored]:
        """The payloads of this pointer that are held already."""
        held = self.held
        if held is None or held.version != pointer.version:
            return {}
        known = {kind: stored for kind, stored in held.payloads.items() if stored.etag == pointer.etags[kind]}
        if held.origin == "redis":
            return known
        return {kind: replace(stored, origin="redis") for kind, stored in known.items()}

    def _from_files(self) -> Held | None:
        """The version in the files, unless what is held is newer; blocks."""
        held = self.held
        manifest = None if self._output_dir is None else read_manifest(self._output_dir)
        if manifest is None or self._output_dir is None or (held is not None and manifest.version < held.version):
            return None
        checked_s = time.time() - manifest_age_s(self._output_dir)
        if held is not None and _etags(held) == _manifest_etags(manifest) and held.version == manifest.version:
            payloads = {kind: replace(stored, origin="files") for kind, stored in held.payloads.items()}
            return replace(held, checked_s=checked_s, origin="files", payloads=payloads)
        found = read_set(self._output_dir, kinds=PAYLOAD_KINDS)
        if found is None:
            return None
        manifest = found.manifest
        payloads = {
            kind: _store(kind, manifest.snapshots[kind].sha256, "files", data) for kind, data in found.payloads.items()
        }
        return _hold(manifest.version, manifest.generated_at, checked_s, "files", payloads)


def _hold(version: int, generated_at: str, checked_s: float, origin: Origin, payloads: Mapping[str, Stored]) -> Held:
    best = payloads.get("predictions")
    records = {} if best is None else {record.symbol: record for record in best.value.predictions}
    return Held(version, generated_at, checked_s, origin, payloads, records)


def _store(kind: str, etag: str, origin: Origin, data: bytes) -> Stored:
    plain = gzip.decompress(data)
    return Stored(etag, origin, data, plain, _DECODERS[kind](plain))


def _store_each(etags: Mapping[str, str], data: Mapping[str, bytes]) -> dict[str, Stored]:
    """The payloads of Redis that can be read."""
    found = {}
    for kind, item in data.items():
        try:
            found[kind] = _store(kind, etags[kind], "redis", item)
        except UNREADABLE:  # the caller takes it from the files, and the answer says so
            continue
    return found


def _etags(held: Held) -> dict[str, str]:
    return {kind: stored.etag for kind, stored in held.payloads.items()}


def _manifest_etags(manifest: Manifest) -> dict[str, str]:
    return {kind: manifest.snapshots[kind].sha256 for kind in PAYLOAD_KINDS}
