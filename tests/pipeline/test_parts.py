"""Sources of many parts: the same snapshots as from one file, and a part is read only if it has changed."""

from __future__ import annotations

import gzip
import json
import random
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from optimizer import Settings, optimize
from optimizer.cache.keys import Keys
from optimizer.errors import NoRecords, PartFailed, SourceError, SourceMalformed, SourceMissing, TooManyRejected
from optimizer.models import Report
from optimizer.pipeline.assignment import Assignment, Dispatcher
from optimizer.pipeline.distributed import PartOutcome, merge_parts, scan_one_part
from optimizer.pipeline.run import run_source
from tests.support.published_state import assert_redis_holds_the_files, assert_tidy, content_of, runs_of
from tests.support.redis_servers import RedisServer
from tests.support.rolling_files import a_record, local, write_json, write_raw

PARTS: dict[str, Any] = {
    "a": {
        "AAPL": a_record(confidence=0.9),
        "MSFT": a_record(confidence=0.7),
        "bots": {"one": {"equity": 1, "positions": []}},
    },
    "b": [a_record(symbol="AAPL", confidence=0.95), a_record(symbol="NVDA", confidence=2)],
    "c": {"predictions": {"TSLA": a_record(confidence=0.6)}, "bots": {"one": {"equity": 2, "positions": []}}},
}
Run = Callable[[Settings], Report]


@pytest.fixture
def three_parts(settings: Settings) -> Settings:
    """Settings of a source with three parts."""
    directory = local(settings.input).parent / "parts"
    for name, value in PARTS.items():
        write_json(directory / f"{name}.json.gz", value)
    return replace(settings, input=directory / "*.json.gz", source="parted")


def by_the_fleet(
    settings: Settings, *, order: random.Random | None = None, force: bool = False, worker: Settings | None = None
) -> Report:
    """Do one run as the fleet does, in this process, with the assignment as JSON and the parts in any order.

    The worker that scans the parts may have other settings, `worker`.
    """
    sent: list[Assignment] = []
    report = run_source(settings, Dispatcher("first", sent.append, lambda *_: None), force=force)
    if report is not None:
        return report
    [assignment] = [msgspec.convert(json.loads(msgspec.json.encode(one)), Assignment) for one in sent]
    indexes = list(range(len(assignment.to_scan)))
    if order is not None:
        order.shuffle(indexes)
    outcomes: dict[int, PartOutcome] = {}
    for index in indexes:
        outcomes[index] = scan_one_part(
            worker or settings, assignment.token, assignment.parts[assignment.to_scan[index]].location
        )
    return merge_parts(settings, assignment.token, [outcomes[index] for index in sorted(outcomes)])


@pytest.fixture(params=["in one process", "by the fleet"])
def run(request: pytest.FixtureRequest) -> Run:
    """Each of the two ways to make a run: in one process, and by the fleet."""
    return optimize if request.param == "in one process" else by_the_fleet


def part(settings: Settings, name: str) -> Path:
    """The path of one part."""
    return local(settings.input).parent / f"{name}.json.gz"


# ---- many parts and one file


symbols = st.sampled_from([f"S{number}" for number in range(12)])
records = st.builds(
    lambda symbol, confidence, price: a_record(symbol=symbol, confidence=confidence, last_price=price),
    symbols,
    st.sampled_from([0.2, 0.5, 0.5, 0.75, 1.0, 1.5]),
    st.floats(1, 2),
)
bots = st.dictionaries(
    st.sampled_from(["one", "two", "three"]),
    st.builds(
        lambda symbol, quantity: {"positions": [{"symbol": symbol, "qty": quantity, "avg": 2.0}]},
        symbols,
        st.integers(-3, 3),
    ),
)
parts = st.lists(st.tuples(st.lists(records, max_size=15), bots), min_size=1, max_size=5)


@given(parts, st.integers(1, 14), st.builds(random.Random, st.integers(0, 1_000)))
@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # each example has paths of its own
def test_many_parts_make_what_one_file_with_their_records_makes(
    redis_server: RedisServer, contents: list[tuple[list[Any], dict[str, Any]]], limit: int, order: random.Random
) -> None:
    """Many parts give the same snapshots, counts and rejects, or the same error, as one file with all their records.

    The order in which the parts are scanned makes no difference, and neither does the number of symbols that are kept
    of each.
    """
    with tempfile.TemporaryDirectory() as name:
        common = Settings(
            redis_url=redis_server.url,
            top_symbols_limit=min(limit, 4),
            index_symbols_limit=limit,
            output_dir=Path(name),
        )
        whole: dict[str, Any] = {"predictions": [], "bots": {}}
        for number, (listed, named) in enumerate(contents):
            write_json(Path(name, "parts", f"{number}.json"), {"predictions": listed, "bots": named})
            whole["predictions"] += listed
            whole["bots"] |= named
        write_json(Path(name, "one.json"), whole)
        one = replace(common, source="one", input=Path(name, "one.json"), output_dir=Path(name, "one"))
        many = replace(common, source="many", input=Path(name, "parts", "*.json"), output_dir=Path(name, "many"))

        try:
            expected = optimize(one, use_cache=False)
        except (NoRecords, TooManyRejected) as refused:
            with pytest.raises(type(refused)):
                by_the_fleet(many, order=order)
            return
        report = by_the_fleet(many, order=order, force=True)

        assert content_of(many) == content_of(one)
        assert report.stats is not None
        assert expected.stats is not None
        assert report.stats.records_seen == expected.stats.records_seen
        assert report.stats.records_rejected == expected.stats.records_rejected
        if limit >= 12:  # a symbol in two parts is noticed only if both keep its record
            assert report.stats.duplicates == expected.stats.duplicates
        assert [(one.reason, one.count) for one in report.rejects] == [
            (one.reason, one.count) for one in expected.rejects
        ]


