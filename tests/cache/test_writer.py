"""The writer's side of Redis: the lock, ticks, publishing, deltas, and what is left where a line breaks."""

from __future__ import annotations

import gzip
import select
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from redis.client import Pipeline

import optimizer.cache.writer
from optimizer import Settings, optimize
from optimizer.cache.client import connect, eviction_warning, ping
from optimizer.cache.keys import VERSION_KINDS, Keys, Pointer
from optimizer.cache.writer import OLD_VERSION_TTL_S, RANKS_CHECKED, STAGE_BATCH, STAGED_TTL_S, Cache, Lock
from optimizer.errors import CacheUnavailable, PublishRefused
from optimizer.models import Record, Report
from optimizer.selection.top_n import rank
from optimizer.snapshots.directory import SnapshotSet, encode_set
from tests.support.examples import examples
from tests.support.published_state import assert_redis_holds_the_files, assert_tidy, keys_of, no_scan
from tests.support.redis_servers import RedisServer, wait_until
from tests.support.rolling_files import a_record, write_json

SOURCE = "rolling_brain"
KEYS = Keys(SOURCE)
NOW = "2026-11-01T10:00:00.000Z"


def a_set(version: int, records: Sequence[Record] = (Record("AAPL", 1.5, 0.9, 100.0),)) -> SnapshotSet:
    """A set of these records; its bots and portfolio are empty."""
    ranked = sorted(records, key=rank)
    return encode_set(
        source=SOURCE,
        version=version,
        generated_at=NOW,
        fingerprint=f"print-{version}",
        ranked=ranked,
        predictions=ranked,
        bots=[],
        gzip_level=1,
    )


@contextmanager
def a_cache(url: str, *, interval_s: float = 30.0) -> Iterator[Cache]:
    """A writer's side, closed in the end."""
    with closing(Cache(url, SOURCE, interval_s)) as cache:
        yield cache


@pytest.fixture
def cache(redis_server: RedisServer) -> Iterator[Cache]:
    """The writer's side of an empty Redis."""
    with a_cache(redis_server.url) as cache:
        yield cache


def publish(cache: Cache, snapshots: SnapshotSet) -> None:
    """Publish as a run does that is alone."""
    with cache.lock() as lock:
        assert lock.held
        cache.publish(snapshots, lock=lock, before=cache.pointer(), checked_at=NOW)


def version_shown(cache: Cache) -> int | None:
    """The version that the pointer names."""
    pointer = cache.pointer()
    return pointer.version if pointer else None


# ---- publishing


def test_the_old_version_expires_and_the_new_one_does_not(cache: Cache, redis_server: RedisServer) -> None:
    """A reader that has just read the pointer has two minutes for the rest; only streams and the pointer stay."""
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


def test_a_version_published_again_does_not_expire(cache: Cache, redis_server: RedisServer) -> None:
    """Healing evicted keys is no reason to let the version go."""
    publish(cache, a_set(1))
    publish(cache, a_set(1))

    with redis_server.client as client:
        assert {client.ttl(KEYS.payload(1, kind)) for kind in VERSION_KINDS} == {-1}


def test_each_publish_tells_the_channel_its_version(cache: Cache, redis_server: RedisServer) -> None:
    """The version and nothing more, once a publish."""
    with redis_server.client as client, client.pubsub(ignore_subscribe_messages=True) as channel:
        channel.subscribe(KEYS.published)
        wait_until(lambda: dict(cast("Any", client.pubsub_numsub(KEYS.published)))[KEYS.published.encode()] == 1)
        publish(cache, a_set(1))
        publish(cache, a_set(2))

        heard: list[bytes] = []

        def hear() -> bool:
            message = channel.get_message(timeout=0.1)
            heard.extend([message["data"]] if message else [])
            return len(heard) == 2

        wait_until(hear, what="two messages")
        assert heard == [b"1", b"2"]


