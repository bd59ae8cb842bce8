"""A reader's view of a source's versions in Redis: the pointer, and the payloads of the version that it names.

Each call blocks, for at most two attempts of `READER_TIMEOUT_S`. While Redis is away (`up` is false), only the
refresher asks it, at growing intervals, so that no page waits for it.

Errors: `CacheUnavailable`.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Final, cast

import msgspec
import redis
import redis.client

from optimizer.cache.client import READER_TIMEOUT_S, UNREADABLE, connect, is_away, is_forbidden, translated_errors
from optimizer.cache.clocks import Sightings, seconds_of
from optimizer.cache.keys import CHANGES_KEPT, PAYLOAD_KINDS, Keys
from optimizer.cache.pointer import Pointer
from optimizer.errors import CacheUnavailable
from optimizer.models import Origin, Process, Record, Report, check_times
from optimizer.reader.results import CachedVersion, Payload, Sighting, load_payloads

if TYPE_CHECKING:
    from optimizer.log import SourceLog

__all__ = ["READ_ATTEMPTS", "Listener", "RedisStore"]

# How often the pointer, one small HASH, is read: for the age, and because a message may be lost.
POLL_S: Final = 1.0
# While Redis is away, the delay begins with the first value, is doubled each time up to the longest, and varied at
# random: the routers of a fleet must not come back all at the same moment.
FIRST_RETRY_S: Final = 0.25
LONGEST_RETRY_S: Final = 2.0
READ_ATTEMPTS: Final = 3
# The longest time that closing a reader has to wait.
STEP_S: Final = 0.1


_RECORD: Final = msgspec.json.Decoder(Record)
_REPORT: Final = msgspec.json.Decoder(Report)


class RedisStore:
    """One source in Redis.

    Args:
        url: The cache.
        source: The source's name.
        stale_after_s: The age from which a version is stale.
    """

    def __init__(self, url: str, source: str, stale_after_s: float) -> None:
        self.keys = Keys(source)
        self.problem = "not asked yet"
        self.url = url
        self._failures = 0
        self._may_ask_time = True
        self._sightings = Sightings(stale_after_s)
        self.client = connect(url, timeout_s=READER_TIMEOUT_S, source=source)
        self.up = True  # false after a call has failed; then only `Follower.refresh` asks

    def connect(self) -> object:
        """Make a new client; return the last one, still open: after a fork its connections are the parent's."""
        left = self.client
        self.client = connect(self.url, timeout_s=READER_TIMEOUT_S, source=self.keys.source)
        self.up = True
        return left

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    def listener(self, closed: threading.Event) -> Listener:
        """Make the object that waits for the next refresh, in one thread, until `closed` is set."""
        return Listener(self, closed)

    @contextmanager
    def translated_errors(self) -> Iterator[None]:
        """Raise `CacheUnavailable` for all errors of redis-py, and clear `up` if Redis is away."""
        try:
            with translated_errors(self.url):
                yield
        except CacheUnavailable as error:
            if is_away(error):
                if self.up:
                    source = self.keys.source
                    _log().warning("Redis is away, what is held or in the files answers", source=source, error=error)
                self.up = False
                self.problem = str(error)
                self._may_ask_time = True
                self._failures += 1
            raise

    def delay_s(self) -> float:
        """Seconds to wait until the next refresh."""
        if self.up:
            return POLL_S
        delay_s = min(LONGEST_RETRY_S, FIRST_RETRY_S * 2.0 ** min(self._failures - 1, 10))
        return delay_s * random.uniform(0.8, 1.2)  # noqa: S311 - no secret

    def read(self, cached: CachedVersion | None) -> tuple[Sighting | None, CachedVersion | None]:
        """Read the pointer, and its version as far as it can be read, unless the one in memory is newer."""
        try:
            with self.translated_errors():
                result = self._read(cached)
        except CacheUnavailable as error:
            self.problem = str(error)
            raise
        if not self.up:
            _log().info("Redis is back", source=self.keys.source)
        self.up, self._failures = True, 0
        self.problem = "it holds no snapshot that can be read"
        return result

    def _read(self, cached: CachedVersion | None) -> tuple[Sighting | None, CachedVersion | None]:
        sighting = self._read_pointer()
        for _ in range(READ_ATTEMPTS):
            if sighting is None or (cached is not None and sighting.version < cached.version):
                return sighting, None
            payloads = _cached_payloads(cached, sighting)
            missing = [kind for kind in PAYLOAD_KINDS if kind not in payloads]
            data = self._read_payloads(sighting.version, missing)
            if len(data) == len(missing):
                break
            # Between the two reads, the version was replaced and has expired, or it was evicted: the pointer tells.
            before, sighting = sighting, self._read_pointer()
            if sighting is not None and sighting.version == before.version:
                break
        else:
            return sighting, None
        if not missing and cached is not None and cached.version == sighting.version and cached.origin == "redis":
            return sighting, cached
        payloads |= load_payloads(sighting, data)
        return sighting, CachedVersion.load(sighting, "redis", payloads)

    def _read_pointer(self) -> Sighting | None:
        """Read the pointer, dated by Redis' clock if this user may send TIME."""
        now: tuple[int, int] | None = None
        try:
            fields, now = self._ask_pointer(with_time=self._may_ask_time)
        except redis.exceptions.NoPermissionError:
            if not self._may_ask_time:
                raise
            self._may_ask_time = False  # reset when Redis has been away, since its ACL may have changed
            fields, now = self._ask_pointer(with_time=False)
        pointer = Pointer.from_hash(fields)
        if pointer is None:
            return None
        shown_s, now_s = seconds_of(pointer.checked_at), time.time() if now is None else now[0] + now[1] / 1e6
        since_s = self._sightings.since_s(pointer.version, shown_s, now_s, same_clock=now is not None)
        return Sighting(pointer.manifest, pointer.checked_at, since_s)

    def _ask_pointer(self, *, with_time: bool) -> tuple[dict[bytes, bytes], tuple[int, int] | None]:
        with self.client.pipeline(transaction=False) as pipeline:
            pipeline.hgetall(self.keys.current)
            if with_time:
                pipeline.time()
            fields, *times = pipeline.execute()
        return fields, times[0] if times else None

    def _read_payloads(self, version: int, kinds: list[str]) -> dict[str, bytes]:
        if not kinds:
            return {}
        with self.client.pipeline(transaction=False) as pipeline:
            for kind in kinds:
                pipeline.get(self.keys.payload(version, kind))
            replies = cast("list[bytes | None]", pipeline.execute())
        return {kind: data for kind, data in zip(kinds, replies, strict=True) if data is not None}

    def changes(self, after: int, version: int) -> list[tuple[int, bytes]]:
        """Read the newest entries after one version, up to another, oldest first, without those of older releases."""
        with self.translated_errors():
            entries = cast(
                "list[tuple[bytes, dict[bytes, bytes]]]",
                self.client.xrevrange(self.keys.deltas, str(version), str(after + 1), CHANGES_KEPT),
            )
        return [
            (int(name.partition(b"-")[0]), fields[b"change"]) for name, fields in entries[::-1] if b"change" in fields
        ]

    # ---- lookups

    def records(self, version: int, symbols: Sequence[str]) -> list[Record | None] | None:
        """Read the records of symbols in the index of a version, `None` for each missing one; `None` if it is gone."""
        key = self.keys.payload(version, "symbols")
        with self.translated_errors(), self.client.pipeline(transaction=False) as pipeline:
            pipeline.hmget(key, [symbol.encode("utf-8", "surrogatepass") for symbol in symbols])
            pipeline.exists(key)
            replies, exists = pipeline.execute()
            return [None if data is None else _RECORD.decode(data) for data in replies] if exists else None

    def ranked(self, version: int, n: int, offset: int) -> list[Record] | None:
        """Read `n` records from rank `offset` on in the index of a version, best first; `None` if it is gone."""
        ranking, key = self.keys.payload(version, "ranking"), self.keys.payload(version, "symbols")
        with self.translated_errors():
            symbols = self._ranked_symbols(ranking, n, offset) if n else []
            with self.client.pipeline(transaction=False) as pipeline:
                pipeline.exists(key, ranking)
                if symbols:
                    pipeline.hmget(key, symbols)
                existing, *replies = pipeline.execute()
            data: list[bytes | None] = replies[0] if symbols else []
            if existing != 2 or None in data:
                return None
            return [_RECORD.decode(item) for item in data if item is not None]

    def _ranked_symbols(self, key: str, n: int, offset: int) -> list[bytes]:
        """Read the symbols of a window of the ranking.

        A sorted set orders equal scores by member ascending, hence descending when it is read from the best on. So the
        groups of equal scores that the window touches are read whole and sorted here.
        """
        window = cast(
            "list[tuple[bytes, float]]", self.client.zrange(key, offset, offset + n - 1, desc=True, withscores=True)
        )
        if not window:
            return []
        best, worst = window[0][1], window[-1][1]
        with self.client.pipeline(transaction=False) as pipeline:
            pipeline.zcount(key, f"({best!r}", "+inf")
            pipeline.zrangebyscore(key, repr(worst), repr(best), withscores=True)
            before, groups = pipeline.execute()
        ordered = sorted(groups, key=lambda entry: (-entry[1], entry[0]))
        return [symbol for symbol, _ in ordered[offset - before : offset - before + n]]

    # ---- runs and counts

    def reports(self, count: int, *, scans: bool) -> list[Report]:
        """Read the newest reports, newest first, of all runs or of published scans, without unreadable ones."""
        stream = self.keys.scans if scans else self.keys.runs
        with self.translated_errors():
            entries = cast("list[tuple[bytes, dict[bytes, bytes]]]", self.client.xrevrange(stream, count=count))
        reports = []
        for _, fields in entries:
            try:
                report = _REPORT.decode(fields.get(b"report", b""))
                check_times(timestamp=report.timestamp)
            except (ValueError, *UNREADABLE):  # written by another release
                continue
            reports.append(report)
        return reports

    def processes(self) -> list[Process]:
        """Read the workers and beats, the latest heartbeat first, dated by Redis' clock if this user may send TIME."""
        from optimizer.cache.heartbeats import decode_processes  # noqa: PLC0415 - few readers ask

        with self.translated_errors(), self.client.pipeline(transaction=False) as pipeline:
            pipeline.hgetall(self.keys.processes)
            if self._may_ask_time:
                pipeline.time()
            entries, *times = pipeline.execute()
        now_s = times[0][0] + times[0][1] / 1e6 if times else time.time()
        return decode_processes(entries, now_s)

    def outcomes(self) -> dict[tuple[str, str], int]:
        """Read the number of runs by status and error, which is empty unless they failed."""
        from optimizer.cache.run_log import decode_outcomes  # noqa: PLC0415 - few readers ask

        with self.translated_errors():
            return decode_outcomes(cast("dict[bytes, bytes]", self.client.hgetall(self.keys.outcomes)))

    def memory(self) -> tuple[int, int]:
        """Read the bytes that the server uses, and their limit, 0 for none.

        Few users of an ACL are permitted to; a refusal is a `CacheUnavailable` too.
        """
        with self.translated_errors():
            info = cast("dict[str, int]", self.client.info("memory"))
        return info.get("used_memory", 0), info.get("maxmemory", 0)

    def add_reads(self, numbers: Mapping[Origin, int]) -> list[int]:
        """Add to the number of HTTP responses from each origin; return the sums over all processes."""
        with self.translated_errors(), self.client.pipeline(transaction=False) as pipeline:
            for origin, number in numbers.items():
                pipeline.incrby(self.keys.reads(origin), number)
            return cast("list[int]", pipeline.execute())


