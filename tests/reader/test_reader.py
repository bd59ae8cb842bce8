"""The routers' side: the same answers from Redis and from files, quickly, whatever becomes of either."""

from __future__ import annotations

import asyncio
import gc
import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import msgspec
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import optimizer.cache.writer
import optimizer.reader.async_reader
import optimizer.reader.cached_version
import optimizer.reader.follower
import optimizer.reader.reader
from optimizer import (
    Answer,
    AsyncSnapshotReader,
    Record,
    Settings,
    Snapshot,
    SnapshotMissing,
    SnapshotReader,
    optimize,
)
from optimizer.cache.clocks import seconds_of, text_of
from optimizer.cache.keys import Keys
from optimizer.cache.writer import Cache
from optimizer.models import BotSummary, Holding, Origin, Report
from optimizer.reader.follower import Follower
from optimizer.selection.top_n import rank
from optimizer.snapshots.directory import FILE_NAMES, encode_set, output_lock, write_set
from tests.support.examples import examples
from tests.support.ports import free_port
from tests.support.published_state import NEW, OLD, as_nobody, run_old, version_of
from tests.support.readers import KINDS, Open
from tests.support.redis_servers import RedisServer, wait_until
from tests.support.rolling_files import a_record, local, write_json

CROWD = 150

READS: dict[str, Callable[[SnapshotReader], Any]] = {
    "predictions": lambda reader: reader.predictions(),
    "bots": lambda reader: reader.bots(),
    "portfolio": lambda reader: reader.portfolio(),
    "symbol": lambda reader: reader.symbol("AAPL"),
    "top": lambda reader: reader.top(2),
    "manifest": lambda reader: reader.manifest(),
}
every_read = pytest.mark.parametrize("read", READS.values(), ids=READS.keys())


@pytest.fixture(params=KINDS)
def open_reader(request: pytest.FixtureRequest) -> Iterator[Open]:
    """Opens readers of one kind or the other for the length of a test."""
    with ExitStack() as stack:
        yield Open(stack, request.param)


@pytest.fixture
def own_settings(settings_without_redis: Settings, own_redis: RedisServer) -> Settings:
    """Settings for a Redis that the test may kill; it is up."""
    own_redis.start()
    return replace(settings_without_redis, redis_url=own_redis.url)


# ---- answers


@pytest.mark.parametrize("origin", ["redis", "files"])
def test_answers_are_typed_and_say_where_they_are_from(settings: Settings, open_reader: Open, origin: Origin) -> None:
    """Each has the version, the bytes of the file, their digest as etag, and the value decoded."""
    report = run_old(settings)
    reader = open_reader(settings, origin)

    snapshots: dict[str, Snapshot[Any]] = {
        "predictions": reader.predictions(),
        "bots": reader.bots(),
        "portfolio": reader.portfolio(),
    }
    for kind, snapshot in snapshots.items():
        assert (snapshot.version, snapshot.origin) == (report.version, origin)
        assert snapshot.gz == (local(settings.output_dir) / FILE_NAMES[kind]).read_bytes()
        assert snapshot.etag == hashlib.sha256(snapshot.gz).hexdigest()
    shown = reader.predictions().value
    assert [record.symbol for record in shown.predictions] == ["MSFT", "AAPL"]
    assert shown.predictions[1] == Record(
        "AAPL", 101.5, 0.75, 100.0, "bullish", 105.0, 95.0, timestamp="2026-11-01T10:00:00Z"
    )
    assert (shown.timestamp, shown.count) == (report.timestamp, 2)
    alpha = BotSummary(enabled=True, equity=10.5, pnl_today=None, positions=1, last_updated=None)
    assert reader.bots().value.bots == {"alpha": alpha}
    assert reader.portfolio().value.holdings == [Holding("AAPL", 2.0, 99.5)]
    assert reader.symbol("AAPL").value == shown.predictions[1]
    assert reader.top(5).value == shown.predictions
    assert {reader.symbol("AAPL").origin, reader.top(5).origin, reader.manifest().origin} == {origin}
    assert {reader.symbol("AAPL").version, reader.top(5).version} == {report.version}
    assert reader.symbol("AAPL").etag == reader.symbol("GOOG").etag == reader.top(1).etag
    state = reader.manifest()
    assert (state.version, state.generated_at) == (report.version, report.timestamp)
    assert 0 <= state.age_s < 60


@pytest.mark.parametrize("origin", ["redis", "files"])
def test_a_snapshot_is_decoded_once_a_version(settings: Settings, open_reader: Open, origin: Origin) -> None:
    """The same object comes again until the version changes; readers may not change it, it is shared."""
    run_old(settings)
    reader = open_reader(settings, origin)
    first = reader.predictions()

    assert reader.bots().version == first.version
    assert reader.predictions().value is first.value

    optimize(settings, force=True)
    reader.refresh()
    assert reader.predictions().version > first.version


