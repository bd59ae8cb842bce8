"""The changes that a process holds: the entries of the stream in Redis, up to the version that Redis shows.

The refresher reads what is new when Redis shows a newer version, before that version shows here, so no request waits
for it. An entry is decoded once, to see that it can be, and held as stored: 300 predictions that all change, 120 times,
are 2 to 4 MB so, and 30 decoded. It is bounded as the stream is. An entry that is damaged, or of an older release, is a
gap. So is a version that only the files had: what leads past it comes with the next one in Redis.

Errors: `ChangesMissing` where a gap, or the end of what is held, is between two versions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from optimizer.cache.client import UNREADABLE
from optimizer.cache.keys import CHANGES_BYTES, CHANGES_KEPT
from optimizer.errors import ChangesMissing
from optimizer.reader.results import CachedVersion
from optimizer.snapshots.chain import chain, oldest_start
from optimizer.snapshots.delta import StoredChange, decode_stored

if TYPE_CHECKING:
    from optimizer.reader.stores import CacheStore

__all__ = ["ChangeLog", "HeldChange"]


class HeldChange(NamedTuple):
    """An entry of the stream: the version that it leads to, those that it leads from, and its gz bytes."""

    version: int
    before: int
    since: int
    gz: bytes

    def stored(self) -> StoredChange:
        """Decode it."""
        return decode_stored(self.gz)


class ChangeLog:
    """The newest changes. One thread at a time reads; any may use `entries`, which are replaced, never changed."""

    def __init__(self) -> None:
        self.entries: tuple[HeldChange, ...] = ()  # oldest first
        self.read_to = 0

    def read(self, store: CacheStore, shown: int) -> None:
        """Read what is new in the stream, up to the version that Redis shows; blocks.

        Raises:
            CacheUnavailable: Redis does not answer.
        """
        if shown <= self.read_to:
            return
        entries = [*self.entries, *_decodable(store.changes(self.read_to, shown))][-CHANGES_KEPT:]
        size = sum(len(entry.gz) for entry in entries)
        while len(entries) > 1 and size > CHANGES_BYTES:
            size -= len(entries.pop(0).gz)
        self.entries, self.read_to = tuple(entries), shown

    def since(self, version: int, current: CachedVersion) -> list[HeldChange]:
        """What leads from a version to the current one.

        Raises:
            ChangesMissing: That is not held.
        """
        try:
            return chain(self.entries, version, current.version, current.manifest.content_since)
        except ChangesMissing:
            oldest = self.oldest(current)
            held = "none are" if oldest is None else f"the oldest version from which changes are held is {oldest}"
            raise ChangesMissing(
                f"what changed since version {version} is not held: {held}; take all of version {current.version}, by "
                "reader.snapshot() or GET /snapshot, and what changes after it"
            ) from None

    def oldest(self, current: CachedVersion) -> int | None:
        """The oldest version from which something leads to the current one; `None` if nothing does."""
        return oldest_start(self.entries, current.version, current.manifest.content_since)


def _decodable(entries: list[tuple[int, bytes]]) -> list[HeldChange]:
    """Those entries of a stream, each with its version, that can be decoded."""
    held = []
    for version, gz in entries:
        try:
            change = decode_stored(gz).change
        except UNREADABLE:
            continue
        if change.version == version:
            held.append(HeldChange(version, change.before, change.since, gz))
    return held
