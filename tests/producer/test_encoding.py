"""Records as JSON: each value is written as it is given; one that JSON cannot express is named, never replaced."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from array import array
from decimal import Decimal
from enum import Enum
from types import SimpleNamespace
from typing import Any, cast

import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from optimizer.errors import RecordUnwritable
from optimizer.producer.encoding import encode_bots, encode_key, encode_record, symbol_of
from tests.support.examples import examples

TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(["null", ",null,", "[NaN]", ":Infinity,"])
FINITE = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
NOT_FINITE = [math.nan, math.inf, -math.inf]


class Float64(float):
    """A float of another library, like numpy.float64."""


def trees(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner), max_leaves=10)


def has_bad_number(value: Any) -> bool:
    """The oracle: whether a number in a tree is not finite."""
    if isinstance(value, dict):
        return any(map(has_bad_number, value.values()))
    if isinstance(value, list | tuple):
        return any(map(has_bad_number, value))
    return isinstance(value, float) and not math.isfinite(value)


class AStruct(msgspec.Struct):
    """A record as a struct."""

    history: list[Any]


@dataclasses.dataclass
class ADataclass:
    """A record as a dataclass."""

    history: list[Any]


@attrs.define
class AnAttrsClass:
    """A record as a class of attrs."""

    history: list[Any]


def a_member(value: object) -> Enum:
    """A member of an enumeration, which msgspec writes as its value."""
    return next(iter(cast("type[Enum]", Enum("Side", {"BUY": value}))))


@hypothesis_settings(max_examples=examples(100))
@given(st.dictionaries(TEXTS, trees(FINITE | st.sampled_from(NOT_FINITE))))
def test_a_record_is_written_as_it_is_or_refused(record: dict[str, Any]) -> None:
    """The JSON of a record decodes to the same record; a record with a number that is not finite is refused.

    That holds wherever the number is in the record.
    """
    if has_bad_number(record):
        with pytest.raises(RecordUnwritable, match=r"is -?(nan|inf), which JSON has no number for"):
            encode_record("AAPL", record)
    else:
        assert json.loads(encode_record("AAPL", record)) == record


@pytest.mark.parametrize(
    "number", [*NOT_FINITE, Decimal("NaN"), Decimal("-sNaN"), Decimal("NaN123"), Decimal("Infinity"), Decimal("-Inf")]
)
@pytest.mark.parametrize(
    ("make", "path"),
    [
        (lambda number: {"prediction": number}, "prediction"),
        (lambda number: {"last": None, "history": [{"t": 1}, {"rsi": number, "x": None}]}, "history[1].rsi"),
        (lambda number: {"note": '"null"', "pairs": ((1, None), (2, number))}, "pairs[1][1]"),
        (lambda number: AStruct([number]), "history[0]"),
        (lambda number: ADataclass([{"": [number]}]), "history[0].[0]"),
        (lambda number: {"inner": AStruct([None, number])}, "inner.history[1]"),
        (lambda number: {"attrs": AnAttrsClass([None, number])}, "attrs.history[1]"),
        (lambda number: {"side": a_member((number, None))}, "side[0]"),
        (lambda number: {"side": a_member(number)}, "side"),
    ],
)
def test_a_number_that_is_not_finite_is_named_with_its_path(number: Any, make: Any, path: str) -> None:
    """The error for a number that is not finite names symbol, path and value.

    That holds for floats and decimals, in all types of which a record may be made.
    """
    with pytest.raises(RecordUnwritable, match=re.escape(f"'AAPL': {path} is {number}, which JSON")):
        encode_record("AAPL", make(number))


def test_none_and_the_words_for_it_in_text_are_no_errors() -> None:
    """None, and text that looks like a token of JSON, are written without an error, in every type of container."""
    for value in (None, "null", ",null,", ":NaN,", "[Infinity]"):
        for holder in ({"a": value}, {"a": [(value,), {value}]}, AStruct([value]), ADataclass([{"x": value}])):
            assert b"NaN" not in encode_record("AAPL", holder) or "NaN" in str(value)


def test_decimals_are_numbers() -> None:
    """A price that is a decimal is written as a number with the same digits."""
    assert encode_record("AAPL", {"last_price": Decimal("101.50"), "low": None}) == b'{"last_price":101.50,"low":null}'


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (object(), "'AAPL': history[1].x is <object object"),
        (Float64(1.5), "'AAPL': history[1].x is 1.5 (tests.producer.test_encoding.Float64)"),
        (array("q", [0, 1]), "'AAPL': history[1].x is array('q', [0, 1]) (array.array)"),
        ("\ud800", r"'AAPL': history[1].x is '\ud800' (str)"),
        ({(1,): 2}, "'AAPL': history[1].x is {(1,): 2} (dict)"),
        ({Decimal("1.5"): 2}, "'AAPL': history[1].x is {Decimal('1.5'): 2} (dict)"),
        (msgspec.Raw(b"[1"), "'AAPL': history[1].x is <msgspec.Raw object"),
    ],
)
def test_a_value_that_cannot_be_encoded_is_named_with_its_path(value: Any, shown: str) -> None:
    """The error for a value that cannot be encoded names symbol, path, value and type, and says what to do."""
    with pytest.raises(RecordUnwritable, match=re.escape(shown) + r".*convert it to what JSON has"):
        encode_record("AAPL", {"prediction": 1, "history": [{"x": 1}, {"x": value}]})


def test_a_record_whose_own_keys_are_no_text_is_named() -> None:
    """A record whose keys are decimals, as in an order book, is refused by its symbol.

    msgspec writes decimals as keys without quotes.
    """
    with pytest.raises(RecordUnwritable, match=r"'AAPL' \(dict\): it has a key .* that JSON has no form for"):
        encode_record("AAPL", {Decimal("1.5"): 2})


def test_a_record_that_contains_itself_is_named() -> None:
    """A record with a list that contains itself is refused by the list's path, without endless recursion."""
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(RecordUnwritable, match=r"'AAPL': history is \[\[\.\.\.\]\] \(list\)"):
        encode_record("AAPL", {"history": endless})