# ---- a run


def test_the_parts_become_one_set_of_snapshots(three_parts: Settings, run: Run, redis_server: RedisServer) -> None:
    """Of several records of a symbol the best counts, of several bots of one name the last part's.

    Each reject names its part.
    """
    report = run(three_parts)

    assert (report.status, report.cache) == ("success", "published")
    assert report.stats is not None
    assert (report.stats.parts, report.stats.parts_scanned) == (3, 3)
    assert (report.stats.records_seen, report.stats.records_rejected, report.stats.duplicates) == (5, 1, 1)
    assert report.stats.input_bytes == sum(part(three_parts, name).stat().st_size for name in PARTS)
    contents = content_of(three_parts)
    assert [(one["symbol"], one["confidence"]) for one in contents["predictions"]["predictions"]] == [
        ("AAPL", 0.95),
        ("MSFT", 0.7),
        ("TSLA", 0.6),
    ]
    assert contents["bots"]["bots"]["one"]["equity"] == 2
    assert report.rejects[0].first[0].where.startswith(f"{part(three_parts, 'b')}: byte ")
    assert_redis_holds_the_files(redis_server, three_parts)
    assert_tidy(three_parts, redis_server)
    assert runs_of(redis_server, three_parts.source) == [report]
    assert run(three_parts).status == "unchanged"


def test_only_what_has_changed_is_scanned_again(three_parts: Settings, run: Run, redis_server: RedisServer) -> None:
    """Only a changed part is scanned; the results of the other parts come from Redis, where they stay for an hour.

    The old result of the changed part is deleted.
    """
    run(three_parts)
    with redis_server.client as client:
        first = set(client.keys(f"{Keys(three_parts.source).part('')}*"))
        write_json(part(three_parts, "c"), {"TSLA": a_record(confidence=0.99)})
        report = run(three_parts)
        second = set(client.keys(f"{Keys(three_parts.source).part('')}*"))
        lifetimes_s = [client.ttl(key) for key in second]

    assert report.stats is not None
    assert (report.stats.parts, report.stats.parts_scanned) == (3, 1)
    assert report.stats.input_bytes == part(three_parts, "c").stat().st_size
    assert [one["symbol"] for one in content_of(three_parts)["predictions"]["predictions"]] == ["TSLA", "AAPL", "MSFT"]
    assert len(first) == len(second) == 3
    assert len(first & second) == 2
    assert all(3_500 < lifetime_s <= 3_600 for lifetime_s in lifetimes_s)


def test_parts_come_and_go(three_parts: Settings, run: Run) -> None:
    """A new part is scanned, a part that is gone no longer counts, and no other part is read."""
    run(three_parts)
    part(three_parts, "b").unlink()
    gone = run(three_parts)
    write_json(part(three_parts, "d"), {"AMD": a_record(confidence=1.0)})
    come = run(three_parts)

    assert gone.stats is not None
    assert come.stats is not None
    assert (gone.stats.parts, gone.stats.parts_scanned) == (2, 0)
    assert (come.stats.parts, come.stats.parts_scanned) == (3, 1)
    best = content_of(three_parts)["predictions"]["predictions"]
    assert [(one["symbol"], one["confidence"]) for one in best[:2]] == [("AMD", 1.0), ("AAPL", 0.9)]


def test_force_scans_every_part(three_parts: Settings, run: Run) -> None:
    """A forced run scans every part, though their results are stored."""
    run(three_parts)
    report = optimize(three_parts, force=True) if run is optimize else by_the_fleet(three_parts, force=True)
    assert report.stats is not None
    assert report.stats.parts_scanned == 3


def test_what_is_lost_or_damaged_in_redis_is_scanned_again(three_parts: Settings, redis_server: RedisServer) -> None:
    """Parts whose results in Redis are lost or damaged are scanned again: a cache may lose anything.

    A new part makes the run read the results of the others.
    """
    optimize(three_parts)
    write_json(part(three_parts, "d"), {"AMD": a_record(confidence=1.0)})
    with redis_server.client as client:
        keys = sorted(client.keys(f"{Keys(three_parts.source).part('')}*"))
        client.delete(keys[0])
        client.set(keys[1], b"\x1f\x8bdamaged", ex=100)  # a key that never expires would be deleted unread
        client.set(keys[2], gzip.compress(b'{"records": 1}'), ex=100)

    report = optimize(three_parts)

    assert report.stats is not None
    assert (report.stats.parts, report.stats.parts_scanned) == (4, 4)
    best = content_of(three_parts)["predictions"]["predictions"]
    assert [one["symbol"] for one in best] == ["AMD", "AAPL", "MSFT", "TSLA"]


