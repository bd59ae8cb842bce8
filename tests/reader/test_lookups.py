"""`symbol` and `top` of the version in memory, from Redis or from the files; and `runs`."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from optimizer import Record, Settings, SnapshotMissing, SnapshotReader, optimize
from optimizer.cache.client import CacheClient
from optimizer.cache.keys import Keys
from optimizer.cache.lock import SourceLock
from optimizer.cache.writer import VersionWriter
from optimizer.models import Origin, rank
from optimizer.snapshots.format import encode_set
from optimizer.snapshots.store import snapshot_store
from tests.support.examples import examples
from tests.support.published_state import OLD, run_next, run_old, version_of
from tests.support.readers import KINDS, READS, Open, shown_by, write_with_low
from tests.support.redis_servers import RedisServer
from tests.support.rolling_files import a_record, local, write_json

CROWD = 150

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
    """Each symbol is found by its own name, whatever text it is.

    Other text, also text that is not valid Unicode, is reported as missing.
    """
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
    lambda index: sorted((Record(symbol, 1.0, confidence, 1.0) for symbol, confidence in index.items()), key=rank)
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
    """`top` returns a slice of the index sorted by confidence descending, then symbol, from Redis and from files.

    This holds however many confidences are equal.
    """
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
        bots={},
        holdings=[],
        gzip_level=1,
    )
    store = snapshot_store(settings.output_dir)
    with (
        store.lock(),
        closing(CacheClient(settings.redis_url, settings.source, 30)) as cache,
        SourceLock(cache).acquire() as lock,
    ):
        store.write(snapshots)
        writer = VersionWriter(cache)
        writer.publish(snapshots, lock=lock, before=writer.pointer())


def test_a_window_is_not_negative(settings: Settings, open_reader: Open) -> None:
    """A negative window is a `ValueError`: a mistake of the caller, not a missing snapshot."""
    reader = open_reader(settings)
    for n, offset in ((-1, 0), (1, -1)):
        with pytest.raises(ValueError, match="may not be negative"):
            reader.top(n, offset)


@pytest.mark.parametrize("kind", ["symbols", "ranking"])
def test_files_answer_where_a_lookup_is_gone(
    settings: Settings, redis_server: RedisServer, open_reader: Open, kind: str
) -> None:
    """If ranking or symbols were evicted from Redis, lookups that need them use the files.

    An evicted ranking is not read as an empty one, nor are evicted symbols read as unknown ones.
    """
    write_json(settings.input, OLD | {"LOW": a_record(confidence=0.1)})
    version = version_of(optimize(settings))
    with redis_server.client as client:
        client.delete(Keys(settings.source).payload(version, kind))

    top = open_reader(settings).top(5)
    assert (top.origin, [record.symbol for record in top.value]) == ("files", ["MSFT", "AAPL", "LOW"])
    assert open_reader(settings).top(5, offset=99).value == []
    answer = open_reader(settings).symbol("LOW")
    assert answer.value is not None
    assert answer.origin == ("files" if kind == "symbols" else "redis")


def test_a_version_that_expired_is_read_anew(settings: Settings, redis_server: RedisServer, open_reader: Open) -> None:
    """If a reader's version has expired in Redis, lookups return the next one from Redis and need no files."""
    write_json(settings.input, OLD | {"LOW": a_record(confidence=0.1)})
    old = version_of(optimize(settings))
    reader = open_reader(settings, "redis")
    assert reader.predictions().version == old
    new = version_of(run_next(settings))
    with redis_server.client as client:
        assert client.delete(*cast("list[bytes]", client.keys(f"*:{old}:*"))) == 5

    for answer in (reader.symbol("LOW"), reader.symbol("MISSING"), reader.top(5)):
        assert (answer.version, answer.origin) == (new, "redis")


@pytest.mark.alone
@pytest.mark.parametrize("look_up", [lambda reader: reader.symbol("LOW"), lambda reader: reader.top(3)])
def test_a_crowd_of_lookups_is_no_redis_that_is_away(
    own_settings: Settings, own_redis: RedisServer, open_reader: Open, look_up: Callable[[SnapshotReader], Any]
) -> None:
    """Of more lookups at once than a pool has connections, some wait for others, and Redis responds to all."""
    write_json(own_settings.input, OLD | {"LOW": a_record(confidence=0.1)})
    optimize(own_settings)
    reader = open_reader(own_settings)
    assert look_up(reader).origin == "redis"
    with own_redis.client as client, ThreadPoolExecutor(CROWD) as threads:
        client.execute_command("CLIENT", "PAUSE", "100")  # so that all have begun before the first response
        origins = {answer.origin for answer in threads.map(lambda _: look_up(reader), range(CROWD))}
        assert origins == {"redis"}
        client.execute_command("CLIENT", "PAUSE", "100")
        assert {len(runs) for runs in threads.map(lambda _: reader.runs(), range(CROWD))} == {1}


def test_runs_are_the_newest_first(settings: Settings, open_reader: Open) -> None:
    """`runs` returns whole reports, the newest first, and as many as were requested."""
    reports = [run_old(settings), optimize(settings), optimize(settings, force=True)]
    reader = open_reader(settings)

    assert reader.runs() == reports[::-1]
    assert reader.runs(2) == reports[:0:-1]
    assert reader.runs(0) == []
    assert reader.runs(status="success") == [reports[2], reports[0]]
    assert reader.runs(1, status="success") == reports[2:]


def test_runs_are_none_where_redis_has_none(own_settings: Settings, own_redis: RedisServer, open_reader: Open) -> None:
    """If there are no runs, reports cannot be read, or Redis is down, `runs` returns no report and raises no error."""
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


def test_lookups_do_not_follow_a_stale_replica(
    settings: Settings, redis_server: RedisServer, open_reader: Open
) -> None:
    """If Redis is a replica with an older version, lookups are of the version in memory.

    They read the files, or raise `SnapshotMissing` where a reader does not see the files.
    """
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
    """While Redis hangs, lookups do not read files that are older than the version in memory."""
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
