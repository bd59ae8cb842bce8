"""A fixture with a connection to the cache of a source, in an empty Redis."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from optimizer.cache.client import CacheClient
from tests.support.cache_writers import a_cache
from tests.support.redis_servers import RedisServer


@pytest.fixture
def cache(redis_server: RedisServer) -> Iterator[CacheClient]:
    """A connection to the cache of the test source."""
    with a_cache(redis_server.url) as cache:
        yield cache
