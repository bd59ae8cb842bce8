"""The run log: each tick is taken by one run, and the streams keep a limited number of reports."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import cast

import msgspec
import pytest

from optimizer.cache.client import CacheClient
from optimizer.cache.run_log import RunLog
from optimizer.errors import CacheUnavailable
from optimizer.models import Report
from tests.support.cache_writers import KEYS, NOW, SOURCE, a_cache
from tests.support.redis_proxy import LossyProxy
from tests.support.redis_servers import RedisServer


def test_the_stream_of_runs_is_trimmed_to_a_day(redis_server: RedisServer) -> None:
    """The stream of runs keeps about as many reports as a day has ticks; Redis trims it by whole nodes of a hundred."""
    with a_cache(redis_server.url, interval_s=864) as cache, redis_server.client as client:
        for number in range(350):
            RunLog(cache).add(Report("skipped", SOURCE, NOW, reason=str(number)))

        entries = cast("list[tuple[bytes, dict[bytes, bytes]]]", client.xrange(KEYS.runs))
    assert 100 <= len(entries) <= 200
    assert msgspec.json.decode(entries[-1][1][b"report"], type=Report).reason == "349"


def test_scans_are_kept_apart_from_the_runs_that_find_nothing(redis_server: RedisServer) -> None:
    """Exactly the newest hundred published scans are kept in a stream of their own, which other runs do not trim."""
    with a_cache(redis_server.url, interval_s=864) as cache, redis_server.client as client:
        for version in range(102):
            RunLog(cache).add(Report("success", SOURCE, NOW, version=version))
            RunLog(cache).add(Report("failed", SOURCE, NOW))
        for _ in range(300):
            RunLog(cache).add(Report("unchanged", SOURCE, NOW))

        entries = cast("list[tuple[bytes, dict[bytes, bytes]]]", client.xrange(KEYS.scans))
    kept = [msgspec.json.decode(fields[b"report"], type=Report) for _, fields in entries]
    assert [(report.status, report.version) for report in kept] == [("success", version) for version in range(2, 102)]


def test_a_report_that_is_not_appended_is_an_error(cache: CacheClient) -> None:
    """A report that cannot be appended is an error although it is counted: each reply of the transaction is checked."""
    cache.connection.set(KEYS.runs, "no stream")
    with pytest.raises(CacheUnavailable, match="WRONGTYPE"):
        RunLog(cache).add(Report("skipped", SOURCE, NOW))


def test_a_tick_is_taken_by_one_of_many(redis_server: RedisServer) -> None:
    """Of many runs that take a tick at the same time, one gets it; the tick is forgotten after two intervals."""

    def take(_: int) -> list[bool]:
        with a_cache(redis_server.url, interval_s=5) as cache:
            return [RunLog(cache).take_tick(number) for number in range(20)]

    with ThreadPoolExecutor(8) as threads:
        taken = list(threads.map(take, range(8)))

    assert [sum(column) for column in zip(*taken, strict=True)] == [1] * 20
    with redis_server.client as client:
        assert all(5_000 < client.pttl(KEYS.tick(number)) <= 10_000 for number in range(20))


def test_a_tick_whose_reply_is_lost_is_ours(redis_server: RedisServer) -> None:
    """If the reply is lost and the retry finds the tick taken, its token shows that this run has it."""
    proxy = LossyProxy(redis_server)
    with proxy.open() as url, a_cache(url) as cache:
        proxy.lose_reply_to = KEYS.tick(7).encode()
        assert RunLog(cache).take_tick(7)
        assert proxy.lose_reply_to == b""
        assert not RunLog(cache).take_tick(7)
