"""Both engines for every test of the scan: `usefixtures("engine")` runs a module's tests once for each.

The test ids say which. `scan` and `pruner` are those of the engine at hand.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Final

import pytest

from optimizer.config.settings import EngineName
from optimizer.errors import SettingsInvalid
from optimizer.scan.batch import Run
from optimizer.scan.decoder import LAYOUTS, RECORD_LAYOUT, Item
from optimizer.scan.engine import AnyPruner, Engine, choose_engine
from optimizer.scan.fragment import Piece
from optimizer.scan.scanner import scan_items

__all__ = ["NAMES", "current", "engine", "prune", "pruner", "require_engine", "scan"]

NAMES: Final[tuple[EngineName, ...]] = ("native", "ijson")

_current: list[Engine] = []


@pytest.fixture(params=NAMES, scope="module")
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """The engine that the module's tests run on. Without a compiler the native one is skipped, but not in CI."""
    chosen = require_engine(request.param)
    _current.append(chosen)
    yield chosen
    _current.pop()


def require_engine(name: str) -> Engine:
    """The engine of this name; skips the test where it is not there, unless it has to be."""
    try:
        return choose_engine(name)
    except SettingsInvalid as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


def current() -> Engine:
    """The engine at hand; `ijson` in a module that does not ask for both."""
    return _current[-1] if _current else choose_engine("ijson")


def scan(chunks: Iterable[bytes], *, max_record_bytes: int) -> Iterator[Item]:
    """What a scan finds, one by one."""
    return scan_items(chunks, current(), max_record_bytes=max_record_bytes)


def pruner(*, limit: int) -> AnyPruner:
    """A pruner for rolling files."""
    return current().pruner(default=RECORD_LAYOUT, members=LAYOUTS, max_unit_bytes=limit)


def prune(*chunks: bytes, limit: int) -> Iterator[Piece]:
    """The pieces of a rolling file. Runs are left, so that all of it comes as pieces."""
    made = pruner(limit=limit)
    for chunk in chunks:
        yield from (piece for piece in made.feed(chunk) if not isinstance(piece, Run))
    yield from (piece for piece in made.close() if not isinstance(piece, Run))