@pytest.mark.parametrize("origin", ["redis", "files"])
def test_a_new_version_is_seen_by_itself(settings: Settings, open_reader: Open, origin: Origin) -> None:
    """Soon after a publish every read shows it, and nobody has asked."""
    run_old(settings)
    reader = open_reader(settings, origin)
    for read in READS.values():
        read(reader)
    write_json(settings.input, NEW)

    version = version_of(optimize(settings))

    wait_until(lambda: reader.predictions().version == version, limit_s=5, what="the new version")
    assert {read(reader).version for read in READS.values()} == {version}
    assert [record.symbol for record in reader.top(5).value] == ["NVDA", "MSFT"]
    assert reader.symbol("AAPL").value is None


def test_a_reader_is_made_of_the_environment(settings: Settings) -> None:
    """The same variables as the worker's."""
    run_old(settings)
    environ = {"ROLLING_REDIS_URL": settings.redis_url, "ROLLING_OUTPUT_DIR": str(settings.output_dir)}

    with closing(SnapshotReader.from_env(environ)) as reader:
        assert reader.manifest().origin == "redis"


# ---- lookups

ODD_SYMBOLS = [
    "",
    " ",
    '"',
    "'",
    "\\",
    "a/b",
    "../x",
    "%2F",
    "a\nb",
    "a\0b",
    "Ünï",
    "日本",
    "🚀",
    "symbol",
    "null",
    "x" * 256,
]


@pytest.mark.parametrize("origin", ["redis", "files"])
def test_any_text_is_a_symbol(settings: Settings, open_reader: Open, origin: Origin) -> None:
    """Each is found under its own name; others, among them text that is no Unicode, are found to be missing."""
    write_json(settings.input, [a_record(symbol=symbol, prediction=n) for n, symbol in enumerate(ODD_SYMBOLS)])
    optimize(settings)
    reader = open_reader(settings, origin)

    for number, symbol in enumerate(ODD_SYMBOLS):
        record = reader.symbol(symbol).value
        assert record is not None
        assert (record.symbol, record.prediction) == (symbol, number)
    for missing in ("MISSING", "ünï", "x" * 257, "\ud800"):
        answer = reader.symbol(missing)
        assert (answer.value, answer.origin) == (None, origin)
    assert [record.symbol for record in reader.top(99).value] == sorted(ODD_SYMBOLS)


ORIGINS: tuple[Origin, ...] = ("redis", "files")
CONFIDENCES = st.one_of(st.sampled_from([0.0, -0.0, 5e-324, 0.25, 1 / 3, 0.5, 1.0]), st.floats(0, 1))
INDEXES = st.dictionaries(st.text(max_size=3), CONFIDENCES, min_size=1, max_size=12).map(
    lambda found: sorted((Record(symbol, 1.0, confidence, 1.0) for symbol, confidence in found.items()), key=rank)
)
RANKS = st.one_of(st.integers(0, 14), st.sampled_from([10**9, 2**63, 10**30]))


# Each example empties the fixture's Redis itself.
@hypothesis_settings(
    max_examples=examples(80),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    deadline=None,
)
@given(index=INDEXES, windows=st.lists(st.tuples(RANKS, RANKS), min_size=1, max_size=8))
def test_top_is_a_slice_of_what_is_sorted(
    settings: Settings, redis_server: RedisServer, index: list[Record], windows: Sequence[tuple[int, int]]
) -> None:
    """By confidence descending, then symbol, from Redis as from files, however many are equal."""
    with redis_server.client as client:
        client.flushall()
    publish_index(settings, index)

    with ExitStack() as stack:
        readers = [(Open(stack, kind)(settings, origin), origin) for kind in KINDS for origin in ORIGINS]
        for reader, origin in readers:
            for n, offset in windows:
                answer = reader.top(n, offset)
                assert answer.value == sorted(index, key=rank)[offset : offset + n]
                assert answer.origin == origin
            for record in index:
                assert reader.symbol(record.symbol).value == record


def publish_index(settings: Settings, index: list[Record]) -> None:
    """Write and publish an index as a run does."""
    snapshots = encode_set(
        source=settings.source,
        version=time.time_ns() // 10_000,
        generated_at="2026-11-01T10:00:00.000Z",
        fingerprint="",
        ranked=index,
        predictions=[],
        bots=[],
        gzip_level=1,
    )
    with (
        output_lock(local(settings.output_dir)),
        closing(Cache(settings.redis_url, settings.source, 30)) as cache,
        cache.lock() as lock,
    ):
        write_set(local(settings.output_dir), snapshots)
        cache.publish(snapshots, lock=lock, before=cache.pointer(), checked_at="2026-11-01T10:00:00.000Z")


def test_a_window_is_not_negative(settings: Settings, open_reader: Open) -> None:
    """A mistake of the caller's, not a missing snapshot."""
    reader = open_reader(settings)
    for n, offset in ((-1, 0), (1, -1)):
        with pytest.raises(ValueError, match="may not be negative"):
            reader.top(n, offset)


# ---- Redis is away


@every_read
def test_no_snapshot_anywhere_is_an_error(
    settings: Settings, open_reader: Open, read: Callable[[SnapshotReader], Any]
) -> None:
    """It says what was asked and what to do, whether Redis is empty, down, or the only place."""
    origins: tuple[Origin | None, ...] = (None, "redis", "files")
    for origin in origins:
        with pytest.raises(SnapshotMissing, match=r"no snapshot of 'rolling_brain': Redis: .*rolling-optimizer run"):
            read(open_reader(settings, origin))


