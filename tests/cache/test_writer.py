"""Publishing in Redis: refusals, expiries, deltas, the pointer, broken connections and evicted keys."""

from __future__ import annotations

import gzip
from dataclasses import replace
from itertools import count
from typing import Any, cast

import msgspec
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from redis.client import Pipeline

from optimizer import Settings, optimize
from optimizer.cache.client import CacheClient, connect
from optimizer.cache.clocks import seconds_of
from optimizer.cache.flip import STAGED_TTL_S
from optimizer.cache.keys import VERSION_KINDS, Keys
from optimizer.cache.lock import Lock, SourceLock
from optimizer.cache.pointer import Pointer
from optimizer.cache.writer import OLD_VERSION_TTL_S, STAGE_BATCH, VersionWriter
from optimizer.errors import CacheUnavailable, PublishRefused
from optimizer.models import Record
from optimizer.snapshots.delta import decode_stored
from optimizer.snapshots.format import SnapshotSet
from tests.support.cache_writers import KEYS, NOW, SOURCE, a_cache, a_set, publish, version_shown
from tests.support.examples import examples
from tests.support.published_state import assert_redis_holds_the_files, assert_tidy, keys_of, no_scan
from tests.support.redis_proxy import LossyProxy
from tests.support.redis_servers import RedisServer, wait_until
from tests.support.rolling_files import a_record, write_json

# ---- publishing


def test_the_old_version_expires_and_the_new_one_does_not(cache: CacheClient, redis_server: RedisServer) -> None:
    """The old version expires after two minutes; the new one, the pointer and the key `flipped` stay.

    A reader that has just read the pointer has these two minutes to read the rest.
    """
    publish(cache, a_set(1))
    publish(cache, a_set(2))

    with redis_server.client as client:
        for kind in VERSION_KINDS:
            assert 0 < client.ttl(KEYS.payload(1, kind)) <= OLD_VERSION_TTL_S == 120
            assert client.ttl(KEYS.payload(2, kind)) == -1
        assert client.ttl(KEYS.current) == -1
        assert {key for key in cast("list[bytes]", client.keys()) if b":1:" not in key and b":2:" not in key} == {
            KEYS.current.encode(),
            KEYS.flipped.encode(),
        }


def test_a_version_published_again_does_not_expire(cache: CacheClient, redis_server: RedisServer) -> None:
    """A version that is published again, to replace evicted keys, does not expire."""
    publish(cache, a_set(1))
    publish(cache, a_set(1))

    with redis_server.client as client:
        assert {client.ttl(KEYS.payload(1, kind)) for kind in VERSION_KINDS} == {-1}


def test_each_publish_tells_the_channel_its_version(cache: CacheClient, redis_server: RedisServer) -> None:
    """Each publish sends one message to the channel, with the version and nothing more."""
    with redis_server.client as client, client.pubsub() as channel:
        channel.subscribe(KEYS.published)
        wait_until(lambda: channel.get_message(timeout=0.1), what="the confirmation of the subscription")
        publish(cache, a_set(1))
        publish(cache, a_set(2))

        heard: list[bytes] = []

        def hear() -> bool:
            message = channel.get_message(timeout=0.1)
            heard.extend([message["data"]] if message else [])
            return len(heard) == 2

        wait_until(hear, what="two messages")
        assert heard == [b"1", b"2"]


def test_many_symbols_are_staged_in_batches(cache: CacheClient, redis_server: RedisServer) -> None:
    """All symbols of an index of several batches are published, including those of the last, incomplete batch."""
    records = [Record(f"S{number}", 1.0, number / 4_000, 1.0) for number in range(2_345)]

    publish(cache, a_set(1, records))

    with redis_server.client as client:
        assert client.hlen(KEYS.payload(1, "symbols")) == 2_345
        assert client.zcard(KEYS.payload(1, "ranking")) == 2_345
        assert client.ttl(KEYS.payload(1, "symbols")) == -1


def test_an_older_version_is_refused(cache: CacheClient, redis_server: RedisServer) -> None:
    """An older version is refused and changes no key, even if the run started from the newer one and holds the lock."""
    publish(cache, a_set(2))
    before = keys_of(redis_server, SOURCE)

    with pytest.raises(PublishRefused, match="version 1 is older than the published 2"):
        publish(cache, a_set(1))

    assert keys_of(redis_server, SOURCE) == before


