"""A whole run against an outside oracle: `json.loads`, `sorted` and `fractions`, over random rolling files.

The oracle reads the whole file at once and knows nothing of chunks, pruning or structs; it is written from the contract
(docs/design.md, Input), not from the code.
"""

from __future__ import annotations

import gzip
import json
import math
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import event, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from optimizer import Settings, optimize
from optimizer.config.field_map import parse_mapping
from optimizer.errors import NoBots, NoRecords, RollingError, TooManyRejected
from optimizer.models import Report
from optimizer.models.field_map import UNMAPPED, FieldMap, InputMapping
from tests.support.examples import examples
from tests.support.rolling_files import local
from tests.support.strategies import MAPPING_TEXTS, OVERLONG, rolling_files

pytestmark = pytest.mark.slow

FILES = ("rolling_optimized.json.gz", "bots_snapshot.json.gz", "portfolio_snapshot.json.gz")
# Far from the length of anything else in the files, so that the oracle need not count bytes exactly.
MAX_RECORD_BYTES = OVERLONG - 5_000


class Pairs(list[tuple[str, Any]]):
    """The members of a JSON object in the order in which `json.loads` read them; a name may occur twice."""


class Bad:
    """The type of `BAD`, which is read at a path on which a value is not an object."""


BAD = Bad()
NAMES = {
    "last_price": ("last_price", "last", "price"),
    "quantity": ("quantity", "qty"),
    "avg_price": ("avg_price", "avg", "entry_price"),
}


@dataclass(frozen=True)
class Places:
    """The places of the fields of one kind: by default, or as a mapping names them."""

    field_map: FieldMap

    def paths(self, name: str) -> list[tuple[str, ...]]:
        """The paths of a field, in the order in which they are tried."""
        for item in self.field_map.fields:
            if item.name == name:
                return [item.path]
        return [(key,) for key in NAMES.get(name, (name,)) if key not in self.field_map.claimed]

    def divisor(self, name: str) -> float:
        """The number by which a field is divided."""
        return next((item.divisor for item in self.field_map.fields if item.name == name), 1.0)

    def value(self, given: Pairs, name: str) -> Any:
        """The first value of a field that is not null; `BAD` if a value on its path is not an object."""
        return next((value for path in self.paths(name) if (value := at(given, path)) is not None), None)

    def number(self, given: Pairs, name: str) -> float | None:
        """The number of a field after its division; values that are not numbers were rejected before."""
        value = self.value(given, name)
        return None if value is None else float(value) / self.divisor(name)


def at(given: Any, path: tuple[str, ...]) -> Any:
    """The value at a path."""
    for name in path:
        if given is None:
            return None
        if not isinstance(given, Pairs):
            return BAD
        given = dict(given).get(name)
    return given


@dataclass
class Oracle:
    """The result that a run over a file should have."""

    mapping: InputMapping
    records: list[dict[str, Any]] = field(default_factory=list)
    bots: dict[str, dict[str, Any]] = field(default_factory=dict)
    bots_used: int = 0  # every occurrence counts
    rejects: Counter[str] = field(default_factory=Counter)
    symbols_ignored: int = 0
    extras_dropped: int = 0
    lines: bool = False

    @property
    def refusal(self) -> type[RollingError] | None:
        """The error with which a run without `accept` has to fail, or None."""
        bots_rejected = self.rejects["BotInvalid"]
        if not self.records:
            return NoRecords
        if bots_rejected and not self.bots_used:
            return NoBots
        if self.records_rejected > len(self.records) or bots_rejected > self.bots_used:
            return TooManyRejected
        return None

    @property
    def records_rejected(self) -> int:
        """The number of rejects, without rejected bots."""
        return sum(count for reason, count in self.rejects.items() if reason != "BotInvalid")

    def predictions(self, limit: int, min_confidence: float) -> list[dict[str, Any]]:
        """The best record of each symbol, and of these the best `limit` with at least `min_confidence`."""
        best: dict[str, dict[str, Any]] = {}
        for record in self.records:
            held = best.get(record["symbol"])
            if held is None or record["confidence"] > held["confidence"]:
                best[record["symbol"]] = record
        ranked = sorted(best.values(), key=lambda record: (-record["confidence"], record["symbol"]))
        return [record for record in ranked if record["confidence"] >= min_confidence][:limit]

    def holdings(self) -> list[dict[str, Any]]:
        """Net quantities, and the average cost of the side that remains."""
        positions = [position for bot in self.bots.values() for position in bot["held"]]
        found = []
        for symbol in sorted({symbol for symbol, _, _ in positions}):
            trades = [(_exact(quantity), price) for name, quantity, price in positions if name == symbol]
            net = sum((quantity for quantity, _ in trades), Fraction(0))
            side = [(quantity, _exact(price)) for quantity, price in trades if quantity * net > 0 and price is not None]
            weight = sum(quantity for quantity, _ in side)
            cost = sum(quantity * price for quantity, price in side)
            if net:
                found.append({"symbol": symbol, "qty": float(net), "avg": float(cost / weight) if side else None})
        return found

    def shown_bots(self) -> dict[str, dict[str, Any]]:
        """Bots as their snapshot shows them."""
        return {name: {key: bot[key] for key in bot if key != "held"} for name, bot in self.bots.items()}