@pytest.mark.slow
@every_read
def test_files_answer_while_redis_is_down(
    own_settings: Settings,
    own_redis: RedisServer,
    open_reader: Open,
    read: Callable[[SnapshotReader], Any],
) -> None:
    """No read ever fails; soon after Redis went the files answer, and soon after it is back it does again."""
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
    """An empty Redis is no failure: it is asked all the while, and answers as soon as it holds something."""
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
    """What is held is answered at once; only what has to be looked up, and the first read, wait for short timeouts."""
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


def test_age_is_told_from_files_too(own_settings: Settings, own_redis: RedisServer, open_reader: Open) -> None:
    """An old snapshot with its age beats none."""
    run_old(own_settings)
    own_redis.kill()

    state = open_reader(own_settings).manifest()

    assert state.origin == "files"
    assert 0 <= state.age_s < 60


# ---- what Redis holds cannot be read


DAMAGED_PAYLOADS: dict[str, bytes | None] = {
    "evicted": None,
    "no gzip": b"junk",
    "empty": b"",
    "torn": gzip.compress(b'{"predictions": []}')[:-9],
    "bad checksum": gzip.compress(b"{}")[:-8] + bytes(8),
    "no JSON": gzip.compress(b"{"),
    "another shape": gzip.compress(b"[]"),
    "no UTF-8": gzip.compress(b'{"predictions": [], "timestamp": "\xff", "count": 0}'),
}


@pytest.mark.parametrize("payload", DAMAGED_PAYLOADS.values(), ids=DAMAGED_PAYLOADS.keys())
def test_files_answer_where_a_payload_cannot_be_read(
    settings: Settings, redis_server: RedisServer, open_reader: Open, payload: bytes | None
) -> None:
    """And without files it is a missing snapshot, no other error."""
    version = version_of(run_old(settings))
    key = Keys(settings.source).payload(version, "predictions")
    with redis_server.client as client:
        client.delete(key)
        if payload is not None:
            client.set(key, payload)

    assert open_reader(settings).predictions().origin == "files"
    with pytest.raises(SnapshotMissing):
        open_reader(settings, "redis").predictions()
    assert open_reader(settings).bots().origin == "redis"


@pytest.mark.parametrize("kind", ["symbols", "ranking"])
def test_files_answer_where_a_lookup_is_gone(
    settings: Settings, redis_server: RedisServer, open_reader: Open, kind: str
) -> None:
    """A ranking that was evicted is no empty ranking, nor are all symbols unknown."""
    write_json(settings.input, OLD | {"LOW": a_record(confidence=0.1)})
    version = version_of(optimize(settings))
    with redis_server.client as client:
        client.delete(Keys(settings.source).payload(version, kind))

    top = open_reader(settings).top(5)
    assert (top.origin, [record.symbol for record in top.value]) == ("files", ["MSFT", "AAPL", "LOW"])
    assert open_reader(settings).top(5, offset=99).value == []
    found = open_reader(settings).symbol("LOW")
    assert found.value is not None
    assert found.origin == ("files" if kind == "symbols" else "redis")


@every_read
@pytest.mark.parametrize(
    "damage",
    [{"version": "newest"}, {"checked_at": "yesterday"}, {"checked_at": "2026-11-01T10:00:00"}, {"bots_count": "\xff"}],
    ids=["version", "time", "time without zone", "count"],
)
def test_files_answer_where_the_pointer_is_damaged(
    settings: Settings,
    redis_server: RedisServer,
    open_reader: Open,
    read: Callable[[SnapshotReader], Any],
    damage: dict[str, str],
) -> None:
    """Whatever is read."""
    run_old(settings)
    with redis_server.client as client:
        client.hset(Keys(settings.source).current, mapping=damage)

    assert read(open_reader(settings)).origin == "files"


@every_read
@pytest.mark.parametrize("key", ["current", "all but current"])
def test_files_answer_where_keys_have_another_type(
    settings: Settings, redis_server: RedisServer, open_reader: Open, read: Callable[[SnapshotReader], Any], key: str
) -> None:
    """Somebody's keys under our names."""
    version = version_of(run_old(settings))
    keys = Keys(settings.source)
    with redis_server.client as client:
        kinds = ("predictions", "bots", "portfolio", "symbols", "ranking")
        for name in [keys.current] if key == "current" else [keys.payload(version, kind) for kind in kinds]:
            client.delete(name)
            client.rpush(name, "x")

    answer = read(open_reader(settings))

    if key == "current" or not hasattr(answer, "age_s"):
        assert answer.origin == "files"


def test_a_version_that_expired_is_read_anew(settings: Settings, redis_server: RedisServer, open_reader: Open) -> None:
    """A reader that is behind finds the next version in Redis, and does not need the files."""
    write_json(settings.input, OLD | {"LOW": a_record(confidence=0.1)})
    old = version_of(optimize(settings))
    reader = open_reader(settings, "redis")
    assert reader.predictions().version == old
    new = version_of(optimize(settings, force=True))
    with redis_server.client as client:
        assert client.delete(*cast("list[bytes]", client.keys(f"*:{old}:*"))) == 5

    for answer in (reader.symbol("LOW"), reader.symbol("MISSING"), reader.top(5)):
        assert (answer.version, answer.origin) == (new, "redis")


