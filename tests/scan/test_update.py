"""Updates as a caller gives them: the same results as a scan of a file of these records, and clear errors."""

from __future__ import annotations

import json
import math
from collections import UserDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.config.field_map import parse_mapping
from optimizer.errors import SettingsInvalid, SourceMalformed, SourceTorn, UpdatesRefused
from optimizer.models import Record, Reject, RejectReason
from optimizer.models.field_map import UNMAPPED, InputMapping
from optimizer.scan.fragment import shown
from optimizer.scan.scanner import scan_items
from optimizer.scan.update import Update, read_update
from tests.support.engines import current
from tests.support.examples import examples

pytestmark = pytest.mark.usefixtures("engine")

GOOD = {"prediction": 1.5, "confidence": 0.9, "last_price": 3}
LIMIT = 40
# Only overlong text comes near it: `json` and msgspec may write one number with different numbers of bytes.
MAX_BYTES = 20_000
# A renamed field, one inside an object, one that is divided, and two extra fields.
MAPPED = parse_mapping("symbol=ticker; prediction=p.value; confidence=score/100; +sector; +deep=p.more.x", "", "")


def read(records: Any, remove: Iterable[str] = (), *, limit: int = LIMIT, mapping: InputMapping = UNMAPPED) -> Update:
    return read_update(records, remove, current(), limit=limit, max_record_bytes=MAX_BYTES, mapping=mapping)


def scanned(document: Any, mapping: InputMapping) -> list[Any]:
    """Write the document by `json`, scan it, and return the items without the places of rejects."""
    items = scan_items([json.dumps(document).encode()], current(), max_record_bytes=MAX_BYTES, mapping=mapping)
    return [without_place(item) for item in items]


def without_place(item: Any) -> Any:
    if not isinstance(item, Reject):
        return item
    return item.reason, item.name, "" if item.reason is RejectReason.TOO_LARGE else item.details


def in_order(update: Update, count: int) -> list[Any]:
    """Return records and rejects in the order of the call, which the numbers of the rejects give."""
    rejects = {int(reject.where.removeprefix("record ").replace(",", "")): reject for reject in update.rejects}
    records = iter(update.records)
    items = [without_place(rejects[number]) if number in rejects else next(records) for number in range(1, count + 1)]
    assert not list(records)
    return items


# ---- the same results as a scan

numbers = st.integers() | st.floats() | st.sampled_from([10**30, -(10**400), 1 << 64, 0, 1, 0.5, 0.9, 90])
texts = st.text(st.characters(), max_size=6) | st.sampled_from(["\ud800", "A", "x" * 300, "x" * 1_100, "x" * 40_000])
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
NAMES = (*Record.__struct_fields__[:-1], "last", "price", "ticker", "score", "p", "sector", "value", "more", "x", "_p")
fields = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(NAMES, values)
    | {"confidence": st.floats(0, 1), "prediction": numbers, "last_price": st.floats(0, 9)},
)
good_fields = st.builds(
    lambda symbol, more: {**GOOD, "symbol": symbol, "ticker": symbol, "score": 90, "p": {"value": 2}, **more},
    texts,
    fields,
)
records_given = good_fields | fields | values


@settings(max_examples=examples(50))
@given(mapping=st.sampled_from([UNMAPPED, MAPPED]), given_records=st.lists(records_given, max_size=8))
def test_a_list_gives_what_a_scan_of_a_file_of_it_gives(mapping: InputMapping, given_records: list[Any]) -> None:
    """A list of any values gives the records that a scan of a file of it gives, with both engines.

    Rejects have the same reasons, names and details.
    """
    update = read(given_records, mapping=mapping)
    assert in_order(update, len(given_records)) == scanned(given_records, mapping)


@settings(max_examples=examples(50))
@given(mapping=st.sampled_from([UNMAPPED, MAPPED]), given_records=st.dictionaries(texts, records_given, max_size=8))
def test_a_mapping_gives_what_a_scan_of_a_section_of_it_gives(
    mapping: InputMapping, given_records: dict[str, Any]
) -> None:
    """A mapping gives the records and rejects that a scan of a file with it as a section gives.

    Its keys are the symbols, whatever text they are.
    """
    if isinstance(given_records.get("ticker" if mapping is MAPPED else "symbol"), str):
        return  # one record, which is refused
    update = read(given_records, mapping=mapping)
    assert in_order(update, len(given_records)) == scanned({"predictions": given_records}, mapping)


@settings(max_examples=examples(30))
@given(given_records=st.lists(records_given, max_size=8))
def test_json_gives_what_a_scan_of_it_gives(given_records: list[Any]) -> None:
    """JSON, as bytes, text or a buffer, gives the same records and rejects as a scan of it.

    Rejects have the same byte offsets.
    """
    data = json.dumps(given_records).encode()
    items = list(scan_items([data], current(), max_record_bytes=MAX_BYTES))
    for document in (data, bytearray(data), memoryview(data), data.decode()):
        update = read(document)
        assert update.records == [item for item in items if isinstance(item, Record)]
        assert update.rejects == [item for item in items if isinstance(item, Reject)]