def predict(text: str, mapping: InputMapping = UNMAPPED) -> Oracle:
    """Read a whole file, whatever its shape."""
    oracle = Oracle(mapping)
    for root in _texts(text):
        if isinstance(root, Pairs):
            _root_object(oracle, root)
        elif isinstance(root, list):
            for element in root:
                _record(oracle, element, None)
        else:
            oracle.rejects["RecordNotObject"] += 1
    return oracle


def _texts(text: str) -> Iterator[Any]:
    """The JSON texts of a file, one after another."""
    decoder = json.JSONDecoder(
        object_pairs_hook=Pairs,
        parse_constant=lambda _: None,
        parse_int=lambda digits: int(digits) if len(digits) < 1_000 else math.inf,
    )
    text = text.removeprefix("\ufeff").strip()
    while text:
        root, end = decoder.raw_decode(text)
        yield root
        text = text[end:].lstrip()


def _root_object(oracle: Oracle, root: Pairs) -> None:
    (symbol_path,) = Places(oracle.mapping.records).paths("symbol")
    if any(key == symbol_path[0] and isinstance(value, str) for key, value in root):
        oracle.lines = True
        _record(oracle, root, None)
        return
    sections = [key for key, value in root if key in SECTIONS and value is not None]
    names = [key for key, _ in root if key not in SECTIONS]
    tells = any(key in _telling(oracle) or (oracle.lines and not key.startswith("_")) for key in names)
    if tells and not sections and not any(isinstance(value, Pairs) for _, value in root):
        # Not a map, but a line that lacks its symbol.
        oracle.lines = True
        _record(oracle, root, None)
        return
    for key, value in root:
        if key in ("predictions", "symbols"):
            if isinstance(value, Pairs):
                for symbol, body in value:
                    _record(oracle, body, symbol)
            elif isinstance(value, list):
                for body in value:
                    _record(oracle, body, None)
            else:
                oracle.rejects["RecordNotObject"] += value is not None
        elif key in ("bots", "_bots"):
            for name, body in value if isinstance(value, Pairs) else []:
                _bot(oracle, body, name)
            oracle.rejects["BotInvalid"] += not isinstance(value, Pairs) and value not in (None, [])
        elif isinstance(value, Pairs) and not key.startswith("_"):
            _record(oracle, value, key)


SECTIONS = ("predictions", "symbols", "bots", "_bots")
FIELDS = ("symbol", "prediction", "confidence", "last_price", "sentiment", "target_price", "stop_loss")


def _telling(oracle: Oracle) -> set[str]:
    """The names of members that only a record has; `timestamp` is not among them, since a map has it too."""
    paths = [path for name in FIELDS for path in Places(oracle.mapping.records).paths(name)]
    return {path[0] for path in paths if len(path) == 1}


def _is_bad(value: Any) -> bool:
    """Whether a value is text that is not valid Unicode."""
    return isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value)


def _record(oracle: Oracle, value: Any, symbol: str | None) -> None:
    if not isinstance(value, Pairs):
        oracle.rejects["RecordNotObject"] += 1
        return
    places = Places(oracle.mapping.records)
    own = places.value(value, "symbol")
    name = own if symbol is None else symbol
    numbers = {key: places.value(value, key) for key in ("prediction", "last_price", "target_price", "stop_loss")}
    confidence, stamp, mood = (places.value(value, key) for key in ("confidence", "timestamp", "sentiment"))
    texts = (at(value, path) for key in (*FIELDS, "timestamp") for path in places.paths(key))
    is_text = places.divisor("timestamp") == 1 and isinstance(stamp, str)
    reasons = {
        "RecordTooLarge": _is_overlong(value) or (symbol is not None and len(symbol) >= OVERLONG),
        "TextInvalid": any(map(_is_bad, (symbol, *texts))),
        "SymbolMissing": not isinstance(name, str),
        "ConfidenceInvalid": not (_is_number(confidence) and 0 <= confidence <= places.divisor("confidence")),
        "PredictionInvalid": not _is_number(numbers["prediction"]),
        "LastPriceInvalid": not (_is_number(numbers["last_price"]) and float(numbers["last_price"]) > 0),
        "FieldTypeInvalid": not (
            (mood is None or isinstance(mood, str))
            and all(
                numbers[key] is None or _fits(numbers[key], places.divisor(key))
                for key in ("target_price", "stop_loss")
            )
            and (stamp is None or is_text or _is_number(stamp))
        ),
    }
    for reason, holds in reasons.items():
        if holds:
            oracle.rejects[reason] += 1
            return
    oracle.symbols_ignored += symbol is not None and own not in (None, symbol)
    record = {
        "symbol": name,
        "prediction": places.number(value, "prediction"),
        "confidence": places.number(value, "confidence"),
        "last_price": places.number(value, "last_price"),
        "sentiment": "neutral" if mood is None else mood,
        "target_price": places.number(value, "target_price"),
        "stop_loss": places.number(value, "stop_loss"),
        "timestamp": stamp,
    }
    if oracle.mapping.records.extras:
        record["extra"] = {extra.name: _extra(oracle, value, extra.path) for extra in oracle.mapping.records.extras}
    oracle.records.append(record)


