"""Readers for tests of pages, without Redis and files: the real readers over versions in memory.

    reader = optimizer.testing.reader(predictions=[{"symbol": "AAPL", ...}], bots={"alpha": {"equity": 10.5}})
    reader.publish(predictions=[...])  # a newer version
    reader.update([...], remove=[...])  # in place of `publish` of `optimizer.producer`
    optimizer.testing.reader(missing=True)  # raises SnapshotMissing until the first publish

`reader` returns a `SnapshotReader` and `async_reader` an `AsyncSnapshotReader`, each with the additional methods
`publish` and `update`. Following, lookups, ages and errors are production code; only the stores are replaced.
`fixtures` has a fixture for pytest.

Errors: `SettingsInvalid` names the value that no version can have.
"""

from __future__ import annotations

from typing import Final, Unpack

from optimizer.errors import SettingsInvalid
from optimizer.reader.async_reader import AsyncSnapshotReader
from optimizer.reader.follower import STALE_INTERVALS
from optimizer.reader.reader import SnapshotReader
from optimizer.testing.memory import Memory
from optimizer.testing.updates import PublishesUpdates
from optimizer.testing.values import Version

__all__ = ["AsyncMemoryReader", "MemoryReader", "Version", "async_reader", "reader"]

# The default of `ROLLING_INTERVAL_S`.
SOURCE: Final = "rolling_brain"
INTERVAL_S: Final = 30.0


class MemoryReader(PublishesUpdates, SnapshotReader):
    """A `SnapshotReader` of versions in memory."""

    def __init__(self, memory: Memory, *, interval_s: float) -> None:
        super().__init__("", memory.source, None, interval_s=interval_s, stores=memory.stores)
        self._memory = memory

    def publish(self, **version: Unpack[Version]) -> int:
        """Make a newer version current; return its number.

        Content and origin that are not given stay as they are, and all else has its default. When it returns, the
        version is shown and the callbacks of `on_version` have been called.

        Raises:
            SettingsInvalid: No version can have one of the values.
            TimeoutError: A callback of `on_version` has not returned for ten seconds.
        """
        return self._memory.publish(**version)


class AsyncMemoryReader(PublishesUpdates, AsyncSnapshotReader):
    """An `AsyncSnapshotReader` of versions in memory."""

    def __init__(self, memory: Memory, *, interval_s: float) -> None:
        super().__init__("", memory.source, None, interval_s=interval_s, stores=memory.stores)
        self._memory = memory

    def publish(self, **version: Unpack[Version]) -> int:
        """Make a newer version current, as `MemoryReader.publish` does; it needs no `await`."""
        return self._memory.publish(**version)


def reader(
    *, missing: bool = False, source: str = SOURCE, interval_s: float = INTERVAL_S, **version: Unpack[Version]
) -> MemoryReader:
    """Make a reader that shows one version.

    Args:
        missing: Whether there is no version until `publish`.
        source: The source's name.
        interval_s: Seconds between ticks; a version is stale after three.
        version: The content of the version, see `Version`; empty by default.

    Raises:
        SettingsInvalid: No version can have one of the values.
    """
    return MemoryReader(_memory(source, interval_s, missing, version), interval_s=interval_s)


def async_reader(
    *, missing: bool = False, source: str = SOURCE, interval_s: float = INTERVAL_S, **version: Unpack[Version]
) -> AsyncMemoryReader:
    """Make such a reader for asyncio."""
    return AsyncMemoryReader(_memory(source, interval_s, missing, version), interval_s=interval_s)


def _memory(source: str, interval_s: float, missing: bool, version: Version) -> Memory:
    memory = Memory(source, STALE_INTERVALS * interval_s)
    if not missing:
        memory.publish(**version)
    elif version:
        raise SettingsInvalid(f"missing=True: there is no version that could have {', '.join(version)}; publish one")
    return memory
