"""The changes between versions: which of them a process holds, when it reads them, and when they are missing."""

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
    """A condition that holds when a reader shows a version."""
    return lambda: reader.manifest().version == version


# ---- as a property

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
    """The changes since any earlier version turn its content into the current one, record for record and in order.

    Only if Redis has missed a version may they be missing (`ChangesMissing`).
    """
    shown: list[VersionSnapshot] = []
    missed = 0
    with closing(optimizer.testing.reader(missing=True)) as reader:
        for version in history:
            reader.publish(**version)
            reader.refresh()
            reader.changes(reader.manifest().version)  # the first call makes it hold all later changes
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
    own_settings: Settings, own_redis: RedisServer, open_reader: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader reads no changes before the first call of `changes`, which reads the stream once.

    After that it reads the stream once for each new version, and another reader in its process does not. Later calls
    are answered from memory, also while Redis hangs.
    """
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

    reads: list[tuple[int, int]] = []
    read = RedisStore.changes

    def noted(store: RedisStore, after: int, version: int) -> list[tuple[int, bytes]]:
        reads.append((after, version))
        return read(store, after, version)

    monkeypatch.setattr(RedisStore, "changes", noted)
    never_asked = open_reader(own_settings)
    assert never_asked.predictions().version == versions[-1]
    versions.append(shown_at(own_settings, 4.0))
    for each in (reader, never_asked):
        wait_until(has(each, versions[-1]), limit_s=5, what="the new version")
    assert reads == [(versions[-2], versions[-1])]

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
        ("change", b""),  # replaced below by a change of another version than its id
    ],
)
def test_an_entry_that_cannot_be_used_is_a_gap(
    own_settings: Settings, own_redis: RedisServer, open_reader: Open, field: str, value: bytes
) -> None:
    """An entry that is damaged, or of an older release, is a gap; the changes after it lead to the current version.

    For an earlier version, `ChangesMissing` names the oldest version from which changes are held.
    """
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
    """An entry beyond the version that Redis shows is not held, since its version may never be shown."""
    first, second = shown_at(own_settings, 1.0), shown_at(own_settings, 2.0)
    with own_redis.client as client:
        client.xadd(Keys(own_settings.source).deltas, {"change": b"of later"}, id=f"{second + 10**9}-0")
    with closing(RedisStore(own_redis.url, own_settings.source, 90.0)) as store:
        assert [version for version, _ in store.changes(first - 1, second)] == [second]
        assert store.changes(second, second) == []
    reader = open_reader(own_settings)
    assert [change.version for change in reader.changes(first).changes] == [second]
    third = shown_at(own_settings, 3.0)  # of the version before only the number is known, so no change leads from it
    wait_until(has(reader, third), limit_s=5, what="the third version")
    assert reader.changes(third).changes == []
    with pytest.raises(ChangesMissing, match="none are"):
        reader.changes(second)


@pytest.mark.slow
def test_versions_that_only_the_files_have_break_the_chain(
    own_settings: Settings, own_redis: RedisServer, open_reader: Open
) -> None:
    """A version that only the files have breaks the chain of changes.

    After Redis is back, the next change leads from the last version that it had.
    """
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
    """If the key of the changes has another type, by a mistake, versions are shown and no change is held.

    The next run deletes the key, and its change is held.
    """
    first, second = shown_at(own_settings, 1.0), shown_at(own_settings, 2.0)
    key = Keys(own_settings.source).deltas
    with own_redis.client as client:
        client.delete(key)
        client.set(key, "no stream")
    with closing(SnapshotReader.from_settings(own_settings)) as reader:
        with pytest.raises(ChangesMissing, match=f"held: none are; take all of version {second}"):
            reader.changes(first)
        assert (reader.predictions().version, reader.predictions().origin) == (second, "redis")
        third = shown_at(own_settings, 3.0)  # the run deletes the key of the wrong type
        wait_until(has(reader, third), limit_s=5, what="the next version")
        wait_until(lambda: reader.changes(second).changes, limit_s=5, what="its change")


# ---- bounds


class Stream:
    """A store whose stream of changes is in memory."""

    def __init__(self, *entries: tuple[int, bytes]) -> None:
        self.entries = list(entries)

    def changes(self, after: int, version: int) -> list[tuple[int, bytes]]:
        """The entries after one version, up to another."""
        return [entry for entry in self.entries if after < entry[0] <= version]


def an_entry(version: int) -> tuple[int, bytes]:
    """An encoded entry whose change is empty, and its version."""
    change = msgspec.structs.replace(ENTRY.change, version=version, before=version - 1, since=version - 1)
    return version, encode_stored(StoredChange(change))


def test_as_much_is_held_as_the_stream_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process holds at most as many entries, and as many bytes of them, as the stream; the newest is always held."""
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
    """The change that a run published turns the content before the run into the content after it.

    The snapshot to which it was applied stays the same.
    """
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
