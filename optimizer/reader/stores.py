"""What a follower needs of the two places that hold versions: Redis and the files, or what stands for them in tests.

`RedisStore` and `FileStore` have the limits and the errors of each method; `optimizer.testing` has others that are in
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
        """Begin anew, and return what has to be kept of before."""

    def close(self) -> None:
        """Close the connections."""

    def listener(self, closed: threading.Event) -> NewVersions:
        """What waits for new versions, in one thread, until `closed` is set."""

    def read(self, cached: CachedVersion | None) -> tuple[Sighting | None, CachedVersion | None]:
        """The current version, unless what is held is newer."""

    def changes(self, after: int, version: int) -> list[tuple[int, bytes]]:
        """The newest entries of the stream of changes after one version and up to another, each with its version."""

    def records(self, version: int, symbols: Sequence[str]) -> list[Record | None] | None:
        """Records of the index by symbol."""

    def ranked(self, version: int, n: int, offset: int) -> list[Record] | None:
        """Records of the index by rank."""

    def reports(self, count: int, *, scans: bool) -> list[Report]:
        """The newest reports."""

    def processes(self) -> list[Process]:
        """The workers and beats, the last to tell first."""

    def outcomes(self) -> dict[tuple[str, str], int]:
        """The number of runs by status and error."""

    def memory(self) -> tuple[int, int]:
        """Bytes used, and their limit; 0 for none."""

    def add_reads(self, numbers: Mapping[Origin, int]) -> list[int]:
        """Count responses by origin."""


class VersionFiles(Protocol):
    """Versions in files, as `FileStore` reads them."""

    costs_requests: bool

    def see(self) -> Sighting | None:
        """The current version's manifest."""

    def load(self, sighting: Sighting) -> CachedVersion | None:
        """The current version."""

    def load_index(self) -> tuple[Sighting, Index] | None:
        """The current version's index."""


class Stores(NamedTuple):
    """Both places; `files` is `None` where a process does not see the files."""

    redis: CacheStore
    files: VersionFiles | None
