"""Bots in, holdings out: the net quantity of each symbol over all bots, and its average cost. Pure.

Sums are decimal, computed from the shortest text of each number, so that 0.1 + 0.2 - 0.3 is 0 and the order of the bots
does not matter: with 60 digits every sum of ordinary quantities is exact.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Context, Decimal
from itertools import groupby
from typing import Final

from optimizer.models import Bot, BotSummary, Holding, Position

__all__ = ["holdings", "summaries"]

_EXACT: Final = Context(prec=60)
_ZERO: Final = Decimal(0)


def summaries(bots: Iterable[Bot]) -> dict[str, BotSummary]:
    """Return every bot as pages show it, by name."""
    return {
        bot.name: BotSummary(bot.enabled, bot.equity, bot.pnl_today, bot.position_count, bot.last_updated)
        for bot in sorted(bots, key=lambda bot: bot.name)
    }


def holdings(bots: Iterable[Bot]) -> list[Holding]:
    """Return net quantity and average cost of every symbol, by symbol.

    Quantities are summed over all bots, shorts as negative; a symbol whose sum is 0 is left out. The average is
    weighted by quantity over the positions with a cost on the side that remains, long or short; it is `None` if none
    of these has a cost.
    """
    positions = sorted((position for bot in bots for position in bot.positions), key=_symbol)
    result = []
    # Symbol by symbol, so that the decimals of one symbol are freed before the next one's are created.
    for symbol, group in groupby(positions, key=_symbol):
        long, short = _Side(), _Side()
        for position in group:
            (long if position.quantity > 0 else short).add(position)
        net = _EXACT.add(long.quantity, short.quantity)
        if net:
            result.append(Holding(symbol, float(net), (long if net > 0 else short).average()))
    return result


@dataclass
class _Side:
    """All positions of a symbol on one side of the market."""

    quantity: Decimal = _ZERO
    priced: Decimal = _ZERO  # quantity of the positions that have a cost
    cost: Decimal = _ZERO

    def add(self, position: Position) -> None:
        quantity = Decimal(repr(position.quantity))
        self.quantity = _EXACT.add(self.quantity, quantity)
        if position.avg_price is not None:
            self.priced = _EXACT.add(self.priced, quantity)
            self.cost = _EXACT.add(self.cost, _EXACT.multiply(quantity, Decimal(repr(position.avg_price))))

    def average(self) -> float | None:
        return float(_EXACT.divide(self.cost, self.priced)) if self.priced else None


def _symbol(position: Position) -> str:
    return position.symbol
