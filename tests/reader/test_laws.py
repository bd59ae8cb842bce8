"""The promises of a reader, kept by the real one on real Redis and files, and by the one of `optimizer.testing`."""

from __future__ import annotations

import gzip
import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest

from optimizer import (
    BotSummary,
    ChangesMissing,
    Holding,
    Record,
    SnapshotMissing,
    SnapshotReader,
    apply_change,
)
from optimizer.models import Rejected, Units
from optimizer.testing.values import Kind
from tests.support.places import FIRST, MARKED, SECOND, Place, marked
from tests.support.readers import READS, every_read
from tests.support.redis_servers import wait_until

ALPHA = BotSummary(enabled=True, equity=10.5, pnl_today=None, positions=1, last_updated=None)
AAPL = Record("AAPL", 101.5, 0.75, 100.0, "bullish", 105.0, 95.0, timestamp="2026-11-01T10:00:00Z")


def read_whole(reader: SnapshotReader) -> Any:
    """Read predictions, bots and portfolio of one version by one call."""
    return reader.snapshot()


def test_each_method_returns_its_part_of_the_version(place: Place, opened: SnapshotReader) -> None:
    """Each method returns its part of the version, typed and in the order of the format.

    The order in which the values were given does not matter.
    """
    version = place.publish(FIRST)

    whole = opened.snapshot()
    assert [record.symbol for record in whole.predictions.predictions] == ["MSFT", "AAPL"]
    assert whole.predictions.predictions[1] == AAPL
    assert (whole.predictions.count, whole.predictions.timestamp) == (2, whole.generated_at)
    assert whole.bots.bots == {"alpha": ALPHA}
    assert whole.portfolio.holdings == [Holding("AAPL", 2.0, 99.5)]
    assert (whole.version, whole.origin, whole.stale) == (version, place.origin, False)
    assert 0 <= whole.age_s < 60
    assert whole.rejected == Rejected(records=Units(3, 0), bots=Units(1, 0))
    state = opened.manifest()
    assert (state.version, state.generated_at, state.origin) == (version, whole.generated_at, place.origin)
    assert state.rejected == whole.rejected
    assert opened.predictions().value is whole.predictions
    assert opened.bots().value is whole.bots
    assert opened.portfolio().value is whole.portfolio


def test_a_snapshot_has_its_bytes(place: Place, opened: SnapshotReader) -> None:
    """The gz bytes of a snapshot have its ETag as their SHA-256, and decode to its value."""
    place.publish(FIRST)

    for snapshot in (opened.predictions(), opened.bots(), opened.portfolio()):
        assert snapshot.etag == hashlib.sha256(snapshot.gz).hexdigest()
        assert msgspec.json.decode(gzip.decompress(snapshot.gz)) == msgspec.to_builtins(snapshot.value)


def test_lookups_are_of_the_whole_index(place: Place, opened: SnapshotReader) -> None:
    """`symbol` and `top` look up the whole index, `top` in any window of ranks.

    A missing symbol has the value `None`, and a negative window is a `ValueError`.
    """
    version = place.publish(FIRST)

    low = opened.symbol("LOW")
    assert low.value is not None
    assert (low.value.confidence, low.version, low.origin, low.stale) == (0.1, version, place.origin, False)
    assert opened.symbol("AAPL").value == AAPL
    assert opened.symbol("MISSING").value is None
    ranked = opened.top(9)
    assert [record.symbol for record in ranked.value] == ["MSFT", "AAPL", "LOW"]
    for offset in range(5):
        for n in range(5):
            assert opened.top(n, offset).value == ranked.value[offset : offset + n]
    assert low.etag == ranked.etag == opened.symbol("MISSING").etag == opened.top(1).etag
    for n, offset in ((-1, 0), (1, -1)):
        with pytest.raises(ValueError, match="may not be negative"):
            opened.top(n, offset)


def test_a_newer_version_shows_by_itself(place: Place, opened: SnapshotReader) -> None:
    """Every method shows a newer version without a call of `refresh`, and what has changed has another ETag."""
    first = place.publish(FIRST)
    before = opened.predictions()
    assert before.version == first
    assert opened.predictions().value is before.value  # decoded once
    index = opened.symbol("LOW")

    second = place.publish(SECOND)

    wait_until(lambda: opened.predictions().version == second, limit_s=5, what="the new version")
    assert second > first
    assert {read(opened).version for read in (*READS.values(), read_whole)} == {second}
    assert opened.predictions().etag != before.etag
    assert opened.symbol("LOW").etag != index.etag
    assert opened.symbol("LOW").value is None
    assert list(opened.bots().value.bots) == ["beta"]
    assert opened.portfolio().value.holdings == []


