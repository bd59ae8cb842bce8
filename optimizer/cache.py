"""Redis, the writer's side. This is the key card; the reader is in `reader.py`.

`{S}` is the source's name in braces: a hash tag, so that all keys of a source are in one slot of a Redis Cluster.
`V` is a version, strictly rising: milliseconds since the epoch, or one more than the last where the clock went back.

| key                       | type    | meaning, and who writes it                          | expiry             |
|---------------------------|---------|-----------------------------------------------------|--------------------|
| rolling:{S}:current       | HASH    | the pointer: version, generated_at, checked_at,     | never              |
|                           |         | fingerprint, KIND_etag, KIND_bytes, KIND_count;     |                    |
|                           |         | flipped by a publish, checked_at set by each tick   |                    |
| rolling:{S}:V:predictions | STRING  | the gz bytes of the file; immutable once published  | 120 s after the    |
| rolling:{S}:V:bots        | STRING  | the same                                            | next version; the  |
| rolling:{S}:V:portfolio   | STRING  | the same                                            | current one never  |
| rolling:{S}:V:symbols     | HASH    | symbol -> JSON record, the whole index              |                    |
| rolling:{S}:V:ranking     | ZSET    | symbol by confidence, the same symbols              |                    |
| rolling:{S}:staged:T:*    |         | the five above before the flip; T is a run's token  | 180 s              |
| rolling:{S}:deltas        | STREAM  | id V-0: what a publish changed in the predictions   | the newest 120     |
| rolling:{S}:runs          | STREAM  | one report (JSON, in the field `report`) a run      | about a day        |
| rolling:{S}:lock          | STRING  | the token of the run that may publish               | 10 s, extended     |
| rolling:{S}:tick:N        | STRING  | tick N (time / interval) is taken by a run          | two intervals      |
| rolling:{S}:published     | channel | the new version, nothing more; sent by the flip     |                    |

Big values are staged outside any transaction, under keys that nobody else knows. Then one short script checks that the
run still holds the lock, that the pointer is the one it started from, and that its version is newer; it renames the
staged keys (constant time each), flips the pointer, lets the old version expire and tells the channel. So a writer that
was paused past its lock publishes nothing and overwrites nothing, and one that dies leaves only keys that expire.

Errors: `CacheUnavailable` where Redis does not answer, `PublishRefused` where the script says no.
"""

from __future__ import annotations

import gzip
import logging
import secrets
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, cast

import msgspec
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from optimizer.errors import CacheUnavailable, PublishRefused
from optimizer.records import Manifest, PredictionsSnapshot, Record, Report
from optimizer.settings import redact_url
from optimizer.snapshots import SnapshotSet

__all__ = ["PAYLOAD_KINDS", "Cache", "Keys", "Lock", "Pointer", "connect", "eviction_warning", "ping", "redis_answers"]

PAYLOAD_KINDS: Final = ("predictions", "bots", "portfolio")
STAGED_KINDS: Final = (*PAYLOAD_KINDS, "symbols", "ranking")

LOCK_TTL_S: Final = 10.0
LOCK_EXTEND_S: Final = 3.0
STAGED_TTL_S: Final = 180
OLD_VERSION_TTL_S: Final = 120
DELTAS_KEPT: Final = 120
STAGE_BATCH: Final = 1_000
# redis-py alone would try ten times and block up to a minute on a server that hangs.
CONNECT_TIMEOUT_S: Final = 2.0
WRITER_TIMEOUT_S: Final = 5.0

_log = logging.getLogger(__name__)

_EXTEND: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 0
"""

_RELEASE: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""

# KEYS: lock, current, published, deltas, then the staged keys, their final names, and the old version's keys.
# ARGV: token, version, version the run started from ('' for none), seconds for the old version, number of kinds,
#       deltas kept, delta ('' for none), then the pointer's fields and values.
_FLIP: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 'the lock is no longer held by this run' end
local current = redis.call('HGET', KEYS[2], 'version') or ''
if current ~= ARGV[3] then return 'version ' .. current .. ' was published meanwhile' end
local kinds = tonumber(ARGV[5])
for i = 1, kinds do
    if redis.call('EXISTS', KEYS[4 + i]) == 0 then return 'what was staged has expired' end
end
local old = {}
for i = 1, kinds do old[i] = KEYS[4 + 2 * kinds + i] end
for i = 1, kinds do
    if current ~= '' and current ~= ARGV[2] then redis.call('EXPIRE', old[i], ARGV[4]) end
end
for i = 1, kinds do
    redis.call('RENAME', KEYS[4 + i], KEYS[4 + kinds + i])
    redis.call('PERSIST', KEYS[4 + kinds + i])
end
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[2], unpack(ARGV, 8))
if ARGV[7] ~= '' then
    redis.call('XADD', KEYS[4], 'MAXLEN', ARGV[6], ARGV[2] .. '-0', 'delta', ARGV[7])
end
redis.call('PUBLISH', KEYS[3], ARGV[2])
return 'ok'
"""


