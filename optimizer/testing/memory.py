"""Versions in memory, which replace Redis and the files for a reader.

`publish` makes a version current, and waits until the readers' threads have refreshed and called their callbacks, so
that a test does not have to wait before it checks.

Errors: `SettingsInvalid`; and, like the real stores, `CacheUnavailable` while `origin` is `files`.
"""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Unpack

import msgspec

from optimizer.cache.clocks import text_of
from optimizer.cache.keys import CHANGES_KEPT, ORIGINS, PAYLOAD_KINDS
from optimizer.config.settings import Settings
from optimizer.errors import CacheUnavailable, SettingsInvalid
from optimizer.models import Index, Origin, Process, QueuedUpdate, Record, Report, Stats, VersionContent, rank
from optimizer.reader.results import CachedVersion, Sighting, load_payload, load_payloads
from optimizer.reader.stores import Stores
from optimizer.selection.top_n import top
from optimizer.selection.updates import merge
from optimizer.snapshots.delta import entry_between
from optimizer.snapshots.format import SnapshotSet
from optimizer.testing.values import Content, Version, content_of, encode

__all__ = ["Memory"]

# How long a callback of `on_version` may take.
CALLBACKS_S: Final = 10.0
# The longest time that closing a reader has to wait.
STEP_S: Final = 0.1
# How much older than the limit a version is made that has to be stale.
BEYOND_S: Final = 1.0


@dataclass(frozen=True)
class Published:
    """The current version."""

    snapshots: SnapshotSet
    sighting: Sighting
    origin: Origin
    unreadable: frozenset[str]

    @property
    def readable(self) -> dict[str, bytes]:
        """The payloads that can be read."""
        payloads = self.snapshots.payloads
        return {kind: payloads[kind] for kind in PAYLOAD_KINDS if kind not in self.unreadable}