def _extra(oracle: Oracle, value: Pairs, path: tuple[str, ...]) -> Any:
    """The value of an extra field; a value that cannot be passed on is counted, and becomes null."""
    given = at(value, path)
    if isinstance(given, str) and not _is_bad(given) and len(given) <= 1_024:
        return given
    if given is None or isinstance(given, bool | int) or (isinstance(given, float) and math.isfinite(given)):
        return given
    oracle.extras_dropped += 1
    return None


def _bot(oracle: Oracle, value: Any, name: str) -> None:
    places = Places(oracle.mapping.bots)
    given_positions = places.value(value, "positions") if isinstance(value, Pairs) else None
    held = _positions(given_positions, Places(oracle.mapping.positions)) if isinstance(value, Pairs) else None
    if not isinstance(value, Pairs) or held is None or _is_overlong(value):
        oracle.rejects["BotInvalid"] += 1
        return
    enabled, stamp = places.value(value, "enabled"), places.value(value, "last_updated")
    numbers = [places.value(value, key) for key in ("equity", "pnl_today")]
    if not (
        (enabled is None or isinstance(enabled, bool))
        and all(number is None or _is_number(number) for number in numbers)
        and (stamp is None or isinstance(stamp, str) or _is_number(stamp))
        and not (_is_bad(name) or _is_bad(stamp))
    ):
        oracle.rejects["BotInvalid"] += 1
        return
    oracle.bots_used += 1
    oracle.bots[name] = {
        "enabled": bool(enabled),
        "equity": places.number(value, "equity"),
        "pnl_today": places.number(value, "pnl_today"),
        "positions": given_positions if isinstance(given_positions, int) else len(held),
        "last_updated": stamp,
        "held": held,
    }


def _positions(value: Any, places: Places) -> list[tuple[str, Any, Any]] | None:
    """Symbol, quantity and cost of each position; `None` if one of them is invalid."""
    if value is None or (_is_number(value) and isinstance(value, int) and value >= 0):
        return []
    if isinstance(value, Pairs):
        listed: list[tuple[Any, Any]] = list(dict(value).items())
    elif isinstance(value, list):
        listed = [(places.value(body, "symbol") if isinstance(body, Pairs) else None, body) for body in value]
    else:
        return None
    found = []
    for symbol, body in listed:
        fields = body if isinstance(body, Pairs) else Pairs()
        quantity, price = places.value(fields, "quantity"), places.value(fields, "avg_price")
        if (
            not isinstance(symbol, str)
            or _is_bad(symbol)
            or not _is_number(quantity)
            or not (price is None or _is_number(price))
        ):
            return None
        found.append((symbol, places.number(fields, "quantity"), places.number(fields, "avg_price")))
    return found


def _fits(value: Any, divisor: float) -> bool:
    """Whether a value is a number that may be divided: the quotient is bounded, so that it is finite."""
    return _is_number(value) and (divisor == 1 or abs(float(value)) <= 1e100 * divisor)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _is_overlong(fields: Pairs) -> bool:
    return any(len(text) >= OVERLONG for member in fields for text in member if isinstance(text, str))


def _exact(number: float) -> Fraction:
    """The decimal number that was written, not the binary one nearby."""
    return Fraction(repr(number))


def _write(path: Path, data: bytes, places: list[int]) -> None:
    """Write gzip with members that end at these offsets."""
    places = sorted({min(place, len(data)) for place in places})
    path.write_bytes(
        b"".join(
            gzip.compress(data[begin:end], 1) for begin, end in zip([0, *places], [*places, len(data)], strict=True)
        )
    )