@pytest.mark.alone
@pytest.mark.parametrize("look_up", [lambda reader: reader.symbol("LOW"), lambda reader: reader.top(3)])
def test_a_crowd_of_lookups_is_no_redis_that_is_away(
    own_settings: Settings, own_redis: RedisServer, open_reader: Open, look_up: Callable[[SnapshotReader], Any]
) -> None:
    """More at once than a pool has connections wait for each other, and Redis answers all of them."""
    write_json(own_settings.input, OLD | {"LOW": a_record(confidence=0.1)})
    optimize(own_settings)
    reader = open_reader(own_settings)
    assert look_up(reader).origin == "redis"
    with own_redis.client as client, ThreadPoolExecutor(CROWD) as threads:
        client.execute_command("CLIENT", "PAUSE", "100")  # so that all of them have asked before one is answered
        origins = {answer.origin for answer in threads.map(lambda _: look_up(reader), range(CROWD))}
        assert origins == {"redis"}
        client.execute_command("CLIENT", "PAUSE", "100")
        assert {len(runs) for runs in threads.map(lambda _: reader.runs(), range(CROWD))} == {1}


def test_a_whole_version_is_kept_where_of_a_newer_one_a_part_cannot_be_read(
    settings: Settings, redis_server: RedisServer, open_reader: Open
) -> None:
    """Until the newer one is mended; without a whole one what can be read is shown."""
    keys = Keys(settings.source)
    old = version_of(run_old(settings))
    with redis_server.client as client:
        pointer = cast("Any", client.hgetall(keys.current))
        new = version_of(optimize(settings, force=True))
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


# ---- runs


def test_runs_are_the_newest_first(settings: Settings, open_reader: Open) -> None:
    """As many as asked for, whole reports."""
    reports = [run_old(settings), optimize(settings), optimize(settings, force=True)]
    reader = open_reader(settings)

    assert reader.runs() == reports[::-1]
    assert reader.runs(2) == reports[:0:-1]
    assert reader.runs(0) == []
    assert reader.runs(status="success") == [reports[2], reports[0]]
    assert reader.runs(1, status="success") == reports[2:]


def test_runs_are_none_where_redis_has_none(own_settings: Settings, own_redis: RedisServer, open_reader: Open) -> None:
    """No runs yet, reports that cannot be read, and a Redis that is down: a page shows none, and no error."""
    reader = open_reader(own_settings)
    assert reader.runs() == []
    for fields in (
        {"report": "junk"},
        {"report": '{"status": "of another release"}'},
        {"report": '{"x": ' + "[" * 100_000},
        {"other": "field"},
    ):
        with own_redis.client as client:
            client.delete(Keys(own_settings.source).runs)
            client.xadd(Keys(own_settings.source).runs, cast("Any", fields))
        assert reader.runs() == []
    own_redis.kill()
    assert reader.runs() == []


# ---- readers while a writer writes


class Seen(NamedTuple):
    """What one read showed: the version, and the generations of all the values in it."""

    version: int
    generations: frozenset[float]


GENERATION_READS: list[Callable[[SnapshotReader], Seen]] = [
    lambda reader: seen(reader.predictions(), lambda value: [record.last_price for record in value.predictions]),
    lambda reader: seen(reader.bots(), lambda value: [bot.equity for bot in value.bots.values()]),
    lambda reader: seen(reader.portfolio(), lambda value: [holding.qty for holding in value.holdings]),
    lambda reader: seen(reader.symbol("B"), lambda value: [value.last_price]),
    lambda reader: seen(reader.top(9), lambda value: [record.last_price for record in value]),
]


def seen(answer: Snapshot[Any] | Answer[Any], generations: Callable[[Any], list[float]]) -> Seen:
    """Take down an answer."""
    return Seen(answer.version, frozenset(generations(answer.value)))


def write_generation(settings: Settings, generation: int, *, use_cache: bool) -> Report:
    """Make a version in which every value tells its generation; the confidences change places."""
    records = {
        symbol: a_record(last_price=generation, confidence=0.5 + (generation + n) % 5 / 10)
        for n, symbol in enumerate("ABCDE")
    }
    bot = {"equity": generation, "positions": {"A": {"qty": generation, "avg": 1}}}
    write_json(settings.input, records | {"bots": {"alpha": bot, "beta": {"equity": generation}}})
    return optimize(settings, use_cache=use_cache)