@dataclass(frozen=True)
class Keys:
    """The names of a source's keys; `version` may be any text that stands in its place."""

    source: str

    def _name(self, *parts: str) -> str:
        return ":".join(("rolling", f"{{{self.source}}}", *parts))

    @property
    def current(self) -> str:
        """The pointer."""
        return self._name("current")

    @property
    def lock(self) -> str:
        """The lock of the run that may publish."""
        return self._name("lock")

    @property
    def runs(self) -> str:
        """The stream of reports."""
        return self._name("runs")

    @property
    def deltas(self) -> str:
        """The stream of changes."""
        return self._name("deltas")

    @property
    def published(self) -> str:
        """The channel of new versions."""
        return self._name("published")

    def tick(self, number: int) -> str:
        """The mark that a tick is taken."""
        return self._name("tick", str(number))

    def payload(self, version: int, kind: str) -> str:
        """One value of a version: a payload kind, `symbols` or `ranking`."""
        return self._name(str(version), kind)

    def staged(self, token: str, kind: str) -> str:
        """The same before it is published."""
        return self._name("staged", token, kind)


class Pointer(msgspec.Struct, frozen=True):
    """The pointer as read: which version is current, and what it holds."""

    version: int
    generated_at: str
    checked_at: str
    fingerprint: str
    etags: dict[str, str]
    counts: dict[str, int]

    @classmethod
    def from_hash(cls, values: dict[bytes, bytes]) -> Pointer | None:
        """From the fields of the HASH; `None` where it is empty.

        Raises:
            CacheUnavailable: The fields are not those of a pointer.
        """
        if not values:
            return None
        texts = {name.decode("utf-8", "replace"): value.decode("utf-8", "replace") for name, value in values.items()}
        try:
            return cls(
                int(texts["version"]),
                texts["generated_at"],
                texts["checked_at"],
                texts["fingerprint"],
                {kind: texts[f"{kind}_etag"] for kind in PAYLOAD_KINDS},
                {kind: int(texts[f"{kind}_count"]) for kind in PAYLOAD_KINDS},
            )
        except (KeyError, ValueError) as error:
            raise CacheUnavailable(
                f"the pointer is damaged ({error!r}): delete the key that ends in :current"
            ) from None


@dataclass(frozen=True)
class Lock:
    """A lock as its holder sees it: whether it was got, and the token that proves it."""

    held: bool
    token: str


def connect(url: str, *, timeout_s: float) -> redis.Redis:
    """A client with short timeouts and one more try, for `redis://`, `rediss://` and `unix://` URLs."""
    return redis.Redis.from_url(
        url.replace("redis+socket://", "unix://", 1),
        socket_timeout=timeout_s,
        socket_connect_timeout=min(timeout_s, CONNECT_TIMEOUT_S),
        retry=Retry(NoBackoff(), 1),
    )


def ping(url: str) -> None:
    """Check that a Redis answers.

    Raises:
        CacheUnavailable: It does not.
    """
    with redis_answers(url):
        client = connect(url, timeout_s=WRITER_TIMEOUT_S)
        try:
            client.ping()
        finally:
            client.close()


def eviction_warning(url: str) -> str | None:
    """Why this Redis must not be a broker, if it may evict what it holds; `None` where it may not.

    Raises:
        CacheUnavailable: It does not answer.
    """
    with redis_answers(url):
        client = connect(url, timeout_s=WRITER_TIMEOUT_S)
        try:
            policy = str(client.info("memory").get("maxmemory_policy", "noeviction"))
        finally:
            client.close()
    if policy == "noeviction":
        return None
    return (
        f"the broker {redact_url(url)} may evict messages (maxmemory-policy {policy}); set it to noeviction, and give "
        "the cache a Redis of its own by ROLLING_REDIS_URL"
    )


