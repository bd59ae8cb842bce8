"""Both engines for every test of the scan: `usefixtures("engine")` runs a module's tests once for each.

The test ids name the engine. `scan` and `pruner` use the current one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import pytest

from optimizer.config.settings import EngineName
from optimizer.errors import SettingsInvalid
from optimizer.scan.batch import EncodedBatch
from optimizer.scan.decoder import Item
from optimizer.scan.engine import AnyPruner, Engine, choose_engine
from optimizer.scan.fragment import Fragment
from optimizer.scan.layout import LAYOUTS, RECORD_LAYOUT, Layout
from optimizer.scan.scanner import scan_items

__all__ = ["NAMES", "current", "decline", "engine", "prune", "pruner", "require_engine", "scan"]

NAMES: Final[tuple[EngineName, ...]] = ("native", "ijson")

_current: list[Engine] = []


@pytest.fixture(params=NAMES, scope="module")
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """The engine that the module's tests use. Without a compiler the native one is skipped, except in CI."""
    chosen = require_engine(request.param)
    _current.append(chosen)
    yield chosen
    _current.pop()


def require_engine(name: str) -> Engine:
    """Return the engine of this name; skip the test where it was not compiled, except in CI."""
    try:
        return choose_engine(name)
    except SettingsInvalid as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


def current() -> Engine:
    """Return the current engine; `ijson` in a module that does not use the fixture."""
    return _current[-1] if _current else choose_engine("ijson")


def scan(chunks: Iterable[bytes], *, max_record_bytes: int) -> Iterator[Item]:
    """Yield the items of a scan one by one."""
    return scan_items(chunks, current(), max_record_bytes=max_record_bytes)


def decline(_batch: EncodedBatch) -> bool:
    """Decline every batch, so that all records are fragments."""
    return False


def pruner(*, limit: int, default: Layout = RECORD_LAYOUT, members: Mapping[bytes, Layout] = LAYOUTS) -> AnyPruner:
    """Return a pruner of the current engine, for rolling files by default, without batches."""
    return current().pruner(default=default, members=members, max_unit_bytes=limit, on_batch=decline)


def prune(*chunks: bytes, limit: int) -> Iterator[Fragment]:
    """Yield the fragments of a rolling file."""
    made = pruner(limit=limit)
    for chunk in chunks:
        yield from made.feed(chunk)
    yield from made.close()
