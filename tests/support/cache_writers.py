"""The writing side of a source's cache, and sets to publish with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager

from optimizer.cache.client import CacheClient
from optimizer.cache.keys import Keys
from optimizer.cache.lock import SourceLock
from optimizer.cache.writer import VersionWriter
from optimizer.models import Record, rank
from optimizer.snapshots.format import SnapshotSet, encode_set

__all__ = ["KEYS", "NOW", "SOURCE", "a_cache", "a_set", "publish", "version_shown"]

SOURCE = "rolling_brain"
KEYS = Keys(SOURCE)
NOW = "2026-11-01T10:00:00.000Z"


def a_set(version: int, records: Sequence[Record] = (Record("AAPL", 1.5, 0.9, 100.0),)) -> SnapshotSet:
    """A set of these records; its bots and portfolio are empty."""
    ranked = sorted(records, key=rank)
    return encode_set(
        source=SOURCE,
        version=version,
        generated_at=NOW,
        fingerprint=f"print-{version}",
        ranked=ranked,
        predictions=ranked,
        bots={},
        holdings=[],
        gzip_level=1,
    )


@contextmanager
def a_cache(url: str, *, interval_s: float = 30.0) -> Iterator[CacheClient]:
    """A connection to the cache, closed at the end."""
    with closing(CacheClient(url, SOURCE, interval_s)) as cache:
        yield cache


def publish(cache: CacheClient, snapshots: SnapshotSet) -> None:
    """Publish a set under the lock, as a run does while no other run is active."""
    writer = VersionWriter(cache)
    with SourceLock(cache).acquire() as lock:
        assert lock.held
        writer.publish(snapshots, lock=lock, before=writer.pointer())


def version_shown(cache: CacheClient) -> int | None:
    """The version that the pointer names."""
    pointer = VersionWriter(cache).pointer()
    return pointer.version if pointer else None
