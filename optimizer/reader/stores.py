"""The protocols of the two stores that a follower reads: Redis and the files, or their replacements in tests.

`RedisStore` and `FileStore` document the limits and the errors of each method; `optimizer.testing` implements them in
memory.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from optimizer.models import Index, Origin, Process, Record, Report
from optimizer.reader.results import CachedVersion, Sighting

__all__ = ["CacheStore", "NewVersions", "Stores", "VersionFiles"]


class NewVersions(Protocol):
    """Waits for the next refresh, as `redis_store.Listener` does."""

    def subscribe(self) -> None:
        """Called before each refresh."""

    def wait(self) -> None:
        """Return when it is time to refresh."""

    def close(self) -> None:
        """Called after the last refresh."""


class CacheStore(Protocol):
    """Versions in Redis, as `RedisStore` reads them."""

    @property
    def up(self) -> bool:
        """Whether the last call was answered."""

    @property
    def problem(self) -> str:
        """Why there is no version, for messages."""

    def connect(self) -> object:
        """Make new connections; return the old ones, which have to be kept alive."""

    def close(self) -> None:
        """Close the connections."""

    def listener(self, closed: threading.Event) -> NewVersions:
        """Make the object that waits for new versions, in one thread, until `closed` is set."""

    def read(self, cached: CachedVersion | None) -> tuple[Sighting | None, CachedVersion | None]:
        """Read the current version, unless the one in memory is newer."""

    def changes(self, after: int, version: int) -> list[tuple[int, bytes]]:
        """Read the newest entries of the stream of changes after one version, up to another, each with its version."""

    def records(self, version: int, symbols: Sequence[str]) -> list[Record | None] | None:
        """Read records of the index by symbol."""

    def ranked(self, version: int, n: int, offset: int) -> list[Record] | None:
        """Read records of the index by rank."""

    def reports(self, count: int, *, scans: bool) -> list[Report]:
        """Read the newest reports."""

    def processes(self) -> list[Process]:
        """Read the workers and beats, the latest heartbeat first."""

    def outcomes(self) -> dict[tuple[str, str], int]:
        """Read the number of runs by status and error."""

    def memory(self) -> tuple[int, int]:
        """Read the bytes used, and their limit; 0 for none."""

    def add_reads(self, numbers: Mapping[Origin, int]) -> list[int]:
        """Count responses by origin."""


class VersionFiles(Protocol):
    """Versions in files, as `FileStore` reads them."""

    costs_requests: bool

    def see(self) -> Sighting | None:
        """Read the current version's manifest."""

    def load(self, sighting: Sighting) -> CachedVersion | None:
        """Load the current version."""

    def load_index(self) -> tuple[Sighting, Index] | None:
        """Load the current version's index."""


class Stores(NamedTuple):
    """Both stores; `files` is `None` in a process that does not see the files."""

    redis: CacheStore
    files: VersionFiles | None
