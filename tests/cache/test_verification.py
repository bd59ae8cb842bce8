"""The comparison of the values in Redis with the files."""

from __future__ import annotations

from optimizer.cache.client import CacheClient
from optimizer.cache.verification import RANKS_CHECKED, shows
from optimizer.models import Record
from tests.support.cache_writers import KEYS, a_set, publish
from tests.support.redis_servers import RedisServer, wait_until


def test_a_large_index_is_read_back_in_turns(cache: CacheClient, redis_server: RedisServer) -> None:
    """A damaged record of a large index is found once the window that is read back contains it.

    A missing record is found at once, since the counts are compared each time.
    """
    snapshots = a_set(1, [Record(f"S{number}", 1.0, number / 4_000, 1.0) for number in range(2 * RANKS_CHECKED)])
    publish(cache, snapshots)
    assert shows(cache, snapshots)
    with redis_server.client as client:
        client.hset(KEYS.payload(1, "symbols"), "S7", b"\xff")
        wait_until(lambda: not shows(cache, snapshots), what="the window to be there")
        publish(cache, snapshots)
        assert shows(cache, snapshots)
        client.hdel(KEYS.payload(1, "symbols"), "S7")
        assert not shows(cache, snapshots)