# ---- what is accepted


class AStruct(msgspec.Struct, rename={"price": "last_price"}):
    """A record of an engine that has its own structs, with a field of another name."""

    symbol: str
    prediction: Decimal
    confidence: float
    price: float


@dataclass
class ADataclass:
    """A record of an engine that has dataclasses, with a decimal and a datetime."""

    symbol: str
    prediction: float
    confidence: float
    last_price: Decimal
    timestamp: datetime


def test_structs_dataclasses_and_other_mappings_are_records() -> None:
    """Structs, dataclasses and mappings of other types are read as their JSON is, with decimals as numbers."""
    at = datetime(2026, 1, 2, tzinfo=UTC)
    update = read(
        [
            AStruct("A", Decimal("1.25"), 0.9, 3),
            ADataclass("B", 1.5, 0.9, Decimal("2.5"), at),
            UserDict({"symbol": "C", **GOOD}),
            {"symbol": "D", **GOOD, "history": [UserDict({"x": Decimal(1)}), at]},
        ]
    )
    assert update.rejects == []
    assert [(record.symbol, record.prediction, record.last_price) for record in update.records] == [
        ("A", 1.25, 3),
        ("B", 1.5, 2.5),
        ("C", 1.5, 3),
        ("D", 1.5, 3),
    ]
    assert update.records[1].timestamp == "2026-01-02T00:00:00Z"


def test_a_symbol_may_come_several_times_and_the_order_stays() -> None:
    """Records of the same symbol are all kept, in the order of the call.

    A call is a sequence: which record counts is decided where it is applied. A removal that is repeated is kept once.
    """
    update = read(
        [{"symbol": name, **GOOD, "confidence": 1 / place} for place, name in enumerate("ABA", 1)], ["X", "X"]
    )
    assert [(record.symbol, record.confidence) for record in update.records] == [("A", 1), ("B", 0.5), ("A", 1 / 3)]
    assert update.removed == ["X"]


@pytest.mark.parametrize("nothing", [(), [], {}, iter(()), b"[]", "{}", b""])
def test_nothing_is_an_update_of_nothing(nothing: Any) -> None:
    """An empty list, mapping, iterator or JSON text is an update without content, and no error."""
    assert read(nothing) == ([], [], [])


# ---- what is rejected


@pytest.mark.parametrize(
    ("record", "reason", "details"),
    [
        (5, RejectReason.NOT_AN_OBJECT, "expected an object, got a number"),
        (None, RejectReason.NOT_AN_OBJECT, "expected an object, got null"),
        (("A", GOOD), RejectReason.NOT_AN_OBJECT, "expected an object, got an array"),
        ("A", RejectReason.NOT_AN_OBJECT, "expected an object, got a string"),
        (GOOD, RejectReason.SYMBOL, "symbol is missing, expected text of at most 256 characters"),
        ({**GOOD, "symbol": "A", "confidence": math.nan}, RejectReason.CONFIDENCE, "confidence is missing, expected"),
        ({**GOOD, "symbol": "A", "prediction": math.inf}, RejectReason.PREDICTION, "prediction is missing, expected"),
        ({**GOOD, "symbol": "A", "prediction": 10**400}, RejectReason.PREDICTION, "prediction is 1000"),
        ({**GOOD, "symbol": "A\ud800"}, RejectReason.TEXT, r"symbol is not valid text: 'A\ud800'"),
        (
            {**GOOD, "symbol": "A", "x": "x" * MAX_BYTES},
            RejectReason.TOO_LARGE,
            "raise that if such records are wanted",
        ),
        ({**GOOD, "symbol": "A", "x": object()}, RejectReason.FIELD_TYPE, "it cannot be written as JSON: "),
        ({**GOOD, "symbol": "A", "x": 10**5_000}, RejectReason.FIELD_TYPE, "it cannot be written as JSON: "),
        ({**GOOD, "symbol": "A", "x": {(1, 2): 3}}, RejectReason.FIELD_TYPE, "it cannot be written as JSON: "),
        (object(), RejectReason.FIELD_TYPE, "it cannot be written as JSON: "),
    ],
)
def test_each_record_that_cannot_be_used_is_named(record: Any, reason: RejectReason, details: str) -> None:
    """A record that cannot be used is rejected by its number, with the reason that a scan has; the others are kept."""
    update = read([{"symbol": "F", **GOOD}, record, {"symbol": "G", **GOOD}])
    assert [record.symbol for record in update.records] == ["F", "G"]
    (reject,) = update.rejects
    assert (reject.reason, reject.where) == (reason, "record 2")
    assert details in reject.details
    named = isinstance(record, dict) and "symbol" in record and reason is not RejectReason.TOO_LARGE
    assert reject.name == (record["symbol"].replace("\ud800", "\ufffd") if named else None)


