"""One unit of pruned JSON in, one bot out, or the reason why it was rejected. Pure.

A position that cannot be used makes the whole bot a `Reject`, since its sums would be wrong.
"""

from __future__ import annotations

from typing import Any, Final

from optimizer.models import Bot, Position, Reject, RejectReason
from optimizer.scan.fragment import Fragment, shown
from optimizer.scan.schema import BOT_FIELDS, POSITION_FIELDS, Unusable, checked, read_fields
from optimizer.scan.validation import load_unit, shown_name, too_large, where

__all__ = ["decode_bot"]

MAX_INTEGER: Final = 2**63 - 1

_NAME: Final = BOT_FIELDS["name"]
_OTHERS: Final = [field for field in BOT_FIELDS.values() if field is not _NAME]
_SYMBOL: Final = POSITION_FIELDS["symbol"]
_AMOUNTS: Final = [field for field in POSITION_FIELDS.values() if field is not _SYMBOL]


def decode_bot(unit: Fragment, name: str, *, max_bytes: int) -> Bot | Reject:
    """Decode one bot.

    Args:
        unit: The bot as JSON.
        name: Its key, or the stem of its file.
        max_bytes: The longest unit that the pruner kept.

    Raises:
        SourceMalformed: It is not valid JSON; the message has the byte offset in the input.
    """
    if unit.size > max_bytes:
        return too_large(RejectReason.BOT, unit, name, max_bytes)
    given = load_unit(unit)
    try:
        checked(_NAME, name, "its name")
        count, positions = _positions(given.get("positions"))
        return Bot(name, position_count=count, positions=positions, **read_fields(_OTHERS, given))
    except Unusable as error:
        return Reject(RejectReason.BOT, shown_name(name), where(unit.offset), str(error))


def _positions(value: Any) -> tuple[int, tuple[Position, ...]]:
    """Return the number of positions, and those that are listed, in an array or in an object by symbol."""
    if value is None:
        return 0, ()
    if type(value) is int and 0 <= value <= MAX_INTEGER:
        return value, ()
    if isinstance(value, dict):
        return len(value), tuple(_position(body, symbol) for symbol, body in value.items())
    if isinstance(value, list):
        return len(value), tuple(_position(body, None) for body in value)
    raise Unusable(f"positions is {shown(value)}, expected a list, a map or a count")


def _position(given: Any, symbol: str | None) -> Position:
    if not isinstance(given, dict):
        raise Unusable(f"a position is {shown(given)}, expected an object")
    name = checked(_SYMBOL, given.get(_SYMBOL.name) if symbol is None else symbol, "a position's symbol")
    try:
        return Position(name, **read_fields(_AMOUNTS, given))
    except Unusable as error:
        raise Unusable(f"position {shown(name)}: {error}") from None