class Memory:
    """The versions of a source.

    Args:
        source: Its name.
        stale_after_s: The age from which a version is stale.
    """

    def __init__(self, source: str, stale_after_s: float) -> None:
        self.source = source
        self.published: Published | None = None
        self.reports: list[Report] = []  # newest first
        self.stores = Stores(MemoryCache(self), MemoryFiles(self))
        self.changes: list[tuple[int, bytes]] = []  # encoded, oldest first, each with its version
        self._stale_after_s = stale_after_s
        self._content = Content()
        # The content of the last version in `MemoryCache`, and the version since which it has been the same.
        self._last_in_redis: tuple[VersionContent, int] | None = None
        self.begin_anew()

    def begin_anew(self) -> None:
        """Drop the listening threads: after a fork they are the parent's."""
        self.changed = threading.Condition()
        self.number = 0  # of publishes
        self.listeners: set[MemoryListener] = set()

    def publish(self, **version: Unpack[Version]) -> int:
        """Make a version current; return its number when all readers show it and have called their callbacks."""
        with self.changed:
            last = self.published.snapshots.manifest.version if self.published else 0
            number = version.get("version", last + 1)
            if number <= last:
                raise SettingsInvalid(f"version={number} is not above {last}, the current one: versions rise")
            generated_at = version.get("generated_at", text_of(time.time()))
            content = content_of(version, self._content)
            self.published = self._published(content, version, number, generated_at)
            self._content = content
            self.reports.insert(0, _report(content, self.source, number, generated_at))
            self.number += 1
            self.changed.notify_all()
            if not self.changed.wait_for(self._is_seen, CALLBACKS_S):
                raise TimeoutError(f"version {number}: a callback of on_version has not returned for {CALLBACKS_S:g} s")
        return number

    def update(self, update: QueuedUpdate, settings: Settings) -> int:
        """Apply an update, as a drain does; return the number of the version."""
        with self.changed:
            records = {record.symbol: record for record in (*self._content.predictions, *self._content.index)}
            for symbol, held in merge([update], records).held.items():
                records.pop(symbol, None)
                if held.record is not None:
                    records[symbol] = held.record
            ranked = sorted(records.values(), key=rank)[: settings.index_symbols_limit]
            best = top(ranked, limit=settings.top_symbols_limit, min_confidence=settings.min_confidence)
            return self.publish(predictions=best, index=ranked[len(best) :])

    def _published(self, content: Content, version: Version, number: int, generated_at: str) -> Published:
        origin = version.get("origin", self.published.origin if self.published else "redis")
        unreadable = frozenset(version.get("unreadable", ()))
        for name, value, allowed in (("origin", {origin}, ORIGINS), ("unreadable", unreadable, PAYLOAD_KINDS)):
            if not value <= set(allowed):
                raise SettingsInvalid(f"{name}={', '.join(map(repr, value))}: it can be {', '.join(allowed)}")
        try:
            zone = datetime.fromisoformat(generated_at).tzinfo
        except ValueError:
            zone = None
        if zone is None:
            raise SettingsInvalid(f"generated_at={generated_at!r} is not ISO 8601 with a time zone")
        age_s = self._age_s(version)
        before = self.published.snapshots if self.published else None
        snapshots = encode(
            content, version, source=self.source, number=number, generated_at=generated_at, before=before
        )
        self._note_change(snapshots, origin)
        sighting = Sighting(snapshots.manifest, text_of(time.time() - age_s), time.monotonic() - age_s)
        return Published(snapshots, sighting, origin, unreadable)

    def _note_change(self, snapshots: SnapshotSet, origin: Origin) -> None:
        """Add the change to the stream, as a publish in Redis does; with files only, there is no stream."""
        if origin != "redis":
            return
        content, manifest = snapshots.content(), snapshots.manifest
        before, self._last_in_redis = self._last_in_redis, (content, manifest.content_since or manifest.version)
        entry = b"" if before is None else entry_between(before[0], content, since=before[1])
        if entry:
            self.changes = [*self.changes, (content.version, entry)][-CHANGES_KEPT:]

    def _age_s(self, version: Version) -> float:
        stale = version.get("stale", False)
        age_s = version.get("age_s", self._stale_after_s + BEYOND_S if stale else 0.0)
        if age_s < 0 or ("stale" in version and stale != (age_s > self._stale_after_s)):
            raise SettingsInvalid(
                f"age_s={age_s:g} and stale={stale}: a version is stale after {self._stale_after_s:g} s (3 intervals)"
            )
        return age_s

    def _is_seen(self) -> bool:
        return all(listener.has_seen(self.number) for listener in self.listeners)


class MemoryListener:
    """Waits for the next publish, in one reader's thread.

    Args:
        memory: The versions.
        closed: Ends a wait.
    """

    def __init__(self, memory: Memory, closed: threading.Event) -> None:
        self._memory = memory
        self._closed = closed
        self._refreshed = self._seen = 0
        self._thread: threading.Thread | None = None
        with memory.changed:
            memory.listeners.add(self)

    def subscribe(self) -> None:
        """Record which publish the following refresh will see."""
        self._refreshed = self._memory.number

    def wait(self) -> None:
        """Return when there is a newer version, or after a moment."""
        with self._memory.changed:
            self._thread = threading.current_thread()
            self._seen = self._refreshed
            self._memory.changed.notify_all()
            self._memory.changed.wait_for(lambda: self._memory.number > self._seen, STEP_S)

    def close(self) -> None:
        """Stop listening."""
        with self._memory.changed:
            self._memory.listeners.discard(self)
            self._memory.changed.notify_all()

    def has_seen(self, number: int) -> bool:
        """Whether the thread has refreshed and called back after this publish; it cannot wait for itself."""
        return self._seen >= number or self._closed.is_set() or self._thread is threading.current_thread()