class Listener:
    """Waits for the next refresh: for a message on a source's channel, or until it is time to poll; for one thread.

    redis-py cannot end the read of a channel from another thread, so it waits in short steps.

    Args:
        store: The source in Redis.
        closed: Ends a wait.
    """

    def __init__(self, store: RedisStore, closed: threading.Event) -> None:
        self._store = store
        self._closed = closed
        self._channel: redis.client.PubSub | None = None
        self._is_forbidden = False

    def subscribe(self) -> None:
        """Subscribe if Redis is there. A refresh has to follow, to see versions published before."""
        if not self._store.up:
            self._is_forbidden = False  # its ACL may have changed when it is back
        elif self._channel is None and not self._is_forbidden:
            self._channel = self._store.client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
            try:
                with self._store.translated_errors():
                    self._channel.subscribe(self._store.keys.published)
            except CacheUnavailable as error:
                self._give_up(error)

    def wait(self) -> None:
        """Return when it is time to refresh, or when the reader is closed."""
        until_s = time.monotonic() + self._store.delay_s()
        try:
            with translated_errors(self._store.url):  # a broken channel does not mean that Redis is away
                while self._channel is not None and not self._closed.is_set():
                    left_s = until_s - time.monotonic()
                    if left_s <= 0 or self._channel.get_message(timeout=min(left_s, STEP_S)) is not None:
                        return
        except CacheUnavailable as error:
            self._give_up(error)
        self._closed.wait(max(0.0, until_s - time.monotonic()))

    def close(self) -> None:
        """Close the connection."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def _give_up(self, error: CacheUnavailable) -> None:
        # An ACL may forbid only the channel: then the pointer is read once a second.
        self._is_forbidden = is_forbidden(error)
        _log().debug("not listening to the channel of new versions", source=self._store.keys.source, error=error)
        self.close()


@cache
def _log() -> SourceLog:
    """Import the log only when it is needed, so that a reader's process loads few modules."""
    from optimizer.log import SourceLog  # noqa: PLC0415

    return SourceLog(__name__)


def _cached_payloads(cached: CachedVersion | None, sighting: Sighting) -> dict[str, Payload]:
    """Return the payloads of this version that are in memory already, possibly from an earlier version."""
    if cached is None:
        return {}
    if cached.origin != "redis":
        cached = cached.from_("redis")
    return {kind: payload for kind, payload in cached.payloads.items() if payload.etag == sighting.etag(kind)}
