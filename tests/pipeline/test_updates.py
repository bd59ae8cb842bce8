"""Updates from the call that accepts them until readers see them, over a real Redis."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from operator import itemgetter
from types import ModuleType
from typing import Any, Final, cast

import msgspec
import pytest

import optimizer.cache.update_queue
import optimizer.pipeline.confirm
import optimizer.pipeline.drain
import optimizer.pipeline.session
from optimizer import Settings, SnapshotReader, optimize
from optimizer.cache.client import CacheClient
from optimizer.cache.keys import VERSION_KINDS, Keys
from optimizer.cache.lock import Lock, SourceLock
from optimizer.cache.update_queue import UpdateQueue
from optimizer.cache.update_writer import UpdateWriter
from optimizer.cache.writer import VersionWriter
from optimizer.errors import (
    CacheUnavailable,
    GuardRefused,
    PublishRefused,
    UpdatesLost,
    UpdatesPending,
    UpdatesRefused,
)
from optimizer.models import Record, Report
from optimizer.pipeline.drain import apply_updates
from optimizer.pipeline.rollback import rollback, unpin
from optimizer.pipeline.updates import enqueue, wait_applied
from optimizer.snapshots.format import SnapshotSet
from optimizer.snapshots.store import snapshot_store
from tests.support.published_state import (
    NEW,
    OLD,
    assert_redis_holds_the_files,
    assert_tidy,
    no_scan,
    once,
    run_old,
    symbols_shown,
    version_of,
)
from tests.support.redis_servers import RedisServer, wait_until
from tests.support.rolling_files import a_record, local, write_json
from tests.support.sources import by_the_fleet

# A file's time is the kernel's last tick, up to 10 ms ago: a file that has to be newer is written this much later.
KERNEL_TICK_S: Final = 0.02


def a(symbol: str, confidence: float = 0.95, **fields: Any) -> Record:
    """A record to publish."""
    return Record(symbol, 1.0, confidence, 2.0, **fields)


def applied(settings: Settings, *records: Record, removed: tuple[str, ...] = ()) -> Report:
    """Queue updates as one entry and drain the queue; return the drain's report."""
    enqueue(settings, records, removed)
    report = apply_updates(settings)
    assert report is not None
    return report


def shown(settings: Settings, server: RedisServer) -> list[str]:
    """The symbols in Redis' index, best first."""
    keys = Keys(settings.source)
    with server.client as client:
        version = int(cast("bytes", client.hget(keys.current, "version")))
        ranking = cast(
            "list[tuple[bytes, float]]", client.zrange(keys.payload(version, "ranking"), 0, -1, withscores=True)
        )
    return [symbol.decode() for symbol, _ in sorted(ranking, key=lambda each: (-each[1], each[0]))]


def runs(settings: Settings, server: RedisServer) -> list[Report]:
    """The reports in the stream of runs, newest first."""
    with server.client as client:
        entries = cast("list[Any]", client.xrevrange(Keys(settings.source).runs))
    return [msgspec.json.decode(fields[b"report"], type=Report) for _, fields in entries]


def test_readers_see_an_update_without_a_scan(settings: Settings, redis_server: RedisServer) -> None:
    """Readers see an update without a scan, in predictions, lookups, ranking and changes, under a version of its own.

    Bots have not changed, so they keep their ETag.
    """
    first = version_of(run_old(settings))
    with closing(SnapshotReader.from_settings(settings)) as reader:
        bots = reader.bots().etag
        report = applied(settings, a("NVDA"), a("LOW", 0.1), removed=("MSFT", "MISSING"))
        assert report.status == "success"
        assert report.updated is not None
        assert (report.updated.changed, report.updated.removed, report.updated.held) == (2, 2, 4)
        assert report.changes is not None
        assert (report.changes.predictions.added, report.changes.predictions.removed) == (1, 1)

        reader.refresh()
        assert reader.manifest().version == version_of(report) > first
        assert [record.symbol for record in reader.predictions().value.predictions] == ["NVDA", "AAPL"]
        assert reader.bots().etag == bots
        assert [record.symbol for record in reader.top(9).value] == ["NVDA", "AAPL", "LOW"]
        assert reader.symbol("LOW").value == a("LOW", 0.1)
        assert reader.symbol("MSFT").value is None
        [change] = reader.changes(first).changes
        assert change.predictions
        assert change.predictions.removed == ["MSFT"]
    assert runs(settings, redis_server)[0].updated is None  # no report of the drain: four a second would push out a day


