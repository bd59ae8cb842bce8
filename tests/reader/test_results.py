"""The results of a reader: typed values of one version, from Redis and from files, also while a worker publishes."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest

from optimizer import Answer, Record, Settings, Snapshot, SnapshotReader, optimize
from optimizer.models import BotSummary, Holding, Origin, Report
from optimizer.snapshots.format import FILE_NAMES
from tests.support.published_state import run_next, run_old, version_of
from tests.support.readers import Open
from tests.support.rolling_files import a_record, local, write_json


@pytest.mark.parametrize("origin", ["redis", "files"])
def test_answers_are_typed_and_say_where_they_are_from(settings: Settings, open_reader: Open, origin: Origin) -> None:
    """Each result has the version, the bytes of the file, their digest as ETag, the decoded value, and its origin."""
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
    """The same object is returned until the version changes. It is shared, so callers may not change it."""
    run_old(settings)
    reader = open_reader(settings, origin)
    first = reader.predictions()

    assert reader.bots().version == first.version
    assert reader.predictions().value is first.value

    run_next(settings)
    reader.refresh()
    assert reader.predictions().version > first.version


class Seen(NamedTuple):
    """What one read showed: the version, and the generations of all values in it."""

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
    """Return the version and the generations in the result of a read."""
    return Seen(answer.version, frozenset(generations(answer.value)))


def write_generation(settings: Settings, generation: int, *, use_cache: bool) -> Report:
    """Publish a version in which every value is the number of its generation; the order by confidence changes."""
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
    """While 25 versions are published, four threads that share a reader see no error and no mixture of versions.

    None of them sees an older version after a newer one.
    """
    use_cache = origin == "redis"
    written = {version_of(write_generation(settings, 1, use_cache=use_cache)): 1.0}
    reader = open_reader(settings, origin)
    ended = threading.Event()

    def read_on(first: int) -> list[Seen]:
        seen: list[Seen] = []
        while not ended.is_set():
            reader.refresh()
            seen += [read(reader) for read in (*GENERATION_READS[first:], *GENERATION_READS[:first])]
        return seen

    with ThreadPoolExecutor(4) as threads:
        reading = [threads.submit(read_on, number) for number in range(4)]
        try:
            for generation in range(2, 27):
                report = write_generation(settings, generation, use_cache=use_cache)
                assert report.cache == ("published" if use_cache else "off")
                written[version_of(report)] = float(generation)
        finally:
            ended.set()
        everything = [future.result() for future in reading]

    for answers in everything:
        versions = [answer.version for answer in answers]
        assert versions == sorted(versions)
        assert len(set(versions)) > 5  # they did read all the while
        for answer in answers:
            assert answer.generations == {written[answer.version]}


def test_an_answer_is_of_one_version() -> None:
    """A mixture of two generations is recognised as such, so the check in the test above can fail."""
    mixed = Answer(
        version=7,
        etag="7",
        value=[Record("A", 1.0, 0.5, 1.0), Record("B", 1.0, 0.5, 2.0)],
        origin="redis",
        age_s=0.0,
        stale=False,
    )

    assert seen(mixed, lambda value: [record.last_price for record in value]) == Seen(7, frozenset({1.0, 2.0}))