def _compare(oracle: Oracle, settings: Settings, report: Report, data: bytes) -> None:
    shown = [json.loads(gzip.decompress((local(settings.output_dir) / name).read_bytes())) for name in FILES]
    stamps = {snapshot.pop("timestamp") for snapshot in shown}
    predictions = oracle.predictions(settings.top_symbols_limit, settings.min_confidence)
    assert stamps == {report.timestamp}
    assert shown[0] == {"predictions": predictions, "count": len(predictions)}
    assert shown[1] == {"bots": oracle.shown_bots()}
    assert shown[2] == {"holdings": oracle.holdings()}
    assert report.stats is not None
    assert {tally.reason.value: tally.count for tally in report.rejects} == dict(+oracle.rejects)
    assert (
        report.stats.records_seen,
        report.stats.records_rejected,
        report.stats.bots_seen,
        report.stats.bots_rejected,
        report.stats.duplicates,
        report.stats.symbols_ignored,
        report.stats.extras_dropped,
        report.stats.predictions_extracted,
        report.stats.bots_processed,
        report.stats.portfolio_holdings,
        report.stats.json_bytes,
        report.stats.input_bytes,
    ) == (
        len(oracle.records) + oracle.records_rejected,
        oracle.records_rejected,
        oracle.bots_used + oracle.rejects["BotInvalid"],
        oracle.rejects["BotInvalid"],
        len(oracle.records) - len({record["symbol"] for record in oracle.records}),
        oracle.symbols_ignored,
        oracle.extras_dropped,
        len(predictions),
        len(oracle.bots),
        len(oracle.holdings()),
        len(data),
        local(settings.input).stat().st_size,
    )


def _check(
    text: str, texts: tuple[str, str, str], *, limit: int, more: int, min_confidence: float, places: list[int]
) -> None:
    """Do a run over a file, as gzip of several members, and compare what it publishes with the oracle."""
    data = text.encode("utf-8", "surrogateescape")
    oracle = predict(text, parse_mapping(*texts))
    with tempfile.TemporaryDirectory() as directory:
        settings = Settings(
            input=Path(directory, "rolling_brain.json.gz"),
            output_dir=Path(directory, "snapshots"),
            top_symbols_limit=limit,
            index_symbols_limit=limit + more,
            min_confidence=min_confidence,
            max_record_bytes=MAX_RECORD_BYTES,
            fields=texts[0],
            bot_fields=texts[1],
            position_fields=texts[2],
        )
        _write(local(settings.input), data, places)

        refusal = oracle.refusal
        if refusal is not None:
            event(refusal.__name__)
            with pytest.raises(refusal):
                optimize(settings, use_cache=False, accept=refusal is NoRecords)
            assert not any((local(settings.output_dir) / name).exists() for name in FILES)
            if refusal is NoRecords:
                return
        event(f"{min(len(oracle.records), 10)} records")
        _compare(oracle, settings, optimize(settings, use_cache=False, accept=refusal is not None), data)


LIMITS: dict[str, st.SearchStrategy[Any]] = {
    "limit": st.integers(1, 6),
    "more": st.sampled_from([0, 1, 100]),
    "min_confidence": st.sampled_from([0.0, 0.5, 0.5, 0.75, 1.0]),
    "places": st.lists(st.integers(0, 2_000), max_size=3),
}


@hypothesis_settings(max_examples=examples(250))
@given(text=rolling_files(), **LIMITS)
def test_snapshots_are_those_of_the_oracle(
    text: str, limit: int, more: int, min_confidence: float, places: list[int]
) -> None:
    """For any file, the three snapshots, the counts and the rejects equal those of plain `json.loads` and `sorted`.

    Given a random file of any shape, as gzip of several members,
    When a run reads it,
    Then it publishes what the oracle found. If too much of the file is rejected, it publishes nothing, unless `accept`
    is set; without a usable record it never publishes.
    """
    _check(text, ("", "", ""), limit=limit, more=more, min_confidence=min_confidence, places=places)


@hypothesis_settings(max_examples=examples(250))
@given(
    mapped=st.sampled_from(MAPPING_TEXTS).flatmap(
        lambda texts: st.tuples(st.just(texts), rolling_files(parse_mapping(*texts)))
    ),
    **LIMITS,
)
def test_snapshots_of_fields_of_their_own_are_those_of_the_oracle(
    mapped: tuple[tuple[str, str, str], str], limit: int, more: int, min_confidence: float, places: list[int]
) -> None:
    """If a mapping names the places of the fields, snapshots, counts and rejects equal the oracle's too.

    Extra fields are in every snapshot that has records.
    """
    texts, text = mapped
    _check(text, texts, limit=limit, more=more, min_confidence=min_confidence, places=places)
