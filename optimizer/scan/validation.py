"""One unit of pruned JSON in, one record or bot out, or the reason why not. Pure.

A record is decoded straight into the struct that states what a record is (`schema.Fields`). What does not fit there is
parsed again in full, which alone decides between malformed (`SourceMalformed`, the run stops) and rejected (`Reject`,
the stream goes on), and for which reason. The reasons are tried in a fixed order: size, text that is no Unicode in any
kept field, symbol, confidence, prediction, last price, other fields.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec

from optimizer.models import Bot, Position, Record, Reject, RejectReason
from optimizer.scan.fragment import SHOWN_CHARACTERS, Piece, malformed, shown
from optimizer.scan.schema import (
    MAX_SYMBOL_CHARACTERS,
    MAX_TEXT_CHARACTERS,
    Fields,
    Symbol,
    Unusable,
    as_finite,
    explain,
    is_text,
    variant,
)

__all__ = ["SymbolsIgnored", "decode_bot", "decode_key", "decode_record", "shown_name", "where"]

MAX_INTEGER: Final = 2**63 - 1
# Of quantities and costs: no sum or product of any number of positions comes near the largest float.
MAX_MAGNITUDE: Final = 1e100
# Python refuses to read longer integers (sys.int_info.default_max_str_digits); as a float they are infinite anyway.
MAX_DIGITS: Final = 4_300

QUANTITY_FIELDS: Final = ("quantity", "qty")
COST_FIELDS: Final = ("avg_price", "avg", "entry_price")

_KEYED: Final = msgspec.json.Decoder(Fields)
_NAMED: Final = msgspec.json.Decoder(variant(symbol=Symbol))
_KEY: Final = msgspec.json.Decoder(str)
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


class SymbolsIgnored(NamedTuple):
    """So many records that count stand under another name than their own `symbol`, which is not used."""

    number: int


def decode_record(
    piece: Piece, symbol: str | None, *, max_bytes: int
) -> tuple[Record | Reject] | tuple[Record, SymbolsIgnored]:
    """Decode one record.

    Args:
        piece: The unit.
        symbol: The key under which it stands; `None` where it has to name its symbol itself.
        max_bytes: The longest unit that the pruner kept.

    Returns:
        What became of it, and that its own symbol was ignored where that is another than the key.

    Raises:
        SourceMalformed: It is no JSON; the message has the byte offset in the source.
    """
    if piece.size > max_bytes:
        return (_too_large(RejectReason.TOO_LARGE, piece, symbol, max_bytes),)
    try:
        fields = (_NAMED if symbol is None else _KEYED).decode(piece.data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _judge(piece, symbol)
    own = fields.symbol
    name = own if symbol is None else symbol
    if not (fields.last_price or fields.last or fields.price) or len(name) > MAX_SYMBOL_CHARACTERS or not is_text(name):
        return _judge(piece, symbol)
    return _with_symbol(fields.record(name), own)


def decode_key(token: bytes) -> str:
    """Decode the name of a member; where it is not valid text it has lone surrogates, as `schema.is_text` finds.

    Raises:
        ValueError: A bad escape, or a control character.
    """
    try:
        return _KEY.decode(token)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return str(json.loads(token.decode("utf-8", "surrogateescape")))


def decode_bot(piece: Piece, name: str, *, max_bytes: int) -> Bot | Reject:
    """Decode one bot; a position that cannot be used makes the whole bot a `Reject`, since its sums would be wrong.

    Raises:
        SourceMalformed: It is no JSON; the message has the byte offset in the source.
    """
    if piece.size > max_bytes:
        return _too_large(RejectReason.BOT, piece, name, max_bytes)
    fields = _load(piece)
    try:
        _check_text("its name", name, MAX_SYMBOL_CHARACTERS)
        count, held = _positions(fields.get("positions"))
        return Bot(
            name,
            _flag(fields),
            _number(fields, "equity"),
            _number(fields, "pnl_today"),
            count,
            held,
            _timestamp(fields, "last_updated"),
        )
    except Unusable as error:
        return Reject(RejectReason.BOT, shown_name(name), where(piece.offset), str(error))


def shown_name(name: str) -> str:
    """A name as reports show it: cut, and with a replacement character for what is not valid text."""
    return _SURROGATE.sub("\ufffd", name[:SHOWN_CHARACTERS])


def where(offset: int) -> str:
    """A place in the source as reports name it."""
    return f"byte {offset:,}"


def _judge(piece: Piece, symbol: str | None) -> tuple[Record | Reject] | tuple[Record, SymbolsIgnored]:
    """Build the record, or say why not: the slow way, which decides."""
    given = _load(piece)
    own = given.get("symbol")
    try:
        record = explain(given, symbol)
    except Unusable as error:
        name = own if symbol is None else symbol
        shown_as = shown_name(name) if type(name) is str else None
        return (Reject(error.reason, shown_as, where(piece.offset), str(error)),)
    return _with_symbol(record, own)


def _with_symbol(record: Record, own: object) -> tuple[Record] | tuple[Record, SymbolsIgnored]:
    return (record,) if own is None or own == record.symbol else (record, SymbolsIgnored(1))


def _load(piece: Piece) -> dict[str, Any]:
    """Parse a unit in full. What is not valid text in it becomes lone surrogates."""
    text = piece.data.decode("utf-8", "surrogateescape")
    try:
        fields: dict[str, Any] = json.loads(text, parse_int=_parse_int)
    except json.JSONDecodeError as error:
        position = len(text[: error.pos].encode("utf-8", "surrogateescape"))
        excerpt = piece.data[position : position + SHOWN_CHARACTERS]
        raise malformed(piece.source_offset(position), error.msg, excerpt) from None
    return fields


def _parse_int(text: str) -> int | float:
    return int(text) if len(text) <= MAX_DIGITS else float(text)


def _number(fields: Mapping[str, Any], *names: str) -> float | None:
    """The first of the named fields that is there and not null, as a finite float."""
    for name in names:
        value = fields.get(name)
        if value is not None:
            number = as_finite(value)
            if number is None:
                raise Unusable(f"{name} is {shown(value)}, expected a finite number")
            return number
    return None


def _timestamp(fields: Mapping[str, Any], name: str) -> str | int | float | None:
    value = fields.get(name)
    if value is None:
        return None
    if type(value) is str:
        _check_text(name, value, MAX_TEXT_CHARACTERS)
        return value
    if as_finite(value) is None:
        raise Unusable(f"{name} is {shown(value)}, expected text or seconds")
    return value  # type: ignore[no-any-return]


def _check_text(name: str, text: str, limit: int) -> None:
    if not is_text(text):
        raise Unusable(f"{name} is not valid text: {shown(text)}")
    if len(text) > limit:
        raise Unusable(f"{name} has {len(text):,} characters, expected {limit:,} at most")


def _flag(fields: Mapping[str, Any]) -> bool:
    """Whether the bot is enabled; one that does not say so is not."""
    value = fields.get("enabled")
    if value is None:
        return False
    if type(value) is not bool:
        raise Unusable(f"enabled is {shown(value)}, expected true or false")
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
    raise Unusable(f"positions is {shown(value)}, expected a list, a map or a count")


def _position(fields: Any, symbol: str | None) -> Position:
    if not isinstance(fields, dict):
        raise Unusable(f"a position is {shown(fields)}, expected an object")
    name = symbol if symbol is not None else fields.get("symbol")
    if type(name) is not str:
        raise Unusable(f"a position's symbol is {shown(name)}, expected text")
    _check_text("a position's symbol", name, MAX_SYMBOL_CHARACTERS)
    try:
        quantity = _number(fields, *QUANTITY_FIELDS)
        price = _number(fields, *COST_FIELDS)
    except Unusable as error:
        raise Unusable(f"position {shown(name)}: {error}") from None
    if quantity is None:
        raise Unusable(f"position {shown(name)}: quantity is missing")
    if max(abs(quantity), abs(price or 0)) > MAX_MAGNITUDE:
        raise Unusable(f"position {shown(name)}: {quantity} at {price} is beyond {MAX_MAGNITUDE:g}")
    return Position(name, quantity, price)


def _too_large(reason: RejectReason, piece: Piece, name: str | None, max_bytes: int) -> Reject:
    details = (
        f"{piece.size:,} bytes without its nested containers, over ROLLING_MAX_RECORD_BYTES={max_bytes:,}; "
        "raise that if such records are wanted"
    )
    return Reject(reason, shown_name(name) if name else None, where(piece.offset), details)
