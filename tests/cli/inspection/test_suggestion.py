"""Suggested lines of settings: the parser accepts them, they fit names and types, and improve on those in force."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from optimizer import Settings
from optimizer.cli.inspection.paths import UnitStats
from optimizer.cli.inspection.report import BOTS, POSITIONS, RECORDS, UnitReport, report_on
from optimizer.cli.inspection.suggestion import UnitKind, fit, read_from
from optimizer.cli.inspection.synonyms import BOT_NAMES, EXTRA_NAMES, POSITION_NAMES, RECORD_NAMES, normalized
from tests.support.examples import examples

KINDS = {"fields": RECORDS, "bot_fields": BOTS, "position_fields": POSITIONS}


def stats_of(*units: dict[str, Any]) -> UnitStats:
    """Return the statistics of these units."""
    stats = UnitStats()
    for unit in units:
        stats.take(unit)
    return stats


def report(*units: dict[str, Any], kind: UnitKind = RECORDS, text: str = "", keyed: bool = True) -> UnitReport:
    """Return the report on these units."""
    return report_on(kind, text, stats_of(*units), keyed=keyed)


KNOWN = sorted(
    {name for table in (RECORD_NAMES, BOT_NAMES, POSITION_NAMES) for names in table.values() for name in names}
)
names = st.one_of(
    st.sampled_from([*KNOWN, *EXTRA_NAMES]),
    st.sampled_from(["lastPrice", "Last Price", "stop-loss", "TIMESTAMP", "Market Cap"]),
    st.sampled_from(
        ["a.b", "price/2", "x=y", "+name", 'quo"te', "back\\slash", "semi;colon", "é", "", " ", "last ", "k" * 80]
    ),
    st.text(max_size=6),
)
plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 200),
    st.floats(),
    st.sampled_from(["", "up", "x" * 1_100, "0.5", "\udc80"]),
)
values = st.recursive(
    plain, lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(names, inner, max_size=4)), max_leaves=8
)
some_units = st.lists(st.dictionaries(names, values, max_size=8), min_size=1, max_size=4)
lines = st.sampled_from(
    [
        "",
        "last_price=close",
        "confidence=score/100; +name",
        "+price; last_price=px",
        "timestamp=a.b; prediction=forecast",
    ]
)


@given(units=some_units, variable=st.sampled_from(list(KINDS)), line=lines, keyed=st.booleans())
@example(units=[{"positions": {"accountvalue": 0}}], variable="bot_fields", line="", keyed=False)
@hypothesis_settings(max_examples=examples(300), deadline=None)
def test_a_suggested_line_is_accepted_as_it_is(
    units: list[dict[str, Any]], variable: str, line: str, *, keyed: bool
) -> None:
    """A suggested line is accepted unchanged, whatever the names and values, and reads at least the fields read before.

    Each new item names a path that is there, with values of the field's type.
    """
    kind = KINDS[variable]
    text = line if kind is RECORDS else ""
    stats = stats_of(*units)
    suggested = report_on(kind, text, stats, keyed=keyed).suggested

    if suggested is not None:
        Settings.from_env({kind.variable: suggested}, strict=True)
        before, after = kind.parse(text), kind.parse(suggested)
        assert after != before
        assert read_from(kind, before, stats).keys() <= read_from(kind, after, stats).keys()
        fields = {field.name: field for field in kind.fields}
        for item in set(after.fields) - set(before.fields):
            assert fit(fields[item.name], stats.paths[item.path], item.divisor) >= 0.5
        assert all(extra.path in stats.paths for extra in set(after.extras) - set(before.extras))


def test_names_in_force_need_no_line() -> None:
    """No line is suggested if each required field is read already."""
    found = report({"prediction": 1.5, "confidence": 0.5, "price": 2.0}, {"prediction": 2, "confidence": 1, "price": 3})
    assert found.suggested is None
    assert {path.path: path.used_as for path in found.paths} == {
        "prediction": "prediction",
        "confidence": "confidence",
        "price": "last_price",
    }
    assert found.missing == []
    assert found.absent == [field.name for field in RECORDS.fields if not field.required]


def test_other_names_paths_and_percent_are_found() -> None:
    """Fields with other names, on nested paths and in percent are suggested, as in the documentation's example.

    Known extra fields are suggested too.
    """
    unit = {
        "name": "Apple",
        "predictions": {"1d": {"prediction": 201.5, "confidence": 87}, "5d": {"prediction": 1.0, "confidence": 50}},
        "quote": {"close": 200.0},
        "sector": "Tech",
        "volume": 5,
        "internal": "x",
    }
    found = report(unit)
    assert found.suggested == (
        "prediction=predictions.1d.prediction; confidence=predictions.1d.confidence/100; last_price=quote.close; "
        "+name; +sector; +volume"
    )
    assert {path.path: path.suggested_as for path in found.paths if path.suggested_as} == {
        "name": "+name",
        "predictions.1d.prediction": "prediction",
        "predictions.1d.confidence": "confidence",
        "quote.close": "last_price",
        "sector": "+sector",
        "volume": "+volume",
    }


@pytest.mark.parametrize(
    ("confidences", "item"),
    [
        ([0.1, 0.9], None),
        ([1, 0], None),
        ([87, 12.5, 100], "confidence=confidence/100"),
        ([87, 60, 0.5], "confidence=confidence/100"),
        ([870, 120], None),
        ([-5, -60], None),
        (["0.9", "0.8"], None),
        ([True], None),
    ],
)
def test_percent_is_told_by_its_values(confidences: list[Any], item: str | None) -> None:
    """Percent is recognised by its values; a field under its own name is suggested only if a divisor helps."""
    found = report(*({"prediction": 1, "last": 2, "confidence": value} for value in confidences))
    assert found.suggested == item
    fits = item is not None or all(
        type(value) is not bool and type(value) is not str and 0 <= value <= 1 for value in confidences
    )
    assert found.missing == ([] if fits else ["confidence (a number from 0 to 1)"])


def test_a_type_that_contradicts_is_never_suggested() -> None:
    """Text under the name of a number, and a value of another type under the name of a text, are never suggested."""
    found = report({"prediction": 1, "confidence": 0.5, "close": "12.5", "px": 12.5, "signal": 3, "sector": {"id": 1}})
    assert found.suggested == "last_price=px"
    mixed = [{"prediction": 1, "confidence": 0.5, "close": value} for value in (12.5, 13, None, 14.5, "n/a")]
    assert report(*mixed).suggested is None
    assert report(*mixed[:4]).suggested == "last_price=close"


def test_a_field_that_would_reject_its_record_becomes_an_extra_field() -> None:
    """A numeric sentiment, for which a record would be rejected, is suggested as an extra field.

    As an extra field the member is no longer read as the sentiment.
    """
    found = report({"prediction": 1, "confidence": 0.5, "last": 1, "sentiment": 0.25})
    assert found.suggested == "+raw_sentiment=sentiment"


def test_records_without_keys_need_a_symbol() -> None:
    """For records without keys a synonym of `symbol` is suggested or its lack is reported; keyed records need none."""
    unit = {"ticker": "A", "prediction": 1, "confidence": 0.5, "last": 1}
    assert report(unit, keyed=False).suggested == "symbol=ticker"
    assert report(unit, keyed=True).suggested is None
    assert report({"id": 5}, keyed=False).missing[0] == "symbol (text of at most 256 characters)"


def test_items_in_force_stay_and_those_that_read_nothing_are_replaced() -> None:
    """A suggested line has the items in force that read something, so it can replace the one in force.

    An item that reads nothing is replaced.
    """
    unit = {"prediction": 1, "score": 0.5, "close": 3.0, "desk": "emea"}
    found = report(unit, text="last_price=gone; +desk; confidence=score")
    assert found.suggested == "confidence=score; last_price=close; +desk"


def test_bots_and_positions_have_lines_of_their_own() -> None:
    """Bots and positions get suggested lines of their own, from the names that other engines use."""
    bot = {"active": True, "balance": 10.5, "dailyPnl": -1, "holdings": [{}], "updatedAt": "2026-01-01"}
    position = {"ticker": "A", "size": 5, "entryPrice": 3.5}
    assert report(bot, kind=BOTS).suggested == (
        "enabled=active; equity=balance; pnl_today=dailyPnl; last_updated=updatedAt; positions=holdings"
    )
    assert (
        report(position, kind=POSITIONS, keyed=False).suggested == "symbol=ticker; quantity=size; avg_price=entryPrice"
    )
    assert report(position, kind=POSITIONS, keyed=True).suggested == "quantity=size; avg_price=entryPrice"


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_field_has_synonyms_that_are_compared_as_they_are_written(kind: UnitKind) -> None:
    """The first synonym of each field is its own name, and all synonyms are in normalized form.

    A synonym with an underscore or a capital would never be found.
    """
    assert {field.name for field in kind.fields} == set(kind.names)
    for field, synonyms in kind.names.items():
        assert synonyms[0] == normalized(field)
        assert list(synonyms) == [normalized(name) for name in dict.fromkeys(synonyms)]
