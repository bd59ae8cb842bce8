"""One unit of pruned JSON in, one record or bot out, or the reason why not. Pure.

A record takes the fast way, straight into a struct. Whatever does not fit there takes the slow way, over a dict, which
alone decides between malformed (`SourceMalformed`, the run stops) and rejected (`Reject`, the stream goes on), and for
which reason. The reasons are tried in a fixed order: size, symbol, confidence, prediction, last price, other fields.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from optimizer.pieces import SHOWN_CHARACTERS, Piece, malformed, shown
from optimizer.records import Bot, Position, Record, Reject, RejectReason

__all__ = ["MAX_SYMBOL_CHARACTERS", "MAX_TEXT_CHARACTERS", "decode_bot", "decode_record", "where"]

MAX_INTEGER: Final = 2**63 - 1
# Kept text is held for every record of the index, so it has to be short; the longest tickers have 30 characters.
MAX_SYMBOL_CHARACTERS: Final = 256
MAX_TEXT_CHARACTERS: Final = 1_024
# Of quantities and costs: no sum or product of any number of positions comes near the largest float.
MAX_MAGNITUDE: Final = 1e100
# Python refuses to read longer integers (sys.int_info.default_max_str_digits); as a float they are infinite anyway.
MAX_DIGITS: Final = 4_300

PRICE_FIELDS: Final = ("last_price", "last", "price")
QUANTITY_FIELDS: Final = ("quantity", "qty")
COST_FIELDS: Final = ("avg_price", "avg", "entry_price")


class _Fields(msgspec.Struct, gc=False):
    """A record's fields as they come. Where a value may go unused its type is left open."""

    symbol: Any = None
    prediction: float = math.nan
    confidence: float = math.nan
    last_price: Any = None
    last: Any = None
    price: Any = None
    sentiment: str | None = None
    target_price: float | None = None
    stop_loss: float | None = None
    timestamp: str | int | float | None = None


_FIELDS: Final = msgspec.json.Decoder(_Fields)
_KEPT: Final = frozenset((*_Fields.__struct_fields__, "last_updated"))


