"""The stored results of parts, which are kept as long as their parts exist."""

from __future__ import annotations

from typing import cast

import pytest

from optimizer.cache.client import CacheClient
from optimizer.cache.parts import LOADED_TOGETHER, PART_TTL_S, PartStore
from optimizer.models import PartResult, Record
from tests.support.cache_writers import KEYS, a_cache
from tests.support.redis_servers import RedisServer


def a_result(symbol: str = "AAPL") -> PartResult:
    """The result of a part with one record."""
    return PartResult([Record(symbol, 1.5, 0.9, 100.0)], [], [], 1, 0, 0, 0, 0)


def test_a_result_is_read_as_it_was_stored(cache: CacheClient, redis_server: RedisServer) -> None:
    """A result is read under its digest exactly as it was stored, and expires after an hour."""
    store = PartStore(cache)
    assert [*store.load(["a"])] == [None]
    store.save("a", a_result())

    assert [*store.load(["a"])] == [a_result()]
    with redis_server.client as client:
        assert 0 < client.ttl(KEYS.part("a")) <= PART_TTL_S == 3_600


def test_many_results_take_few_round_trips(cache: CacheClient, redis_server: RedisServer) -> None:
    """Many results are loaded in three requests, each in its place, and `None` in place of one that is gone."""
    store = PartStore(cache)
    digests = [str(number) for number in range(2 * LOADED_TOGETHER + 1)]
    for digest in digests[1:]:
        store.save(digest, a_result(digest))

    with redis_server.client as client:
        client.config_resetstat()
        assert [*store.load(digests)] == [None, *map(a_result, digests[1:])]
        assert client.info("commandstats")["cmdstat_mget"]["calls"] == 3


@pytest.mark.parametrize("damage", [b"\x00result", b"", b"\x1f\x8bdamaged"])
def test_a_damaged_result_is_deleted(
    cache: CacheClient, redis_server: RedisServer, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """A damaged result is deleted, so that its part is scanned again and the warning is not repeated."""
    with redis_server.client as client:
        client.set(KEYS.part("a"), damage)
        assert [*PartStore(cache).load(["a"])] == [None]
        assert not client.exists(KEYS.part("a"))
    assert [*PartStore(cache).load(["a"])] == [None]
    [warning] = caplog.messages
    assert f"{KEYS.part('a')} cannot be read" in warning


def test_results_are_renewed_and_those_of_other_parts_deleted(cache: CacheClient, redis_server: RedisServer) -> None:
    """Renewing extends the results of these parts and deletes all others.

    It returns, in the order of the request, whether each part has a result; one that was never stored has none.
    """
    store = PartStore(cache)
    for digest in ("a", "b", "old"):
        store.save(digest, a_result(digest))
    with redis_server.client as client:
        client.expire(KEYS.part("a"), 10)

        assert store.renew(["new", "b", "a"]) == [False, True, True]

        assert 3_500 < client.ttl(KEYS.part("a")) <= 3_600
        assert not client.exists(KEYS.part("old"))
        assert cast("set[bytes]", client.smembers(KEYS.parts)) == {b"a", b"b", b"new"}


def test_results_outlive_three_long_intervals(redis_server: RedisServer) -> None:
    """Results are kept for three long intervals, so a source with two ticks a day does not scan all parts each time."""
    with a_cache(redis_server.url, interval_s=43_200) as cache, redis_server.client as client:
        PartStore(cache).save("a", a_result())
        assert client.ttl(KEYS.part("a")) > 129_000