@pytest.mark.slow
@pytest.mark.parametrize("origin", ["redis", "files"])
def test_readers_see_whole_versions_in_order_while_they_are_published(
    settings: Settings, open_reader: Open, origin: Origin
) -> None:
    """Fifty versions, four threads with a reader in common: no error, no mixture, never an older one again."""
    use_cache = origin == "redis"
    written = {version_of(write_generation(settings, 1, use_cache=use_cache)): 1.0}
    reader = open_reader(settings, origin)
    ended = threading.Event()

    def read_on(first: int) -> list[Seen]:
        found: list[Seen] = []
        while not ended.is_set():
            reader.refresh()
            found += [read(reader) for read in (*GENERATION_READS[first:], *GENERATION_READS[:first])]
        return found

    with ThreadPoolExecutor(4) as threads:
        reading = [threads.submit(read_on, number) for number in range(4)]
        try:
            for generation in range(2, 52):
                report = write_generation(settings, generation, use_cache=use_cache)
                assert report.cache == ("published" if use_cache else "off")
                written[version_of(report)] = float(generation)
        finally:
            ended.set()
        found = [future.result() for future in reading]

    for answers in found:
        versions = [answer.version for answer in answers]
        assert versions == sorted(versions)
        assert len(set(versions)) > 5  # they did read all the while
        for answer in answers:
            assert answer.generations == {written[answer.version]}


# ---- age


@pytest.mark.parametrize("origin", ["redis", "files"])
def test_what_no_run_has_confirmed_for_three_intervals_is_stale(
    settings: Settings, open_reader: Open, origin: Origin
) -> None:
    """Every answer says so, and how old it is; a run that finds nothing new makes it fresh."""
    fast = replace(settings, interval_s=0.5)
    run_old(fast)
    reader = open_reader(fast, origin)
    assert not read_any(reader).stale

    wait_until(lambda: read_any(reader).stale, limit_s=5, what="staleness")
    for read in READS.values():
        assert read(reader).stale
        assert 1.5 < read(reader).age_s < 60

    assert optimize(fast).status == "unchanged"
    reader.refresh()
    assert not any(read(reader).stale for read in READS.values())


def read_any(reader: SnapshotReader) -> Snapshot[Any]:
    """One of the reads."""
    return reader.predictions()


def test_an_old_snapshot_beats_none(own_settings: Settings, own_redis: RedisServer, open_reader: Open) -> None:
    """With Redis and files gone, what is held is answered, and grows old."""
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


# ---- Redis restarts, and fails over


def test_a_new_version_is_seen_after_a_restart(
    own_settings: Settings, own_redis: RedisServer, open_reader: Open
) -> None:
    """By itself, and no read fails meanwhile."""
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
    """After a failover an older pointer is passed over, also when it claims to have been confirmed since."""
    old = version_of(run_old(settings))
    keys = Keys(settings.source)
    with redis_server.client as client:
        before = {name: client.dump(name) for name in cast("list[bytes]", client.keys("rolling:*:*")) if b":1" in name}
        pointer = cast("Any", client.hgetall(keys.current))
        reader = open_reader(settings, "redis")
        new = version_of(optimize(settings, force=True))
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


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs and readers that give up on a Redis that hangs after a moment."""
    monkeypatch.setattr(optimizer.cache.writer, "WRITER_TIMEOUT_S", 0.2)
    monkeypatch.setattr(optimizer.cache.writer, "READER_TIMEOUT_S", 0.1)
    monkeypatch.setattr(optimizer.reader.reader, "READER_TIMEOUT_S", 0.1)
    monkeypatch.setattr(optimizer.reader.async_reader, "READER_TIMEOUT_S", 0.1)


def write_with_low(settings: Settings, price: float) -> Report:
    """Make a version of a new input with a symbol that is only in the index."""
    records = {symbol: a_record(last_price=price) for symbol in ("AAPL", "MSFT")}
    write_json(settings.input, records | {"LOW": a_record(last_price=price, confidence=0.1)})
    return optimize(settings)


def shown_by(reader: SnapshotReader) -> dict[str, int]:
    """The version that each method shows, lookups beyond the predictions as well."""
    lookups: dict[str, Callable[[SnapshotReader], Any]] = {
        "low": lambda reader: reader.symbol("LOW"),
        "missing": lambda reader: reader.symbol("MISSING"),
        "deep": lambda reader: reader.top(9),
    }
    return {name: read(reader).version for name, read in (READS | lookups).items()}


@pytest.mark.usefixtures("impatient")
def test_files_are_shown_as_long_as_redis_lags(
    own_settings: Settings, own_redis: RedisServer, open_reader: Open
) -> None:
    """Redis hangs, comes back and refuses writes: what goes on in the files is shown, by readers old and new."""
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


def test_lookups_do_not_follow_a_stale_replica(
    settings: Settings, redis_server: RedisServer, open_reader: Open
) -> None:
    """They answer for the version that is held: from the files, or, where those are not seen, not at all."""
    first = write_with_low(settings, 1)
    with redis_server.client as client:
        before = {name: client.dump(name) for name in cast("list[bytes]", client.keys(Keys(settings.source).every))}
        readers = [open_reader(settings), open_reader(settings, "redis")]
        second = write_with_low(settings, 2)
        for reader in readers:
            reader.refresh()
        client.flushall()
        for name, dumped in before.items():
            client.restore(name, 0, cast("bytes", dumped))
    assert version_of(second) > version_of(first)

    for _ in range(2):
        for reader in readers:
            reader.refresh()
        assert set(shown_by(readers[0]).values()) == {second.version}
        assert {read(readers[1]).version for read in READS.values()} == {second.version}
        for look_up in (lambda: readers[1].symbol("LOW"), lambda: readers[1].top(9)):
            with pytest.raises(SnapshotMissing, match=f"no index of 'rolling_brain' for version {second.version}"):
                look_up()

    assert optimize(settings).cache == "republished"
    assert set(shown_by(readers[1]).values()) == {second.version}


@pytest.mark.usefixtures("impatient")
def test_lookups_do_not_follow_files_that_lag(
    own_settings: Settings, own_redis: RedisServer, open_reader: Open, tmp_path: Path
) -> None:
    """While Redis hangs, files that are older than what is held are left alone."""
    write_with_low(own_settings, 1)
    shutil.copytree(local(own_settings.output_dir), tmp_path / "lags", symlinks=True)
    second = write_with_low(own_settings, 2)
    reader = open_reader(replace(own_settings, output_dir=tmp_path / "lags"))
    assert reader.symbol("LOW").version == second.version
    own_redis.pause()
    reader.refresh()

    assert {read(reader).version for read in READS.values()} == {second.version}
    with pytest.raises(SnapshotMissing, match="not of this version"):
        reader.symbol("LOW")


def test_a_file_system_that_hangs_does_not_hold_up_redis(
    settings: Settings, open_reader: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looks go on, and new versions show; the files are seen again when they answer. A FIFO hangs when it is opened."""
    monkeypatch.setattr(optimizer.reader.follower, "FILES_TIMEOUT_S", 0.1)
    run_old(settings)
    hanging = replace(settings, output_dir=local(settings.output_dir).parent / "hanging")
    directory = local(hanging.output_dir) / "current"
    directory.mkdir(parents=True)
    os.mkfifo(directory / "manifest.json")
    reader = open_reader(hanging)
    try:
        for _ in range(3):
            version = version_of(optimize(settings, force=True))
            wait_until(partial(shows, reader, version), limit_s=5, what="the new version")
            assert reader.predictions().origin == "redis"
    finally:
        (directory / "manifest.json").open("wb").close()


