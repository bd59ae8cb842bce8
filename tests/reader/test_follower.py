"""The newest version that can be read, from Redis or from files, when either of them fails, lags or recovers."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from typing import Any, cast

import pytest

from optimizer import Settings, SnapshotMissing, SnapshotReader, optimize
from optimizer.cache.keys import Keys
from optimizer.models import Origin
from tests.support.published_state import NEW, run_next, run_old, version_of
from tests.support.readers import READS, Open, every_read, shown_by, write_with_low
from tests.support.redis_servers import RedisServer, wait_until
from tests.support.rolling_files import a_record, write_json


@every_read
def test_no_snapshot_anywhere_is_an_error(
    settings: Settings, open_reader: Open, read: Callable[[SnapshotReader], Any]
) -> None:
    """If there is no snapshot, each read raises `SnapshotMissing` with the causes in Redis and files and what to do.

    This holds if Redis is empty, if it is down, and if it is the only place.
    """
    origins: tuple[Origin | None, ...] = (None, "redis", "files")
    for origin in origins:
        expected = r"no snapshot of 'rolling_brain': Redis: .+; files: .+\. To publish one, run: rolling-optimizer run$"
        with pytest.raises(SnapshotMissing, match=expected):
            read(open_reader(settings, origin))


@pytest.mark.slow
@every_read
def test_files_answer_while_redis_is_down(
    own_settings: Settings,
    own_redis: RedisServer,
    open_reader: Open,
    read: Callable[[SnapshotReader], Any],
) -> None:
    """No read fails while Redis is down.

    Within 5 s after Redis went down reads use the files, and within 5 s after it is back they use Redis again.
    """
    run_old(own_settings)
    reader = open_reader(own_settings)
    before = read(reader)
    assert before.origin == "redis"

    own_redis.kill()
    wait_until(lambda: read(reader).origin == "files", limit_s=5, what="the files' answer")
    during = read(reader)
    assert (during.origin, during.version) == ("files", before.version)
    assert getattr(during, "value", None) == getattr(before, "value", None)

    own_redis.start()
    wait_until(lambda: read(reader).origin == "redis", limit_s=5, what="Redis's answer")


def test_files_answer_while_redis_is_empty(own_settings: Settings, own_redis: RedisServer, open_reader: Open) -> None:
    """While Redis is empty, reads use the files; as soon as a run has published to Redis, they use Redis.

    An empty Redis is no failure, so a reader does not stop reading it.
    """
    run_old(own_settings)
    own_redis.kill(lose_data=True)
    own_redis.start()
    reader = open_reader(own_settings)

    assert {read(reader).origin for read in READS.values()} == {"files"}

    assert optimize(own_settings).cache == "republished"
    reader.refresh()
    assert {read(reader).origin for read in READS.values()} == {"redis"}


@pytest.mark.alone
@every_read
def test_a_redis_that_hangs_costs_a_page_next_to_nothing(
    own_settings: Settings, own_redis: RedisServer, open_reader: Open, read: Callable[[SnapshotReader], Any]
) -> None:
    """While Redis hangs, data in memory is returned at once (0.25 s).

    Only lookups beyond it, and a reader's first read, wait for short timeouts (1.5 s).
    """
    run_old(own_settings)
    readers = [open_reader(own_settings), open_reader(own_settings)]
    assert read(readers[0]).origin == "redis"
    own_redis.pause()

    def seconds(read: Callable[[SnapshotReader], Any], reader: SnapshotReader) -> float:
        started = time.monotonic()
        read(reader)
        return time.monotonic() - started

    assert seconds(read, readers[0]) < 0.25
    assert seconds(lambda reader: reader.symbol("MISSING"), readers[0]) < 1.5
    assert seconds(read, readers[1]) < 1.5
    assert read(readers[1]).origin == "files"
    wait_until(lambda: read(readers[0]).origin == "files", limit_s=5, what="the files' answer")
    assert seconds(lambda reader: reader.symbol("MISSING"), readers[0]) < 0.25

    own_redis.resume()
    wait_until(lambda: read(readers[0]).origin == "redis", limit_s=5, what="Redis's answer")


def test_a_whole_version_is_kept_where_of_a_newer_one_a_part_cannot_be_read(
    settings: Settings, redis_server: RedisServer, open_reader: Open
) -> None:
    """A reader keeps a whole version until all of a newer one can be read.

    A reader without a whole version shows what can be read.
    """
    keys = Keys(settings.source)
    old = version_of(run_old(settings))
    with redis_server.client as client:
        pointer = cast("Any", client.hgetall(keys.current))
        new = version_of(run_next(settings))
        newer = cast("Any", client.hgetall(keys.current))
        key = keys.payload(new, "bots")
        payload = cast("bytes", client.get(key))
        client.set(key, b"junk")
        assert open_reader(settings, "redis").predictions().version == new

        client.hset(keys.current, mapping=pointer)
        reader = open_reader(settings, "redis")
        assert reader.predictions().version == old
        client.hset(keys.current, mapping=newer)
        reader.refresh()
        assert (reader.predictions().version, reader.bots().version) == (old, old)

        client.set(key, payload)
        reader.refresh()
        assert (reader.predictions().version, reader.bots().version) == (new, new)


def test_one_unreadable_payload_does_not_take_redis_away_from_the_others(
    settings: Settings, redis_server: RedisServer
) -> None:
    """If one payload in Redis is damaged, it is read from the files, and the others are still read from Redis.

    Redis has responded, so it is read again at once; only a Redis that is away is left alone for a while.
    """
    write_json(settings.input, {"AAPL": a_record()})
    report = optimize(settings)
    with redis_server.client as client:
        client.set(f"rolling:{{rolling_brain}}:{report.version}:portfolio", b"no gzip")
    with closing(SnapshotReader.from_settings(settings)) as reader:
        assert reader.portfolio().origin == "files"
        assert reader.predictions().origin == "redis"


def test_an_old_snapshot_beats_none(own_settings: Settings, own_redis: RedisServer, open_reader: Open) -> None:
    """If Redis and the files are gone, a reader returns the version in memory, and its age grows."""
    run_old(own_settings)
    reader = open_reader(own_settings, "redis")
    before = reader.predictions()
    own_redis.kill(lose_data=True)
    wait_until(lambda: reader.runs() == [], what="that the reader has noticed")
    wait_until(lambda: reader.predictions().age_s > before.age_s, what="age")

    assert reader.predictions().value is before.value
    assert reader.symbol("AAPL").value == before.value.predictions[1]
    own_redis.start()
    reader.refresh()
    assert reader.predictions().value is before.value


def test_a_new_version_is_seen_after_a_restart(
    own_settings: Settings, own_redis: RedisServer, open_reader: Open
) -> None:
    """After a restart of Redis a reader sees the next version by itself, and no read fails meanwhile."""
    run_old(own_settings)
    reader = open_reader(own_settings, "redis")
    reader.predictions()
    own_redis.kill()
    wait_until(lambda: reader.runs() == [], what="that the reader has noticed")
    own_redis.start()
    write_json(own_settings.input, NEW)
    version = version_of(optimize(own_settings))

    def sees_it() -> bool:
        return {read(reader).version for read in READS.values()} == {version}

    wait_until(sees_it, limit_s=8, what="the new version")
    assert reader.predictions().origin == "redis"


def test_a_replica_that_lags_does_not_bring_back_what_was(
    settings: Settings, redis_server: RedisServer, open_reader: Open
) -> None:
    """An older pointer after a failover is not shown, also if it claims to have been confirmed later."""
    old = version_of(run_old(settings))
    keys = Keys(settings.source)
    with redis_server.client as client:
        before = {name: client.dump(name) for name in cast("list[bytes]", client.keys("rolling:*:*")) if b":1" in name}
        pointer = cast("Any", client.hgetall(keys.current))
        reader = open_reader(settings, "redis")
        new = version_of(run_next(settings))
        reader.refresh()
        assert reader.predictions().version == new

        client.flushall()
        for name, dumped in before.items():
            client.restore(name, 0, cast("bytes", dumped))
        client.hset(keys.current, mapping=pointer)
        reader.refresh()
        assert reader.predictions().version == new

        client.hset(keys.current, "checked_at", "2099-01-01T00:00:00.000Z")
        reader.refresh()
        assert reader.predictions().version == new > old


@pytest.mark.usefixtures("impatient")
def test_files_are_shown_as_long_as_redis_lags(
    own_settings: Settings, own_redis: RedisServer, open_reader: Open
) -> None:
    """While Redis hangs, and while it refuses writes after that, readers show the version of the files.

    When Redis accepts writes again, they show the version of Redis.
    """
    write_with_low(own_settings, 1)
    reader = open_reader(own_settings)
    reader.predictions()
    own_redis.pause()
    second = write_with_low(own_settings, 2)
    assert second.cache == "down"
    reader.refresh()
    assert set(shown_by(reader).values()) == {second.version}

    own_redis.resume()
    with own_redis.client as client:
        client.delete(Keys(own_settings.source).lock)
        client.config_set("min-replicas-to-write", 1)
    for price in (3, 4, 5):
        report = write_with_low(own_settings, price)
        assert report.cache == "down"
        reader.refresh()
        assert set(shown_by(reader).values()) == {report.version}
        assert set(shown_by(open_reader(own_settings)).values()) == {report.version}

    with own_redis.client as client:
        client.config_set("min-replicas-to-write", 0)
    assert optimize(own_settings).cache == "republished"
    reader.refresh()
    assert (reader.predictions().origin, set(shown_by(reader).values())) == ("redis", {report.version})
