"""The changes in memory: the entries of the stream in Redis, up to the current version in Redis.

When Redis shows a newer version, the refresher reads the new entries before that version is shown here, so no request
waits for them. An entry is decoded once, to check it, and kept encoded: 120 entries with 300 changed predictions each
take 2 to 4 MB encoded, and 30 MB decoded. Memory is bounded like the stream. A damaged entry, or one of an older
release, is a gap. So is a version that only the files had; a change that leads past it comes with the next version in
Redis.

Errors: `ChangesMissing` if a gap, or the beginning of the entries, is between two versions.
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
    """An entry of the stream: the version that it leads to, the versions that it leads from, and its gz bytes."""

    version: int
    before: int
    since: int
    gz: bytes

    def stored(self) -> StoredChange:
        """Decode the entry."""
        return decode_stored(self.gz)


class ChangeLog:
    """The newest changes. One thread at a time updates them; any may read `entries`, which is replaced, not mutated."""

    def __init__(self) -> None:
        self.entries: tuple[HeldChange, ...] = ()  # oldest first
        self.read_to = 0

    def read(self, store: CacheStore, shown: int) -> None:
        """Read new entries of the stream, up to the current version in Redis; blocks.

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
        """Return the changes that lead from a version to the current one.

        Raises:
            ChangesMissing: They are not in memory.
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
        """Return the oldest version from which changes lead to the current one; `None` if there is none."""
        return oldest_start(self.entries, current.version, current.manifest.content_since)


def _decodable(entries: list[tuple[int, bytes]]) -> list[HeldChange]:
    """Return the entries of a stream that can be decoded; `entries` has each with its version."""
    held = []
    for version, gz in entries:
        try:
            change = decode_stored(gz).change
        except UNREADABLE:
            continue
        if change.version == version:
            held.append(HeldChange(version, change.before, change.since, gz))
    return held