def test_many_symbols_are_staged_in_batches(cache: Cache, redis_server: RedisServer) -> None:
    """All of them arrive, the last of an incomplete batch too."""
    records = [Record(f"S{number}", 1.0, number / 4_000, 1.0) for number in range(2_345)]

    publish(cache, a_set(1, records))

    with redis_server.client as client:
        assert client.hlen(KEYS.payload(1, "symbols")) == 2_345
        assert client.zcard(KEYS.payload(1, "ranking")) == 2_345
        assert client.ttl(KEYS.payload(1, "symbols")) == -1


def test_an_older_version_is_refused(cache: Cache, redis_server: RedisServer) -> None:
    """Also where the run started from the newer one and holds the lock."""
    publish(cache, a_set(2))
    before = keys_of(redis_server, SOURCE)

    with pytest.raises(PublishRefused, match="version 1 is older than the published 2"):
        publish(cache, a_set(1))

    assert keys_of(redis_server, SOURCE) == before


def test_a_run_that_was_paused_past_its_lock_is_refused(redis_server: RedisServer) -> None:
    """Somebody else took over and published: the sleeper changes nothing, and what it staged expires."""
    with a_cache(redis_server.url) as sleeper, a_cache(redis_server.url) as other, redis_server.client as client:
        publish(sleeper, a_set(1))
        with sleeper.lock() as lost:
            started_from = sleeper.pointer()
            client.delete(KEYS.lock)  # it expired
            publish(other, a_set(2))

            assert not sleeper.owns(lost)
            with pytest.raises(PublishRefused, match="lock is no longer held"):
                sleeper.publish(a_set(3), lock=lost, before=started_from, checked_at=NOW)
            client.set(KEYS.lock, lost.token)  # and even if it got the lock back
            with pytest.raises(PublishRefused, match="version 2 was published meanwhile"):
                sleeper.publish(a_set(3), lock=lost, before=started_from, checked_at=NOW)

        assert version_shown(other) == 2
        assert client.exists(*(KEYS.payload(3, kind) for kind in VERSION_KINDS)) == 0
        staged = cast("list[bytes]", client.keys("*:staged:*"))
        assert len(staged) == len(VERSION_KINDS)
        assert all(0 < client.ttl(key) <= STAGED_TTL_S for key in staged)


def test_a_first_publish_is_refused_where_another_was_first(redis_server: RedisServer) -> None:
    """No pointer at the start is a place to start from like any other."""
    with a_cache(redis_server.url) as cache, redis_server.client as client:
        publish(cache, a_set(1))
        client.set(KEYS.lock, "token")

        with pytest.raises(PublishRefused, match="version 1 was published meanwhile"):
            cache.publish(a_set(2), lock=Lock(held=True, token="token"), before=None, checked_at=NOW)


