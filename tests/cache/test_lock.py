"""The lock of a source: one run holds, extends and releases it; and the assignment that is stored under its token."""

from __future__ import annotations

import threading
import time

import pytest

import optimizer.cache.lock
from optimizer.cache.client import CacheClient
from optimizer.cache.lock import AssignmentStore, SourceLock, dispatch_ttl_s
from optimizer.errors import PublishRefused
from tests.support.cache_writers import KEYS, a_cache
from tests.support.redis_proxy import LossyProxy
from tests.support.redis_servers import RedisServer, wait_until


def test_the_lock_is_held_by_one(redis_server: RedisServer) -> None:
    """A second run is refused the lock and does not release it; when the first run ends, the lock is free at once."""
    with a_cache(redis_server.url) as first, a_cache(redis_server.url) as second:
        with SourceLock(first).acquire() as lock:
            with SourceLock(second).acquire() as refused:
                assert not refused.held
                assert not SourceLock(second).owns(refused)
            assert SourceLock(first).owns(lock)
        with SourceLock(second).acquire() as lock:
            assert lock.held


def test_the_lock_is_extended_while_its_run_lives(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock is extended while its run lasts, since a scan may take longer than the lock, and no longer."""
    monkeypatch.setattr(optimizer.cache.lock, "LOCK_TTL_S", 2.0)
    monkeypatch.setattr(optimizer.cache.lock, "LOCK_EXTEND_S", 0.1)
    with a_cache(redis_server.url) as cache, redis_server.client as client:
        left_ms = [2_000]
        rises: list[int] = []

        def rose() -> bool:
            left_ms.append(client.pttl(KEYS.lock))
            if left_ms[-1] > left_ms[-2]:
                rises.append(left_ms[-1])
            return len(rises) == 3

        with SourceLock(cache).acquire() as lock:
            wait_until(rose, what="the third extension")
            assert SourceLock(cache).owns(lock)
            assert max(left_ms) <= 2_000
            keepers = [thread for thread in threading.enumerate() if thread.name == "rolling-lock"]
            assert len(keepers) == 1
        assert client.exists(KEYS.lock) == 0
        assert not keepers[0].is_alive()


def test_a_lock_that_another_run_holds_by_now_is_left_alone(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run whose lock has been taken by another run neither extends nor releases it."""
    monkeypatch.setattr(optimizer.cache.lock, "LOCK_EXTEND_S", 0.05)
    with a_cache(redis_server.url) as cache, redis_server.client as client:
        with SourceLock(cache).acquire() as lock:
            client.set(KEYS.lock, "another", px=60_000)
            keeper = next(thread for thread in threading.enumerate() if thread.name == "rolling-lock")
            wait_until(lambda: not keeper.is_alive(), what="the keeper's end")
            assert not SourceLock(cache).owns(lock)
        assert client.get(KEYS.lock) == b"another"
        assert 50_000 < client.pttl(KEYS.lock) <= 60_000


def test_a_lock_that_is_not_extended_expires(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that is not extended expires, so a killed worker blocks other runs no longer than that."""
    monkeypatch.setattr(optimizer.cache.lock, "LOCK_TTL_S", 0.3)
    with redis_server.client as client, a_cache(redis_server.url) as other:
        started = time.monotonic()
        client.set(KEYS.lock, "a dead run's token", px=300)

        def got_it() -> bool:
            with SourceLock(other).acquire() as lock:
                return lock.held

        assert not got_it()
        wait_until(got_it, what="the lock to expire")
        assert time.monotonic() - started >= 0.3


def test_a_lock_whose_reply_is_lost_is_ours(redis_server: RedisServer) -> None:
    """If the reply is lost and the retry finds the lock taken, its token shows that this run has it."""
    proxy = LossyProxy(redis_server)
    with proxy.open() as url, a_cache(url) as cache:
        proxy.lose_reply_to = KEYS.lock.encode()
        with SourceLock(cache).acquire() as lock:
            assert lock.held
        assert proxy.lose_reply_to == b""


def test_a_dispatched_run_is_ended_once(cache: CacheClient) -> None:
    """The message that ends a dispatched run takes over its lock with a new token, which keeps the digest of the run.

    A redelivered message has the old token, so it does not get the lock.
    """
    lock = SourceLock(cache)
    with lock.acquire("run") as begun:
        assert AssignmentStore(cache).dispatch(begun.token, b"work")
        with lock.adopt(begun.token) as ending, lock.adopt(begun.token) as again:
            assert (ending.held, again.held) == (True, False)
            assert ending.token != begun.token
            assert ending.token[:16] == begun.token[:16]
            assert lock.owns(ending)
            assert not lock.owns(begun)


def test_the_scans_of_a_run_share_its_lock_and_leave_it(cache: CacheClient, redis_server: RedisServer) -> None:
    """Scans of parts share the lock of their run and leave it in place when they end.

    Each keeps it for as long as it needs and never shortens it; a free lock is taken only if there is an assignment.
    """
    lock = SourceLock(cache)
    with lock.join("token", 60) as joined:
        assert not joined.held
    with lock.acquire() as begun:
        assert AssignmentStore(cache).dispatch(begun.token, b"work")
        begun.keep_s = 60
    with redis_server.client as client:
        with lock.join(begun.token, 90) as one, lock.join(begun.token, 30) as other:
            assert (one.held, other.held) == (True, True)
        assert 80_000 < client.pttl(KEYS.lock) <= 90_000
        client.delete(KEYS.lock)  # it expired while no scan was running
        with lock.join(begun.token, 30) as late:
            assert late.held
        assert client.get(KEYS.lock) == begun.token.encode()


def test_a_revoked_run_has_lost_its_lock_and_gets_none(cache: CacheClient, redis_server: RedisServer) -> None:
    """A run that is revoked by its id loses its lock and cannot get one again; the lock of another run stays."""
    lock = SourceLock(cache)
    with lock.acquire("run") as held:
        lock.revoke("other")
        assert lock.owns(held)
        lock.revoke("run")
        assert not lock.owns(held)
    with pytest.raises(PublishRefused, match="revoked before it began"), lock.acquire("run"):
        pass
    with redis_server.client as client:
        assert not client.exists(KEYS.lock)


# ---- the assignment


def test_an_assignment_is_read_by_its_token_until_its_run_ends(cache: CacheClient, redis_server: RedisServer) -> None:
    """Only the token of its run reads or ends an assignment, which expires after 300 s for an interval of 30 s."""
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
    """A run that does not hold the lock, since it was paused for too long, stores no assignment."""
    assert not AssignmentStore(cache).dispatch("token", b"work")
    assert AssignmentStore(cache).take_unfinished() is None


def test_an_unfinished_assignment_is_taken_once(cache: CacheClient) -> None:
    """An unfinished assignment is returned once, to the run that finds the lock free and reports it."""
    store = AssignmentStore(cache)
    with SourceLock(cache).acquire() as lock:
        assert store.dispatch(lock.token, b"work")
    assert store.take_unfinished() == b"work"
    assert store.take_unfinished() is None