def test_the_files_follow_with_the_next_run(settings: Settings, redis_server: RedisServer) -> None:
    """The next run writes a version of updates to the files, without a scan and only once.

    The files contain the updates in force, so these come back when Redis is emptied.
    """
    run_old(settings)
    report = applied(settings, a("NVDA"), removed=("MSFT",))
    assert symbols_shown(settings) == ["MSFT", "AAPL"]

    followed = optimize(settings, progress=no_scan)
    assert (followed.status, followed.version) == ("unchanged", report.version)
    assert symbols_shown(settings) == ["NVDA", "AAPL"]
    assert_redis_holds_the_files(redis_server, settings)
    inodes = {path: path.stat().st_ino for path in local(settings.output_dir).glob("*.gz")}
    optimize(settings, progress=no_scan)
    assert {path: path.stat().st_ino for path in inodes} == inodes

    with redis_server.client as client:
        client.flushall()
    assert optimize(settings, progress=no_scan).cache == "republished"
    assert_redis_holds_the_files(redis_server, settings)
    assert optimize(settings, force=True).status == "success"
    assert shown(settings, redis_server) == ["NVDA", "AAPL"]


def test_readers_go_on_when_redis_has_forgotten_what_they_have_seen(
    settings: Settings, redis_server: RedisServer
) -> None:
    """If Redis is emptied before the files have caught up, the files are published above the version that readers hold.

    Under an older version those readers would find no record. An update that the files lacked is lost.
    """
    run_old(settings)
    applied(settings, a("NVDA"))
    optimize(settings)
    lost = applied(settings, a("LOST"))
    with closing(SnapshotReader.from_settings(settings)) as reader:
        assert reader.manifest().version == lost.version
        with redis_server.client as client:
            client.flushall()
        report = optimize(settings, progress=no_scan)
        assert (report.status, report.cache) == ("unchanged", "republished")
        reader.refresh()
        assert reader.manifest().version == version_of(report) > version_of(lost)
        assert reader.symbol("NVDA").value == a("NVDA")
        assert reader.symbol("LOST").value is None
    assert_redis_holds_the_files(redis_server, settings)


def test_updates_during_a_scan_hold(settings: Settings, redis_server: RedisServer) -> None:
    """Updates that are applied during a scan hold: the scan continues from their version and does not undo them."""
    run_old(settings)
    write_json(settings.input, NEW)
    report = optimize(settings, progress=once(lambda: applied(settings, a("ZETA"), removed=("NVDA",))))

    assert report.status == "success"
    assert shown(settings, redis_server) == symbols_shown(settings) == ["ZETA", "MSFT"]
    assert_redis_holds_the_files(redis_server, settings)


