"""Redis, the writer's side; the keys are in `keys.py`, the reader is in `reader.py`.

Big values are staged piece by piece, under keys that nobody else knows. Then one short script checks that the
run still holds the lock, that the pointer is the one it started from, and that its version is newer; it renames the
staged keys (constant time each), flips the pointer, lets the old version expire and tells the channel. So a writer that
was paused past its lock publishes nothing and overwrites nothing, and one that dies leaves only keys that expire.

What is ours and cannot be used is replaced, with a warning that names the key: a key of another type at the start of
the next run (`mend`), a damaged pointer when it is read, the values of the current version when a tick compares them
with the files (`shows`).

Errors: `CacheUnavailable` where Redis does not answer, `PublishRefused` where the script says no.
"""

from __future__ import annotations

import hashlib
import logging
import random
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, cast

import msgspec
import redis

from optimizer.cache.client import (
    READER_TIMEOUT_S,
    UNREADABLE,
    WRITER_TIMEOUT_S,
    connect,
    is_away,
    is_forbidden,
    redis_answers,
)
from optimizer.cache.clocks import text_of
from optimizer.cache.keys import (
    NUMBER,
    ORIGINS,
    PART,
    PAYLOAD_KINDS,
    REVOKED,
    TICK,
    VERSION,
    VERSION_KINDS,
    VERSION_TYPES,
    Keys,
    KeyType,
)
from optimizer.cache.pointer import Pointer, pointer_fields
from optimizer.cache.scripts import ADOPT, CLAIM, DROP, FLIP, FORGET, KEEP, MARK, MEND, NOTE, RELEASE, REVOKE
from optimizer.errors import CacheUnavailable, PublishRefused
from optimizer.models import Record, Report
from optimizer.snapshots.delta import delta_between
from optimizer.snapshots.directory import SnapshotSet

__all__ = ["LOCK_TTL_S", "Cache", "Lock", "handed_s"]

LOCK_TTL_S: Final = 10.0
LOCK_EXTEND_S: Final = 3.0
STAGED_TTL_S: Final = 180
OLD_VERSION_TTL_S: Final = 120
PART_TTL_S: Final = 3_600
DELTAS_KEPT: Final = 120
SCANS_KEPT: Final = 100
STAGE_BATCH: Final = 1_000
# So many ranks are read back at each tick, others each time, for half a millisecond: all 10,000 would take 50.
RANKS_CHECKED: Final = 50
MARK_CHARACTERS: Final = 16

_RECORD: Final = msgspec.json.Decoder(Record)
_log = logging.getLogger(__name__)


