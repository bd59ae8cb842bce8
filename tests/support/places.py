"""The stores of a reader, for one suite: a real Redis, real files, or those of `optimizer.testing` in memory."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack, closing
from typing import Any, Final, NamedTuple, Protocol

from optimizer import AsyncSnapshotReader, Record, Settings, SnapshotReader, optimize, testing
from optimizer.cache.keys import Keys
from optimizer.models import Origin
from optimizer.testing.values import Kind
from tests.support.ports import free_port
from tests.support.published_state import version_of
from tests.support.readers import blocking
from tests.support.redis_servers import RedisServer
from tests.support.rolling_files import a_record, write_json

__all__ = ["FIRST", "MARKED", "PLACES", "SECOND", "MemoryPlace", "Place", "RealPlace", "Sample", "marked"]

PLACES: Final = ("redis", "files", "memory", "memory, files")


class Sample(NamedTuple):
    """A version: the input from which a run makes it, and its content."""

    input: dict[str, Any]
    version: testing.Version


def _shown(**fields: Any) -> dict[str, Any]:
    """A record without the fields that no page shows."""
    return {name: value for name, value in a_record(**fields).items() if name in Record.__struct_fields__}


FIRST: Final = Sample(
    {
        "AAPL": a_record(),
        "MSFT": a_record(confidence=0.9),
        "LOW": a_record(confidence=0.1),
        "bots": {"alpha": {"enabled": True, "equity": 10.5, "positions": [{"symbol": "AAPL", "qty": 2, "avg": 99.5}]}},
    },
    testing.Version(
        predictions=[_shown(symbol="AAPL"), _shown(symbol="MSFT", confidence=0.9)],
        index=[_shown(symbol="LOW", confidence=0.1)],
        bots={"alpha": {"enabled": True, "equity": 10.5, "positions": 1}},
        portfolio=[{"symbol": "AAPL", "qty": 2, "avg": 99.5}],
    ),
)
SECOND: Final = Sample(
    {"MSFT": a_record(confidence=0.8), "NVDA": a_record(confidence=0.95), "bots": {"beta": {}}},
    testing.Version(
        predictions=[_shown(symbol="MSFT", confidence=0.8), _shown(symbol="NVDA", confidence=0.95)],
        index=[],
        bots={"beta": {}},
        portfolio=[],
    ),
)
# The symbol, and the bot, of a marked version.
MARKED: Final = "A"


def marked(mark: int) -> Sample:
    """A version in which every value has this number."""
    position = {"symbol": MARKED, "qty": mark, "avg": mark}
    return Sample(
        {MARKED: a_record(last_price=mark), "bots": {MARKED: {"equity": mark, "positions": [position]}}},
        testing.Version(
            predictions=[_shown(symbol=MARKED, last_price=mark)],
            bots={MARKED: {"equity": mark, "positions": 1}},
            portfolio=[position],
        ),
    )


class Place(Protocol):
    """Publishes versions, and opens readers that see them."""

    origin: Origin

    def publish(self, sample: Sample, *, unreadable: Iterable[Kind] = ()) -> int:
        """Make a version current, without these payloads; return its number."""

    def open(self) -> SnapshotReader:
        """A reader."""

    def open_async(self) -> AsyncSnapshotReader:
        """The same for asyncio."""

    def open_blocking(self) -> SnapshotReader:
        """The same, with methods that need no `await`."""


class RealPlace:
    """Versions that runs publish to a Redis, or only to files."""

    def __init__(self, stack: ExitStack, settings: Settings, server: RedisServer, origin: Origin) -> None:
        self.origin = origin
        self._stack = stack
        self._settings = settings
        self._server = server
        self._arguments = (
            settings.redis_url if origin == "redis" else f"redis://127.0.0.1:{free_port()}/0",
            settings.source,
            None if origin == "redis" else settings.output_dir,
        )

    def publish(self, sample: Sample, *, unreadable: Iterable[Kind] = ()) -> int:
        """Run, then delete."""
        write_json(self._settings.input, sample.input)
        version = version_of(optimize(self._settings, force=True, use_cache=self.origin == "redis"))
        with self._server.client as client:
            for kind in unreadable:
                client.delete(Keys(self._settings.source).payload(version, kind))
        return version

    def open(self) -> SnapshotReader:
        """A reader of one of the two."""
        return self._stack.enter_context(closing(SnapshotReader(*self._arguments)))

    def open_async(self) -> AsyncSnapshotReader:
        """A reader that the test closes."""
        return AsyncSnapshotReader(*self._arguments)

    def open_blocking(self) -> SnapshotReader:
        """A reader in a loop of its own."""
        return blocking(self._stack, self.open_async())


class MemoryPlace:
    """Versions that are published to the one opened reader."""

    def __init__(self, stack: ExitStack, origin: Origin) -> None:
        self.origin = origin
        self._stack = stack
        self._reader = testing.reader(missing=True)
        self._async_reader = testing.async_reader(missing=True)

    def publish(self, sample: Sample, *, unreadable: Iterable[Kind] = ()) -> int:
        """Publish to both."""
        given = testing.Version(origin=self.origin, unreadable=list(unreadable)) | sample.version
        self._reader.publish(**given)
        return self._async_reader.publish(**given)

    def open(self) -> SnapshotReader:
        """The reader."""
        return self._stack.enter_context(closing(self._reader))

    def open_async(self) -> AsyncSnapshotReader:
        """The reader for asyncio, which the test closes."""
        return self._async_reader

    def open_blocking(self) -> SnapshotReader:
        """The same in a loop of its own."""
        return blocking(self._stack, self._async_reader)