def test_updates_while_a_run_encodes_hold(
    settings: Settings, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Updates while a run encodes its version do not wait for that, and hold: the run stages its version again."""
    run_old(settings)
    write_json(settings.input, NEW)
    stage, staged = VersionWriter.stage, []

    def stage_and_apply(self: VersionWriter, snapshots: SnapshotSet, lock: Lock) -> None:
        stage(self, snapshots, lock)
        staged.append(snapshots.manifest.version)
        if len(staged) == 1:
            assert applied(settings, a("ZETA"), removed=("NVDA",)).status == "success"

    monkeypatch.setattr(VersionWriter, "stage", stage_and_apply)
    report = optimize(settings)

    assert len(staged) == 2
    assert report.version == staged[1]
    assert shown(settings, redis_server) == symbols_shown(settings) == ["ZETA", "MSFT"]
    assert_redis_holds_the_files(redis_server, settings)
    assert_tidy(settings, redis_server)


def test_an_update_that_is_dropped_while_a_run_encodes_does_not_stop_the_run(
    settings: Settings, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run still publishes if a guard drops an update while the run encodes, and the update is not in its version.

    No version was made of the update, but the queue has changed, so the run stages its version again.
    """
    settings = replace(settings, guard="tests.pipeline.test_updates:refuse_bad")
    run_old(settings)
    write_json(settings.input, NEW)
    enqueue(settings, [a("BAD")], [])
    stage, staged = VersionWriter.stage, []

    def stage_and_drop(self: VersionWriter, snapshots: SnapshotSet, lock: Lock) -> None:
        stage(self, snapshots, lock)
        staged.append(snapshots.manifest.version)
        if len(staged) == 1:
            assert apply_updates(settings)

    monkeypatch.setattr(VersionWriter, "stage", stage_and_drop)
    assert optimize(settings).cache == "published"
    assert len(staged) == 2
    assert "BAD" not in shown(settings, redis_server)
    with closing(CacheClient(settings.redis_url, settings.source, 30.0)) as cache:
        assert UpdateQueue(cache).read().entries == []


def test_updates_during_a_scan_by_the_fleet_hold(
    parted: Settings, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Updates that are applied during a distributed scan hold.

    The merge finds a newer version of the same scan, and continues from that.
    """
    optimize(parted)
    write_json(local(parted.input).parent / "b.json", {"MSFT": a_record(confidence=0.8)})
    merge = optimizer.pipeline.distributed.merge_parts

    def merge_after_updates(*arguments: Any) -> Report:
        applied(parted, a("ZETA"), removed=("MSFT",))
        return merge(*arguments)

    monkeypatch.setattr("tests.support.sources.merge_parts", merge_after_updates)
    assert by_the_fleet(parted).status == "success"
    assert shown(parted, redis_server) == ["ZETA", "AAPL"]


def test_a_part_answers_for_its_own_symbols(parted: Settings, redis_server: RedisServer) -> None:
    """A part that is written later supersedes the updates in force of its own symbols only.

    An update of another part's symbol holds. For a symbol that no part has, the time of the newest part decides.
    """
    directory = local(parted.input).parent
    optimize(parted)
    applied(parted, a("AAPL", 0.3), a("MSFT", 0.3), a("NVDA", 0.3))
    time.sleep(KERNEL_TICK_S)
    write_json(directory / "a.json", {"AAPL": a_record(confidence=0.8)})
    optimize(parted)

    with redis_server.client as client:
        assert client.hkeys(Keys(parted.source).updates) == [b"MSFT"]
    assert shown(parted, redis_server) == ["AAPL", "MSFT"]
    assert_redis_holds_the_files(redis_server, parted)


def test_an_index_that_is_full_loses_its_worst(settings: Settings, redis_server: RedisServer) -> None:
    """A full index loses its worst records, of equal ones the last symbols.

    An update that is left out holds for the next scan, which may show it; a removal before that makes no place for it.
    """
    settings = replace(settings, index_symbols_limit=3, top_symbols_limit=2)
    write_json(settings.input, {name: a_record(confidence=0.6) for name in "BDF"})
    optimize(settings)
    applied(settings, a("A", 0.6), a("E", 0.6))
    assert shown(settings, redis_server) == ["A", "B", "D"]
    applied(settings, removed=("B",))
    assert shown(settings, redis_server) == ["A", "D"]

    optimize(settings, force=True)
    assert shown(settings, redis_server) == ["A", "D", "E"]
    assert symbols_shown(settings) == ["A", "D"]


def test_what_is_too_much_is_refused_whole(settings: Settings, redis_server: RedisServer) -> None:
    """A call that exceeds a limit is refused as a whole, and the error names the limit.

    There is a limit for one call, for the queue, and for symbols whose updates are held.
    """
    settings = replace(
        settings, index_symbols_limit=4, top_symbols_limit=4, update_records_limit=6, update_queue_limit=9
    )
    run_old(settings)
    with pytest.raises(UpdatesRefused, match=r"7 records and removals .* ROLLING_UPDATE_RECORDS_LIMIT=6"):
        enqueue(settings, [a(f"S{number}") for number in range(6)], ["AAPL"])
    enqueue(settings, [a(f"S{number}") for number in range(6)], [])
    with pytest.raises(UpdatesRefused, match=r"6 updates wait already, and 4 more .* ROLLING_UPDATE_QUEUE_LIMIT=9"):
        enqueue(settings, [a("S0")], ["S1", "S2", "S3"])
    assert apply_updates(settings)
    enqueue(settings, [a("S1"), a("S6"), a("S7")], [])  # two of them are new: eight may be held
    assert apply_updates(settings)
    with pytest.raises(UpdatesRefused, match=r"8 symbols .* 8 may .* ROLLING_INDEX_SYMBOLS_LIMIT"):
        enqueue(settings, [a("S1"), a("S8")], [])
    enqueue(settings, [a("S1")], [])
    with redis_server.client as client:
        assert client.llen(Keys(settings.source).queue) == 1


def test_one_drain_is_sent_at_a_time(settings: Settings) -> None:
    """Once a call has to send a drain, no further call has to until that drain has ended with an empty queue.

    The next call has to send one again.
    """
    run_old(settings)
    first, second = enqueue(settings, [a("A")], []), enqueue(settings, [a("B")], [])
    assert (first.must_drain, second.must_drain) == (True, False)
    assert second.sequence == first.sequence + 1
    assert apply_updates(settings)
    assert apply_updates(settings) is None
    assert enqueue(settings, [a("C")], []).must_drain


def test_a_drain_that_takes_long_leaves_the_rest_to_another(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A drain at its time limit applies the waiting updates once more and ends.

    A call that is accepted after that sends another drain.
    """
    monkeypatch.setattr(optimizer.pipeline.drain, "DRAIN_S", 0.0)
    run_old(settings)
    enqueue(settings, [a("A")], [])
    publish = UpdateWriter.publish
    accepted = []

    def publish_later(self: Any, *arguments: Any, **options: Any) -> None:
        accepted.append(enqueue(settings, [a("B")], []))
        publish(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(UpdateWriter, "publish", publish_later)
        assert apply_updates(settings)
    assert [each.must_drain for each in accepted] == [True]
    assert apply_updates(settings)


def test_an_update_is_newer_than_a_file_of_the_same_millisecond(settings: Settings, redis_server: RedisServer) -> None:
    """The time of an update is not before the moment of its call, so the update is newer than a file written before it.

    Files have times in nanoseconds, updates in milliseconds.
    """
    run_old(settings)
    with redis_server.client as client, closing(CacheClient(settings.redis_url, settings.source, 30)) as cache:
        for _ in range(10):
            seconds, microseconds = client.time()
            UpdateQueue(cache).enqueue([a("A")], [], queue_limit=100, held_limit=100)
            assert UpdateQueue(cache).waiting().entries[-1].at_ms >= 1000 * seconds + microseconds / 1000


def test_a_run_applies_what_waits(
    settings: Settings, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A run applies waiting updates: from before the first version, and after a lost drain.

    It warns that no worker seems to take their queue if they have waited for long, except for the first version.
    """
    write_json(settings.input, OLD)
    enqueue(settings, [a("NVDA")], [])
    report = apply_updates(settings)
    assert report is not None
    assert (report.status, report.reason) == ("skipped", "no_version")
    optimize(settings)
    assert shown(settings, redis_server) == ["NVDA", "MSFT", "AAPL"]
    enqueue(settings, [a("ZETA", 0.99)], [])
    optimize(settings)
    assert shown(settings, redis_server)[0] == "ZETA"
    assert "updates have waited" not in caplog.text  # they had waited for a short time, or for the first version

    monkeypatch.setattr("optimizer.pipeline.run.WAITED_S", 0.0)
    enqueue(settings, [a("ZETA", 0.98)], [])
    optimize(settings)
    assert "updates have waited for 0." in caplog.text
    assert "does a worker take their queue" in caplog.text


def test_a_file_that_was_written_later_answers_what_waits(settings: Settings, redis_server: RedisServer) -> None:
    """The scan of a file that was written after waiting updates supersedes them, for they must not undo the scan.

    Updates wait so long if no worker is running. A record with a newer timestamp is still applied.
    """
    run_old(settings)
    newer = a("MSFT", 0.97, timestamp="2027-01-01")
    first = enqueue(settings, [a("NVDA", 0.3), a("GONE"), newer], ["AAPL"])
    time.sleep(KERNEL_TICK_S)
    write_json(settings.input, NEW | {"AAPL": a_record(confidence=0.9)})
    entry = enqueue(settings, [a("LATER")], [])
    optimize(settings)

    assert shown(settings, redis_server) == ["MSFT", "LATER", "NVDA", "AAPL"]
    assert wait_applied(settings, first.sequence, 0) == wait_applied(settings, entry.sequence, 0)
    with redis_server.client as client:
        assert client.hget(Keys(settings.source).queued, "records") == b"0"
        assert set(client.hkeys(Keys(settings.source).updates)) == {b"MSFT", b"LATER"}


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_file_that_is_not_scanned_again_answers_what_waits(
    settings: Settings, redis_server: RedisServer, *, use_cache: bool
) -> None:
    """A file written after waiting updates supersedes them also if this run does not scan it.

    Its content is equal, or a run without Redis has scanned it.
    """
    run_old(settings)
    enqueue(settings, [], ["MSFT"])
    time.sleep(KERNEL_TICK_S)
    run_old(settings, use_cache=use_cache)
    optimize(settings)
    assert shown(settings, redis_server) == ["MSFT", "AAPL"]


def test_a_part_answers_what_waits_for_its_own_symbols(parted: Settings, redis_server: RedisServer) -> None:
    """A part that is written later supersedes the waiting updates of its own symbols only.

    For a symbol that no part has, the time of the newest part decides.
    """
    optimize(parted)
    enqueue(parted, [a("AAPL", 0.3), a("MSFT", 0.3), a("NVDA", 0.3)], [])
    time.sleep(KERNEL_TICK_S)
    write_json(local(parted.input).parent / "a.json", {"AAPL": a_record(confidence=0.8)})
    optimize(parted)
    assert shown(parted, redis_server) == ["AAPL", "MSFT"]


def test_waiting_says_what_became_of_an_update(settings: Settings, redis_server: RedisServer) -> None:
    """`wait_applied` returns the version that shows an update.

    Its errors say why no version shows it yet, or that Redis has lost the update.
    """
    entry = enqueue(settings, [a("NVDA")], [])
    with pytest.raises(UpdatesPending, match="no version yet"):
        wait_applied(settings, entry.sequence, 0)
    run_old(settings)  # of an input that was written later
    first = wait_applied(settings, entry.sequence, 5)
    with redis_server.client as client:
        assert client.hget(Keys(settings.source).current, "version") == str(first).encode()

    entry = enqueue(settings, [a("ZETA")], [])
    with pytest.raises(UpdatesPending, match="no worker has applied them"):
        wait_applied(settings, entry.sequence, 0.01)
    drain = threading.Thread(target=apply_updates, args=(settings,))
    drain.start()
    assert wait_applied(settings, entry.sequence, 5) > first
    drain.join()

    with redis_server.client as client:
        client.delete(Keys(settings.source).queue, Keys(settings.source).queued)
    with pytest.raises(UpdatesLost, match="lost"):
        wait_applied(settings, entry.sequence, 5)


def test_a_pinned_version_keeps_updates_waiting(
    settings: Settings, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While a version is pinned, updates wait, and the rollback shows the old set unchanged.

    The first run after `unpin` applies the updates that hold and those that wait.
    """
    old = version_of(run_old(settings))
    applied(settings, a("NVDA"), removed=("MSFT",))
    optimize(settings)
    rollback(settings, old)
    assert shown(settings, redis_server) == ["MSFT", "AAPL"]
    entry = enqueue(settings, [a("ZETA", 0.99)], [])
    report = apply_updates(settings)
    assert report is not None
    assert report.reason == "pinned"
    with pytest.raises(UpdatesPending, match=r"is pinned since .* unpinned, by: rolling-optimizer unpin"):
        wait_applied(settings, entry.sequence, 0)
    assert optimize(settings).reason == "pinned"
    assert shown(settings, redis_server) == ["MSFT", "AAPL"]
    assert_redis_holds_the_files(redis_server, settings)

    monkeypatch.setattr("optimizer.pipeline.run.WAITED_S", 0.0)
    unpin(settings)
    assert "updates have waited" not in caplog.text  # they did not wait for a worker
    assert optimize(settings).status == "success"
    assert shown(settings, redis_server) == ["ZETA", "NVDA", "AAPL"]


def refuse_bad(version: Any, _before: Any) -> str | None:
    """A guard that refuses a version with the symbol BAD."""
    return "BAD is shown" if any(record.symbol == "BAD" for record in version.predictions.predictions) else None


def test_a_guard_drops_the_entries_that_it_refuses(settings: Settings, redis_server: RedisServer) -> None:
    """A guard drops the entries that it refuses, and no entry that waits together with them.

    Each dropped one is named in a failed report, and a caller that waits for it gets `GuardRefused`.
    """
    settings = replace(settings, guard="tests.pipeline.test_updates:refuse_bad")
    run_old(settings)
    names = ["A", "BAD", "B", "C", "BAD", "D"]
    entries = [enqueue(settings, [a(name)], []) for name in names]
    report = apply_updates(settings)

    assert report is not None
    assert report.status == "success"
    assert report.updated is not None
    assert report.updated.refused == 2
    assert shown(settings, redis_server) == ["A", "B", "C", "D", "MSFT", "AAPL"]
    failed = [each for each in runs(settings, redis_server) if each.status == "failed"]
    assert [each.error for each in failed] == ["GuardRefused"] * 2
    assert all("the update of BAD was dropped: " in (each.details or "") for each in failed)
    with redis_server.client as client:
        assert not list(client.scan_iter("*:staged:*"))
    for name, entry in zip(names, entries, strict=True):
        if name == "BAD":
            with pytest.raises(GuardRefused, match="BAD is shown"):
                wait_applied(settings, entry.sequence, 5)
        else:
            assert wait_applied(settings, entry.sequence, 5) == report.version


def refuse_all(_version: Any, _before: Any) -> str:
    """A guard that fails for each version."""
    raise RuntimeError("out of order")


def test_a_guard_that_fails_drops_nothing(settings: Settings, redis_server: RedisServer) -> None:
    """If a guard also refuses the current version, no update is dropped, and all of them wait.

    Such a refusal says nothing about an update.
    """
    run_old(settings)
    enqueue(settings, [a("A")], [])
    enqueue(settings, [a("B")], [])
    for refusing in (
        replace(settings, guard="tests.pipeline.test_updates:refuse_all"),
        replace(settings, min_records=9),
    ):
        with pytest.raises(GuardRefused, match="the updates wait, since what is shown would be refused too"):
            apply_updates(refusing)
    assert apply_updates(settings)
    assert shown(settings, redis_server) == ["A", "B", "MSFT", "AAPL"]


def test_a_lower_limit_drops_no_update(settings: Settings, redis_server: RedisServer) -> None:
    """An update is applied although a lower index limit now removes more records than `max_drop_percent` allows.

    The limit removes them, not the update, which comes before the next scan.
    """
    run_old(settings)
    lower = replace(settings, index_symbols_limit=1, top_symbols_limit=1, max_drop_percent=10)
    assert applied(lower, a("A")).status == "success"
    assert shown(settings, redis_server) == ["A"]


def test_updates_leave_enough(settings: Settings, redis_server: RedisServer) -> None:
    """Updates that would empty the index fail, and so do updates that remove a larger share than `max_drop_percent`.

    A share of exactly the limit may be removed.
    """
    run_old(settings)
    report = applied(settings, removed=("AAPL", "MSFT"))
    assert (report.status, report.error) == ("failed", "NoRecords")
    report = applied(replace(settings, max_drop_percent=49.0), removed=("AAPL",))
    assert (report.status, report.error) == ("failed", "GuardRefused")
    assert "ROLLING_MAX_DROP_PERCENT=49" in (report.details or "")
    assert shown(settings, redis_server) == ["MSFT", "AAPL"]
    assert applied(replace(settings, max_drop_percent=50.0), removed=("AAPL",)).status == "success"


def test_a_drain_and_the_end_of_a_run_wait_for_each_other(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A drain waits while a run holds `publishing`, up to a limit; then it is refused, and its updates stay queued.

    The end of a run waits in the same way while a drain holds it, and is then refused before it writes the files.
    """
    monkeypatch.setattr(optimizer.pipeline.drain, "PUBLISHING_WAIT_S", 0.01)
    monkeypatch.setattr(optimizer.pipeline.session, "PUBLISHING_WAIT_S", 0.01)
    run_old(settings)
    write_json(settings.input, NEW)
    enqueue(settings, [a("ZETA")], [])
    with closing(CacheClient(settings.redis_url, settings.source, 30.0)) as cache:
        with SourceLock(cache, cache.keys.publishing).acquire() as lock:
            assert lock.held
            with pytest.raises(PublishRefused, match="has been publishing for longer"):
                apply_updates(settings)
            with pytest.raises(PublishRefused, match="a drain of updates has been publishing for longer"):
                optimize(settings)
        assert symbols_shown(settings) == ["MSFT", "AAPL"]
        assert len(UpdateQueue(cache).read().entries) == 1
    assert apply_updates(settings)
    assert optimize(settings).status == "success"
    assert symbols_shown(settings) == ["NVDA", "ZETA", "MSFT"]


def test_a_drain_that_was_overtaken_begins_anew(
    settings: Settings, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a scan publishes during a drain, the drain's flip is refused, and the drain starts again.

    Its updates are applied to the version of the scan.
    """
    run_old(settings)
    write_json(settings.input, NEW)
    enqueue(settings, [a("ZETA")], [])
    publish = UpdateWriter.publish
    statuses: list[str] = []

    def publish_later(self: Any, *arguments: Any, **options: Any) -> None:
        statuses.append("begun")
        if len(statuses) == 1:
            with redis_server.client as client:
                client.delete(Keys(settings.source).publishing)  # as if this drain had paused until it expired
            with monkeypatch.context() as patch:
                patch.setattr(optimizer.pipeline.run, "apply_updates", lambda _: None)  # left to this drain
                statuses.append(optimize(settings).status)
        publish(self, *arguments, **options)

    monkeypatch.setattr(UpdateWriter, "publish", publish_later)
    report = apply_updates(settings)
    assert statuses == ["begun", "success", "begun"]
    assert report is not None
    assert (report.status, report.updated and report.updated.versions) == ("success", 1)
    assert sorted(shown(settings, redis_server)) == ["MSFT", "NVDA", "ZETA"]
    with redis_server.client as client:
        assert client.llen(Keys(settings.source).queue) == 0


def test_a_drain_whose_seal_is_lost_begins_anew(
    settings: Settings, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A drain that finds the seal of an earlier attempt starts again, and its updates are applied once.

    A failover may leave values that an earlier attempt has staged; they are not shown.
    """
    run_old(settings)
    enqueue(settings, [a("ZETA")], [])
    publish = UpdateWriter.publish
    seals: list[bytes] = []

    def publish_after_a_loss(self: Any, *arguments: Any, **options: Any) -> None:
        with redis_server.client as client:
            (name,) = client.scan_iter("*:staged:*:seal")
            seals.append(cast("bytes", client.get(name)))
            if len(seals) == 1:
                client.set(name, "of an earlier attempt")
        publish(self, *arguments, **options)

    monkeypatch.setattr(UpdateWriter, "publish", publish_after_a_loss)
    assert apply_updates(settings)
    assert len(set(seals)) == 2
    assert "ZETA" in shown(settings, redis_server)
    with redis_server.client as client:
        assert client.llen(Keys(settings.source).queue) == 0
        assert not list(client.scan_iter("*:staged:*"))


def test_updates_wait_until_redis_has_what_the_files_have(settings: Settings, redis_server: RedisServer) -> None:
    """After a run that did not reach Redis, updates wait until the next run has published its version there.

    A version made of the older one in Redis and an update would be newer than the files.
    """
    run_old(settings)
    write_json(settings.input, NEW)
    optimize(settings, use_cache=False)
    assert applied(settings, a("ZETA")).reason == "no_version"
    optimize(settings, progress=no_scan)
    assert shown(settings, redis_server) == ["NVDA", "ZETA", "MSFT"]


def test_the_files_of_a_run_that_was_killed_are_not_overtaken(settings: Settings, redis_server: RedisServer) -> None:
    """A drain that waited for the `publishing` of a killed run applies nothing if that run has written newer files.

    It reads the files after `publishing` has expired, not before.
    """
    run_old(settings)
    write_json(settings.input, NEW)
    enqueue(settings, [a("ZETA")], [])
    with closing(CacheClient(settings.redis_url, settings.source, 30.0)) as cache, ThreadPoolExecutor() as pool:
        with SourceLock(cache, cache.keys.publishing).acquire() as lock:
            assert lock.held
            drain = pool.submit(apply_updates, settings)
            wait_until(lambda: redis_server.client.exists(cache.keys.draining), what="the drain to wait")
            optimize(settings, use_cache=False)  # all that the killed run has done
        report = drain.result()
    assert report is not None
    assert (report.status, report.reason) == ("skipped", "no_version")


def test_drains_do_not_pile_up_while_a_run_publishes(
    settings: Settings, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a drain waits for a run that publishes, no further call has to send a drain.

    The waiting drain keeps its flag in Redis alive for as long as it waits.
    """
    monkeypatch.setattr(optimizer.pipeline.drain, "LOCK_WAIT_S", 0.05)
    monkeypatch.setattr(optimizer.cache.update_queue, "DRAINING_TTL_S", 0.2)
    run_old(settings)
    assert enqueue(settings, [a("A")], []).must_drain
    with closing(CacheClient(settings.redis_url, settings.source, 30.0)) as cache, ThreadPoolExecutor() as pool:
        with SourceLock(cache, cache.keys.publishing).acquire():
            drain = pool.submit(apply_updates, settings)
            time.sleep(0.5)
            assert not enqueue(settings, [a("B")], []).must_drain
        assert drain.result()
    assert shown(settings, redis_server) == ["A", "B", "MSFT", "AAPL"]


def test_a_version_that_is_damaged_is_not_changed(settings: Settings, redis_server: RedisServer) -> None:
    """If the current version lacks a value in Redis, a drain fails, and updates wait until a run has repaired it.

    Otherwise a version without the lost records would be published, and written to the files.
    """
    version = version_of(run_old(settings))
    keys = Keys(settings.source)
    enqueue(settings, [a("ZETA")], [])
    with redis_server.client as client:
        for kinds in (*((kind,) for kind in VERSION_KINDS), ("symbols", "ranking")):
            values = {keys.payload(version, kind): client.dump(keys.payload(version, kind)) for kind in kinds}
            client.delete(*values)
            # A drain reads neither bots nor holdings, but its flip misses their copies.
            with pytest.raises((CacheUnavailable, PublishRefused), match=r"not whole|what was staged"):
                apply_updates(settings)
            assert client.hget(keys.current, "version") == str(version).encode()
            assert client.llen(keys.queue) == 1
            for name, value in values.items():
                client.restore(name, 0, cast("bytes", value))
        client.delete(*values)
    optimize(settings)
    assert shown(settings, redis_server) == ["ZETA", "MSFT", "AAPL"]


def test_what_is_damaged_does_not_stop_the_queue(settings: Settings, redis_server: RedisServer) -> None:
    """A damaged entry, update in force, record or number is passed over, and what comes after it is applied."""
    version = version_of(run_old(settings))
    keys = Keys(settings.source)
    applied(settings, a("ZETA"))
    with redis_server.client as client:
        version = int(cast("bytes", client.hget(keys.current, "version")))
        client.hset(keys.updates, "ZETA", "no update")
        client.hset(keys.payload(version, "symbols"), "AAPL", "no record")
        client.hset(keys.queued, mapping={"tat_ms": "soon", "refused": "{"})
        client.rpush(keys.queue, "no entry")
    report = applied(settings, a("ZETA", 0.99), a("AAPL", 0.98))

    assert report.status == "success"
    assert shown(settings, redis_server) == ["ZETA", "AAPL", "MSFT"]
    with redis_server.client as client:
        assert client.llen(keys.queue) == 0
        assert client.hlen(keys.updates) == 2
    optimize(settings)
    assert_redis_holds_the_files(redis_server, settings)


def test_an_update_that_is_damaged_comes_back_from_the_files(settings: Settings, redis_server: RedisServer) -> None:
    """If an update in force is damaged in Redis, a scan takes it from the files and writes it again."""
    run_old(settings)
    applied(settings, a("ZETA"))
    optimize(settings)
    with redis_server.client as client:
        client.hset(Keys(settings.source).updates, "ZETA", "no update")
    assert optimize(settings, force=True).cache == "published"
    assert shown(settings, redis_server)[0] == "ZETA"


@pytest.mark.parametrize("damaged", ["a record", "the index"])
def test_a_record_that_is_damaged_makes_a_run_scan(settings: Settings, redis_server: RedisServer, damaged: str) -> None:
    """If a record of a version of updates is damaged in Redis, or its whole index is lost, the next run scans.

    The files cannot catch up with a version that is not whole in Redis.
    """
    run_old(settings)
    report = applied(settings, a("ZETA"))
    keys = Keys(settings.source)
    symbols, ranking = (keys.payload(version_of(report), kind) for kind in ("symbols", "ranking"))
    with redis_server.client as client:
        client.hset(symbols, "AAPL", "no record") if damaged == "a record" else client.delete(symbols, ranking)
    optimizer.pipeline.confirm.catch_up_if_free(settings)
    assert symbols_shown(settings) == ["MSFT", "AAPL"]
    report = optimize(settings)
    assert (report.status, report.cache) == ("success", "published")
    assert shown(settings, redis_server) == ["ZETA", "MSFT", "AAPL"]
    assert_redis_holds_the_files(redis_server, settings)


def test_a_call_that_is_sent_again_is_accepted_once(
    settings: Settings, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call whose command redis-py repeats, because its reply was lost, is accepted once."""
    monkeypatch.setattr("optimizer.cache.update_queue.secrets.token_hex", lambda _: "the token of one call")
    first, second = enqueue(settings, [a("A")], []), enqueue(settings, [a("A")], [])
    assert first.sequence == second.sequence
    assert second.must_drain
    with redis_server.client as client:
        assert client.llen(Keys(settings.source).queue) == 1


def test_without_redis_nothing_is_taken(settings: Settings, own_redis: RedisServer) -> None:
    """Without Redis an update is not accepted, and a drain fails."""
    settings = replace(settings, redis_url=own_redis.url)
    for call in (lambda: enqueue(settings, [a("A")], []), lambda: apply_updates(settings)):
        with pytest.raises(CacheUnavailable):
            call()


@pytest.mark.parametrize(
    "asked", [(optimizer.pipeline.confirm, "is_intact"), (optimizer.pipeline.session, "shows")], ids=itemgetter(1)
)
def test_a_tick_that_an_update_overtakes_sees_no_damage(
    settings: Settings,
    redis_server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    asked: tuple[ModuleType, str],
) -> None:
    """A tick during which an update makes a new version neither scans nor publishes again, and logs no damage.

    The version that the tick compares expires, since there is a newer one.
    """
    run_old(settings)
    module, check = asked
    first = ["ETA"] if check == "is_intact" else []  # in a version that the files do not have yet
    for symbol in first:
        applied(settings, a(symbol))
    checked = getattr(module, check)

    def check_later(*arguments: Any) -> bool:
        applied(settings, a("ZETA"))
        return cast("bool", checked(*arguments))

    with monkeypatch.context() as patch:
        patch.setattr(module, check, check_later)
        report = optimize(settings, progress=no_scan)
    assert (report.status, report.cache) == ("unchanged", "current")
    assert "damaged" not in caplog.text
    assert shown(settings, redis_server) == [*first, "ZETA", "MSFT", "AAPL"]


def test_calls_drains_and_ticks_keep_one_connection(settings: Settings, redis_server: RedisServer) -> None:
    """Calls, drains and ticks keep one connection to Redis, since connecting takes as long as they do."""
    run_old(settings)
    applied(settings, a("ETA"))
    with redis_server.client as client:
        before = client.info("stats")["total_connections_received"]
        applied(settings, a("ZETA"))
        optimize(settings, progress=no_scan)
        assert client.info("stats")["total_connections_received"] == before


def test_an_old_version_of_updates_goes_soon(settings: Settings, redis_server: RedisServer) -> None:
    """The values of a version that updates replace expire within 5 s: many versions are made, each with an index."""
    version = version_of(run_old(settings))
    second = version_of(applied(settings, a("ZETA")))
    third = version_of(applied(settings, a("ETA")))
    keys = Keys(settings.source)
    with redis_server.client as client:
        for each in (version, second):
            assert all(0 < cast("int", client.ttl(keys.payload(each, kind))) <= 5 for kind in VERSION_KINDS)
        assert {client.ttl(keys.payload(third, kind)) for kind in VERSION_KINDS} == {-1}
        assert client.keys("*:staged:*") == []


@pytest.mark.slow
def test_a_thousand_updates_a_second_are_merged(settings: Settings, redis_server: RedisServer) -> None:
    """A thousand updates in quick succession are merged into about four versions a second, while scans publish too.

    The last update of each symbol holds.
    """
    settings = replace(settings, interval_s=0.2)
    run_old(settings)
    drains, sequences = [], []

    def drain() -> None:
        drains.append(apply_updates(settings))

    began_s = time.monotonic()
    threads = []
    for number in range(1000):
        entry = enqueue(settings, [a(f"S{number % 300:03d}", round(0.5 + number / 5000, 4))], [])
        sequences.append(entry.sequence)
        if entry.must_drain:
            threads.append(threading.Thread(target=drain))
            threads[-1].start()
        if number % 250 == 100:
            write_json(settings.input, OLD)
            os.utime(local(settings.input), (1, 1 + number))  # older than all updates
            optimize(settings)
    wait_applied(settings, sequences[-1], 20)
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - began_s

    versions = sum(report.updated.versions for report in drains if report and report.updated)
    assert versions <= 4 + 4.5 * seconds + 4  # drains by the runs share this limit
    with redis_server.client as client:
        keys = Keys(settings.source)
        held = cast("dict[bytes, bytes]", client.hgetall(keys.updates))
        assert client.llen(keys.queue) == 0
    for number in range(700, 1000):
        update = msgspec.json.decode(held[b"S%03d" % (number % 300)])
        assert update["record"]["confidence"] == round(0.5 + number / 5000, 4)
    optimize(settings)
    wait_until(lambda: snapshot_store(settings.output_dir).read_manifest(), what="files")
    assert_redis_holds_the_files(redis_server, settings)