def test_a_publish_whose_staged_keys_are_gone_is_refused(
    cache: Cache, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evicted or expired between staging and flip: the pointer stays, and so does what it names."""
    publish(cache, a_set(1))
    before = keys_of(redis_server, SOURCE)
    stage = Cache._stage

    def stage_and_lose_one(self: Cache, snapshots: SnapshotSet, token: str) -> None:
        stage(self, snapshots, token)
        with redis_server.client as client:
            client.delete(KEYS.staged(token, "ranking"))

    monkeypatch.setattr(Cache, "_stage", stage_and_lose_one)
    with pytest.raises(PublishRefused, match="staged has expired"):
        publish(cache, a_set(2))

    after = keys_of(redis_server, SOURCE)
    assert {key: value for key, value in after.items() if b":staged:" not in key} == before


# ---- deltas

SYMBOLS = st.sampled_from("ABCDE")
RECORDS = st.builds(Record, SYMBOLS, st.sampled_from([1.0, 2.0]), st.sampled_from([0.5, 1.0]), st.just(1.0))
CONTENTS = st.dictionaries(SYMBOLS, RECORDS, min_size=1).map(
    lambda found: [msgspec.structs.replace(record, symbol=symbol) for symbol, record in found.items()]
)


def deltas(server: RedisServer) -> dict[str, dict[str, Any]]:
    """The stream of deltas: id to content."""
    with server.client as client:
        entries = cast("list[tuple[bytes, dict[bytes, bytes]]]", client.xrange(KEYS.deltas))
        return {name.decode(): msgspec.json.decode(fields[b"delta"]) for name, fields in entries}


# The fixture's Redis is emptied by each example itself.
@hypothesis_settings(
    max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(contents=st.lists(CONTENTS, min_size=2, max_size=4))
def test_a_delta_makes_the_new_predictions_of_the_old(redis_server: RedisServer, contents: list[list[Record]]) -> None:
    """Each version that changes them has one delta, which leads from one to the other; any other version has none."""
    with redis_server.client as client, a_cache(redis_server.url) as cache:
        client.flushall()
        for version, records in enumerate(contents, 1):
            publish(cache, a_set(version, records))

    found = deltas(redis_server)
    shown: dict[str, Any] = {record.symbol: msgspec.to_builtins(record) for record in contents[0]}
    for version, records in enumerate(contents[1:], 2):
        expected = {record.symbol: msgspec.to_builtins(record) for record in records}
        delta = found.pop(f"{version}-0", None)
        assert (delta is None) == (shown == expected)
        if delta is not None:
            assert (delta["version"], delta["before"]) == (version, version - 1)
            assert all(shown.get(record["symbol"]) != record for record in delta["changed"])
            shown |= {record["symbol"]: record for record in delta["changed"]}
            for symbol in delta["removed"]:
                del shown[symbol]
        assert shown == expected
    assert found == {}


def test_a_delta_holds_what_changed_and_no_more(cache: Cache, redis_server: RedisServer) -> None:
    """Whole records, in order of rank; removed symbols by name."""
    old = [Record("KEPT", 1.0, 0.9, 1.0), Record("GONE", 1.0, 0.8, 1.0), Record("OTHER", 1.0, 0.7, 1.0)]
    new = [Record("KEPT", 1.0, 0.9, 1.0), Record("OTHER", 2.0, 0.6, 1.0), Record("COME", 1.0, 0.95, 1.0)]
    publish(cache, a_set(1, old))
    publish(cache, a_set(5, new))

    delta = deltas(redis_server)["5-0"]
    assert [record["symbol"] for record in delta["changed"]] == ["COME", "OTHER"]
    assert delta["removed"] == ["GONE"]
    assert cache.newest_delta() == 5


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
    cache: Cache, redis_server: RedisServer, payload: bytes | None
) -> None:
    """The new version is published all the same; whoever follows deltas sees the gap by `before`."""
    publish(cache, a_set(1))
    with redis_server.client as client:
        client.delete(KEYS.payload(1, "predictions"))
        if payload is not None:
            client.set(KEYS.payload(1, "predictions"), payload)

    publish(cache, a_set(2, [Record("MSFT", 1.0, 0.5, 1.0)]))

    assert version_shown(cache) == 2
    assert deltas(redis_server) == {}


def test_only_the_newest_deltas_are_kept(cache: Cache, redis_server: RedisServer) -> None:
    """About an hour of them."""
    with cache.lock() as lock:
        for version in range(1, 131):
            records = [Record("AAPL", float(version), 0.9, 1.0)]
            cache.publish(a_set(version, records), lock=lock, before=cache.pointer(), checked_at=NOW)

    assert list(deltas(redis_server)) == [f"{version}-0" for version in range(11, 131)]


# ---- runs and ticks


def test_the_stream_of_runs_is_trimmed_to_a_day(redis_server: RedisServer) -> None:
    """About as many reports as a day has ticks; Redis trims by whole nodes of a hundred."""
    with a_cache(redis_server.url, interval_s=864) as cache, redis_server.client as client:
        for number in range(350):
            cache.add_run(Report("skipped", SOURCE, NOW, reason=str(number)))

        entries = cast("list[tuple[bytes, dict[bytes, bytes]]]", client.xrange(KEYS.runs))
    assert 100 <= len(entries) <= 200
    assert msgspec.json.decode(entries[-1][1][b"report"], type=Report).reason == "349"


def test_scans_are_kept_apart_from_the_runs_that_find_nothing(redis_server: RedisServer) -> None:
    """The newest hundred, to the number: what trims the runs does not touch them."""
    with a_cache(redis_server.url, interval_s=864) as cache, redis_server.client as client:
        for version in range(102):
            cache.add_run(Report("success", SOURCE, NOW, version=version))
            cache.add_run(Report("failed", SOURCE, NOW))
        for _ in range(300):
            cache.add_run(Report("unchanged", SOURCE, NOW))

        entries = cast("list[tuple[bytes, dict[bytes, bytes]]]", client.xrange(KEYS.scans))
    kept = [msgspec.json.decode(fields[b"report"], type=Report) for _, fields in entries]
    assert [(report.status, report.version) for report in kept] == [("success", version) for version in range(2, 102)]


def test_a_tick_is_taken_by_one_of_many(redis_server: RedisServer) -> None:
    """However many ask at the same time; and it is forgotten after two intervals."""

    def take(_: int) -> list[bool]:
        with a_cache(redis_server.url, interval_s=5) as cache:
            return [cache.take_tick(number) for number in range(20)]

    with ThreadPoolExecutor(8) as threads:
        taken = list(threads.map(take, range(8)))

    assert [sum(column) for column in zip(*taken, strict=True)] == [1] * 20
    with redis_server.client as client:
        assert all(5_000 < client.pttl(KEYS.tick(number)) <= 10_000 for number in range(20))


# ---- the lock


def test_the_lock_is_held_by_one(redis_server: RedisServer) -> None:
    """The second is told so, and does not release the first one's lock; then it is free at once."""
    with a_cache(redis_server.url) as first, a_cache(redis_server.url) as second:
        with first.lock() as lock:
            with second.lock() as refused:
                assert not refused.held
                assert not second.owns(refused)
            assert first.owns(lock)
        with second.lock() as lock:
            assert lock.held


def test_the_lock_is_extended_while_its_run_lives(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan may take longer than the lock lasts; once the run has ended nothing extends it."""
    monkeypatch.setattr(optimizer.cache.writer, "LOCK_TTL_S", 2.0)
    monkeypatch.setattr(optimizer.cache.writer, "LOCK_EXTEND_S", 0.1)
    with a_cache(redis_server.url) as cache, redis_server.client as client:
        left_ms = [2_000]
        rises: list[int] = []

        def rose() -> bool:
            left_ms.append(client.pttl(KEYS.lock))
            if left_ms[-1] > left_ms[-2]:
                rises.append(left_ms[-1])
            return len(rises) == 3

        with cache.lock() as lock:
            wait_until(rose, what="the third extension")
            assert cache.owns(lock)
            assert max(left_ms) <= 2_000
            keepers = [thread for thread in threading.enumerate() if thread.name == "rolling-lock"]
            assert len(keepers) == 1
        assert client.exists(KEYS.lock) == 0
        assert not keepers[0].is_alive()


def test_a_lock_that_somebody_else_holds_by_now_is_left_alone(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is neither extended nor released."""
    monkeypatch.setattr(optimizer.cache.writer, "LOCK_EXTEND_S", 0.05)
    with a_cache(redis_server.url) as cache, redis_server.client as client:
        with cache.lock() as lock:
            client.set(KEYS.lock, "another", px=60_000)
            keeper = next(thread for thread in threading.enumerate() if thread.name == "rolling-lock")
            wait_until(lambda: not keeper.is_alive(), what="the keeper's end")
            assert not cache.owns(lock)
        assert client.get(KEYS.lock) == b"another"
        assert 50_000 < client.pttl(KEYS.lock) <= 60_000


def test_a_lock_that_nobody_extends_expires(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that died without a word blocks the others no longer than this."""
    monkeypatch.setattr(optimizer.cache.writer, "LOCK_TTL_S", 0.3)
    with a_cache(redis_server.url) as dead, a_cache(redis_server.url) as other:
        started = time.monotonic()
        dead._claim(KEYS.lock, "a dead run's token", 0.3)

        def got_it() -> bool:
            with other.lock() as lock:
                return lock.held

        assert not got_it()
        wait_until(got_it, what="the lock to expire")
        assert time.monotonic() - started >= 0.3


# ---- the pointer


def test_checking_does_not_make_a_pointer(cache: Cache, redis_server: RedisServer) -> None:
    """Where the pointer has gone, or names another version by now, there is nothing to note."""
    cache.mark_checked(1, "2026-11-01T11:00:00Z")
    assert cache.pointer() is None
    publish(cache, a_set(2))

    cache.mark_checked(1, "2026-11-01T11:00:00Z")
    pointer = cache.pointer()
    assert pointer is not None
    assert pointer.checked_at == NOW

    cache.mark_checked(2, "2026-11-01T11:00:00Z")
    pointer = cache.pointer()
    assert pointer is not None
    assert pointer.checked_at == "2026-11-01T11:00:00Z"
    with redis_server.client as client:
        assert len(cast("dict[bytes, bytes]", client.hgetall(KEYS.current))) == 13


def test_a_pointer_tells_what_the_manifest_tells(cache: Cache) -> None:
    """Version, times, fingerprint, and etag and count of each payload."""
    snapshots = a_set(1)
    publish(cache, snapshots)

    entries = {kind: snapshots.manifest.snapshots[kind] for kind in ("predictions", "bots", "portfolio")}
    assert cache.pointer() == Pointer(
        version=1,
        generated_at=NOW,
        checked_at=NOW,
        fingerprint="print-1",
        etags={kind: entry.sha256 for kind, entry in entries.items()},
        counts={"predictions": 1, "bots": 0, "portfolio": 0},
    )


@pytest.mark.parametrize("field", ["version", "generated_at", "checked_at", "fingerprint", "bots_etag", "bots_count"])
def test_a_pointer_that_lacks_a_field_is_damaged(cache: Cache, redis_server: RedisServer, field: str) -> None:
    """For a reader too; whoever holds the lock deletes it, and no other."""
    publish(cache, a_set(1))
    with redis_server.client as client:
        client.hdel(KEYS.current, field)
        with pytest.raises(CacheUnavailable, match=f"damaged.*{field}.*the next run publishes anew"):
            Pointer.from_hash(cast("dict[bytes, bytes]", client.hgetall(KEYS.current)))

        assert cache.pointer(Lock(held=False, token="another's")) is None
        assert client.exists(KEYS.current) == 1
        with cache.lock() as lock:
            assert cache.pointer(lock) is None
        assert client.exists(KEYS.current) == 0


# ---- a line that breaks


class BadLine:
    """A way to Redis that fails at a word or a message: the answer is lost once, or the line is cut for good."""

    def __init__(self, server: RedisServer) -> None:
        self._target = ("127.0.0.1", server.port)
        self.lose_answer_to = b""
        self.lose_answer_in: int | None = None  # after so many messages
        self.cut_before = b""
        self.is_cut = False

    @contextmanager
    def open(self) -> Iterator[str]:
        """Open it; yield its URL."""
        line = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                if not line.is_cut:
                    with socket.create_connection(line._target) as upstream:
                        line._relay(self.request, upstream)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True

        with Server(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.02,))
            thread.start()
            try:
                yield f"redis://127.0.0.1:{server.server_address[1]}/0"
            finally:
                server.shutdown()
                thread.join()

    def _relay(self, client: socket.socket, upstream: socket.socket) -> None:
        while True:
            ready, _, _ = select.select([client, upstream], [], [])
            source = ready[0]
            data = source.recv(1 << 20)
            if not data:
                return
            if source is upstream:
                client.sendall(data)
                continue
            if self.cut_before and self.cut_before in data:
                upstream.sendall(data[: data.index(self.cut_before)])
                self.is_cut = True
                return
            upstream.sendall(data)
            if self.lose_answer_in is not None:
                self.lose_answer_in -= 1
            if (self.lose_answer_to and self.lose_answer_to in data) or self.lose_answer_in == -1:
                self.lose_answer_to = b""
                upstream.recv(1)
                return


def test_a_flip_whose_answer_is_lost_is_no_failure(redis_server: RedisServer) -> None:
    """redis-py sends it again, to find it done: that was this run, and no other."""
    line = BadLine(redis_server)
    with line.open() as url, a_cache(url) as cache:
        publish(cache, a_set(1))
        line.lose_answer_to = b"'RENAME'"

        publish(cache, a_set(2, [Record("MSFT", 1.0, 0.5, 1.0)]))

        assert line.lose_answer_to == b""
        assert version_shown(cache) == 2
    assert list(deltas(redis_server)) == ["2-0"]


@pytest.mark.parametrize("damaged", [True, False], ids=["republished", "published"])
def test_whichever_answer_is_lost_amid_a_publish_it_is_published(
    settings: Settings, redis_server: RedisServer, damaged: bool
) -> None:
    """Of every message of a run the answer is lost once; redis-py sends it again, and the run finds its own doing."""
    line = BadLine(redis_server)
    with line.open() as url, redis_server.client as client:
        settings = replace(settings, redis_url=url)
        write_json(settings.input, {"AAPL": a_record()})
        report = optimize(settings)
        for number in count():
            if damaged:
                client.delete(KEYS.payload(report.version or 0, "bots"))
            else:
                write_json(settings.input, {"AAPL": a_record(prediction=float(number))})
            line.lose_answer_in = number

            report = optimize(settings, progress=no_scan if damaged else None)

            assert report.cache == ("republished" if damaged else "published"), number
            assert_redis_holds_the_files(redis_server, settings)
            assert_tidy(settings, redis_server)
            if line.lose_answer_in >= 0:  # so many messages it has not
                break
    assert number > 15


def test_old_versions_expire_though_pointer_and_note_are_lost(cache: Cache, redis_server: RedisServer) -> None:
    """The stream of changes knows the last version as well."""
    publish(cache, a_set(1))
    publish(cache, a_set(2, [Record("MSFT", 1.0, 0.5, 1.0)]))
    with redis_server.client as client:
        client.delete(KEYS.current, KEYS.flipped)

        publish(cache, a_set(3))

        for kind in VERSION_KINDS:
            assert 0 < client.ttl(KEYS.payload(2, kind)) <= OLD_VERSION_TTL_S
            assert client.ttl(KEYS.payload(3, kind)) == -1


def test_a_large_index_is_read_back_in_turns(cache: Cache, redis_server: RedisServer) -> None:
    """A record that cannot be used is found where the window is at it, and counts are compared each time."""
    snapshots = a_set(1, [Record(f"S{number}", 1.0, number / 4_000, 1.0) for number in range(2 * RANKS_CHECKED)])
    publish(cache, snapshots)
    assert cache.shows(snapshots)
    with redis_server.client as client:
        client.hset(KEYS.payload(1, "symbols"), "S7", b"\xff")
        wait_until(lambda: not cache.shows(snapshots), what="the window to be there")
        publish(cache, snapshots)
        assert cache.shows(snapshots)
        client.hdel(KEYS.payload(1, "symbols"), "S7")
        assert not cache.shows(snapshots)


def test_a_lock_or_tick_whose_answer_is_lost_is_ours(redis_server: RedisServer) -> None:
    """Asked again, Redis says that it is taken; the token tells by whom."""
    line = BadLine(redis_server)
    with line.open() as url, a_cache(url) as cache:
        line.lose_answer_to = KEYS.lock.encode()
        with cache.lock() as lock:
            assert lock.held
        line.lose_answer_to = KEYS.tick(7).encode()
        assert cache.take_tick(7)
        assert not cache.take_tick(7)


@pytest.mark.parametrize("word", [b"HSET", b"ZADD", b"EXPIRE", b"EVAL"])
def test_a_writer_that_is_cut_off_leaves_only_keys_that_expire(redis_server: RedisServer, word: bytes) -> None:
    """Wherever among its commands it happens: what was staged goes by itself, the pointer stays."""
    with a_cache(redis_server.url) as cache:
        publish(cache, a_set(1))
    before = keys_of(redis_server, SOURCE)
    line = BadLine(redis_server)
    with line.open() as url, a_cache(url) as cache, cache.lock() as lock:
        pointer = cache.pointer()
        line.cut_before = word

        with pytest.raises(CacheUnavailable):
            cache.publish(a_set(2), lock=lock, before=pointer, checked_at=NOW)

        assert line.is_cut
    after = keys_of(redis_server, SOURCE)
    assert {key: value for key, value in after.items() if key in before} == before
    assert all(not lasts for key, (_, lasts) in after.items() if key not in before)
    with redis_server.client as client:
        assert 0 < client.pttl(KEYS.lock) <= 10_000


# ---- which Redis


def test_a_redis_that_does_not_answer_is_unavailable(own_redis: RedisServer) -> None:
    """Every method says so with the URL, without its password."""
    url = own_redis.url.replace("redis://", "redis://user:secret@")
    asking: list[Callable[[Cache], object]] = [
        lambda cache: cache.take_tick(1),
        lambda cache: cache.pointer(),
        lambda cache: cache.is_intact(1),
        lambda cache: cache.shows(a_set(1)),
        lambda cache: cache.mend(),
        lambda cache: cache.keep_parts(["digest"]),
        lambda cache: cache.newest_delta(),
        lambda cache: cache.mark_checked(1, NOW),
        lambda cache: cache.add_run(Report("skipped", SOURCE, NOW)),
        lambda cache: cache.owns(Lock(held=True, token="token")),
        lambda cache: cache.lock().__enter__(),
        lambda cache: cache.publish(a_set(1), lock=Lock(held=True, token=""), before=None, checked_at=NOW),
    ]
    with a_cache(url) as cache:
        for ask in asking:
            with pytest.raises(CacheUnavailable, match=str(own_redis.port)) as raised:
                ask(cache)
            assert "secret" not in str(raised.value)
    for check in (ping, eviction_warning):
        with pytest.raises(CacheUnavailable, match=str(own_redis.port)):
            check(url)


def test_a_broker_that_may_evict_is_warned_of(own_redis: RedisServer) -> None:
    """Messages would be lost without a word."""
    own_redis.start()
    ping(own_redis.url)
    assert eviction_warning(own_redis.url) is None
    with own_redis.client as client:
        client.config_set("maxmemory-policy", "allkeys-lru")

    assert "allkeys-lru" in str(eviction_warning(own_redis.url))


def test_a_unix_socket_is_a_way_to_redis(own_redis: RedisServer, tmp_path: Path) -> None:
    """Under redis-py's name for it, and Celery's."""
    path = tmp_path / "redis.sock"
    own_redis.start("--unixsocket", str(path))

    for scheme in ("unix", "redis+socket"):
        with a_cache(f"{scheme}://{path}") as cache:
            publish(cache, a_set((version_shown(cache) or 0) + 1))
    with a_cache(own_redis.url) as cache:
        assert version_shown(cache) == 2


@pytest.mark.parametrize("kind", ["symbols", "ranking"])
def test_an_index_that_lost_its_first_part_is_not_published(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A key that was evicted between two batches begins anew: the cache counts as down, the next run heals."""
    write_json(settings.input, {f"S{number}": a_record() for number in range(2 * STAGE_BATCH)})
    with connect(settings.redis_url, timeout_s=5.0) as client:
        execute = Pipeline.execute
        batches = 0

        def execute_and_evict(self: Pipeline, **options: Any) -> list[Any]:
            nonlocal batches
            batches += 1
            answers = execute(self, **options)
            if batches == 1:
                client.delete(*client.scan_iter(f"*:staged:*:{kind}"))
            return answers

        monkeypatch.setattr(Pipeline, "execute", execute_and_evict)

        assert optimize(settings).cache == "down"

        assert batches == 3  # two of the index, and the report
        assert not client.exists(Keys(settings.source).current)
        assert optimize(settings).cache == "republished"
