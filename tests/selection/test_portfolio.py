"""Holdings compared with exact fractions: net quantities, the cost of the side that remains, in any order of bots."""

from __future__ import annotations

from collections import defaultdict
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from optimizer.models import Bot, BotSummary, Holding, Position
from optimizer.selection.portfolio import holdings, summaries
from tests.support.engines import scan
from tests.support.examples import examples

# Decimal text of up to 15 digits, as bots write quantities and prices; sums of them are often 0.
amounts = st.sampled_from([0.1, 0.2, -0.3, 1.0, -1.0, 0.0, -0.0]) | st.builds(
    lambda digits, places: digits / 10**places, st.integers(-(10**9), 10**9), st.integers(0, 6)
)
positions = st.builds(Position, st.sampled_from(["AAPL", "MSFT", "É", ""]), amounts, st.none() | amounts)


def a_bot(name: str, *held: Position) -> Bot:
    return Bot(
        name=name,
        enabled=True,
        equity=None,
        pnl_today=None,
        position_count=len(held),
        positions=held,
        last_updated=None,
    )


bots = st.lists(st.lists(positions, max_size=5), max_size=5).map(
    lambda books: [a_bot(f"bot-{number}", *book) for number, book in enumerate(books)]
)


def by_fractions(bots: list[Bot]) -> list[Holding]:
    """Return the holdings of the bots, by exact arithmetic on the numbers as they are written."""
    trades: dict[str, list[tuple[Fraction, Fraction | None]]] = defaultdict(list)
    for bot in bots:
        for position in bot.positions:
            price = None if position.avg_price is None else Fraction(repr(position.avg_price))
            trades[position.symbol].append((Fraction(repr(position.quantity)), price))
    expected = []
    for symbol, book in sorted(trades.items()):
        net = sum((quantity for quantity, _ in book), Fraction(0))
        side = [(quantity, price) for quantity, price in book if price is not None and quantity * net > 0]
        weight = sum((quantity for quantity, _ in side), Fraction(0))
        cost = sum((quantity * price for quantity, price in side), Fraction(0))
        if net:
            expected.append(Holding(symbol, float(net), float(cost / weight) if side else None))
    return expected


class TestHoldings:
    """The holdings are the exact sums over all bots."""

    @hypothesis_settings(max_examples=examples(500))
    @given(bots)
    def test_sums_are_exact(self, held_bots: list[Bot]) -> None:
        """Quantities and costs equal those that are calculated with exact fractions."""
        assert holdings(held_bots) == by_fractions(held_bots)

    @given(bots, st.data())
    def test_the_order_of_bots_does_not_matter(self, held_bots: list[Bot], data: st.DataObject) -> None:
        """Holdings depend neither on the order of bots and positions, nor on which bot has which position."""
        shuffled = data.draw(st.permutations(held_bots))
        one_bot = [a_bot("all", *data.draw(st.permutations([one for bot in held_bots for one in bot.positions])))]

        assert holdings(held_bots) == holdings(shuffled) == holdings(one_bot)

    @pytest.mark.parametrize(
        ("trades", "expected"),
        [
            ([(0.1, 1.0), (0.2, 1.0), (-0.3, 1.0)], None),
            ([(0.1, 1.0), (0.2, 4.0)], (0.3, 3.0)),
            ([(1.1, 10.0), (2.2, 10.0)], (3.3, 10.0)),
            ([(5.0, 10.0), (-5.0, 20.0)], None),
            ([(5.0, 10.0), (-2.0, 99.0)], (3.0, 10.0)),
            ([(2.0, 10.0), (2.0, 20.0), (-1.0, 99.0)], (3.0, 15.0)),
            ([(-5.0, 10.0), (2.0, 99.0), (-5.0, 30.0)], (-8.0, 20.0)),
            ([(5.0, None)], (5.0, None)),
            ([(5.0, None), (1.0, 7.0)], (6.0, 7.0)),
            ([(5.0, None), (-1.0, 7.0)], (4.0, None)),
            ([(0.0, 7.0)], None),
            ([(-0.0, 7.0), (0.0, 7.0)], None),
            ([(0.0, 7.0), (1.0, 9.0)], (1.0, 9.0)),
            ([(1.0, 0.0)], (1.0, 0.0)),
            ([(1.0, -37.63)], (1.0, -37.63)),
            ([(1e15, 1.0), (1e-9, 1.0), (-1e15, 1.0)], (1e-9, 1.0)),
            ([(5e-324, 2.0)], (5e-324, 2.0)),
        ],
    )
    def test_by_hand(
        self, trades: list[tuple[float, float | None]], expected: tuple[float, float | None] | None
    ) -> None:
        """Holdings equal results that were calculated by hand, also with the bots in reverse order.

        The cases have longs against shorts, missing costs and sums of zero.
        """
        held = [a_bot(f"b{number}", Position("A", *trade)) for number, trade in enumerate(trades)]
        net = [] if expected is None else [Holding("A", *expected)]

        assert holdings(held) == net
        assert holdings(held[::-1]) == net

    def test_symbols_are_sorted(self) -> None:
        """Holdings are sorted by the code points of their symbols, over all bots; without bots there are none."""
        held = [a_bot("x", Position("É", 1.0), Position("b", 1.0)), a_bot("y", Position("B", 1.0), Position("", 1.0))]

        assert [holding.symbol for holding in holdings(held)] == ["", "B", "b", "É"]
        assert holdings([]) == []

    def test_positions_in_every_form_sum_up(self) -> None:
        """A list, a map and other names of the fields give one holding; a bare number gives none.

        Given four bots that hold one symbol, each written in another way,
        When they are read and summed,
        Then they are one holding.
        """
        text = (
            b'{"bots":{"list":{"positions":[{"symbol":"A","quantity":1,"avg_price":10}]},'
            b'"map":{"positions":{"A":{"qty":2,"avg":20}}},'
            b'"other":{"positions":{"A":{"qty":3,"entry_price":30},"B":{"qty":0}}},'
            b'"number":{"positions":4}}}'
        )

        bots = [item for item in scan([text], max_record_bytes=1_024) if isinstance(item, Bot)]

        assert holdings(bots) == [Holding("A", 6.0, 140 / 6)]
        assert {name: bot.positions for name, bot in summaries(bots).items()} == {
            "list": 1,
            "map": 1,
            "number": 4,
            "other": 2,
        }


def test_summaries_are_sorted_by_name() -> None:
    """Summaries have every bot as pages show it, with the number of its positions, sorted by name."""
    shown = summaries([a_bot("z", Position("A", 1.0)), a_bot("a")])

    assert list(shown) == ["a", "z"]
    assert shown["z"] == BotSummary(enabled=True, equity=None, pnl_today=None, positions=1, last_updated=None)