def test_changes_lead_from_one_version_to_the_next(place: Place, opened: SnapshotReader) -> None:
    """The change since a version turns its content into the next one's.

    A version that was published to files alone has no changes.
    """
    first = place.publish(FIRST)
    whole = opened.snapshot()
    assert opened.changes(first).changes == []

    second = place.publish(SECOND)

    wait_until(lambda: opened.manifest().version == second, limit_s=5, what="the new version")
    newest = opened.snapshot()
    nothing = opened.changes(second)
    assert (nothing.version, nothing.changes, nothing.origin) == (second, [], place.origin)
    assert (0 <= nothing.age_s < 60, nothing.stale) == (True, False)
    assert opened.changes(second + 1).changes == []  # as for a client that has read it from a process that is ahead
    if place.origin == "files":
        with pytest.raises(ChangesMissing, match=rf"since version {first} is not held: none are; .* {second}, "):
            opened.changes(first)
        return
    (change,) = opened.changes(first).changes
    assert (change.since, change.before, change.version) == (first, first, second)
    after = apply_change(whole, change)
    for kind in ("predictions", "bots", "portfolio"):
        assert getattr(after, kind) == getattr(newest, kind)
    with pytest.raises(ChangesMissing, match=rf"from which changes are held is {first}; "):
        opened.changes(first - 1)


@every_read
def test_without_a_version_every_method_says_so(opened: SnapshotReader, read: Callable[[SnapshotReader], Any]) -> None:
    """Without a version every method raises `SnapshotMissing`, with the causes in Redis and in the files."""
    for call in (read, read_whole, lambda reader: reader.wait(0), lambda reader: reader.changes(1)):
        with pytest.raises(SnapshotMissing, match=r"no snapshot of 'rolling_brain': Redis: .+; files: "):
            call(opened)


@pytest.mark.parametrize("kind", ["predictions", "bots", "portfolio"])
@pytest.mark.parametrize("place", ["redis", "memory"], indirect=True)
def test_a_part_that_cannot_be_read_is_missing(place: Place, opened: SnapshotReader, kind: Kind) -> None:
    """An unreadable payload is `SnapshotMissing` by its own method and by `snapshot`; other methods return theirs."""
    version = place.publish(FIRST, unreadable=[kind])

    assert opened.wait(0).version == version
    for name in ("predictions", "bots", "portfolio"):
        if name == kind:
            for read in (READS[name], read_whole):
                with pytest.raises(SnapshotMissing, match=f"no {kind} of 'rolling_brain'"):
                    read(opened)
        else:
            assert READS[name](opened).version == version
    assert opened.symbol("AAPL").value == AAPL


def test_runs_are_newest_first(place: Place, opened: SnapshotReader) -> None:
    """`runs` returns the newest report first, and no report while Redis is away."""
    versions = [place.publish(FIRST), place.publish(SECOND)]

    opened.refresh()
    shown = [(report.status, report.version) for report in opened.runs()]
    assert shown == ([("success", version) for version in reversed(versions)] if place.origin == "redis" else [])
    assert opened.runs(1, status="success") == opened.runs(1)
    assert opened.runs(0) == []


def test_waiting_ends_with_the_first_version(place: Place, opened: SnapshotReader) -> None:
    """`wait` ends when another thread publishes the first version, and at once if there is one."""
    with pytest.raises(SnapshotMissing):
        opened.wait(0.05)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(opened.wait, 30)
        version = place.publish(FIRST)
        assert waiting.result(10).version == version
    assert opened.wait(0).version == version


# ---- one version at a time


def marks_of_a_snapshot(reader: SnapshotReader, pause: Callable[[], None]) -> set[float | None]:
    """The marks on a page that reads everything by one call."""
    whole = reader.snapshot()
    marks: set[float | None] = {record.last_price for record in whole.predictions.predictions}
    pause()
    marks |= {bot.equity for bot in whole.bots.bots.values()}
    pause()
    return marks | {holding.qty for holding in whole.portfolio.holdings}


def marks_of_three_calls(reader: SnapshotReader, pause: Callable[[], None]) -> set[float | None]:
    """The marks on a page that reads predictions, bots and portfolio by three calls, one after another."""
    marks: set[float | None] = {record.last_price for record in reader.predictions().value.predictions}
    pause()
    marks |= {bot.equity for bot in reader.bots().value.bots.values()}
    pause()
    return marks | {holding.qty for holding in reader.portfolio().value.holdings}


@pytest.mark.slow
@pytest.mark.parametrize(("read", "mixes"), [(marks_of_a_snapshot, False), (marks_of_three_calls, True)])
def test_a_page_is_of_one_version_while_others_are_published(
    place: Place,
    opened: SnapshotReader,
    read: Callable[[SnapshotReader, Callable[[], None]], set[float | None]],
    mixes: bool,
) -> None:
    """A page from one call has one version, though newer ones are shown while the page is made.

    A page from three calls mixes versions, which proves that newer ones are shown meanwhile.
    """
    place.publish(marked(1))
    ended = threading.Event()

    def publish_on() -> None:
        mark = 1
        while not ended.is_set():
            mark += 1
            place.publish(marked(mark))

    def pause() -> None:
        version = opened.manifest().version

        def is_newer() -> bool:
            opened.refresh()
            return opened.manifest().version > version

        wait_until(is_newer, limit_s=10, what="a newer version")

    with ThreadPoolExecutor(1) as threads:
        publishing = threads.submit(publish_on)
        try:
            pages = [read(opened, pause) for _ in range(5)]
        finally:
            ended.set()
        publishing.result()

    assert [len(marks) > 1 for marks in pages] == [mixes] * 5
    assert opened.symbol(MARKED).value is not None
