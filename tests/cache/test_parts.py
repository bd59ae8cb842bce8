"""Results of parts stay as long as their parts do, and an assignment as long as its run."""

from __future__ import annotations

from typing import cast

from optimizer.cache.client import CacheClient
from optimizer.cache.lock import SourceLock, dispatch_ttl_s
from optimizer.cache.parts import PART_TTL_S, AssignmentStore, PartStore
from tests.support.cache_writers import KEYS, a_cache
from tests.support.redis_servers import RedisServer


def test_a_result_is_read_as_it_was_stored(cache: CacheClient, redis_server: RedisServer) -> None:
    """Under its digest, with an expiry, until it is dropped."""
    store = PartStore(cache)
    assert store.read("a") is None
    store.store("a", b"\x00result")

    assert store.read("a") == b"\x00result"
    with redis_server.client as client:
        assert 0 < client.ttl(KEYS.part("a")) <= PART_TTL_S == 3_600
    store.drop("a")
    assert store.read("a") is None


def test_results_are_renewed_and_those_of_other_parts_deleted(cache: CacheClient, redis_server: RedisServer) -> None:
    """In the order that was asked for; a part that was never stored has none."""
    store = PartStore(cache)
    for digest in ("a", "b", "old"):
        store.store(digest, digest.encode())
    with redis_server.client as client:
        client.expire(KEYS.part("a"), 10)

        assert store.renew(["new", "b", "a"]) == [False, True, True]

        assert 3_500 < client.ttl(KEYS.part("a")) <= 3_600
        assert not client.exists(KEYS.part("old"))
        assert cast("set[bytes]", client.smembers(KEYS.parts)) == {b"a", b"b", b"new"}


def test_results_outlive_three_long_intervals(redis_server: RedisServer) -> None:
    """A source that is looked at twice a day does not scan all its parts each time."""
    with a_cache(redis_server.url, interval_s=43_200) as cache, redis_server.client as client:
        PartStore(cache).store("a", b"")
        assert client.ttl(KEYS.part("a")) > 129_000


def test_an_assignment_is_read_by_its_token_until_its_run_ends(cache: CacheClient, redis_server: RedisServer) -> None:
    """Another run's token neither reads nor ends it."""
    store = AssignmentStore(cache)
    with SourceLock(cache).acquire() as lock:
        assert store.dispatch(lock.token, b"\xffwork")
        assert store.read(lock.token) == b"\xffwork"
        assert store.read("another") is None
        store.end("another")
        assert store.read(lock.token) == b"\xffwork"
        with redis_server.client as client:
            assert 290_000 < client.pttl(KEYS.handed) <= 1000 * dispatch_ttl_s(30) == 300_000
        store.end(lock.token)
        assert store.read(lock.token) is None


def test_only_the_holder_of_the_lock_dispatches(cache: CacheClient) -> None:
    """A run that was paused past its lock stores nothing."""
    assert not AssignmentStore(cache).dispatch("token", b"work")
    assert AssignmentStore(cache).take_unfinished() is None


def test_an_unfinished_assignment_is_taken_once(cache: CacheClient) -> None:
    """The run that finds the lock free reports it."""
    store = AssignmentStore(cache)
    with SourceLock(cache).acquire() as lock:
        assert store.dispatch(lock.token, b"work")
    assert store.take_unfinished() == b"work"
    assert store.take_unfinished() is None
