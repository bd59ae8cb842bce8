"""One unit of pruned JSON in, one bot out, or the reason why it was rejected. Pure.

A position that cannot be used makes the whole bot a `Reject`, since its sums would be wrong.
"""

from __future__ import annotations

from typing import Any, Final

from optimizer.models import Bot, Position, Reject, RejectReason
from optimizer.scan.fragment import Fragment, shown
from optimizer.scan.schema import Schema, Unusable, checked, member_at, read_fields
from optimizer.scan.validation import load_unit, shown_name, too_large, where

__all__ = ["BotDecoder"]

MAX_INTEGER: Final = 2**63 - 1


class BotDecoder:
    """Decode bots.

    Args:
        schema: The rows of the fields of bots and of positions.
        max_bytes: The longest unit that the pruner kept.
    """

    def __init__(self, schema: Schema, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._name = schema.bots["name"]
        self._others = [field for field in schema.bots.values() if field is not self._name]
        self._positions_path = schema.positions
        self._symbol = schema.position_fields["symbol"]
        self._amounts = [field for field in schema.position_fields.values() if field is not self._symbol]

    def decode(self, unit: Fragment, name: str) -> Bot | Reject:
        """Decode one bot.

        Args:
            unit: The bot as JSON.
            name: Its key, or the stem of its file.

        Raises:
            SourceMalformed: It is not valid JSON; the message has the byte offset in the input.
        """
        if unit.size > self._max_bytes:
            return too_large(RejectReason.BOT, unit, name, self._max_bytes)
        given = load_unit(unit)
        try:
            checked(self._name, name, "its name")
            held = member_at(given, self._positions_path)
            count, positions = self._positions(held)
            fields = read_fields(self._others, given)
            has_fields = bool(fields) or held is not None
            return Bot(name, position_count=count, positions=positions, has_fields=has_fields, **fields)
        except Unusable as error:
            return Reject(RejectReason.BOT, shown_name(name), where(unit.offset), str(error))

    def _positions(self, value: Any) -> tuple[int, tuple[Position, ...]]:
        """Return the number of positions, and those that are listed, in an array or in an object by symbol."""
        if value is None:
            return 0, ()
        if type(value) is int and 0 <= value <= MAX_INTEGER:
            return value, ()
        if isinstance(value, dict):
            return len(value), tuple(self._position(body, symbol) for symbol, body in value.items())
        if isinstance(value, list):
            return len(value), tuple(self._position(body, None) for body in value)
        raise Unusable(f"{self._positions_path} is {shown(value)}, expected a list, a map or a count")

    def _position(self, given: Any, symbol: str | None) -> Position:
        if not isinstance(given, dict):
            raise Unusable(f"a position is {shown(given)}, expected an object")
        own = member_at(given, self._symbol.names[0]) if symbol is None else symbol
        name = checked(self._symbol, own, "a position's symbol")
        try:
            return Position(name, **read_fields(self._amounts, given))
        except Unusable as error:
            raise Unusable(f"position {shown(name)}: {error}") from None
