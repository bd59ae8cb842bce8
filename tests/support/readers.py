"""Both readers for one test suite, and the data that they read; the asyncio reader's event loop has its own thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextlib import ExitStack, closing
from typing import Any, Final, TypeVar, cast

import pytest

from optimizer import AsyncSnapshotReader, Settings, SnapshotReader, optimize
from optimizer.models import Origin, Report
from tests.support.ports import free_port
from tests.support.rolling_files import a_record, write_json

__all__ = ["KINDS", "READS", "Open", "blocking", "every_read", "shown_by", "shows", "write_with_low"]

KINDS: Final = ("threads", "asyncio")
T = TypeVar("T")

READS: Final[dict[str, Callable[[SnapshotReader], Any]]] = {
    "predictions": lambda reader: reader.predictions(),
    "bots": lambda reader: reader.bots(),
    "portfolio": lambda reader: reader.portfolio(),
    "symbol": lambda reader: reader.symbol("AAPL"),
    "top": lambda reader: reader.top(2),
    "manifest": lambda reader: reader.manifest(),
}
every_read = pytest.mark.parametrize("read", READS.values(), ids=READS.keys())


class _Blocking:
    """An `AsyncSnapshotReader` with the methods of a `SnapshotReader`."""

    def __init__(self, reader: AsyncSnapshotReader) -> None:
        self._reader = reader
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._reader, name)
        return lambda *arguments, **options: self._wait(method(*arguments, **options))

    def end(self) -> None:
        """Close the reader and the loop; `close` closes only the reader, which may then be used again."""
        self._wait(self._reader.close())
        self._wait(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)


class Open:
    """A function that opens readers of one kind, which are closed when the test ends."""

    def __init__(self, stack: ExitStack, kind: str) -> None:
        self._stack = stack
        self._kind = kind

    def __call__(self, settings: Settings, origin: Origin | None = None) -> SnapshotReader:
        """Open a reader of both stores, of Redis without files, or of files without a Redis."""
        where = (
            f"redis://127.0.0.1:{free_port()}/0" if origin == "files" else settings.redis_url,
            settings.source,
            None if origin == "redis" else settings.output_dir,
        )
        if self._kind == "threads":
            return self._stack.enter_context(closing(SnapshotReader(*where, interval_s=settings.interval_s)))
        return blocking(self._stack, AsyncSnapshotReader(*where, interval_s=settings.interval_s))


def blocking(stack: ExitStack, reader: AsyncSnapshotReader) -> SnapshotReader:
    """Return an asyncio reader with the methods of a `SnapshotReader`; it is closed with the stack."""
    opened = _Blocking(reader)
    stack.callback(opened.end)
    return cast("SnapshotReader", opened)


def shows(reader: SnapshotReader, version: int) -> bool:
    """Return whether a reader shows this version."""
    return reader.predictions().version == version


def shown_by(reader: SnapshotReader) -> dict[str, int]:
    """The version that each method shows, including lookups beyond the predictions."""
    lookups: dict[str, Callable[[SnapshotReader], Any]] = {
        "low": lambda reader: reader.symbol("LOW"),
        "missing": lambda reader: reader.symbol("MISSING"),
        "deep": lambda reader: reader.top(9),
    }
    return {name: read(reader).version for name, read in (READS | lookups).items()}


def write_with_low(settings: Settings, price: float) -> Report:
    """Do a run over a new input with a symbol, LOW, that is only in the index; return its report."""
    records = {symbol: a_record(last_price=price) for symbol in ("AAPL", "MSFT")}
    write_json(settings.input, records | {"LOW": a_record(last_price=price, confidence=0.1)})
    return optimize(settings)
