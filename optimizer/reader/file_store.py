"""A reader's view of a source's versions in the gz files: the manifest, and the payloads that it names.

Each call blocks: on a directory for at most `FILES_TIMEOUT_S`, on an object store for the timeouts of its client.

Errors: `UNREADABLE`; a directory that does not answer in time is an `OSError`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

from optimizer.cache.clocks import Sightings, text_of
from optimizer.cache.keys import PAYLOAD_KINDS
from optimizer.models import Index
from optimizer.reader.results import CachedVersion, Sighting, load_payload
from optimizer.snapshots.format import CurrentManifest
from optimizer.snapshots.store import snapshot_store
from optimizer.storage.location import Location, Url
from optimizer.storage.time_limit import TimeLimit

__all__ = ["FileStore"]

# How long a refresh waits for a directory before it goes on without the files.
FILES_TIMEOUT_S: Final = 2.0

T = TypeVar("T")


class FileStore:
    """One source's output directory, or its place in an object store.

    Args:
        output_dir: The location of the files.
        stale_after_s: The age from which a version is stale.
    """

    def __init__(self, output_dir: Location, stale_after_s: float) -> None:
        self._store = snapshot_store(output_dir)
        self.costs_requests = isinstance(output_dir, Url)
        self._time_limit = TimeLimit(FILES_TIMEOUT_S)
        self._current: CurrentManifest | None = None  # as at the last refresh
        self._sightings = Sightings(stale_after_s)

    def see(self) -> Sighting | None:
        """Read the manifest; `None` if there is none."""
        current = self._current = self._within_limit(partial(self._store.read_current, self._current))
        if current is None:
            return None
        version = current.manifest.version
        since_s = self._sightings.since_s(version, current.checked_s, time.time(), same_clock=False)
        return Sighting(current.manifest, text_of(current.checked_s), since_s)

    def load(self, sighting: Sighting) -> CachedVersion | None:
        """Load the version that the manifest named, or one written since; `None` if it is not whole."""
        snapshots = self._within_limit(partial(self._store.read_set, kinds=PAYLOAD_KINDS))
        if snapshots is None or snapshots.manifest.version < sighting.version:
            return None
        if snapshots.manifest.version > sighting.version:  # the next refresh reads when it was written
            sighting = Sighting(snapshots.manifest, sighting.checked_at, sighting.checked_s)
        entries = snapshots.manifest.snapshots
        payloads = {
            kind: load_payload(kind, entries[kind].sha256, "files", data) for kind, data in snapshots.payloads.items()
        }
        return CachedVersion.load(sighting, "files", payloads)

    def load_index(self) -> tuple[Sighting, Index] | None:
        """Load the index, and the version to which it belongs; `None` if there is none."""
        snapshots = self._within_limit(partial(self._store.read_set, kinds=("index",)))
        if snapshots is None:
            return None
        etag = snapshots.manifest.snapshots["index"].sha256
        index = load_payload("index", etag, "files", snapshots.payloads["index"]).value
        return Sighting(snapshots.manifest, "", 0.0), index

    def _within_limit(self, read: Callable[[], T]) -> T:
        return read() if self.costs_requests else self._time_limit(read)