class MemoryCache:
    """The replacement of Redis, which is away while the origin is `files`."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._reads = dict.fromkeys(ORIGINS, 0)

    @property
    def up(self) -> bool:
        """Whether it answers."""
        published = self._memory.published
        return published is None or published.origin == "redis"

    @property
    def problem(self) -> str:
        """Why there is no version."""
        return (
            "no version was published to this reader of optimizer.testing"
            if self.up
            else "away, as origin='files' says"
        )

    def connect(self) -> object:
        """Drop the parent's threads."""
        self._memory.begin_anew()
        return None

    def close(self) -> None:
        """Release a publish that waits for the reader's thread."""
        with self._memory.changed:
            self._memory.changed.notify_all()

    def listener(self, closed: threading.Event) -> MemoryListener:
        """Make the object that waits for the next publish."""
        return MemoryListener(self._memory, closed)

    def read(self, cached: CachedVersion | None) -> tuple[Sighting | None, CachedVersion | None]:
        """The current version."""
        published = self._memory.published
        if published is None:
            return None, None
        self._check_up()
        sighting = published.sighting
        if cached is not None and cached.is_whole and cached.origin == "redis" and cached.version == sighting.version:
            return sighting, cached
        return sighting, CachedVersion.load(sighting, "redis", load_payloads(sighting, published.readable))

    def changes(self, after: int, version: int) -> list[tuple[int, bytes]]:
        """The changes after one version and up to another."""
        self._check_up()
        return [entry for entry in self._memory.changes if after < entry[0] <= version]

    def records(self, version: int, symbols: Sequence[str]) -> list[Record | None] | None:
        """Records of the index by symbol."""
        index = self._index(version)
        return None if index is None else list(map({record.symbol: record for record in index}.get, symbols))

    def ranked(self, version: int, n: int, offset: int) -> list[Record] | None:
        """Records of the index by rank."""
        index = self._index(version)
        return None if index is None else index[offset : offset + n]

    def reports(self, count: int, *, scans: bool) -> list[Report]:  # noqa: ARG002 - every publish is of a scan
        """One report for each publish."""
        self._check_up()
        return self._memory.reports[:count]

    def processes(self) -> list[Process]:
        """Return no workers and beats: only the test's process publishes."""
        self._check_up()
        return []

    def outcomes(self) -> dict[tuple[str, str], int]:
        """Return the number of publishes, all of which succeeded."""
        self._check_up()
        return {("success", ""): len(self._memory.reports)}

    def memory(self) -> tuple[int, int]:
        """Return zeros, since there is no server."""
        self._check_up()
        return 0, 0

    def add_reads(self, numbers: Mapping[Origin, int]) -> list[int]:
        """Count responses by origin."""
        self._check_up()
        for origin, number in numbers.items():
            self._reads[origin] += number
        return [self._reads[origin] for origin in numbers]

    def _index(self, version: int) -> list[Record] | None:
        self._check_up()
        published = self._memory.published
        if published is None or published.sighting.version != version:
            return None
        return published.snapshots.index()

    def _check_up(self) -> None:
        if not self.up:
            raise CacheUnavailable(self.problem)


class MemoryFiles:
    """The replacement of the files, which exist only while the origin is `files`."""

    costs_requests = False

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    def see(self) -> Sighting | None:
        """The current version's manifest."""
        published = self._published()
        return None if published is None else published.sighting

    def load(self, sighting: Sighting) -> CachedVersion | None:
        """Load the current version; `None` unless it is whole, since files with an unreadable part are no version."""
        published = self._published()
        if published is None or published.unreadable:
            return None
        payloads = {
            kind: load_payload(kind, sighting.manifest.snapshots[kind].sha256, "files", data)
            for kind, data in published.readable.items()
        }
        return CachedVersion.load(published.sighting, "files", payloads)

    def load_index(self) -> tuple[Sighting, Index] | None:
        """The current version's index."""
        published = self._published()
        if published is None:
            return None
        return published.sighting, msgspec.json.decode(
            gzip.decompress(published.snapshots.payloads["index"]), type=Index
        )

    def _published(self) -> Published | None:
        published = self._memory.published
        return published if published is not None and published.origin == "files" else None


def _report(content: Content, source: str, version: int, generated_at: str) -> Report:
    """The report of the run that would have published this."""
    stats = Stats(
        predictions_extracted=len(content.predictions),
        bots_processed=len(content.bots or {}),
        portfolio_holdings=len(content.portfolio),
        records_seen=len(content.predictions) + len(content.index),
        bots_seen=len(content.bots or {}),
    )
    return Report("success", source, generated_at, version=version, cache="published", stats=stats)
