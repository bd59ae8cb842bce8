"""Fixtures of the tests of producers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.support.killed_producer import KilledProducer


@pytest.fixture
def killed_producer() -> Iterator[KilledProducer]:
    """A producer that can be killed before any of its steps."""
    with closing(KilledProducer()) as producer:
        yield producer
