"""What changed between versions: which changes a process holds, when it reads them, and what is missing."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from contextlib import closing
from typing import Any, Final

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optimizer.reader.changes
import optimizer.testing
from optimizer import ChangesMissing, Settings, SnapshotReader, VersionSnapshot, apply_change, optimize
from optimizer.cache.keys import CHANGES_KEPT, Keys
from optimizer.reader.changes import ChangeLog
from optimizer.reader.redis_store import RedisStore
from optimizer.snapshots.delta import Change, StoredChange, encode_stored
from tests.support.published_state import NEW, run_old, version_of
from tests.support.readers import Open
from tests.support.redis_servers import RedisServer, wait_until
from tests.support.rolling_files import a_record, write_json

ENTRY: Final = StoredChange(Change(version=0, before=0, since=0, timestamp="2026-11-01T10:00:00Z"))


def shown_at(settings: Settings, price: float) -> int:
    """Publish a version in which only a price differs."""
    write_json(settings.input, {"AAPL": a_record(last_price=price), "bots": {"alpha": {}}})
    return version_of(optimize(settings))


def commands_of(server: RedisServer, name: str) -> int:
    """How often a command was called."""
    with server.client as client:
        calls: dict[str, dict[str, int]] = client.info("commandstats")
    return calls.get(f"cmdstat_{name}", {}).get("calls", 0)


def has(reader: SnapshotReader, version: int) -> Callable[[], bool]:
    """Whether a reader shows a version."""
    return lambda: reader.manifest().version == version


# ---- the law

SYMBOLS: Final = st.sampled_from(["AAA", "BBB", "CCC", "DDD"])
RECORDS: Final = st.dictionaries(SYMBOLS, st.sampled_from([0.7, 0.8, 0.9])).map(
    lambda chosen: [
        {"symbol": symbol, "prediction": 1.0, "confidence": confidence, "last_price": 2.0}
        for symbol, confidence in chosen.items()
    ]
)
VERSIONS: Final = st.fixed_dictionaries(
    {},
    optional={
        "predictions": RECORDS,
        "bots": st.dictionaries(SYMBOLS, st.fixed_dictionaries({"equity": st.sampled_from([None, 1.0, 2.0])})),
        "portfolio": st.dictionaries(SYMBOLS, st.sampled_from([1.0, 2.0])).map(
            lambda held: [{"symbol": symbol, "qty": quantity} for symbol, quantity in held.items()]
        ),
        "origin": st.sampled_from(["redis", "redis", "files"]),
    },
)


@given(history=st.lists(VERSIONS, min_size=2, max_size=8))
def test_the_changes_since_any_version_lead_to_the_current_one(history: list[dict[str, Any]]) -> None:
    """Record for record and in order, from each version after which Redis has missed none; else they are missing."""
    shown: list[VersionSnapshot] = []
    missed = 0
    with closing(optimizer.testing.reader(missing=True)) as reader:
        for version in history:
            reader.publish(**version)
            reader.refresh()
            reader.changes(reader.manifest().version)  # from the first version on it holds what changed
            shown.append(reader.snapshot())
        newest = shown[-1]
        for whole in shown:
            try:
                changes = reader.changes(whole.version)
            except ChangesMissing:
                missed += 1
                continue
            assert (changes.version, changes.origin) == (newest.version, newest.origin)
            content = whole
            for change in changes.changes:
                assert change.since <= content.version <= change.before
                content = apply_change(content, change)
            for kind, rows in (("predictions", "predictions"), ("bots", "bots"), ("portfolio", "holdings")):
                assert _rows(content, kind, rows) == _rows(newest, kind, rows)
                assert getattr(content, kind).timestamp <= newest.generated_at
    if all(version.get("origin", "redis") == "redis" for version in history):
        assert missed == 0


def _rows(content: VersionSnapshot, kind: str, rows: str) -> object:
    value = getattr(getattr(content, kind), rows)
    return list(value.items()) if isinstance(value, dict) else value


# ---- a real Redis


@pytest.mark.slow
def test_a_reader_that_is_never_asked_for_changes_reads_none(
    own_settings: Settings, own_redis: RedisServer, open_reader: Open
) -> None:
    """Once it is asked it holds those that there are, and from then on reads what is new before it shows."""
    versions = [shown_at(own_settings, price) for price in (1.0, 2.0, 3.0)]
    before = commands_of(own_redis, "xrevrange")
    reader = open_reader(own_settings)
    assert reader.predictions().version == versions[-1]
    reader.refresh()
    assert commands_of(own_redis, "xrevrange") == before

    assert [change.version for change in reader.changes(versions[0]).changes] == versions[1:]
    asked = commands_of(own_redis, "xrevrange")
    assert asked == before + 1
    for since in (*versions, versions[-1] + 5):
        reader.changes(since)
    reader.refresh()
    assert commands_of(own_redis, "xrevrange") == asked

    own_redis.pause()
    try:
        held = reader.changes(versions[1])
    finally:
        own_redis.resume()
    assert ([change.version for change in held.changes], held.version) == (versions[2:], versions[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("delta", b"of an older release"),
        ("change", b"junk"),
        ("change", gzip.compress(b'{"change": {"version": 1}}', mtime=0)),
        ("change", gzip.compress(b"\xff", mtime=0)),
        ("change", b""),  # see below: of another version than its id
    ],
)
def test_an_entry_that_cannot_be_used_is_a_gap(
    own_settings: Settings, own_redis: RedisServer, open_reader: Open, field: str, value: bytes
) -> None:
    """What is after it still leads to the current version, and the message says from where on."""
    versions = [shown_at(own_settings, price) for price in (1.0, 2.0, 3.0, 4.0)]
    key = Keys(own_settings.source).deltas
    with own_redis.client as client:
        entries: list[tuple[bytes, dict[bytes, bytes]]] = client.xrange(key)
        client.delete(key)
        if not value:
            change = msgspec.structs.replace(ENTRY.change, before=versions[1], since=versions[1])
            value = encode_stored(StoredChange(change))
        for name, fields in entries:
            is_second = name == b"%d-0" % versions[2]
            client.xadd(key, {field: value} if is_second else fields, id=name.decode())
    reader = open_reader(own_settings)

    assert [change.version for change in reader.changes(versions[2]).changes] == versions[3:]
    for since in (*versions[:2], 7):
        with pytest.raises(ChangesMissing, match=rf"since version {since} .* held is {versions[2]}; .*snapshot\(\)"):
            reader.changes(since)


@pytest.mark.slow
def test_changes_wait_for_their_version(own_settings: Settings, own_redis: RedisServer, open_reader: Open) -> None:
    """An entry beyond the version that Redis shows is not held: its version may never show."""
    first, second = shown_at(own_settings, 1.0), shown_at(own_settings, 2.0)
    with own_redis.client as client:
        client.xadd(Keys(own_settings.source).deltas, {"change": b"of later"}, id=f"{second + 10**9}-0")
    with closing(RedisStore(own_redis.url, own_settings.source, 90.0)) as store:
        assert [version for version, _ in store.changes(first - 1, second)] == [second]
        assert store.changes(second, second) == []
    reader = open_reader(own_settings)
    assert [change.version for change in reader.changes(first).changes] == [second]
    third = shown_at(own_settings, 3.0)  # after a version of which only the number is known, so nothing leads to it
    wait_until(has(reader, third), limit_s=5, what="the third version")
    assert reader.changes(third).changes == []
    with pytest.raises(ChangesMissing, match="none are"):
        reader.changes(second)


@pytest.mark.slow
def test_versions_that_only_the_files_have_break_the_chain(
    own_settings: Settings, own_redis: RedisServer, open_reader: Open
) -> None:
    """Until Redis is back, and has what leads to the current version from the last one that it had."""
    first, second = shown_at(own_settings, 1.0), shown_at(own_settings, 2.0)
    reader = open_reader(own_settings)
    assert len(reader.changes(first).changes) == 1

    own_redis.kill()
    third = shown_at(own_settings, 3.0)
    wait_until(has(reader, third), limit_s=10, what="the version of the files")
    for since in (first, second):
        with pytest.raises(ChangesMissing, match=rf"none are; take all of version {third}"):
            reader.changes(since)
    assert reader.changes(third).changes == []

    own_redis.start()
    fourth = shown_at(own_settings, 4.0)
    wait_until(has(reader, fourth), limit_s=10, what="the version after Redis is back")
    changes = reader.changes(second).changes
    assert (changes[0].before, changes[-1].version) == (second, fourth)
    assert next(change.version for change in reader.changes(first).changes) == second


@pytest.mark.slow
def test_a_stream_that_may_not_be_read_leaves_the_rest(own_settings: Settings, own_redis: RedisServer) -> None:
    """A key of another type, as a mistake leaves it: versions show, and no change is held."""
    first, second = shown_at(own_settings, 1.0), shown_at(own_settings, 2.0)
    key = Keys(own_settings.source).deltas
    with own_redis.client as client:
        client.delete(key)
        client.set(key, "no stream")
    with closing(SnapshotReader.from_settings(own_settings)) as reader:
        with pytest.raises(ChangesMissing, match=f"held: none are; take all of version {second}"):
            reader.changes(first)
        assert (reader.predictions().version, reader.predictions().origin) == (second, "redis")
        third = shown_at(own_settings, 3.0)  # a run deletes what it cannot use
        wait_until(has(reader, third), limit_s=5, what="the next version")
        wait_until(lambda: reader.changes(second).changes, limit_s=5, what="its change")


# ---- bounds


class Stream:
    """A stream of entries in memory, as a store gives them."""

    def __init__(self, *entries: tuple[int, bytes]) -> None:
        self.entries = list(entries)

    def changes(self, after: int, version: int) -> list[tuple[int, bytes]]:
        """Those that are asked for."""
        return [entry for entry in self.entries if after < entry[0] <= version]


def an_entry(version: int) -> tuple[int, bytes]:
    """A change of nothing."""
    change = msgspec.structs.replace(ENTRY.change, version=version, before=version - 1, since=version - 1)
    return version, encode_stored(StoredChange(change))


def test_as_much_is_held_as_the_stream_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """By number and by bytes; the newest is held in any case."""
    log = ChangeLog()
    stream: Any = Stream(*map(an_entry, range(1, 400)))
    log.read(stream, 100)
    log.read(stream, 399)
    assert [entry.version for entry in log.entries] == list(range(400 - CHANGES_KEPT, 400))

    size = len(an_entry(399)[1])
    monkeypatch.setattr(optimizer.reader.changes, "CHANGES_BYTES", 3 * size + 5)
    log = ChangeLog()
    log.read(stream, 399)
    assert [entry.version for entry in log.entries] == [397, 398, 399]
    monkeypatch.setattr(optimizer.reader.changes, "CHANGES_BYTES", 1)
    log = ChangeLog()
    log.read(stream, 399)
    assert [entry.version for entry in log.entries] == [399]


def test_runs_make_what_readers_apply(settings: Settings, open_reader: Open) -> None:
    """What two runs publish differs by what the reader returns, and the whole stays what it was."""
    first = version_of(run_old(settings))
    reader = open_reader(settings)
    whole = reader.snapshot()
    write_json(settings.input, NEW)
    report = optimize(settings)
    wait_until(has(reader, version_of(report)), limit_s=5, what="the new version")

    (change,) = reader.changes(first).changes
    after = apply_change(whole, change)
    newest = reader.snapshot()
    assert after.predictions.predictions == newest.predictions.predictions
    assert list(after.bots.bots.items()) == list(newest.bots.bots.items())
    assert after.portfolio.holdings == newest.portfolio.holdings
    assert after.version == newest.version == change.version
    assert (whole.version, len(whole.predictions.predictions)) == (first, 2)
