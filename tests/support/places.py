"""Stores for one test suite of readers: a real Redis, real files, or the in-memory stores of `optimizer.testing`."""

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
# The name of the symbol and of the bot in a marked version.
MARKED: Final = "A"


def marked(mark: int) -> Sample:
    """Return a version whose price, equity, quantity and average price are all this number."""
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
    """A place to which a test publishes versions, and that opens readers of them."""

    origin: Origin

    def publish(self, sample: Sample, *, unreadable: Iterable[Kind] = ()) -> int:
        """Make a version current of which the `unreadable` payloads cannot be read; return its number."""

    def open(self) -> SnapshotReader:
        """Open a threaded reader."""

    def open_async(self) -> AsyncSnapshotReader:
        """Open an asyncio reader."""

    def open_blocking(self) -> SnapshotReader:
        """Open an asyncio reader whose methods need no `await`."""


class RealPlace:
    """A place to which runs publish versions: a Redis, or only files."""

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
        """Do a run over the sample's input, then delete the unreadable payloads from Redis."""
        write_json(self._settings.input, sample.input)
        version = version_of(optimize(self._settings, force=True, use_cache=self.origin == "redis"))
        with self._server.client as client:
            for kind in unreadable:
                client.delete(Keys(self._settings.source).payload(version, kind))
        return version

    def open(self) -> SnapshotReader:
        """Open a threaded reader of Redis alone, or of the files alone."""
        return self._stack.enter_context(closing(SnapshotReader(*self._arguments)))

    def open_async(self) -> AsyncSnapshotReader:
        """Open an asyncio reader, which the test closes."""
        return AsyncSnapshotReader(*self._arguments)

    def open_blocking(self) -> SnapshotReader:
        """Open an asyncio reader that runs in an event loop of its own."""
        return blocking(self._stack, self.open_async())


class MemoryPlace:
    """A place in memory, with one threaded reader and one asyncio reader."""

    def __init__(self, stack: ExitStack, origin: Origin) -> None:
        self.origin = origin
        self._stack = stack
        self._reader = testing.reader(missing=True)
        self._async_reader = testing.async_reader(missing=True)

    def publish(self, sample: Sample, *, unreadable: Iterable[Kind] = ()) -> int:
        """Publish the version to both readers."""
        given = testing.Version(origin=self.origin, unreadable=list(unreadable)) | sample.version
        self._reader.publish(**given)
        return self._async_reader.publish(**given)

    def open(self) -> SnapshotReader:
        """Return the threaded reader, which is closed with the stack."""
        return self._stack.enter_context(closing(self._reader))

    def open_async(self) -> AsyncSnapshotReader:
        """Return the asyncio reader, which the test closes."""
        return self._async_reader

    def open_blocking(self) -> SnapshotReader:
        """Return the asyncio reader, which runs in an event loop of its own."""
        return blocking(self._stack, self._async_reader)