# ---- clocks


@pytest.mark.parametrize("ahead_s", [120.0, -120.0, 86_400.0])
def test_an_age_is_by_the_clock_of_redis(
    settings: Settings, redis_server: RedisServer, open_reader: Open, monkeypatch: pytest.MonkeyPatch, ahead_s: float
) -> None:
    """Whatever the clocks of reader and worker: a confirmation is fresh, and one of two minutes ago is stale."""
    with monkeypatch.context() as worker:
        worker.setattr(time, "time", lambda now=time.time: now() + ahead_s)
        run_old(settings)
        assert optimize(settings).cache == "current"
    key = Keys(settings.source).current
    with redis_server.client as client, monkeypatch.context() as patched:
        told = cast("bytes", client.hget(key, "checked_at")).decode()
        assert abs(seconds_of(told) - time.time()) < 60
        clock = SimpleNamespace(time=lambda: time.time() + ahead_s, monotonic=time.monotonic)
        patched.setattr(optimizer.reader.follower, "time", clock)
        state = open_reader(settings, "redis").manifest()
        assert (state.stale, state.checked_at) == (False, told)
        assert state.age_s < 60

        client.hset(key, "checked_at", text_of(time.time() - 120))
        state = open_reader(settings, "redis").manifest()
        assert state.stale
        assert 119 < state.age_s < 180


def test_a_confirmation_in_the_future_is_stale_until_the_next(
    settings: Settings, redis_server: RedisServer, open_reader: Open
) -> None:
    """A worker of an earlier release whose clock is a day ahead: its death is noticed, and its life as well."""
    run_old(settings)
    key = Keys(settings.source).current
    with redis_server.client as client:
        client.hset(key, "checked_at", text_of(time.time() + 86_400))
        reader = open_reader(settings, "redis")
        assert reader.manifest().stale

        client.hset(key, "checked_at", text_of(time.time() + 86_430))
        reader.refresh()
        assert not reader.manifest().stale


def test_files_from_the_future_are_stale_until_they_are_confirmed(settings: Settings, open_reader: Open) -> None:
    """A file server whose clock is ahead."""
    run_old(settings, use_cache=False)
    os.utime(local(settings.output_dir) / "manifest.json", (time.time() + 3_600, time.time() + 3_600))
    reader = open_reader(settings, "files")
    assert reader.manifest().stale

    os.utime(local(settings.output_dir) / "manifest.json", (time.time() + 3_630, time.time() + 3_630))
    reader.refresh()
    state = reader.manifest()
    assert not state.stale
    assert state.age_s < 60


def test_an_older_version_of_the_same_input_that_is_confirmed_keeps_what_is_held_fresh(
    settings: Settings, redis_server: RedisServer, open_reader: Open
) -> None:
    """The input is still what it was when the version that is held was made of it."""
    fast = replace(settings, interval_s=0.3)
    run_old(fast)
    reader = open_reader(fast)
    forced = version_of(optimize(fast, force=True))
    with redis_server.client as client:
        pointer = cast("Any", client.hgetall(Keys(fast.source).current))
    reader.refresh()
    wait_until(lambda: reader.manifest().stale, what="staleness")
    shutil.rmtree(local(fast.output_dir))
    with redis_server.client as client:
        told = text_of(time.time())
        client.hset(Keys(fast.source).current, mapping=pointer | {b"version": b"7", b"checked_at": told.encode()})
        reader.refresh()

    state = reader.manifest()
    assert (state.version, state.checked_at, state.stale) == (forced, told, False)