def test_a_run_that_was_paused_past_its_lock_is_refused(redis_server: RedisServer) -> None:
    """A run is refused if its lock expired during a pause and another run published, even if it gets the lock back.

    It changes nothing that is shown, and the keys that it has staged expire.
    """
    with a_cache(redis_server.url) as sleeper, a_cache(redis_server.url) as other, redis_server.client as client:
        publish(sleeper, a_set(1))
        with SourceLock(sleeper).acquire() as lost:
            started_from = VersionWriter(sleeper).pointer()
            client.delete(KEYS.lock)  # it expired
            publish(other, a_set(2))

            assert not SourceLock(sleeper).owns(lost)
            with pytest.raises(PublishRefused, match="lock is no longer held"):
                VersionWriter(sleeper).publish(a_set(3), lock=lost, before=started_from)
            client.set(KEYS.lock, lost.token)  # even if it gets the lock back
            with pytest.raises(PublishRefused, match="version 2 was published meanwhile"):
                VersionWriter(sleeper).publish(a_set(3), lock=lost, before=started_from)

        assert version_shown(other) == 2
        assert client.exists(*(KEYS.payload(3, kind) for kind in VERSION_KINDS)) == 0
        staged = cast("list[bytes]", client.keys("*:staged:*"))
        assert len(staged) == len(VERSION_KINDS) + 1  # the seal
        assert all(0 < client.ttl(key) <= STAGED_TTL_S for key in staged)


def test_a_first_publish_is_refused_where_another_was_first(redis_server: RedisServer) -> None:
    """A run that started without a pointer is refused if another run has published meanwhile."""
    with a_cache(redis_server.url) as cache, redis_server.client as client:
        publish(cache, a_set(1))
        client.set(KEYS.lock, "token")

        with pytest.raises(PublishRefused, match="version 1 was published meanwhile"):
            VersionWriter(cache).publish(a_set(2), lock=Lock(held=True, token="token"), before=None)


