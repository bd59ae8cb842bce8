"""What both readers share, without I/O: the version that a process holds, and how to find out about the next one.

Whatever needs Redis or a file is written as a plan, a generator: it yields `Calls` (calls of redis-py that go out in
one pipeline, answered by the list of their replies), a function that may block (answered by what it returns) or a
`Look`, and the shells in `reader.py` and `async_reader.py` do what it asks for, each in its own way. A failure of Redis
comes back into the plan as `CacheUnavailable`. So there is one text of what a reader does, for threads and for asyncio.

    look()          the refresher's step: see what Redis and the files show, and hold the newest version
    snapshot(kind)  what is held, at once

Invariant: of all that a process can see (held, Redis, files) it holds the newest version that can be read whole, and
never goes back to an older one. Redis is asked at each look, a directory too; an object store, where each question is a
request that costs money, at the first look and wherever Redis shows nothing, something older than what is held, or a
version that no run has confirmed for one and a half intervals.

Errors: `SnapshotMissing` where there is neither a version in Redis nor one in the files.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

from optimizer.cache.client import UNREADABLE, is_away, is_forbidden, translated_errors
from optimizer.cache.clocks import Sightings, seconds_of, text_of
from optimizer.cache.keys import PAYLOAD_KINDS, Keys
from optimizer.cache.pointer import Pointer
from optimizer.errors import CacheUnavailable, SnapshotMissing
from optimizer.reader.cached_version import Held, Sight, Stored, hold, store, store_each
from optimizer.reader.results import Snapshot, State
from optimizer.snapshots.format import CurrentManifest
from optimizer.snapshots.store import snapshot_store
from optimizer.storage.location import Location, Url
from optimizer.storage.time_limit import TimeLimit

__all__ = ["READ_ATTEMPTS", "Calls", "Follower", "Look", "Plan", "call"]

# How often the pointer is read: one small HASH. It tells what a lost message would have told, and the age.
POLL_S: Final = 1.0
# While Redis is away it is asked this much later, then twice as much each time up to the longest, and a little at
# random: a fleet of routers must not come back all at the same moment.
FIRST_RETRY_S: Final = 0.25
LONGEST_RETRY_S: Final = 2.0
STALE_INTERVALS: Final = 3
READ_ATTEMPTS: Final = 3
# What a directory may take to answer, before a look goes on without it; object stores have limits of their own.
FILES_TIMEOUT_S: Final = 2.0

_log = logging.getLogger(__name__)

Calls = list[tuple[str, tuple[Any, ...], dict[str, Any]]]
T = TypeVar("T")


@dataclass(frozen=True)
class Look:
    """What a plan yields to have its shell look, one look at a time; not where `version` or a newer one is held."""

    version: int


Plan = Generator[Calls | Callable[[], Any] | Look, Any, T]


def call(name: str, *arguments: Any, **options: Any) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """One call of a redis-py method, of either kind of client."""
    return name, arguments, options


class Follower:
    """Follows a source.

    Args:
        redis_url: The cache.
        source: The source's name.
        output_dir: Where the gz files are, if this process can see them.
        interval_s: Seconds between ticks; a version that none has confirmed for three of them is stale.
    """

    def __init__(self, redis_url: str, source: str, output_dir: Location | None, interval_s: float) -> None:
        self.held: Held | None = None
        self.prepare: Callable[[Held], None] | None = None  # called with a version before it is shown; may block
        self.cache_up = True  # until the first call fails; then only `look` asks again
        self.url = redis_url
        self.keys = Keys(source)
        self.output_dir = output_dir
        self.stale_after_s = STALE_INTERVALS * interval_s
        self.problem = "nobody has looked yet"
        self.files_problem = f"none in {output_dir}"
        self._failures = 0
        self._may_ask_time = True
        self._patience = TimeLimit(FILES_TIMEOUT_S)
        self._files: CurrentManifest | None = None  # as they were at the last look
        self._pointers = Sightings(self.stale_after_s)
        self._manifests = Sightings(self.stale_after_s)

    # ---- what is held

    def current(self) -> Held:
        """The version that is held.

        Raises:
            SnapshotMissing: There is none.
        """
        held = self.held
        if held is None:
            raise SnapshotMissing(
                f"no snapshot of {self.keys.source!r}: Redis: {self.problem}; files: {self.files_problem}. "
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
                f"no {kind} of {self.keys.source!r}: Redis holds it damaged or not at all; files: {self.output_dir} "
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
            rejected=held.rejected,
        )

    def state(self) -> State:
        """Which version is held."""
        held = self.current()
        age_s = held.age_s()
        return State(
            version=held.version,
            generated_at=held.generated_at,
            checked_at=held.checked_at,
            origin=held.origin,
            age_s=age_s,
            stale=age_s > self.stale_after_s,
            rejected=held.rejected,
        )

    # ---- the refresher's step

    def delay_s(self) -> float:
        """How long to wait until the next look."""
        if self.cache_up:
            return POLL_S
        delay_s = min(LONGEST_RETRY_S, FIRST_RETRY_S * 2.0 ** min(self._failures - 1, 10))
        return delay_s * random.uniform(0.8, 1.2)  # noqa: S311 - no secret

    def look(self, *, ask_redis: bool = True) -> Plan[None]:
        """Find out which version is the newest, and hold it; what is held stays where nothing better is found.

        The shells see to it that there is one look at a time. Without `ask_redis` only the files are seen.
        """
        held, pointer, shown = self.held, None, None
        found: Held | None = None
        if ask_redis:
            try:
                with translated_errors(self.url):
                    pointer, found = yield from self._from_redis()
                if not self.cache_up:
                    _log.info("[RollingOptimizer] Redis is back")
                self.cache_up, self._failures = True, 0
                self.problem = "it holds no snapshot that can be read"
            except CacheUnavailable as error:
                self.failed(error)
                self.problem = str(error)
        if self._needs_files(pointer, found):
            self.files_problem = f"none in {self.output_dir}"
            try:
                shown = yield self._see_files
                if shown is not None and not self._is_older(shown) and not _covers(found, shown):
                    found = _better(pointer, found, (yield partial(self._from_files, shown)))
            except UNREADABLE as error:
                self.files_problem = f"{self.output_dir} cannot be read: {error}"
        # Of a newer version a part cannot be read anywhere: the old one, whole and growing old, is better.
        if found is None or (held is not None and held.is_whole and not found.is_whole):
            found = held
        if found is not None:
            found = found.confirmed_by(held, pointer, shown)
            if self.prepare is not None and found is not held:
                yield partial(self.prepare, found)
            self.held = found

    def catch_up(self) -> Plan[None]:
        """Look on behalf of a lookup: while Redis is away, only the refresher asks it."""
        return self.look(ask_redis=self.cache_up)

    def holds(self, version: int) -> bool:
        """Whether this version or a newer one is held."""
        return self.held is not None and self.held.version >= version

    def failed(self, error: CacheUnavailable) -> None:
        """Leave a Redis that is away to the refresher; one that answers with an error is asked again."""
        if is_away(error):
            if self.cache_up:
                _log.warning("[RollingOptimizer] Redis is away, what is held or in the files answers: %s", error)
            self.cache_up = False
            self._may_ask_time = True
            self._failures += 1

    def read_files(self, read: Callable[[], T]) -> T:
        """What a function reads from the files; blocks, and not for ever.

        Raises:
            OSError: They cannot be read, or a directory does not answer in time.
        """
        return read() if isinstance(self.output_dir, Url) else self._patience(read)

    def _is_older(self, sight: Sight) -> bool:
        return self.held is not None and sight.version < self.held.version

    def _pointer(self) -> Plan[Sight | None]:
        """What the pointer shows, dated by Redis' own clock where that may be asked."""
        asked = call("hgetall", self.keys.current)
        now: tuple[int, int] | None = None
        try:
            fields, now = (yield [asked, call("time")]) if self._may_ask_time else [*(yield [asked]), None]
        except CacheUnavailable as error:
            if not (self._may_ask_time and is_forbidden(error)):
                raise
            self._may_ask_time = False  # until Redis was away: its ACL may be another then
            [fields] = yield [asked]
        pointer = Pointer.from_hash(fields)
        if pointer is None:
            return None
        told_s, now_s = seconds_of(pointer.checked_at), time.time() if now is None else now[0] + now[1] / 1e6
        since_s = self._pointers.since_s(pointer.version, told_s, now_s, same_clock=now is not None)
        return Sight.of_manifest(pointer.manifest, pointer.checked_at, since_s)

    def _from_redis(self) -> Plan[tuple[Sight | None, Held | None]]:
        """What the pointer shows, and that version as far as it can be read, unless what is held is newer."""
        pointer = yield from self._pointer()
        for _ in range(READ_ATTEMPTS):
            if pointer is None or self._is_older(pointer):
                return pointer, None
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
        else:
            return pointer, None
        if not wanted and self.held is not None and self.held.origin == "redis":
            return pointer, self.held
        data = {kind: item for kind, item in zip(wanted, replies, strict=True) if item is not None}
        payloads |= yield partial(store_each, pointer.etags, data)
        return pointer, hold(pointer, "redis", payloads)

    def _known(self, pointer: Sight) -> dict[str, Stored]:
        """The payloads of this version that are held already."""
        held = self.held
        if held is None or held.version != pointer.version:
            return {}
        if held.origin != "redis":
            held = held.from_("redis")
        return {kind: stored for kind, stored in held.payloads.items() if stored.etag == pointer.etags[kind]}

    def _needs_files(self, pointer: Sight | None, found: Held | None) -> bool:
        if not isinstance(self.output_dir, Url):
            return self.output_dir is not None
        if self.held is None or pointer is None or found is None or not found.is_whole:
            return True
        return time.monotonic() - pointer.checked_s > self.stale_after_s / 2

    def _see_files(self) -> Sight | None:
        """What the files show; blocks."""
        assert self.output_dir is not None  # noqa: S101 - asked before
        files = self._files = self.read_files(partial(snapshot_store(self.output_dir).read_current, self._files))
        if files is None:
            return None
        since_s = self._manifests.since_s(files.manifest.version, files.checked_s, time.time(), same_clock=False)
        return Sight.of_manifest(files.manifest, text_of(files.checked_s), since_s)

    def _from_files(self, shown: Sight) -> Held | None:
        """The version in the files, which is not older than what is held; blocks."""
        assert self.output_dir is not None  # noqa: S101 - asked before
        held = self.held
        if held is not None and held.is_whole and held.is_at(shown):
            return held if held.origin == "files" else held.from_("files")
        found = self.read_files(partial(snapshot_store(self.output_dir).read_set, kinds=PAYLOAD_KINDS))
        if found is None or found.manifest.version < shown.version:
            return None
        if found.manifest.version > shown.version:  # written since; when that was says the next look
            shown = Sight.of_manifest(found.manifest, shown.checked_at, shown.checked_s)
        payloads = {kind: store(kind, shown.etags[kind], "files", data) for kind, data in found.payloads.items()}
        return hold(shown, "files", payloads)


def _covers(redis: Held | None, shown: Sight) -> bool:
    """Whether the files are not needed beside what Redis has."""
    return redis is not None and redis.is_whole and redis.version >= shown.version


def _better(pointer: Sight | None, redis: Held | None, files: Held | None) -> Held | None:
    """The newest version that one place, or both together, have whole; never a mixture of two."""
    if pointer is None or redis is None or files is None:
        return redis or files
    if redis.version != files.version:
        return files if files.version > redis.version or not redis.is_whole else redis
    same = {kind: stored for kind, stored in files.payloads.items() if stored.etag == pointer.etags[kind]}
    filled = hold(pointer, "redis", {**same, **redis.payloads})
    return filled if filled.is_whole else files