def test_a_reader_needs_no_more_than_to_read(settings: Settings, redis_server: RedisServer, open_reader: Open) -> None:
    """A user of Redis who may read our keys and hear our channel; without the channel it is slower, and no worse."""
    run_old(settings)
    url = settings.redis_url.replace("://", "://web:made-up@")
    for channels in ("&rolling:*", "resetchannels"):
        with redis_server.client as client:
            client.execute_command(
                *("ACL", "SETUSER", "web", "reset", "on", ">made-up", "%R~rolling:*", channels, "-@all", "+@read"),
                *("+@pubsub", "+ping", "+hello", "+select"),
            )
        reader = open_reader(replace(settings, redis_url=url), "redis")
        assert {read(reader).origin for read in READS.values()} == {"redis"}
        version = version_of(optimize(settings, force=True))
        wait_until(partial(shows, reader, version), limit_s=5, what="the new version")
    with redis_server.client as client:
        client.execute_command("ACL", "DELUSER", "web")


def shows(reader: SnapshotReader, version: int) -> bool:
    """Whether this version is what it shows."""
    return reader.predictions().version == version


# ---- threads and forks


def test_many_threads_begin_with_one_look(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one refresher: there is one of it a process, however many threads read first."""
    run_old(settings)
    looks: list[int] = []
    look = Follower.look

    def counted(self: Follower) -> Any:
        looks.append(1)
        return look(self)

    monkeypatch.setattr(Follower, "look", counted)
    monkeypatch.setattr(optimizer.reader.follower, "POLL_S", 60.0)
    with closing(SnapshotReader.from_settings(settings)) as reader, ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda _: reader.predictions(), range(200)))
        refreshers = [thread for thread in threading.enumerate() if thread.name == "rolling-reader"]

    assert len({id(answer.value) for answer in answers}) == 1
    assert (len(looks), len(refreshers)) == (1, 1)


def test_a_reader_nobody_has_any_more_ends_its_thread(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forgotten without `close`, it does not go on asking."""
    monkeypatch.setattr(optimizer.reader.follower, "POLL_S", 0.05)
    run_old(settings)
    reader = SnapshotReader.from_settings(settings)
    reader.predictions()
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "rolling-reader"]
    del reader
    gc.collect()
    thread.join(5)
    assert not thread.is_alive()


def test_a_closed_reader_may_be_used_again(settings: Settings, open_reader: Open) -> None:
    """Closing is letting go of thread and connections, no more."""
    run_old(settings)
    reader = open_reader(settings)
    if isinstance(reader, SnapshotReader):
        reader.predictions()
        reader.close()
        assert reader.predictions().origin == "redis"
        reader.close()
        reader.close()


FORK_PROGRAM = """
import os, signal, sys, threading
from optimizer import SnapshotReader, optimize, Settings
settings = Settings.from_env(os.environ)
reader = SnapshotReader.from_settings(settings)
first = reader.predictions().version
stop = threading.Event()
def read_on():
    while not stop.is_set():
        reader.symbol("MISSING"); reader.refresh()
readers = [threading.Thread(target=read_on) for _ in range(4)]
for thread in readers: thread.start()
children = []
for _ in range(8):
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # a child that hangs is not to stay behind
        for _ in range(50):
            assert reader.predictions().version >= first
            assert reader.symbol("MISSING").value is None
        import time
        deadline = time.monotonic() + 10
        while reader.predictions().version == first and time.monotonic() < deadline: time.sleep(0.02)
        os._exit(0 if reader.predictions().version > first and reader.predictions().origin == "redis" else 3)
    children.append(child)
stop.set()
for thread in readers: thread.join()
optimize(settings, force=True)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
reader.close()
print(codes)
"""


def test_a_forked_child_reads_on_by_itself(settings: Settings) -> None:
    """Amid the reads of four threads: eight children, each with the held version, and soon with the next one."""
    run_old(settings)
    environ = {
        "ROLLING_INPUT": str(settings.input),
        "ROLLING_OUTPUT_DIR": str(settings.output_dir),
        "ROLLING_REDIS_URL": settings.redis_url,
    }
    done = subprocess.run(
        [sys.executable, "-c", FORK_PROGRAM],
        env=os.environ | environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.stdout, done.returncode) == (f"{[0] * 8}\n", 0), done.stderr


def test_an_async_reader_follows_its_user_into_another_loop(settings: Settings) -> None:
    """Connections belong to a loop: in a new one it begins anew, and holds what it held."""
    run_old(settings)
    reader = AsyncSnapshotReader.from_settings(settings)

    async def read() -> int:
        try:
            return (await reader.predictions()).version
        finally:
            await reader.close()

    first = asyncio.run(read())
    optimize(settings, force=True)
    assert asyncio.run(read()) > first


