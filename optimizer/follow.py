"""What both readers share, without I/O: the version that a process holds, and how to find out about the next one.

Whatever needs Redis or a file is written as a plan, a generator: it yields `Calls` (calls of redis-py that go out in
one pipeline, answered by the list of their replies) or a function that may block (answered by what it returns), and the
shells in `reader.py` and `async_reader.py` do what it asks for, each in its own way. A failure of Redis comes back into
the plan as `CacheUnavailable`. So there is one text of what a reader does, for threads and for asyncio.

    look()          the refresher's step: read the pointer; fetch, inflate and decode what is new; else the files
    snapshot(kind)  what is held, at once

Errors: `SnapshotMissing` where there is neither a version in Redis nor one in the files.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Generator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from optimizer.answers import Snapshot, State
from optimizer.connection import UNREADABLE, is_away, redis_answers
from optimizer.errors import CacheUnavailable, SnapshotMissing
from optimizer.held import Held, Stored, hold, store, store_each
from optimizer.keys import PAYLOAD_KINDS, Keys, Pointer
from optimizer.locations import Location
from optimizer.outputs import manifest_age_s, read_manifest, read_set

__all__ = ["READ_ATTEMPTS", "Calls", "Follower", "Plan", "call"]

# How often the pointer is read: one small HASH. It tells what a lost message would have told, and the age.
POLL_S: Final = 1.0
# While Redis is away it is asked this much later, then twice as much each time up to the longest, and a little at
# random: a fleet of routers must not come back all at the same moment.
FIRST_RETRY_S: Final = 0.25
LONGEST_RETRY_S: Final = 2.0
STALE_INTERVALS: Final = 3
READ_ATTEMPTS: Final = 3

_log = logging.getLogger(__name__)

Calls = list[tuple[str, tuple[Any, ...], dict[str, Any]]]
T = TypeVar("T")
Plan = Generator[Calls | Callable[[], Any], Any, T]


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
        self.cache_up = True  # until the first call fails; then only `look` asks again
        self.url = redis_url
        self.keys = Keys(source)
        self.output_dir = output_dir
        self.stale_after_s = STALE_INTERVALS * interval_s
        self.problem = "nobody has looked yet"
        self.files_problem = f"none in {output_dir}"
        self._failures = 0

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
            with redis_answers(self.url):
                found = yield from self._from_redis()
            if not self.cache_up:
                _log.info("[RollingOptimizer] Redis is back")
            self.cache_up, self._failures = True, 0
            problem = "it holds no snapshot that can be read"
        except CacheUnavailable as error:
            self.failed(error)
            problem = str(error)
        if found is None:
            self.files_problem = f"none in {self.output_dir}"
            try:
                found = yield self._from_files
            except UNREADABLE as error:
                self.files_problem = f"{self.output_dir} cannot be read: {error}"
        self.problem = problem
        held = self.held
        # A replica that lags, after a failover, names an older version that nobody has confirmed since.
        if found and held and found.version < held.version and found.checked_s <= held.checked_s:
            return
        # Of a newer version a part cannot be read anywhere: the old one, whole and growing old, is better.
        if found and held and held.is_whole and not found.is_whole:
            return
        if found:
            self.held = found

    def failed(self, error: CacheUnavailable) -> None:
        """Leave a Redis that is away to the refresher; one that answers with an error is asked again."""
        if is_away(error):
            if self.cache_up:
                _log.warning("[RollingOptimizer] Redis is away, what is held or in the files answers: %s", error)
            self.cache_up = False
            self._failures += 1

    def pointer(self) -> Plan[Pointer | None]:
        """The pointer as it is now."""
        [fields] = yield [call("hgetall", self.keys.current)]
        return Pointer.from_hash(fields)

    def _from_redis(self) -> Plan[Held | None]:
        pointer = yield from self.pointer()
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
            before, pointer = pointer, (yield from self.pointer())
            if pointer is not None and pointer.version == before.version:
                break
        else:
            return None
        if not wanted and self.held is not None and self.held.origin == "redis":
            return replace(self.held, checked_s=_seconds(pointer.checked_at))
        data = {kind: item for kind, item in zip(wanted, replies, strict=True) if item is not None}
        payloads |= yield lambda: store_each(pointer.etags, data)
        if len(payloads) < len(PAYLOAD_KINDS):
            try:
                files: Held | None = yield self._from_files
            except UNREADABLE as error:  # what Redis still holds is better than nothing
                _log.debug("the files cannot be read: %s", error)
                files = None
            if files is not None and files.version == pointer.version:
                payloads = {**files.payloads, **payloads}
            elif files is not None:
                return files  # of one version, where a mixture would be none
        return hold(pointer.version, pointer.generated_at, _seconds(pointer.checked_at), "redis", payloads)

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
        manifest = None if self.output_dir is None else read_manifest(self.output_dir)
        if manifest is None or self.output_dir is None or (held is not None and manifest.version < held.version):
            return None
        checked_s = time.time() - manifest_age_s(self.output_dir)
        if held is not None and held.is_whole and held.is_set_of(manifest):
            return replace(held, checked_s=checked_s, origin="files", payloads=held.payloads_from("files"))
        found = read_set(self.output_dir, kinds=PAYLOAD_KINDS)
        if found is None:
            return None
        manifest = found.manifest
        payloads = {
            kind: store(kind, manifest.snapshots[kind].sha256, "files", data) for kind, data in found.payloads.items()
        }
        return hold(manifest.version, manifest.generated_at, checked_s, "files", payloads)


def _seconds(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp).timestamp()
