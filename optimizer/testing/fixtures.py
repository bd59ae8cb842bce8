"""The fixture `rolling_reader` for pytest: makes readers, and closes them when the test ends.

No plugin registers it, since a plugin would be imported in every test run of the environment. A `conftest.py` loads it:

    pytest_plugins = ["optimizer.testing.fixtures"]
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Unpack

import pytest

from optimizer import testing

__all__ = ["MakeReader", "rolling_reader"]


class MakeReader:
    """Makes readers, and closes them with the stack."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def __call__(self, *, missing: bool = False, **version: Unpack[testing.Version]) -> testing.MemoryReader:
        """Make a reader as `optimizer.testing.reader` does."""
        return self._stack.enter_context(closing(testing.reader(missing=missing, **version)))


@pytest.fixture
def rolling_reader() -> Iterator[MakeReader]:
    """Make readers of versions in memory: `rolling_reader(predictions=[...], bots={...})`."""
    with ExitStack() as stack:
        yield MakeReader(stack)