@contextmanager
def redis_answers(url: str) -> Iterator[None]:
    """Turn every way in which Redis can fail, and what it holds can be unreadable, into `CacheUnavailable`."""
    try:
        yield
    except (redis.RedisError, OSError, EOFError, zlib.error, msgspec.DecodeError) as error:
        raise CacheUnavailable(f"Redis at {redact_url(url)}: {error or type(error).__name__}") from error


class Cache:
    """A source's keys in one Redis, for writing.

    Args:
        url: The Redis of the cache.
        source: The source's name.
        interval_s: Seconds between ticks; sets how long ticks and reports are kept.
    """

    def __init__(self, url: str, source: str, interval_s: float) -> None:
        self._url = url
        self._keys = Keys(source)
        self._interval_s = interval_s
        self._client = connect(url, timeout_s=WRITER_TIMEOUT_S)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def take_tick(self, number: int) -> bool:
        """Take a tick; false where another run has it."""
        with self._answers():
            expiry_s = max(1, round(2 * self._interval_s))
            return bool(self._client.set(self._keys.tick(number), "1", nx=True, ex=expiry_s))

    @contextmanager
    def lock(self) -> Iterator[Lock]:
        """Hold the source's lock for a run: extended while it lasts, released if still ours."""
        token = secrets.token_hex(16)
        with self._answers():
            got = self._client.set(self._keys.lock, token, nx=True, px=round(LOCK_TTL_S * 1000))
        lock = Lock(bool(got), token)
        if not lock.held:
            yield lock
            return
        ended = threading.Event()
        keeper = threading.Thread(target=self._extend, args=(token, ended), name="rolling-lock", daemon=True)
        keeper.start()
        try:
            yield lock
        finally:
            ended.set()
            keeper.join()
            try:
                with self._answers():
                    self._client.eval(_RELEASE, 1, self._keys.lock, token)
            except CacheUnavailable as error:
                _log.warning("the lock was not released and expires by itself: %s", error)

    def owns(self, lock: Lock) -> bool:
        """Whether the lock is still held under this token."""
        with self._answers():
            return self._client.get(self._keys.lock) == lock.token.encode()

    def pointer(self) -> Pointer | None:
        """The current pointer, or `None` where nothing is published."""
        with self._answers():
            return Pointer.from_hash(cast("dict[bytes, bytes]", self._client.hgetall(self._keys.current)))

    def is_intact(self, version: int) -> bool:
        """Whether every value of a version is there: a cache may evict."""
        with self._answers():
            names = [self._keys.payload(version, kind) for kind in STAGED_KINDS]
            return self._client.exists(*names) == len(names)

    def newest_delta(self) -> int:
        """The version of the newest delta, 0 for none: it may outlive a pointer, and ids only rise."""
        with self._answers():
            entries = cast("list[tuple[bytes, Any]]", self._client.xrevrange(self._keys.deltas, count=1))
            return int(entries[0][0].split(b"-")[0]) if entries else 0

    def mark_checked(self, at: str) -> None:
        """Note that the current version is still the newest."""
        with self._answers():
            self._client.hset(self._keys.current, "checked_at", at)

    def add_run(self, report: Report) -> None:
        """Append a report to the runs stream."""
        kept = max(100, round(86_400 / self._interval_s))
        with self._answers():
            self._client.xadd(self._keys.runs, {"report": msgspec.json.encode(report)}, maxlen=kept, approximate=True)

    def publish(self, snapshots: SnapshotSet, *, lock: Lock, before: Pointer | None, checked_at: str) -> None:
        """Make a set the current version.

        Args:
            snapshots: The set.
            lock: The run's lock.
            before: The pointer that the run started from.
            checked_at: When the input was last seen to be what the set was made from.

        Raises:
            PublishRefused: The lock is lost, or somebody else has published since.
            CacheUnavailable: Redis does not answer; what was staged expires by itself.
        """
        manifest = snapshots.manifest
        version_before = 0 if before is None else before.version
        if manifest.version < version_before:
            raise PublishRefused(f"version {manifest.version} is older than the published {version_before}")
        with self._answers():
            delta = self._delta(snapshots, before)
            self._stage(snapshots, lock.token)
            keys = self._keys
            answer = self._client.eval(
                _FLIP,
                4 + 3 * len(STAGED_KINDS),
                *(keys.lock, keys.current, keys.published, keys.deltas),
                *(keys.staged(lock.token, kind) for kind in STAGED_KINDS),
                *(keys.payload(manifest.version, kind) for kind in STAGED_KINDS),
                *(keys.payload(version_before, kind) for kind in STAGED_KINDS),
                lock.token,
                str(manifest.version),
                str(version_before) if before else "",
                str(OLD_VERSION_TTL_S),
                str(len(STAGED_KINDS)),
                str(DELTAS_KEPT),
                delta,
                *_pointer_fields(manifest, checked_at),
            )
        if answer != b"ok":
            raise PublishRefused(
                f"version {manifest.version} of {manifest.source} was not published: "
                f"{cast('bytes', answer).decode()}; the next tick makes it again"
            )

    def _stage(self, snapshots: SnapshotSet, token: str) -> None:
        names = {kind: self._keys.staged(token, kind) for kind in STAGED_KINDS}
        for kind in PAYLOAD_KINDS:
            self._client.set(names[kind], snapshots.payloads[kind], ex=STAGED_TTL_S)
        index = snapshots.index()
        for start in range(0, len(index), STAGE_BATCH):
            batch = index[start : start + STAGE_BATCH]
            pipeline = self._client.pipeline(transaction=False)
            pipeline.hset(names["symbols"], mapping={record.symbol: msgspec.json.encode(record) for record in batch})
            pipeline.zadd(names["ranking"], {record.symbol: record.confidence for record in batch})
            pipeline.expire(names["symbols"], STAGED_TTL_S)
            pipeline.expire(names["ranking"], STAGED_TTL_S)
            pipeline.execute()

    def _delta(self, snapshots: SnapshotSet, before: Pointer | None) -> bytes:
        """What changed in the predictions since the version before; empty where nothing did, or there was none."""
        if before is None or before.version == snapshots.manifest.version:
            return b""
        data = cast("bytes | None", self._client.get(self._keys.payload(before.version, "predictions")))
        if data is None:
            return b""
        try:
            old = _by_symbol(data)
        except (OSError, EOFError, zlib.error, msgspec.DecodeError) as error:
            _log.warning("no delta from version %s, it cannot be read: %s", before.version, error)
            return b""
        new = _by_symbol(snapshots.payloads["predictions"])
        changed = [record for symbol, record in new.items() if old.get(symbol) != record]
        removed = sorted(old.keys() - new.keys())
        if not changed and not removed:
            return b""
        return msgspec.json.encode(
            {
                "version": snapshots.manifest.version,
                "before": before.version,
                "changed": changed,
                "removed": removed,
            }
        )

    def _extend(self, token: str, ended: threading.Event) -> None:
        """Extend the lock until the run ends, or until somebody else holds it: that is found out before publishing."""
        while not ended.wait(LOCK_EXTEND_S):
            try:
                with self._answers():
                    if not self._client.eval(_EXTEND, 1, self._keys.lock, token, str(round(LOCK_TTL_S * 1000))):
                        return
            except CacheUnavailable as error:
                _log.warning("the lock could not be extended yet: %s", error)

    def _answers(self) -> Any:
        return redis_answers(self._url)


def _by_symbol(data: bytes) -> dict[str, Record]:
    return {
        record.symbol: record
        for record in msgspec.json.decode(gzip.decompress(data), type=PredictionsSnapshot).predictions
    }


def _pointer_fields(manifest: Manifest, checked_at: str) -> Sequence[str]:
    """Fields and values of the pointer in turn."""
    fields = {
        "version": str(manifest.version),
        "generated_at": manifest.generated_at,
        "checked_at": checked_at,
        "fingerprint": manifest.fingerprint,
    }
    for kind in PAYLOAD_KINDS:
        entry = manifest.snapshots[kind]
        fields |= {f"{kind}_etag": entry.sha256, f"{kind}_bytes": str(entry.bytes), f"{kind}_count": str(entry.count)}
    return [text for pair in fields.items() for text in pair]