# ---- what goes wrong


def test_one_part_that_fails_fails_the_run_by_name(three_parts: Settings, run: Run, redis_server: RedisServer) -> None:
    """A part that cannot be read fails the run, which names it and publishes nothing.

    Once the part is good, the next run publishes a new version, and reads no part again that was already read.
    """
    before = run(three_parts)
    write_raw(part(three_parts, "b"), b'{"AAPL": {"confidence": 0.9,, }}')
    write_json(part(three_parts, "c"), {"TSLA": a_record(confidence=0.99)})

    with pytest.raises((PartFailed, SourceMalformed), match=rf"{part(three_parts, 'b')}: "):
        run(three_parts)

    assert content_of(three_parts)["predictions"]["predictions"][0]["symbol"] == "AAPL"
    assert runs_of(redis_server, three_parts.source)[0].status == "failed"
    assert_tidy(three_parts, redis_server)
    write_json(part(three_parts, "b"), [])
    report = run(three_parts)
    assert report.version is not None
    assert before.version is not None
    assert report.version > before.version
    assert report.stats is not None
    assert report.stats.parts_scanned == (2 if run is optimize else 1)  # one process stops at `b`, the first that fails


def test_many_failures_are_told_in_one_line(three_parts: Settings) -> None:
    """If five of eight parts fail, the error names the first three and counts the others."""
    for number in range(5):
        write_raw(part(three_parts, f"x{number}"), b"{")
    with pytest.raises(PartFailed, match=r"5 of 8 parts failed.*x0.*x1.*x2.*; and 2 more"):
        by_the_fleet(three_parts)


def test_a_pattern_that_matches_nothing_is_an_error(three_parts: Settings, run: Run) -> None:
    """A pattern that matches no file is `SourceMissing`; a part that is a broken link fails the run by its name."""
    with pytest.raises(SourceMissing, match=r"nothing-\*\.json matches no file"):
        run(replace(three_parts, input=local(three_parts.input).parent / "nothing-*.json"))
    part(three_parts, "d").symlink_to("nowhere")
    with pytest.raises(SourceError, match=r"d\.json\.gz"):
        run(three_parts)


def test_parts_without_a_usable_record_fail_the_run(three_parts: Settings, run: Run) -> None:
    """A run fails with `NoRecords` if no part has a usable record; one part may be empty, not all of them."""
    for name in PARTS:
        write_json(part(three_parts, name), {})
    with pytest.raises(NoRecords, match="holds no usable record"):
        run(three_parts)


def test_without_redis_the_whole_run_is_made_at_once(three_parts: Settings) -> None:
    """Without Redis no part can be dispatched, so the run scans all parts itself and writes the files."""
    away = replace(three_parts, redis_url="redis://127.0.0.1:1/0")
    report = by_the_fleet(away)
    assert (report.status, report.cache) == ("success", "down")
    assert optimize(away).status == "unchanged"


def test_snapshots_are_no_parts(three_parts: Settings, run: Run) -> None:
    """Snapshots that the input's pattern matches are not read as parts.

    They are often in the same directory as the input, and reading them would publish a version at every tick.
    """
    directory = local(three_parts.input).parent
    beside = replace(three_parts, output_dir=directory, input=directory / "**" / "*.json.gz")
    first = run(beside)
    assert first.stats is not None
    assert first.stats.parts == 3
    assert run(beside).status == "unchanged"


@pytest.mark.parametrize(
    "other", [{"fields": "+sector"}, {"bot_fields": "equity=balance"}, {"index_symbols_limit": 301}], ids=str
)
def test_results_of_workers_with_other_settings_are_not_mixed(three_parts: Settings, other: dict[str, Any]) -> None:
    """A run fails and names a part that was scanned by a worker with other settings, whichever of the two has them.

    With the same settings the run succeeds.
    """
    changed = replace(three_parts, **other)
    for settings, worker in ((three_parts, changed), (changed, three_parts)):
        with pytest.raises(PartFailed, match=r"a\.json\.gz: scanned by a worker with other settings .*ROLLING_FIELDS"):
            by_the_fleet(settings, worker=worker, force=True)
    assert by_the_fleet(changed, force=True).status == "success"


def test_extra_fields_come_with_the_parts(three_parts: Settings, run: Run) -> None:
    """Extra fields of parts reach the index through Redis, as other fields do; a record that lacks them has null."""
    directory = local(three_parts.input).parent
    write_json(directory / "a.json.gz", {"AAPL": {**a_record(confidence=0.99), "sector": "Tech", "stats": {"v": 7}}})
    settings = replace(three_parts, fields="+sector; +volume=stats.v")

    assert run(settings).status == "success"
    best, *others = content_of(settings)["index"]["symbols"]
    assert (best["symbol"], best["extra"]) == ("AAPL", {"sector": "Tech", "volume": 7})
    assert [record["extra"] for record in others] == [{"sector": None, "volume": None}] * len(others) != []