@pytest.mark.parametrize("record", [None, 3, "text", [1], math.nan])
def test_a_record_that_is_no_object_is_refused(record: Any) -> None:
    """A record that is not an object is refused, since a scan would reject it or take it for metadata."""
    with pytest.raises(
        RecordUnwritable, match=f"'AAPL' is a {type(record).__name__}, and a record has to be an object"
    ):
        encode_record("AAPL", record)


@pytest.mark.parametrize("name", [None, 3, "", "\udc80"])
def test_a_name_that_is_no_text_is_refused(name: Any) -> None:
    """A name of a record or a bot that is empty or is not valid text is refused, and shown as it was given."""
    for encode in (encode_key, lambda name: encode_bots({name: {}})):
        with pytest.raises(RecordUnwritable, match=re.escape(repr(name))):
            encode(name)


def test_a_symbol_is_an_item_or_an_attribute() -> None:
    """The symbol is an item of a dict, or an attribute of an object.

    The error for a record without a symbol names the record's number and type.
    """
    assert symbol_of({"symbol": "AAPL"}, 0) == symbol_of(SimpleNamespace(symbol="AAPL"), 0) == "AAPL"
    wrong: list[object] = [{}, {"symbol": None}, {"symbol": 3}, {"symbol": ""}, ("AAPL", {}), "AAPL"]
    for record in wrong:
        with pytest.raises(RecordUnwritable, match=rf"record 1,234 \({type(record).__name__}\) has"):
            symbol_of(record, 1234)


def test_a_bot_is_named_like_a_record() -> None:
    """The error for a number that is not finite in a bot names the bot, the path and the value."""
    assert json.loads(encode_bots({"a": {"equity": 1}, "b": {}})) == {"a": {"equity": 1}, "b": {}}
    with pytest.raises(RecordUnwritable, match=r"'b': positions\[0\].avg is nan"):
        encode_bots({"a": {}, "b": {"positions": [{"avg": math.nan}]}})