@dataclass
class Lock:
    """A lock as its holder sees it.

    `held`: whether it was got. `token`: what proves it. `keep_s`: where it is above 0, the lock is not released at the
    end but left to expire after so many seconds: others of the same run go on under it. `lost`: set when it is found
    that the lock has expired or was taken away.
    """

    held: bool
    token: str
    keep_s: float = 0.0
    lost: bool = False


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
        self.answers = True  # false once Redis was found to be away or to hang: it would cost a timeout at every call

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def mend(self) -> None:
        """Delete keys of the source that cannot be used: each is made anew by what writes it."""
        with self._answers():
            self._mend(self._keys.fixed)
            names = [self._keys.reads(origin) for origin in ORIGINS]
            counts = cast("list[bytes | None]", self._client.mget(names))
            for name, count in zip(names, counts, strict=True):
                if count is not None and not NUMBER.fullmatch(count.decode("ascii", "replace")):
                    _warn(f"{name} holds what is no number")
                    self._client.delete(name)

    def _mend(self, types: Mapping[str, KeyType]) -> None:
        wanted = [text for each in types.values() for text in (each.type, "1" if each.expires else "0")]
        for problem in cast("list[bytes]", self._client.eval(MEND, len(types), *types, *wanted)):
            _warn(problem.decode("utf-8", "replace"))

    def take_tick(self, number: int) -> bool:
        """Take a tick; false where another run has it."""
        with self._answers():
            self._mend({self._keys.tick(each): TICK for each in (number, number - 1)})
            return self._claim(self._keys.tick(number), secrets.token_hex(16), max(1.0, 2 * self._interval_s))

    @contextmanager
    def lock(self, run_id: str = "") -> Iterator[Lock]:
        """Hold the source's lock for a run: extended while it lasts, released if still ours.

        Raises:
            PublishRefused: A run of this id was revoked.
        """
        mark = _mark(run_id or secrets.token_hex(16))  # a run without an id cannot be revoked by it
        token = f"{mark}{secrets.token_hex(16)}"
        with self._answers():
            keys = (self._keys.lock, self._keys.revoked(mark))
            self._mend({self._keys.revoked(mark): REVOKED})
            held = self._client.eval(CLAIM, 2, *keys, token, _ms(LOCK_TTL_S))
        if held == -1:
            raise PublishRefused("the run was revoked before it began")
        with self._kept(Lock(bool(held), token)) as lock:
            yield lock

    @contextmanager
    def adopt(self, handed: str) -> Iterator[Lock]:
        """Go on alone with a run that was handed out under this token: its lock becomes ours."""
        token = f"{handed[:MARK_CHARACTERS]}{secrets.token_hex(16)}"
        with self._answers():
            held = self._client.eval(ADOPT, 2, self._keys.lock, self._keys.handed, handed, token, _ms(LOCK_TTL_S))
        with self._kept(Lock(bool(held), token)) as lock:
            yield lock

    @contextmanager
    def join(self, handed: str, keep_s: float) -> Iterator[Lock]:
        """Work at a run that was handed out under this token, with others: keep its lock, and leave it to them."""
        with self._answers():
            held = self._keep(handed, LOCK_TTL_S)
        with self._kept(Lock(held, handed, keep_s)) as lock:
            yield lock

    @contextmanager
    def _kept(self, lock: Lock) -> Iterator[Lock]:
        if not lock.held:
            yield lock
            return
        ended = threading.Event()
        keeper = threading.Thread(target=self._keep_until, args=(lock, ended), name="rolling-lock", daemon=True)
        keeper.start()
        try:
            yield lock
        finally:
            ended.set()
            keeper.join()
            try:
                if self.answers:
                    with self._answers():
                        if lock.keep_s:
                            self._keep(lock.token, lock.keep_s)
                        else:
                            self._client.eval(RELEASE, 1, self._keys.lock, lock.token)
            except CacheUnavailable as error:
                _log.warning("the lock was not released and expires by itself: %s", error)

    def _keep(self, token: str, seconds: float) -> bool:
        keys = (self._keys.lock, self._keys.handed)
        return bool(self._client.eval(KEEP, 2, *keys, token, _ms(seconds), _ms(self._handed_s)))

    def owns(self, lock: Lock) -> bool:
        """Whether the lock is still held under this token."""
        with self._answers():
            return self._client.get(self._keys.lock) == lock.token.encode()

    def note_handed(self, token: str, assignment: bytes) -> bool:
        """Note a run that is in the hands of the fleet, and what there is to do; false where its lock is lost."""
        with self._answers():
            keys = (self._keys.lock, self._keys.handed)
            return bool(self._client.eval(NOTE, 2, *keys, token, assignment, _ms(self._handed_s)))

    def revoke(self, run_id: str) -> None:
        """Take the lock from a run, and the note that it was handed out: it cannot publish, and the next may begin."""
        with self._answers():
            mark = _mark(run_id)
            keys = (self._keys.lock, self._keys.handed, self._keys.revoked(mark))
            # An order comes between two runs, so it cannot leave damage to the next: it would be lost.
            self._mend({name: kind for name, kind in self._keys.fixed.items() if name in keys})
            self._client.eval(REVOKE, 3, *keys, mark, _ms(self._handed_s))

    def handed(self, token: str) -> bytes | None:
        """What there is to do in the run with this token; `None` where it has ended, or another took its place."""
        with self._answers():
            noted = cast("list[bytes | None]", self._client.hmget(self._keys.handed, ["token", "assignment"]))
            return noted[1] if noted[0] == token.encode() else None

    def forget_handed(self, token: str) -> None:
        """Note that this run has ended, however."""
        with self._answers():
            self._client.eval(FORGET, 1, self._keys.handed, token)

    def take_handed(self) -> bytes | None:
        """The run that was handed out and has not ended, if there is one; asked once."""
        with self._answers():
            pipeline = self._client.pipeline()
            pipeline.hget(self._keys.handed, "assignment")
            pipeline.delete(self._keys.handed)
            return cast("bytes | None", pipeline.execute()[0])

    @property
    def _handed_s(self) -> float:
        return handed_s(self._interval_s)

    def keep_parts(self, digests: Sequence[str]) -> list[bool]:
        """Keep what was found in these parts for longer, and delete what was found in all others.

        Returns which of them are there.
        """
        wanted = {digest.encode() for digest in digests}
        with self._answers():
            self._mend({self._keys.part(digest): PART for digest in digests})
            noted = cast("set[bytes]", self._client.smembers(self._keys.parts))
            pipeline = self._client.pipeline(transaction=False)
            for digest in digests:
                pipeline.expire(self._keys.part(digest), self._part_s)
            for other in noted - wanted:  # not always text: any client may have written anything
                pipeline.unlink(self._keys.part("").encode() + other)
                pipeline.srem(self._keys.parts, other)
            if wanted - noted:
                pipeline.sadd(self._keys.parts, *wanted)
            return [bool(there) for there in pipeline.execute()[: len(digests)]]

    def part(self, digest: str) -> bytes | None:
        """What was found in a part, as it was kept; `None` where it is gone."""
        with self._answers():
            return cast("bytes | None", self._client.get(self._keys.part(digest)))

    def keep_part(self, digest: str, data: bytes) -> None:
        """Keep what was found in a part."""
        with self._answers():
            pipeline = self._client.pipeline()
            pipeline.sadd(self._keys.parts, digest)
            pipeline.set(self._keys.part(digest), data, ex=self._part_s)
            pipeline.execute()

    def drop_part(self, digest: str) -> None:
        """Delete what was found in a part, where it cannot be read: then the part is scanned again."""
        with self._answers():
            _warn(f"{self._keys.part(digest)} cannot be read")
            self._client.delete(self._keys.part(digest))

    @property
    def _part_s(self) -> int:
        return max(PART_TTL_S, round(3 * self._interval_s))

    def pointer(self, lock: Lock | None = None) -> Pointer | None:
        """The current pointer, or `None` where nothing is published; a damaged one is deleted by the lock's holder."""
        with self._answers():
            return self._pointer(self._client, lock)

    def pointer_now(self) -> Pointer | None:
        """The same, asked also where Redis was away before: it may be back. It gets little time to answer."""
        if self.answers:
            return self.pointer()
        with redis_answers(self._url):
            client = connect(self._url, timeout_s=READER_TIMEOUT_S)
            try:
                return self._pointer(client)
            finally:
                client.close()

    def _pointer(self, client: redis.Redis, lock: Lock | None = None) -> Pointer | None:
        fields = cast("dict[bytes, bytes]", client.hgetall(self._keys.current))
        try:
            return Pointer.from_hash(fields)
        except CacheUnavailable as error:
            _warn(f"{self._keys.current}: {error}")
            if lock is not None:
                client.eval(DROP, 2, self._keys.lock, self._keys.current, lock.token)
            return None

    def now(self) -> str:
        """The time by Redis' clock, which readers compute ages from; by our own where the ACL forbids asking."""
        try:
            with self._answers():
                seconds, microseconds = self._client.time()
        except CacheUnavailable as error:
            if not is_forbidden(error):
                raise
            return text_of(time.time())
        return text_of(seconds + microseconds / 1e6)

    def is_intact(self, version: int) -> bool:
        """Whether every value of a version is there: a cache may evict. What is there and damaged is warned of."""
        names = {self._keys.payload(version, kind): kind_type for kind, kind_type in VERSION_TYPES.items()}
        with self._answers():
            pipeline = self._client.pipeline(transaction=False)
            for name in names:
                pipeline.type(name)
                pipeline.ttl(name)
            replies = pipeline.execute()
        found = dict(zip(names, zip(replies[::2], replies[1::2], strict=True), strict=True))
        wrong = [name for name, reply in found.items() if reply != (names[name].encode(), -1)]
        for name in wrong:
            if found[name][0] != b"none":
                _warn(f"{name} is of another type, or expires")
        return not wrong

    def shows(self, snapshots: SnapshotSet) -> bool:
        """Whether Redis shows this set, whole and for good; each key that does not is named in a warning.

        Of the index the number of symbols is compared, and a window of ranks is read back, another one each time.
        """
        manifest = snapshots.manifest
        names = {kind: self._keys.payload(manifest.version, kind) for kind in VERSION_KINDS}
        count = manifest.snapshots["index"].count
        expected = {
            self._keys.current: pointer_fields(manifest, ""),
            **{names[kind]: snapshots.payloads[kind] for kind in PAYLOAD_KINDS},
            names["symbols"]: count,
            names["ranking"]: count,
        }
        with self._answers():
            pipeline = self._client.pipeline(transaction=False)
            pipeline.hgetall(self._keys.current)
            for kind in PAYLOAD_KINDS:
                pipeline.get(names[kind])
            pipeline.hlen(names["symbols"])
            pipeline.zcard(names["ranking"])
            for name in expected:
                pipeline.ttl(name)
            # Of a key of another type the reply is an error, which differs too.
            replies = pipeline.execute(raise_on_error=False)
            if isinstance(replies[0], dict):
                replies[0][b"checked_at"] = b""  # another one at each tick
            found = zip(replies, replies[len(expected) :], strict=False)
            wrong = [name for name, reply in zip(expected, found, strict=True) if reply != (expected[name], -1)]
            if not wrong and not self._ranks_agree(names["ranking"], names["symbols"], count):
                wrong = [names["ranking"], names["symbols"]]
        for name in wrong:
            _warn(f"{name} is not what the files hold, or expires")
        return not wrong

    def _ranks_agree(self, ranking: str, symbols: str, count: int) -> bool:
        first = random.randint(0, max(0, count - RANKS_CHECKED))  # noqa: S311 - no secret
        ranks = cast(
            "list[tuple[bytes, float]]", self._client.zrange(ranking, first, first + RANKS_CHECKED - 1, withscores=True)
        )
        found = cast("list[bytes | None]", self._client.hmget(symbols, [symbol for symbol, _ in ranks]))
        try:
            records = [_RECORD.decode(data or b"") for data in found]
        except UNREADABLE:
            return False
        return ranks == [(record.symbol.encode(), record.confidence) for record in records]

    def newest_known(self) -> int:
        """The newest version that was published, 0 for none, as far as Redis knows though the pointer is lost."""
        with self._answers():
            return max(self.newest_delta(), self._flipped_version())

    def newest_delta(self) -> int:
        """The version of the newest delta, 0 for none: it may outlive a pointer, and ids only rise."""
        with self._answers():
            entries = cast("list[tuple[bytes, Any]]", self._client.xrevrange(self._keys.deltas, count=1))
            newest = entries[0][0].split(b"-")[0].decode() if entries else ""
            return int(newest) if VERSION.fullmatch(newest) else 0

    def mark_checked(self, version: int, at: str) -> None:
        """Note that a version is still the newest, if the pointer still names it."""
        with self._answers():
            self._client.eval(MARK, 2, self._keys.current, self._keys.flipped, str(version), at)

    def add_run(self, report: Report) -> None:
        """Append a report to the stream of runs, and one of a scan to that of scans too: most runs find nothing new."""
        kept = min(10_000, max(100, round(86_400 / self._interval_s)))
        fields: Any = {"report": msgspec.json.encode(report)}
        with self._answers(), self._client.pipeline() as pipeline:
            pipeline.xadd(self._keys.runs, fields, maxlen=kept, approximate=True)
            if report.status == "success":
                pipeline.xadd(self._keys.scans, fields, maxlen=SCANS_KEPT, approximate=False)
            pipeline.execute()

    def publish(
        self, snapshots: SnapshotSet, *, lock: Lock, before: Pointer | None, checked_at: str, in_files: int = 0
    ) -> None:
        """Make a set the current version.

        Args:
            snapshots: The set.
            lock: The run's lock.
            before: The pointer that the run started from.
            checked_at: When the input was last seen to be what the set was made from.
            in_files: The version that the files had when the run began, 0 for none.

        Raises:
            PublishRefused: The lock is lost, or somebody else has published since.
            CacheUnavailable: Redis does not answer; what was staged expires by itself.
        """
        manifest = snapshots.manifest
        version_before = 0 if before is None else before.version
        if manifest.version < version_before:
            raise PublishRefused(
                f"version {manifest.version} is older than the published {version_before}: does another host publish "
                f"{manifest.source} from an input or with settings of its own? Give each its own ROLLING_SOURCE"
            )
        with self._answers():
            delta = self._delta(snapshots, before)
            self._stage(snapshots, lock.token)
            keys = self._keys
            old = [
                keys.payload(version, kind)
                for version in (self._known_versions(before) | {in_files}) - {manifest.version}
                for kind in VERSION_KINDS
            ]
            answer = self._client.eval(
                FLIP,
                5 + 2 * len(VERSION_KINDS) + len(old),
                *(keys.lock, keys.current, keys.published, keys.deltas, keys.flipped),
                *(keys.staged(lock.token, kind) for kind in VERSION_KINDS),
                *(keys.payload(manifest.version, kind) for kind in VERSION_KINDS),
                *old,
                lock.token,
                str(manifest.version),
                str(before.version) if before else "",
                str(OLD_VERSION_TTL_S),
                str(len(VERSION_KINDS)),
                str(DELTAS_KEPT),
                delta,
                *VERSION_TYPES.values(),
                *chain.from_iterable(pointer_fields(manifest, checked_at).items()),
            )
        if answer != b"ok":
            raise PublishRefused(
                f"version {manifest.version} of {manifest.source} was not published: "
                f"{cast('bytes', answer).decode()}; the next tick makes it again"
            )

    def _known_versions(self, before: Pointer | None) -> set[int]:
        """What has been published and may not expire yet. The pointer alone can be lost."""
        return {self.newest_delta(), self._flipped_version(), before.version if before else 0}

    def _flipped_version(self) -> int:
        flipped = cast("bytes | None", self._client.hget(self._keys.flipped, "version"))
        text = (flipped or b"").decode("ascii", "replace")
        return int(text) if VERSION.fullmatch(text) else 0

    def _claim(self, key: str, token: str, expiry_s: float) -> bool:
        """Set a free key to our token. It may be ours already: redis-py sends again what was not answered."""
        claimed = self._client.set(key, token, nx=True, px=round(expiry_s * 1000))
        return bool(claimed) or self._client.get(key) == token.encode()

    def _stage(self, snapshots: SnapshotSet, token: str) -> None:
        names = {kind: self._keys.staged(token, kind) for kind in VERSION_KINDS}
        for kind in PAYLOAD_KINDS:
            self._client.set(names[kind], snapshots.payloads[kind], ex=STAGED_TTL_S)
        index = snapshots.index()
        for start in range(0, len(index), STAGE_BATCH):
            batch = index[start : start + STAGE_BATCH]
            # One transaction a batch: cut off between two commands, it would leave a key that never expires.
            pipeline = self._client.pipeline()
            pipeline.hset(names["symbols"], mapping={record.symbol: msgspec.json.encode(record) for record in batch})
            pipeline.zadd(names["ranking"], {record.symbol: record.confidence for record in batch})
            pipeline.expire(names["symbols"], STAGED_TTL_S)
            pipeline.expire(names["ranking"], STAGED_TTL_S)
            pipeline.execute()
        # A cache may evict between two batches; then the next one begins the key anew, and the first part is missing.
        staged = (self._client.hlen(names["symbols"]), self._client.zcard(names["ranking"]))
        if staged != (len(index), len(index)):
            raise CacheUnavailable(
                f"of {len(index)} symbols that were staged the cache has {min(staged)} left: it evicts, and "
                "needs more memory"
            )

    def _delta(self, snapshots: SnapshotSet, before: Pointer | None) -> bytes:
        """What changed in the predictions since the version before; empty where that is not known."""
        if before is None or before.version == snapshots.manifest.version:
            return b""
        name = self._keys.payload(before.version, "predictions")
        try:
            old = cast("bytes | None", self._client.get(name))
            if old is None:
                return b""
            return delta_between(before.version, old, snapshots.manifest.version, snapshots.payloads["predictions"])
        except (redis.ResponseError, *UNREADABLE) as error:  # of another type, or damaged
            _log.warning("[RollingOptimizer] %s cannot be read, so there is no delta from it: %s", name, error)
            return b""

    def _keep_until(self, lock: Lock, ended: threading.Event) -> None:
        """Keep the lock until the run ends, or until somebody else holds it: that is found out before publishing."""
        while not ended.wait(LOCK_EXTEND_S):
            try:
                with redis_answers(self._url):
                    if not self._keep(lock.token, LOCK_TTL_S):
                        lock.lost = True
                        return
            except CacheUnavailable as error:
                _log.warning("the lock could not be extended yet: %s", error)

    @contextmanager
    def _answers(self) -> Iterator[None]:
        try:
            with redis_answers(self._url):
                yield
        except CacheUnavailable as error:
            self.answers = not is_away(error)
            raise


def handed_s(interval_s: float) -> float:
    """How long a run that was handed out is waited for, in seconds, since somebody last worked at it."""
    return max(60.0, 10 * interval_s)


def _mark(run_id: str) -> str:
    """What the tokens of a run begin with, however often it changes hands, so that it can be revoked by its id."""
    return hashlib.sha256(run_id.encode("utf-8", "backslashreplace")).hexdigest()[:MARK_CHARACTERS]


def _ms(seconds: float) -> str:
    return str(round(seconds * 1000))


def _warn(problem: str) -> None:
    _log.warning("[RollingOptimizer] damaged in Redis, and replaced: %s", problem)
