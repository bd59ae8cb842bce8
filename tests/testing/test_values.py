"""How `optimizer.testing` makes versions of a test's values, and refuses values that no version can have."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from typing import Any

import msgspec
import pytest

from optimizer import BotSummary, Holding, Record, SnapshotMissing, testing
from optimizer.errors import SettingsInvalid
from optimizer.models import Rejected, Units

RECORD = {"symbol": "AAPL", "prediction": 101.5, "confidence": 0.75, "last_price": 100.0}


def test_structs_and_mappings_are_the_same() -> None:
    """Structs and mappings give equal versions; a field that a mapping lacks has the default of the input."""
    bot = BotSummary(enabled=False, equity=10.5, pnl_today=None, positions=0, last_updated=None)
    with (
        closing(
            testing.reader(
                predictions=[Record("AAPL", 101.5, 0.75, 100.0)],
                bots={"a": bot},
                portfolio=[Holding("AAPL", 2.0, None)],
            )
        ) as structs,
        closing(
            testing.reader(predictions=[RECORD], bots={"a": {"equity": 10.5}}, portfolio=[{"symbol": "AAPL", "qty": 2}])
        ) as mappings,
    ):
        whole = structs.snapshot()
        assert whole.predictions.predictions == mappings.snapshot().predictions.predictions
        assert whole.bots.bots == mappings.snapshot().bots.bots == {"a": bot}
        assert whole.portfolio.holdings == mappings.snapshot().portfolio.holdings == [Holding("AAPL", 2.0, None)]


def test_a_record_may_have_extra_fields() -> None:
    """A record may have extra fields, as a struct or as a mapping with the member `extra`, as in JSON."""
    given = RECORD | {"extra": {"sector": "Tech", "volume": 5}}
    for record in (given, msgspec.convert(given, Record)):
        with closing(testing.reader(predictions=[record])) as reader:
            assert reader.predictions().value.predictions[0].extra == {"sector": "Tech", "volume": 5}


def test_a_publish_keeps_what_it_does_not_change() -> None:
    """A publish keeps the values and the origin that it does not change.

    Number, age, counts of rejects and unreadable parts are new: by default the version has the next number, is not
    stale, has no rejects, and every part of it can be read.
    """
    with closing(testing.reader(predictions=[RECORD], bots={"a": {}}, origin="files", version=5, stale=True)) as reader:
        assert (reader.manifest().stale, reader.manifest().origin) == (True, "files")
        assert 90 < reader.manifest().age_s < 120
        assert reader.publish(bots={}) == 6
        whole = reader.snapshot()
        assert (len(whole.predictions.predictions), whole.bots.bots) == (1, {})
        assert (whole.version, whole.origin, whole.stale) == (6, "files", False)
        lost = Rejected(records=Units(9, 8), bots=Units())
        assert reader.publish(version=9, origin="redis", age_s=20, rejected=lost) == 9
        state = reader.manifest()
        assert (state.version, state.origin, state.rejected) == (9, "redis", lost)
        assert 20 <= state.age_s < 60
        reader.publish(generated_at="2026-11-01T10:00:00Z", predictions=[])
        assert reader.snapshot().generated_at == reader.predictions().value.timestamp == "2026-11-01T10:00:00Z"
        assert reader.predictions().rejected == Rejected(records=Units(), bots=Units())
        reader.publish(bots={"b": {}}, unreadable=["bots"])
        assert reader.bots().version == 10  # the last one that is whole
        assert reader.publish() == reader.bots().version == 12
        assert reader.bots().value.bots.keys() == {"b"}


def test_what_is_equal_keeps_its_etag() -> None:
    """A kind with an equal value keeps its ETag, as between real versions; each publish makes a new version."""
    with closing(testing.reader(predictions=[RECORD], bots={"alpha": {}})) as reader:
        before = (reader.predictions().etag, reader.bots().etag, reader.portfolio().etag)
        reader.publish()
        assert (reader.predictions().etag, reader.bots().etag, reader.portfolio().etag) == before
        assert reader.predictions().version == 2
        reader.publish(bots={"alpha": {"equity": 1.0}})
        assert (reader.predictions().etag, reader.portfolio().etag) == (before[0], before[2])
        assert reader.bots().etag != before[1]


def test_there_may_be_no_version_yet() -> None:
    """A reader with `missing=True` raises `SnapshotMissing` until the first publish."""
    with closing(testing.reader(missing=True, source="intraday")) as reader:
        with pytest.raises(SnapshotMissing, match="no snapshot of 'intraday'"):
            reader.predictions()
        reader.publish()
        assert reader.predictions().value.predictions == []


def test_files_with_a_part_that_cannot_be_read_are_no_version() -> None:
    """Files with an unreadable part are no version, like a set of real files that is not whole.

    In Redis, the other parts are still shown.
    """
    with closing(testing.reader(predictions=[RECORD], origin="files", unreadable=["bots"])) as reader:
        with pytest.raises(SnapshotMissing, match="no snapshot of"):
            reader.predictions()
        reader.publish(origin="redis", unreadable=["bots"])
        assert reader.predictions().value.count == 1


def test_an_index_is_of_one_version() -> None:
    """A lookup for a version that is no longer current finds no index, as in Redis after the version has expired."""
    with closing(testing.reader(predictions=[RECORD], version=7)) as reader:
        redis = reader.follower.redis
        assert redis.records(7, ["AAPL"]) == reader.top(1).value
        assert redis.records(6, ["AAPL"]) is None
        assert redis.ranked(6, 1, 0) is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"predictions": [RECORD, {"symbol": "B"}]}, r"predictions\[1\]: Object missing required field `prediction`"),
        ({"predictions": [RECORD | {"confidence": 75}]}, r"predictions\[0\].confidence=75: Expected `float` <= 1.0"),
        ({"predictions": [RECORD | {"last_price": "1"}]}, r"predictions\[0\].last_price='1': Expected `float`, got"),
        ({"predictions": [RECORD | {"stop_loss": "1"}]}, r"predictions\[0\].stop_loss='1': Expected `float`, got"),
        ({"predictions": [RECORD | {"price": 1}]}, r"predictions\[0\]: a Record has no price; its fields are symbol, "),
        ({"predictions": [Record("A", 1.0, 75.0, 1.0)]}, r"predictions\[0\].confidence=75.0: Expected `float` <= 1.0"),
        ({"predictions": ["AAPL"]}, r"predictions\[0\] is 'AAPL', and has to be a Record or a mapping"),
        ({"predictions": [RECORD, RECORD]}, "the symbol 'AAPL' is there twice"),
        ({"predictions": [RECORD], "index": [RECORD]}, "the symbol 'AAPL' is there twice"),
        (
            {"predictions": [RECORD], "index": [RECORD | {"symbol": "B", "confidence": 0.8}]},
            "index: 'B' comes before the prediction 'AAPL'",
        ),
        ({"bots": {"a": {"equity": float("nan")}}}, r"bots\['a'\].equity=nan is not a finite number"),
        ({"bots": [{"equity": 1.0}]}, r"bots=\[\{'equity': 1.0\}\] has to be a mapping of names to bots"),
        ({"bots": {"a": {"positions": [1]}}}, r"bots\['a'\]: Expected `int`, got `array` - at `\$.positions`"),
        ({"portfolio": [{"symbol": "A", "quantity": 1}]}, r"portfolio\[0\]: a Holding has no quantity"),
        ({"portfolio": [Holding("A", 1.0, None)] * 2}, "portfolio: the symbol 'A' is there twice"),
        ({"stale": True, "age_s": 5}, r"age_s=5 and stale=True: a version is stale after 90 s"),
        ({"stale": False, "age_s": 100}, r"age_s=100 and stale=False: a version is stale after 90 s"),
        ({"age_s": -1}, "age_s=-1 and"),
        ({"version": 0}, "version=0 is not above 0, the current one: versions rise"),
        ({"origin": "moon"}, "origin='moon': it can be redis, files"),
        ({"unreadable": ["index"]}, "unreadable='index': it can be predictions, bots, portfolio"),
        (
            {"generated_at": "2026-11-01T10:00:00"},
            "generated_at='2026-11-01T10:00:00' is not ISO 8601 with a time zone",
        ),
        ({"missing": True, "bots": {}}, "missing=True: there is no version that could have bots"),
    ],
)
def test_a_value_that_no_version_can_have_is_refused(values: dict[str, Any], message: str) -> None:
    """A value that no version can have is refused with its place, and with what it can be."""
    with pytest.raises(SettingsInvalid, match=message):
        testing.reader(**values)


def test_a_publish_that_is_refused_changes_nothing() -> None:
    """After a publish that is refused, the version before it stays current, with its values."""
    with closing(testing.reader(predictions=[RECORD])) as reader:
        with pytest.raises(SettingsInvalid):
            reader.publish(predictions=[], bots={"a": {"enabled": 1}})
        assert reader.manifest().version == 1
        reader.publish()
        assert len(reader.predictions().value.predictions) == 1


@pytest.mark.slow
def test_importing_it_starts_nothing_and_needs_no_pytest() -> None:
    """Importing `optimizer.testing` starts no thread and adds no log handler, and does not import pytest.

    It does not import Celery, FastAPI or ijson either. Users' tests import it, under any test runner.
    """
    program = (
        "import sys, threading, logging, optimizer.testing; "
        "print(sorted({'pytest', 'celery', 'fastapi', 'ijson'} & set(sys.modules)), threading.active_count(), "
        "logging.getLogger().handlers)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[] 1 []\n"