def test_a_list_that_contains_itself_is_rejected() -> None:
    """A record with a list that contains itself is rejected, since Python would write it for ever."""
    circle: list[Any] = []
    circle.append(circle)
    (reject,) = read([{"symbol": "A", **GOOD, "x": circle}]).rejects
    assert (reject.reason, reject.name) == (RejectReason.FIELD_TYPE, "A")


@pytest.mark.parametrize("key", [5, None, b"A", ("A",), 1.5])
def test_a_key_that_is_not_text_is_rejected(key: Any) -> None:
    """A key that is not text rejects its record, though `json` would write some of them as text."""
    update = read({"A": GOOD, key: GOOD, "": GOOD})
    assert [record.symbol for record in update.records] == ["A", ""]
    (reject,) = update.rejects
    assert reject == Reject(
        RejectReason.SYMBOL, None, "record 2", f"symbol is {shown(key)}, expected text of at most 256 characters"
    )


# ---- what is refused


def test_more_than_the_limit_is_refused_and_an_endless_generator_is_not_read_on() -> None:
    """More records and removals together than the limit are refused, also if some of them are rejected.

    An endless iterator is read up to one more than the limit.
    """
    taken = 0

    def endless() -> Iterator[Any]:
        nonlocal taken
        while True:
            taken += 1
            yield {"symbol": f"S{taken}", **GOOD} if taken % 2 else None

    with pytest.raises(UpdatesRefused, match=r"more than 5 records and removals .* ROLLING_UPDATE_RECORDS_LIMIT"):
        read(endless(), ["X", "Y"], limit=5)
    assert taken == 4

    def endless_symbols() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield f"S{taken}"

    taken = 0
    with pytest.raises(UpdatesRefused):
        read([], endless_symbols(), limit=5)
    assert taken == 6

    many = [{"symbol": f"S{number}", **GOOD} for number in range(6)]
    for given_records in (many, {record["symbol"]: GOOD for record in many}, json.dumps(many)):
        assert len(read(given_records, limit=6).records) == 6
        with pytest.raises(UpdatesRefused):
            read(given_records, limit=5)
        with pytest.raises(UpdatesRefused):
            read(given_records, ["X"], limit=6)


@pytest.mark.parametrize(
    ("records", "remove", "message"),
    [
        ([{"symbol": "A", **GOOD}], ["A"], "'A' is in records and in remove"),
        ([], "AAPL", "remove='AAPL' is not a list of symbols"),
        ([], None, "remove=None is not a list of symbols"),
        ([], {"A": 1}, "is not a list of symbols"),
        ([], ["A", 5], "remove: number 2: the symbol is 5, expected text of at most 256 characters"),
        ([], ["\ud800"], "remove: number 1: the symbol is not valid text"),
        ([], ["x" * 257], "remove: number 1: the symbol has 257 characters"),
        (5, (), "records=5 is neither a list of records, nor a mapping"),
        (None, (), "records=None is neither a list"),
        ({"symbol": "A", **GOOD}, (), "records is one record; give a list"),
        (b'{"bots":{"b":{"equity":1}}}', (), "a section of bots"),
        (b'{"bots":[1]}', (), "a section of bots"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(records: Any, remove: Any, message: str) -> None:
    """A wrong argument is `SettingsInvalid`, with a message that names the argument and what is wrong with it."""
    with pytest.raises(SettingsInvalid) as caught:
        read(records, remove)
    assert message in str(caught.value)


def test_json_that_is_malformed_or_ends_early_is_refused_as_in_a_scan() -> None:
    """Malformed JSON is `SourceMalformed` with the byte, and JSON that ends early is `SourceTorn`, as in a scan."""
    with pytest.raises(SourceMalformed, match="malformed JSON at byte 2"):
        read(b"[{nonsense}]")
    with pytest.raises(SourceTorn, match="ends early"):
        read(b'[{"symbol":"A"')


@pytest.mark.parametrize(
    ("raw", "message"), [(b"[" * 1_000 + b"]" * 1_000, "nested deeper than 1,000"), (b"nonsense", "malformed JSON")]
)
def test_a_record_that_is_malformed_or_nested_too_deep_is_named(raw: bytes, message: str) -> None:
    """A record that is malformed or nested too deep is `SourceMalformed`, which names its number.

    A scan of such a file stops there too.
    """
    with pytest.raises(SourceMalformed, match=f"record 2: .*{message}"):
        read(iter([{"symbol": "A", **GOOD}, {"symbol": "B", **GOOD, "x": msgspec.Raw(raw)}, {"symbol": "C", **GOOD}]))


def test_the_errors_of_the_callers_iterator_are_its_own() -> None:
    """An exception of the caller's iterator is raised unchanged, and not as an error of ours."""

    def failing() -> Iterator[Any]:
        yield {"symbol": "A", **GOOD}
        raise LookupError("theirs")

    with pytest.raises(LookupError, match="theirs"):
        read(failing())
