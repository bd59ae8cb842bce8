"""Fixtures: readers of both kinds, and a Redis that the test may kill."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest

import optimizer.cache.client
import optimizer.cache.writer
import optimizer.reader.redis_store
from optimizer import Settings, SnapshotReader
from optimizer.models import Origin
from tests.support.places import PLACES, MemoryPlace, Place, RealPlace
from tests.support.readers import KINDS, Open
from tests.support.redis_servers import RedisServer


@pytest.fixture(params=KINDS)
def open_reader(request: pytest.FixtureRequest) -> Iterator[Open]:
    """A function that opens readers, threaded or for asyncio, which are closed when the test ends."""
    with ExitStack() as stack:
        yield Open(stack, request.param)


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """The place where readers find versions: a real Redis, real files, or memory."""
    origin: Origin = "files" if "files" in request.param else "redis"
    with ExitStack() as stack:
        if request.param.startswith("memory"):
            yield MemoryPlace(stack, origin)
        else:
            settings, server = request.getfixturevalue("settings"), request.getfixturevalue("redis_server")
            yield RealPlace(stack, settings, server, origin)


@pytest.fixture(params=KINDS)
def opened(request: pytest.FixtureRequest, place: Place) -> SnapshotReader:
    """A reader of each kind at the place, opened before anything is published."""
    return place.open() if request.param == "threads" else place.open_blocking()


@pytest.fixture
def own_settings(settings_without_redis: Settings, own_redis: RedisServer) -> Settings:
    """Settings for a Redis that is up and that the test may kill."""
    own_redis.start()
    return replace(settings_without_redis, redis_url=own_redis.url)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make runs and readers give up after 0.1 or 0.2 s if Redis hangs."""
    monkeypatch.setattr(optimizer.cache.client, "WRITER_TIMEOUT_S", 0.2)
    monkeypatch.setattr(optimizer.cache.writer, "READER_TIMEOUT_S", 0.1)
    monkeypatch.setattr(optimizer.reader.redis_store, "READER_TIMEOUT_S", 0.1)