@pytest.mark.parametrize("kind", ["ranking", "seal"])
def test_a_publish_whose_staged_keys_are_gone_is_refused(
    cache: CacheClient, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A publish is refused if a staged key was evicted, expired or lost before the flip.

    The pointer and the version that it names stay unchanged.
    """
    publish(cache, a_set(1))
    before = keys_of(redis_server, SOURCE)
    stage = VersionWriter.stage

    def stage_and_lose_one(self: VersionWriter, snapshots: SnapshotSet, lock: Lock) -> None:
        stage(self, snapshots, lock)
        client.delete(KEYS.staged(lock.token, kind))

    monkeypatch.setattr(VersionWriter, "stage", stage_and_lose_one)
    with redis_server.client as client, pytest.raises(PublishRefused, match="staged has expired"):
        publish(cache, a_set(2))

    after = keys_of(redis_server, SOURCE)
    assert {key: value for key, value in after.items() if b":staged:" not in key} == before


# ---- deltas

SYMBOLS = st.sampled_from("ABCDE")
RECORDS = st.builds(Record, SYMBOLS, st.sampled_from([1.0, 2.0]), st.sampled_from([0.5, 1.0]), st.just(1.0))
CONTENTS = st.dictionaries(SYMBOLS, RECORDS, min_size=1).map(
    lambda by_symbol: [msgspec.structs.replace(record, symbol=symbol) for symbol, record in by_symbol.items()]
)


def deltas(server: RedisServer) -> dict[str, dict[str, Any]]:
    """Return the stream of deltas as content by id."""
    with server.client as client:
        entries = cast("list[tuple[bytes, dict[bytes, bytes]]]", client.xrange(KEYS.deltas))
        return {name.decode(): decode_stored(fields[b"change"]).change.to_dict() for name, fields in entries}


# Each example empties the fixture's Redis itself.
@hypothesis_settings(
    max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(contents=st.lists(CONTENTS, min_size=2, max_size=4))
def test_a_delta_makes_the_new_predictions_of_the_old(redis_server: RedisServer, contents: list[list[Record]]) -> None:
    """A version that changes the predictions has one delta that leads from the old to the new; any other has none."""
    with redis_server.client as client, a_cache(redis_server.url) as cache:
        client.flushall()
        for version, records in enumerate(contents, 1):
            publish(cache, a_set(version, records))

    remaining = deltas(redis_server)
    shown: dict[str, Any] = {record.symbol: msgspec.to_builtins(record) for record in contents[0]}
    for version, records in enumerate(contents[1:], 2):
        expected = {record.symbol: msgspec.to_builtins(record) for record in records}
        delta = remaining.pop(f"{version}-0", None)
        assert (delta is None) == (shown == expected)
        if delta is not None:
            assert (delta["version"], delta["before"]) == (version, version - 1)
            changed = delta["predictions"]["changed"]
            assert all(shown.get(record["symbol"]) != record for record in changed)
            shown |= {record["symbol"]: record for record in changed}
            for symbol in delta["predictions"]["removed"]:
                del shown[symbol]
        assert shown == expected
    assert remaining == {}


def test_a_delta_holds_what_changed_and_no_more(cache: CacheClient, redis_server: RedisServer) -> None:
    """A delta has the changed records, whole and by rank, and the symbols of removed records, and nothing else.

    Its version is the newest known one even if the key `flipped` is lost.
    """
    old = [Record("KEPT", 1.0, 0.9, 1.0), Record("GONE", 1.0, 0.8, 1.0), Record("OTHER", 1.0, 0.7, 1.0)]
    new = [Record("KEPT", 1.0, 0.9, 1.0), Record("OTHER", 2.0, 0.6, 1.0), Record("COME", 1.0, 0.95, 1.0)]
    publish(cache, a_set(1, old))
    publish(cache, a_set(5, new))

    delta = deltas(redis_server)["5-0"]["predictions"]
    assert delta["changed"] == [msgspec.to_builtins(new[2]), msgspec.to_builtins(new[1])]
    assert delta["removed"] == ["GONE"]
    with redis_server.client as client:
        client.delete(KEYS.flipped)
    assert VersionWriter(cache).newest_known() == 5


@pytest.mark.parametrize(
    "payload",
    [
        None,
        b"junk",
        gzip.compress(b"{}")[:-9],
        gzip.compress(b"[]"),
        gzip.compress(b'{"predictions": [], "timestamp": "\xff", "count": 0}'),
    ],
    ids=["evicted", "no gzip", "torn", "another shape", "no UTF-8"],
)
def test_no_delta_is_made_from_what_cannot_be_read(
    cache: CacheClient, redis_server: RedisServer, payload: bytes | None
) -> None:
    """If the old predictions cannot be read, the new version is published without a delta.

    Readers of deltas recognise the gap by the `before` of the next one.
    """
    publish(cache, a_set(1))
    with redis_server.client as client:
        client.delete(KEYS.payload(1, "predictions"))
        if payload is not None:
            client.set(KEYS.payload(1, "predictions"), payload)

    publish(cache, a_set(2, [Record("MSFT", 1.0, 0.5, 1.0)]))

    assert version_shown(cache) == 2
    assert deltas(redis_server) == {}


def test_only_the_newest_deltas_are_kept(cache: CacheClient, redis_server: RedisServer) -> None:
    """Only the newest 120 deltas are kept, about an hour of them."""
    with SourceLock(cache).acquire() as lock:
        writer = VersionWriter(cache)
        for version in range(1, 131):
            records = [Record("AAPL", float(version), 0.9, 1.0)]
            writer.publish(a_set(version, records), lock=lock, before=writer.pointer())

    assert list(deltas(redis_server)) == [f"{version}-0" for version in range(11, 131)]


# ---- the pointer


def test_confirming_does_not_make_a_pointer(cache: CacheClient, redis_server: RedisServer) -> None:
    """Confirming dates the pointer by Redis' clock, but only if it names that version; it never makes a pointer."""
    writer = VersionWriter(cache)
    writer.confirm(1)
    assert writer.pointer() is None
    publish(cache, a_set(2))
    with redis_server.client as client:
        client.hset(KEYS.current, "checked_at", NOW)

        writer.confirm(1)
        pointer = writer.pointer()
        assert pointer is not None
        assert pointer.checked_at == NOW

        began_s, _ = cast("tuple[int, int]", client.time())
        writer.confirm(2)
        pointer = writer.pointer()
        assert pointer is not None
        assert began_s <= seconds_of(pointer.checked_at) < began_s + 60
        assert len(cast("dict[bytes, bytes]", client.hgetall(KEYS.current))) == 3


@pytest.mark.parametrize("field", ["version", "checked_at", "manifest"])
def test_a_pointer_that_lacks_a_field_is_damaged(cache: CacheClient, redis_server: RedisServer, field: str) -> None:
    """A pointer that lacks a field is damaged, for readers too; only the holder of the lock deletes it."""
    publish(cache, a_set(1))
    with redis_server.client as client:
        client.hdel(KEYS.current, field)
        with pytest.raises(CacheUnavailable, match=f"damaged.*{field}.*the next run publishes anew"):
            Pointer.from_hash(cast("dict[bytes, bytes]", client.hgetall(KEYS.current)))

        assert VersionWriter(cache).pointer(Lock(held=False, token="another's")) is None
        assert client.exists(KEYS.current) == 1
        with SourceLock(cache).acquire() as lock:
            assert VersionWriter(cache).pointer(lock) is None
        assert client.exists(KEYS.current) == 0


# ---- a connection that breaks


def test_a_flip_whose_answer_is_lost_is_no_failure(redis_server: RedisServer) -> None:
    """If the reply to a flip is lost, redis-py sends it again and finds it done by this run: the publish succeeds."""
    proxy = LossyProxy(redis_server)
    with proxy.open() as url, a_cache(url) as cache:
        publish(cache, a_set(1))
        proxy.lose_reply_to = b"'RENAME'"

        publish(cache, a_set(2, [Record("MSFT", 1.0, 0.5, 1.0)]))

        assert proxy.lose_reply_to == b""
        assert version_shown(cache) == 2
    assert list(deltas(redis_server)) == ["2-0"]


@pytest.mark.slow
@pytest.mark.parametrize("damaged", [True, False], ids=["republished", "published"])
def test_whichever_answer_is_lost_amid_a_publish_it_is_published(
    settings: Settings, redis_server: RedisServer, damaged: bool
) -> None:
    """A run publishes even if the reply to any one of its messages is lost.

    redis-py sends the message again, and the run recognises that it has already done the work.
    """
    proxy = LossyProxy(redis_server)
    with proxy.open() as url, redis_server.client as client:
        settings = replace(settings, redis_url=url)
        write_json(settings.input, {"AAPL": a_record()})
        report = optimize(settings)
        for number in count():
            if damaged:
                client.delete(KEYS.payload(report.version or 0, "bots"))
            else:
                write_json(settings.input, {"AAPL": a_record(prediction=float(number))})
            proxy.lose_reply_in = number

            report = optimize(settings, progress=no_scan if damaged else None)

            assert report.cache == ("republished" if damaged else "published"), number
            assert_redis_holds_the_files(redis_server, settings)
            assert_tidy(settings, redis_server)
            if proxy.lose_reply_in >= 0:  # the run has fewer messages than that
                break
    assert number > 15


def test_old_versions_expire_though_pointer_and_note_are_lost(cache: CacheClient, redis_server: RedisServer) -> None:
    """Old versions expire even if pointer and `flipped` are lost: the stream of deltas names the last version too."""
    publish(cache, a_set(1))
    publish(cache, a_set(2, [Record("MSFT", 1.0, 0.5, 1.0)]))
    with redis_server.client as client:
        client.delete(KEYS.current, KEYS.flipped)

        publish(cache, a_set(3))

        for kind in VERSION_KINDS:
            assert 0 < client.ttl(KEYS.payload(2, kind)) <= OLD_VERSION_TTL_S
            assert client.ttl(KEYS.payload(3, kind)) == -1


@pytest.mark.parametrize("word", [b"HSET", b"ZADD", b"EXPIRE", b"EVAL"])
def test_a_writer_that_is_cut_off_leaves_only_keys_that_expire(redis_server: RedisServer, word: bytes) -> None:
    """A writer whose connection breaks before any of these commands leaves the pointer, and only keys that expire."""
    with a_cache(redis_server.url) as cache:
        publish(cache, a_set(1))
    before = keys_of(redis_server, SOURCE)
    proxy = LossyProxy(redis_server)
    with proxy.open() as url, a_cache(url) as cache, SourceLock(cache).acquire() as lock:
        pointer = VersionWriter(cache).pointer()
        proxy.cut_before = word

        with pytest.raises(CacheUnavailable):
            VersionWriter(cache).publish(a_set(2), lock=lock, before=pointer)

        assert proxy.is_cut
    after = keys_of(redis_server, SOURCE)
    assert {key: value for key, value in after.items() if key in before} == before
    assert all(not lasts for key, (_, lasts) in after.items() if key not in before)
    with redis_server.client as client:
        assert 0 < client.pttl(KEYS.lock) <= 10_000


# ---- a Redis that evicts


@pytest.mark.parametrize("kind", ["symbols", "ranking"])
def test_an_index_that_lost_its_first_part_is_not_published(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """An index whose first batch was evicted during staging is not published, and the run reports the cache as down.

    The evicted key would begin again with the second batch; the next run publishes the whole index.
    """
    write_json(settings.input, {f"S{number}": a_record() for number in range(2 * STAGE_BATCH)})
    with connect(settings.redis_url, timeout_s=5.0) as client:
        execute = Pipeline.execute
        batches = 0

        def execute_and_evict(self: Pipeline, **options: Any) -> list[Any]:
            nonlocal batches
            batches += 1
            answers = execute(self, **options)
            if batches == 2:
                client.delete(*client.scan_iter(f"*:staged:*:{kind}"))
            return answers

        monkeypatch.setattr(Pipeline, "execute", execute_and_evict)

        assert optimize(settings).cache == "down"

        assert batches == 5  # the waiting updates, two batches of the index, the seal, the report
        assert not client.exists(Keys(settings.source).current)
        assert optimize(settings).cache == "republished"