def test_an_async_reader_is_a_context(settings: Settings) -> None:
    """It has looked once it is entered, and many reads at a time cost one look."""
    run_old(settings)

    async def read() -> set[int]:
        async with AsyncSnapshotReader.from_env(
            {"ROLLING_REDIS_URL": settings.redis_url, "ROLLING_OUTPUT_DIR": str(settings.output_dir)}
        ) as reader:
            return {id((await reader.bots()).value) for _ in range(50)}

    assert len(asyncio.run(read())) == 1


def test_an_async_reader_whose_refresher_has_died_begins_anew(settings: Settings) -> None:
    """A bug in what is awaited after a look ends it once, and not for good."""
    first = version_of(run_old(settings))
    fails = False

    async def on_look() -> None:
        if fails:
            raise ZeroDivisionError

    async def read() -> int:
        nonlocal fails
        reader = AsyncSnapshotReader.from_settings(settings, on_look=on_look)
        assert (await reader.predictions()).version == first
        fails = True
        with pytest.raises(ZeroDivisionError):
            await asyncio.wait_for(reader._refresher, 5)
        fails = False
        second = version_of(await asyncio.to_thread(optimize, settings, force=True))
        try:
            assert (await reader.predictions()).version == second
            third = version_of(await asyncio.to_thread(optimize, settings, force=True))
            async with asyncio.timeout(5):
                while (await reader.predictions()).version != third:
                    await asyncio.sleep(0.02)
            return third
        finally:
            await reader.close()

    assert asyncio.run(read()) > first


FORGOTTEN_PROGRAM = """
import asyncio, sys
from pathlib import Path
from optimizer import AsyncSnapshotReader

async def read(turns):
    await AsyncSnapshotReader(sys.argv[1], "rolling_brain", Path(sys.argv[2])).predictions()
    for _ in range(turns):
        await asyncio.sleep(0)

for turns in range(30):
    asyncio.run(read(turns))
print("ended")
"""


@pytest.mark.parametrize("redis_is_up", [True, False])
def test_a_loop_can_end_with_a_reader_open(settings: Settings, redis_is_up: bool) -> None:
    """Whenever its tasks are cancelled, though redis-py swallows a cancellation that comes while it connects."""
    run_old(settings)
    url = settings.redis_url if redis_is_up else f"redis://127.0.0.1:{free_port()}/0"
    command = [sys.executable, "-c", FORGOTTEN_PROGRAM, url, str(settings.output_dir)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "ended\n", done.stderr


# ---- what an answer is


def test_an_answer_is_of_one_version() -> None:
    """The check above can fail: a mixture is seen as one."""
    mixed = Answer(
        version=7,
        etag="7",
        value=[Record("A", 1.0, 0.5, 1.0), Record("B", 1.0, 0.5, 2.0)],
        origin="redis",
        age_s=0.0,
        stale=False,
    )

    assert seen(mixed, lambda value: [record.last_price for record in value]) == Seen(7, frozenset({1.0, 2.0}))


def test_one_unreadable_payload_does_not_take_redis_away_from_the_others(
    settings: Settings, redis_server: RedisServer
) -> None:
    """Redis answered, so it is asked again at once; only a Redis that is away is left alone for a while."""
    write_json(settings.input, {"AAPL": a_record()})
    report = optimize(settings)
    with redis_server.client as client:
        client.set(f"rolling:{{rolling_brain}}:{report.version}:portfolio", b"no gzip")
    with closing(SnapshotReader.from_settings(settings)) as reader:
        assert reader.portfolio().origin == "files"
        assert reader.predictions().origin == "redis"


def test_files_that_cannot_be_decoded_are_a_missing_snapshot(
    settings_without_redis: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader raises `SnapshotMissing` and nothing else."""
    write_json(settings_without_redis.input, {"AAPL": a_record()})
    optimize(settings_without_redis, use_cache=False)
    monkeypatch.setitem(optimizer.reader.cached_version._DECODERS, "portfolio", msgspec.json.Decoder(int).decode)
    reader = SnapshotReader("redis://127.0.0.1:1/0", "rolling_brain", settings_without_redis.output_dir)
    with closing(reader), pytest.raises(SnapshotMissing, match="cannot be read"):
        reader.portfolio()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
@pytest.mark.parametrize("name", ["manifest.json", "rolling_optimized.json.gz"])
def test_files_that_may_not_be_read_are_not_taken_for_none(
    settings_without_redis: Settings, open_reader: Open, name: str
) -> None:
    """As a worker's umask of 077 leaves them: the message has the reason and the path."""
    place = Path(tempfile.mkdtemp(prefix="rolling-"))
    try:
        place.chmod(0o755)
        settings = replace(settings_without_redis, output_dir=place / "out")
        run_old(settings, use_cache=False)
        path = (place / "out" / "current" / name).resolve()
        path.chmod(0o600)
        with as_nobody():
            reader = open_reader(settings, "files")
            with pytest.raises(SnapshotMissing, match=rf"permission denied: {place}/out/\S+/{name}"):
                reader.predictions()
    finally:
        shutil.rmtree(place)
