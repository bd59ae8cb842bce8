"""Fields that are read where a mapping says: in every shape, with both engines; limits, rejects and extra fields."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import pytest

from optimizer.config.field_map import parse_mapping
from optimizer.models import Bot, Position, Record, Reject
from optimizer.models.field_map import InputMapping
from optimizer.scan.scanner import scan as scan_all
from optimizer.scan.scanner import scan_bot
from optimizer.selection.result import ScanResult
from optimizer.selection.top_n import Selection
from tests.support.engines import current
from tests.support.scanned import LIMIT

pytestmark = pytest.mark.usefixtures("engine")

PATHS = parse_mapping(
    "symbol=ticker; prediction=predictions.1d.prediction; confidence=predictions.1d.confidence/100;"
    "last_price=quote.close; +sector; +volume=stats.volume"
)
RECORD: dict[str, Any] = {
    "curves": [1, {"quote": {"close": 7}}],
    "predictions": {"1d": {"prediction": 1.5, "confidence": 90, "debug": {"x": [1]}}, "5d": {"prediction": 9}},
    "quote": {"book": [1, 2], "close": 5},
    "sector": "Tech",
    "stats": {"volume": 7, "quote": {"close": 8}},
}
EXPECTED = [Record(symbol, 1.5, 0.9, 5.0, extra_fields={"sector": "Tech", "volume": 7}) for symbol in ("A", "B")]


def result_of(text: str, mapping: InputMapping, step: int = 1 << 20) -> ScanResult:
    """Return the result of a scan of the text in chunks of `step` bytes."""
    data = text.encode()
    result = ScanResult(Selection(10))
    chunks = (data[start : start + step] for start in range(0, len(data), step))
    for event in scan_all(chunks, current(), max_record_bytes=LIMIT, mapping=mapping):
        result.take(event)
    return result


def records(text: str, fields: str) -> tuple[list[Record], list[Reject]]:
    """Return the records, and the first reject of each reason, with `fields` as `ROLLING_FIELDS`."""
    result = result_of(text, parse_mapping(fields))
    return result.part_result().records, [tally.first[0] for tally in result.tallies()]


def detail(record: dict[str, Any], fields: str) -> str:
    """Return the reason and the details for which one record is rejected."""
    _, rejects = records(json.dumps({"A": record}), fields)
    return f"{rejects[0].reason}: {rejects[0].details}"


@pytest.mark.parametrize("step", [1, 7, 64, 1 << 20])
@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"A": RECORD, "B": RECORD}),
        json.dumps({"predictions": {"A": RECORD, "B": RECORD}}),
        json.dumps({"symbols": [{"ticker": "A", **RECORD}, {**RECORD, "ticker": "B"}]}),
        json.dumps([{"ticker": "A", **RECORD}, {**RECORD, "ticker": "B"}]),
        "\n".join(json.dumps({"ticker": symbol, **RECORD}) for symbol in "AB"),
        "\n".join(json.dumps({**RECORD, "ticker": symbol}) for symbol in "AB"),
        "\n".join(json.dumps({"quote": RECORD["quote"], "ticker": symbol, **RECORD}) for symbol in "AB"),
        json.dumps([{"ticker": "A", **RECORD}, {**RECORD, "ticker": "B"}], indent=9).replace("quote", "\\u0071uote"),
    ],
    ids=["map", "section", "section array", "array", "lines", "symbol last", "symbol amid", "escaped"],
)
def test_every_shape(text: str, step: int) -> None:
    """Mapped fields are read in every shape, in chunks of any size.

    Names of sections inside a record, and names of kept objects elsewhere, change nothing.
    """
    result = result_of(text, PATHS, step)
    assert result.part_result().records == EXPECTED
    assert (result.records_seen, result.records_rejected, result.extras_dropped) == (2, 0, 0)


class TestNames:
    """The member that a field is read from."""

    def test_no_name_by_default_is_tried(self) -> None:
        """With `last_price=close`, a record without `close` is rejected: none of the default names is tried."""
        given = {"prediction": 1, "confidence": 1, "last_price": 2, "last": 3, "price": 4}
        assert detail(given, "last_price=close") == "LastPriceInvalid: close is missing, expected a number above 0"

    def test_a_member_belongs_to_one_field(self) -> None:
        """A member that the mapping reads, or an object on its path, is not also read under its default name."""
        given = {"prediction": 1, "confidence": 1, "price": 4, "target_price": "x", "sentiment": {"score": 5}}
        (record,), _ = records(
            json.dumps({"A": given | {"close": 2}}), "last_price=close; +target=target_price; stop_loss=sentiment.score"
        )
        assert record == Record("A", 1, 1, 2, "neutral", None, 5.0, extra_fields={"target": "x"})

    def test_the_key_of_a_map_is_the_symbol(self) -> None:
        """In a map the key is the symbol; a mapped symbol that differs from it is counted but not used."""
        given = {"prediction": 1, "confidence": 1, "last_price": 2}
        text = json.dumps({"A": {**given, "ticker": "B"}, "C": {**given, "ticker": "C"}, "D": {**given, "symbol": "E"}})
        result = result_of(text, parse_mapping("symbol=ticker"))
        assert [record.symbol for record in result.part_result().records] == ["A", "C", "D"]
        assert result.symbols_ignored == 1

    @pytest.mark.parametrize("name", ["__class__", "import os", "record", "symbol0", "class", "x:y", "'", "{}", "%s"])
    def test_any_name_is_only_a_name(self, name: str) -> None:
        """Any name may be mapped, also one with a meaning in Python or in our code, such as `__class__` or `record`."""
        given = {name: 1.5, "confidence": 1, "last_price": 2, "o": {name: "x"}}
        (record,), _ = records(json.dumps({"A": given}), f"prediction={name}; +x=o.{name}")
        assert (record.prediction, record.extra) == (1.5, {"x": "x"})

    def test_lines_need_the_mapped_symbol(self) -> None:
        """With `symbol=ticker`, a line that has `symbol` instead is rejected as a record without a symbol."""
        line = '{"%s":"A","prediction":1,"confidence":1,"last_price":2}\n'
        found, rejects = records(line % "ticker" + line % "symbol", "symbol=ticker")
        assert [record.symbol for record in found] == ["A"]
        assert rejects[0].details == "ticker is missing, expected text of at most 256 characters"


class TestRejects:
    """Rejects name the path and the limits that the user knows."""

    @pytest.mark.parametrize(
        ("record", "fields", "said"),
        [
            (
                {"score": 101},
                "confidence=score/100",
                "ConfidenceInvalid: score is 101, expected a number from 0 to 100",
            ),
            ({"score": -1}, "confidence=score/100", "ConfidenceInvalid: score is -1, expected a number from 0 to 100"),
            ({"p": {"x": 0}}, "last_price=p.x", "LastPriceInvalid: p.x is 0, expected a number above 0"),
            ({"p": {"x": "1"}}, "prediction=p.x", "PredictionInvalid: p.x is '1', expected a finite number"),
            ({"p": {}}, "prediction=p.x", "PredictionInvalid: p.x is missing, expected a finite number"),
            ({"p": None}, "prediction=p.x", "PredictionInvalid: p.x is missing, expected a finite number"),
            ({"p": 5}, "prediction=p.x", "PredictionInvalid: p is 5, expected an object"),
            ({"p": {"q": [1]}}, "prediction=p.q.x", "PredictionInvalid: p.q is [], expected an object"),
            ({"p": 5}, "target_price=p.x", "FieldTypeInvalid: p is 5, expected an object"),
            (
                {"t": "now"},
                "timestamp=t/1000",
                "FieldTypeInvalid: t is 'now', expected a number from -1e+103 to 1e+103",
            ),
            ({"w": 1e-300}, "last_price=w/1e18", "expected a number above 0, from 1e-82 to 1e+118"),
            (
                {"w": 1e300},
                "target_price=w/1e-30",
                "FieldTypeInvalid: w is 1e+300, expected a number from -1e+70 to 1e+70",
            ),
        ],
    )
    def test_reasons(self, record: dict[str, Any], fields: str, said: str) -> None:
        """A reject has the reason that it has by default; its details have the mapped name and undivided limits."""
        assert said in detail({"prediction": 1, "confidence": 1, "last_price": 2, **record}, fields)

    @pytest.mark.parametrize(("value", "confidence"), [(0, 0), (100, 1), (1e-300, 1e-302), (33, 0.33), (None, None)])
    def test_limits_are_inclusive(self, value: float | None, confidence: float | None) -> None:
        """With `score/100`, 0 and 100 are accepted and the quotient is exact to the last digit; null is rejected."""
        given = {"prediction": 1, "score": value, "last_price": 2}
        found, _ = records(json.dumps({"A": given}), "confidence=score/100")
        assert [record.confidence for record in found] == ([] if confidence is None else [confidence])

    def test_a_divided_number_may_be_null(self) -> None:
        """An optional field with a divisor may be null or missing, as it may without one."""
        given = {"prediction": 1, "confidence": 1, "last_price": 2, "t": None, "stop": 250}
        (record,), _ = records(json.dumps({"A": given}), "target_price=t/100; stop_loss=stop/100; timestamp=o.t/1000")
        assert (record.target_price, record.stop_loss, record.timestamp) == (None, 2.5, None)


class TestExtraFields:
    """Extra fields, which are passed on unchanged."""

    @pytest.mark.parametrize("value", ["", "é", "x" * 1_024, 0, 10**30, -1.5, True, False, None])
    def test_passed_on(self, value: Any) -> None:
        """The value of an extra field is passed on with its type; a null or missing one is null."""
        given = {"prediction": 1, "confidence": 1, "last_price": 2, "s": value, "o": {"s": value}}
        result = result_of(json.dumps({"A": given}), parse_mapping("+s; +t=o.s; +u"))
        (record,) = result.part_result().records
        assert record.extra == {"s": value, "t": value, "u": None}
        assert list(map(type, record.extra.values())) == [type(value), type(value), type(None)]
        assert result.extras_dropped == 0

    @pytest.mark.parametrize("value", ['"%s"' % ("x" * 1_025), "[1]", "{}", '{"a":1}', "1e999", '"\\ud800"'])
    def test_no_record_is_lost(self, value: str) -> None:
        """An extra value that cannot be passed on becomes null and is counted, and no record is rejected for it."""
        good = '"prediction":1,"confidence":1,"last_price":2,"t":5'
        result = result_of(
            f'{{"A":{{{good},"s":1}},"B":{{{good},"s":{value}}},"C":{{{good}}}}}', parse_mapping("+s; +t")
        )
        assert [dict(record.extra) for record in result.part_result().records] == [
            {"s": 1, "t": 5},
            {"s": None, "t": 5},
            {"s": None, "t": 5},
        ]
        assert (result.extras_dropped, result.records_rejected) == (1, 0)
        assert result.part_result().extras_dropped == 1

    def test_none_without_a_mapping(self) -> None:
        """Without a mapping, the extra fields of a record are an empty mapping."""
        (record,), _ = records('{"A":{"prediction":1,"confidence":1,"last_price":2,"sector":"x"}}', "")
        assert dict(record.extra) == {}


class TestBots:
    """Mapped fields of bots, positions and bot files."""

    MAPPING = parse_mapping(
        "",
        "equity=account.balance.total; positions=account.holdings",
        "quantity=size.amount; avg_price=cost/100; symbol=id.s",
    )
    BOT: ClassVar[dict[str, Any]] = {
        "enabled": True,
        "equity": "unread",
        "account": {
            "balance": {"total": 10},
            "holdings": [{"id": {"s": "A"}, "size": {"amount": 3, "unit": [1]}, "cost": 250, "quantity": "unread"}],
        },
    }
    EXPECTED = Bot("b", enabled=True, equity=10.0, position_count=1, positions=(Position("A", 3.0, 2.5),))

    def test_paths(self) -> None:
        """Mapped paths of a bot and of its positions are read in a section, and in a bot file."""
        assert result_of(json.dumps({"bots": {"b": self.BOT}}), self.MAPPING).bots == [self.EXPECTED]
        data = json.dumps(self.BOT).encode()
        assert scan_bot([data], "b", max_record_bytes=LIMIT, mapping=self.MAPPING) == self.EXPECTED

    def test_rejects_name_the_path(self) -> None:
        """The reject of a bot names the mapped path: of its positions, of their fields, and of its own fields."""
        for account, said in (
            ({"holdings": "x"}, "account.holdings is 'x', expected a list, a map or a count"),
            ({"holdings": [{"id": {"s": "A"}}]}, "position 'A': size.amount is missing, expected a finite number"),
            ({"balance": 5}, "account.balance is 5, expected an object"),
        ):
            result = result_of(json.dumps({"bots": {"b": {"account": account}}}), self.MAPPING)
            assert said in result.tallies()[0].first[0].details

    def test_bots_without_a_known_field_are_counted(self) -> None:
        """Bots without any field that is read are counted, since they show defaults and may have other names."""
        bots = {"a": {"balance": 5, "enabled": None}, "b": {"equity": 5}, "c": {"positions": 0}, "d": {}}
        result = result_of(json.dumps({"bots": bots}), parse_mapping())
        assert [bot.has_fields for bot in result.bots] == [False, True, True, False]
        assert result.bots_without_fields == result.rejected.bots.without_fields == 2
        mapped = result_of(json.dumps({"bots": bots}), parse_mapping("", "equity=balance"))
        assert [bot.has_fields for bot in mapped.bots] == [True, False, True, False]


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_a_root_that_names_its_symbol_last_after_deep_objects(step: int) -> None:
    """A root object whose symbol comes last is one record, and its members are no records.

    This holds however many levels of the members a mapped path keeps.
    """
    deep = {"p": {"1d": {"z": 0.5, "y": 1}}, "q": {"x": 2.0}, "ticker": "B"}
    text = json.dumps({"A": deep, "B": deep, "p": {"1d": {"y": 3, "z": 50}}, "q": {"x": 4}, "ticker": "R"})
    mapping = parse_mapping("symbol=ticker; prediction=p.1d.y; confidence=p.1d.z/100; last_price=q.x")
    result = result_of(text, mapping, step)
    assert [(record.symbol, record.prediction, record.confidence) for record in result.selection.finish()] == [
        ("R", 3.0, 0.5)
    ]
    assert (result.records_seen, result.records_rejected) == (1, 0)