def decode_record(piece: Piece, symbol: str | None, *, max_bytes: int) -> Record | Reject:
    """Decode one record.

    Args:
        piece: The unit.
        symbol: The key under which it stands; `None` where it has to name its symbol itself.
        max_bytes: The longest unit that the pruner kept.

    Raises:
        SourceMalformed: It is no JSON; the message has the byte offset in the source.
    """
    if piece.size > max_bytes:
        return _too_large(RejectReason.TOO_LARGE, piece, symbol, max_bytes)
    try:
        fields = _FIELDS.decode(piece.data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _judge(_load(piece), symbol, piece)
    price = fields.last_price
    if price is None:
        price = fields.last if fields.last is not None else fields.price
    name = symbol if symbol is not None else fields.symbol
    if not (
        0 <= fields.confidence <= 1
        and math.isfinite(fields.prediction)
        and type(price) in (float, int)
        and 0 < price <= MAX_INTEGER
        and type(name) is str
        and len(name) <= MAX_SYMBOL_CHARACTERS
        and not (fields.sentiment and len(fields.sentiment) > MAX_TEXT_CHARACTERS)
        and not (type(fields.timestamp) is str and len(fields.timestamp) > MAX_TEXT_CHARACTERS)
    ):
        return _judge(_load(piece), symbol, piece)
    return Record(
        name,
        fields.prediction,
        fields.confidence,
        float(price),
        fields.sentiment if fields.sentiment is not None else "neutral",
        fields.target_price,
        fields.stop_loss,
        fields.timestamp,
    )


def decode_bot(piece: Piece, name: str, *, max_bytes: int) -> Bot | Reject:
    """Decode one bot; a position that cannot be used makes the whole bot a `Reject`, since its sums would be wrong.

    Raises:
        SourceMalformed: It is no JSON; the message has the byte offset in the source.
    """
    if piece.size > max_bytes:
        return _too_large(RejectReason.BOT, piece, name, max_bytes)
    fields = _load(piece)
    try:
        positions = fields.get("positions")
        count, held = _positions(positions)
        return Bot(
            name,
            _flag(fields),
            _number(fields, "equity"),
            _number(fields, "pnl_today"),
            count,
            held,
            _timestamp(fields, "last_updated"),
        )
    except _Unusable as error:
        return Reject(RejectReason.BOT, name[:SHOWN_CHARACTERS], where(piece.offset), str(error))


def where(offset: int) -> str:
    """A place in the source as reports name it."""
    return f"byte {offset:,}"


class _Unusable(Exception):
    """A field has a value that cannot be used."""


def _judge(fields: Mapping[str, Any], symbol: str | None, piece: Piece) -> Record | Reject:
    """Build the record, or say why not: the slow way, which decides."""
    name = symbol if symbol is not None else fields.get("symbol")
    reason = RejectReason.SYMBOL
    try:
        if type(name) is not str:
            raise _Unusable(f"symbol is {shown(name)}, expected text")
        reason = RejectReason.CONFIDENCE
        confidence = _number(fields, "confidence")
        if confidence is None or not 0 <= confidence <= 1:
            raise _Unusable(f"confidence is {shown(fields.get('confidence'))}, expected a number from 0 to 1")
        reason = RejectReason.PREDICTION
        prediction = _number(fields, "prediction")
        if prediction is None:
            raise _Unusable("prediction is missing, expected a finite number")
        reason = RejectReason.LAST_PRICE
        price = _number(fields, *PRICE_FIELDS)
        if price is None or price <= 0:
            raise _Unusable(f"last price is {shown(price)}, expected a number above 0")
        reason = RejectReason.FIELD_TYPE
        _check_length("symbol", name, MAX_SYMBOL_CHARACTERS)
        sentiment = fields.get("sentiment")
        if sentiment is not None and type(sentiment) is not str:
            raise _Unusable(f"sentiment is {shown(sentiment)}, expected text")
        _check_length("sentiment", sentiment or "", MAX_TEXT_CHARACTERS)
        return Record(
            name,
            prediction,
            confidence,
            price,
            sentiment if sentiment is not None else "neutral",
            _number(fields, "target_price"),
            _number(fields, "stop_loss"),
            _timestamp(fields, "timestamp"),
        )
    except _Unusable as error:
        short_name = name[:SHOWN_CHARACTERS] if type(name) is str else None
        return Reject(reason, short_name, where(piece.offset), str(error))


def _load(piece: Piece) -> dict[str, Any]:
    """Parse a unit in full. Text that is no Unicode is malformed in a field that is kept, and nobody's concern else."""
    text = piece.data.decode("utf-8", "surrogateescape")
    try:
        fields: dict[str, Any] = json.loads(text, parse_int=_parse_int)
    except json.JSONDecodeError as error:
        position = len(text[: error.pos].encode("utf-8", "surrogateescape"))
        excerpt = piece.data[position : position + SHOWN_CHARACTERS]
        raise malformed(piece.source_offset(position), error.msg, excerpt) from None
    for name in _KEPT & fields.keys():
        value = fields[name]
        if type(value) is str and not _is_unicode(value):
            position = max(0, piece.data.find(f'"{name}"'.encode()))
            raise malformed(piece.source_offset(position), f"{name} is not valid UTF-8")
    return fields


def _parse_int(text: str) -> int | float:
    return int(text) if len(text) <= MAX_DIGITS else float(text)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _number(fields: Mapping[str, Any], *names: str) -> float | None:
    """The first of the named fields that is there and not null, as a finite float."""
    for name in names:
        value = fields.get(name)
        if value is not None:
            number = _finite(value)
            if number is None:
                raise _Unusable(f"{name} is {shown(value)}, expected a finite number")
            return number
    return None


def _finite(value: Any) -> float | None:
    """The value as a float, or `None` where it is no number, infinite, or an integer that no float can hold."""
    if type(value) not in (int, float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _timestamp(fields: Mapping[str, Any], name: str) -> str | int | float | None:
    value = fields.get(name)
    if value is None:
        return None
    if type(value) is str:
        _check_length(name, value, MAX_TEXT_CHARACTERS)
        return value
    if _finite(value) is None:
        raise _Unusable(f"{name} is {shown(value)}, expected text or seconds")
    return value  # type: ignore[no-any-return]


def _check_length(name: str, text: str, limit: int) -> None:
    if len(text) > limit:
        raise _Unusable(f"{name} has {len(text):,} characters, expected {limit:,} at most")


def _flag(fields: Mapping[str, Any]) -> bool:
    """Whether the bot is enabled; one that does not say so is not."""
    value = fields.get("enabled")
    if value is None:
        return False
    if type(value) is not bool:
        raise _Unusable(f"enabled is {shown(value)}, expected true or false")
    return value


def _positions(value: Any) -> tuple[int, tuple[Position, ...]]:
    """The number of positions, and those given one by one: a list, a map of symbol to position, or a number."""
    if value is None:
        return 0, ()
    if type(value) is int and 0 <= value <= MAX_INTEGER:
        return value, ()
    if isinstance(value, dict):
        return len(value), tuple(_position(body, symbol) for symbol, body in value.items())
    if isinstance(value, list):
        return len(value), tuple(_position(body, None) for body in value)
    raise _Unusable(f"positions is {shown(value)}, expected a list, a map or a count")


def _position(fields: Any, symbol: str | None) -> Position:
    if not isinstance(fields, dict):
        raise _Unusable(f"a position is {shown(fields)}, expected an object")
    name = symbol if symbol is not None else fields.get("symbol")
    if type(name) is not str or not _is_unicode(name) or len(name) > MAX_SYMBOL_CHARACTERS:
        raise _Unusable(f"a position's symbol is {shown(name)}, expected text")
    try:
        quantity = _number(fields, *QUANTITY_FIELDS)
        price = _number(fields, *COST_FIELDS)
    except _Unusable as error:
        raise _Unusable(f"position {shown(name)}: {error}") from None
    if quantity is None:
        raise _Unusable(f"position {shown(name)}: quantity is missing")
    if max(abs(quantity), abs(price or 0)) > MAX_MAGNITUDE:
        raise _Unusable(f"position {shown(name)}: {quantity} at {price} is beyond {MAX_MAGNITUDE:g}")
    return Position(name, quantity, price)


def _too_large(reason: RejectReason, piece: Piece, name: str | None, max_bytes: int) -> Reject:
    details = (
        f"{piece.size:,} bytes without its nested containers, over ROLLING_MAX_RECORD_BYTES={max_bytes:,}; "
        "raise that if such records are wanted"
    )
    return Reject(reason, name[:SHOWN_CHARACTERS] if name else None, where(piece.offset), details)
