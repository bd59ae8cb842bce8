"""Decoding of units into bots or rejects, bot files, and the limits of the text and memory that bots may take."""

from __future__ import annotations

import itertools
import json
import tracemalloc
from typing import Any

import pytest

from optimizer.models import Bot, Position, Reject, RejectReason
from optimizer.scan.fragment import SHOWN_CHARACTERS
from optimizer.scan.scanner import scan as scan_all
from optimizer.scan.scanner import scan_bot
from optimizer.selection.result import ScanResult
from optimizer.selection.top_n import Selection
from tests.support.engines import current, scan
from tests.support.scanned import GOOD, LIMIT, bot, items, reject, shown

pytestmark = pytest.mark.usefixtures("engine")


class TestBots:
    """Bots and their positions, and the rejects of bad ones."""

    def test_all_fields(self) -> None:
        """All fields of a bot are read, and its positions are kept with symbol, quantity and cost."""
        result = bot(
            '{"enabled":true,"equity":10.5,"pnl_today":-2,"last_updated":"t","strategy":{"deep":[[[1]]]},'
            '"positions":[{"symbol":"A","quantity":-2,"avg_price":1.5,"orders":[{"id":1}]}]}'
        )

        assert result == Bot(
            name="b",
            enabled=True,
            equity=10.5,
            pnl_today=-2.0,
            position_count=1,
            positions=(Position("A", -2.0, 1.5),),
            last_updated="t",
        )

    def test_no_fields(self) -> None:
        """A bot without fields is not enabled and holds nothing; null and `NaN` count as missing."""
        nothing = Bot(
            name="b",
            enabled=False,
            equity=None,
            pnl_today=None,
            position_count=0,
            positions=(),
            last_updated=None,
            has_fields=False,
        )

        assert bot("{}") == nothing
        assert bot('{"enabled":null,"equity":NaN,"pnl_today":Infinity,"positions":NaN,"last_updated":null}') == nothing

    @pytest.mark.parametrize(
        ("positions", "count", "held"),
        [
            ("null", 0, []),
            ("7", 7, []),
            ("0", 0, []),
            ("[]", 0, []),
            ("{}", 0, []),
            ('[{"symbol":"A","quantity":1,"avg_price":2}]', 1, [("A", 1.0, 2.0)]),
            ('[{"symbol":"A","qty":1,"avg":2},{"symbol":"A","qty":3}]', 2, [("A", 1.0, 2.0), ("A", 3.0, None)]),
            ('{"A":{"qty":1,"entry_price":2},"B":{"quantity":-1}}', 2, [("A", 1.0, 2.0), ("B", -1.0, None)]),
            ('{"A":{"symbol":"Z","qty":1}}', 1, [("A", 1.0, None)]),
            ('{"A":{"quantity":null,"qty":5,"avg_price":NaN,"avg":null,"entry_price":6}}', 1, [("A", 5.0, 6.0)]),
            ('{"A":{"quantity":1,"qty":5,"avg_price":2,"avg":3,"entry_price":6}}', 1, [("A", 1.0, 2.0)]),
            ('{"A":{"qty":1},"A":{"qty":2}}', 1, [("A", 2.0, None)]),
        ],
    )
    def test_positions_in_every_form(self, positions: str, count: int, held: list[tuple[Any, ...]]) -> None:
        """Positions may be a list, a map of symbol to position, or a number, and each field has several names."""
        result = bot(f'{{"positions":{positions}}}')

        assert isinstance(result, Bot)
        assert (result.position_count, result.positions) == (count, tuple(Position(*one) for one in held))

    @pytest.mark.parametrize(
        ("body", "details"),
        [
            ('{"enabled":1}', "enabled is 1, expected true or false"),
            ('{"enabled":"yes"}', "enabled is 'yes'"),
            ('{"equity":"5"}', "equity is '5'"),
            ('{"equity":true}', "equity is True"),
            ('{"equity":1e999}', "equity is inf"),
            (f'{{"pnl_today":{"1" * 5000}}}', "pnl_today is inf"),
            ('{"pnl_today":[]}', "pnl_today is []"),
            ('{"last_updated":false}', "last_updated is False"),
            ('{"positions":-1}', "positions is -1"),
            ('{"positions":2.5}', "positions is 2.5"),
            ('{"positions":true}', "positions is True"),
            ('{"positions":"3"}', "positions is '3'"),
            (f'{{"positions":{10**30}}}', "positions is 1000"),
            ('{"positions":[1]}', "a position is 1"),
            ('{"positions":{"A":5}}', "a position is 5"),
            ('{"positions":[{"qty":1}]}', "a position's symbol is missing"),
            ('{"positions":[{"symbol":7,"qty":1}]}', "a position's symbol is 7"),
            ('{"positions":{"\\ud800":{"qty":1}}}', "a position's symbol is not valid text: '\\ud800'"),
            ('{"positions":{"A":{}}}', "position 'A': quantity is missing"),
            ('{"positions":{"A":{"qty":"5"}}}', "position 'A': qty is '5'"),
            ('{"positions":{"A":{"qty":1,"avg":[]}}}', "position 'A': avg is []"),
            ('{"positions":{"A":{"qty":1e400}}}', "position 'A': qty is inf"),
            ("5", "expected an object, got a number"),
            ("[]", "expected an object, got an array"),
        ],
    )
    def test_bad_bots_are_rejected(self, body: str, details: str) -> None:
        """A bad field rejects the bot, and the reject names it.

        So does one position that cannot be used, since the bot's sums would be wrong.
        """
        result = bot(body)

        assert isinstance(result, Reject)
        assert (result.reason, result.name) == (RejectReason.BOT, "b")
        assert details in result.details

    @pytest.mark.parametrize(
        "element", ["{}", '{"equity":1}', "[]", "[[1]]", "5", '"x"', "null", "1,2", "{},5", "[],{}"]
    )
    def test_a_list_of_bots_is_one_reject(self, element: str) -> None:
        """A list in place of the bots is one reject, as the number of bots in it is unknown; an empty list is none.

        In a root that is a record, such a list is not read.
        """
        for name in ("bots", "_bots"):
            (item,) = items(f'{{"A":{{{GOOD}}},"{name}": [{element}]}}')[1:]
            at = len(GOOD) + 12 + len(name)
            assert item == Reject(RejectReason.BOT, name, f"byte {at}", "expected an object, got an array")
            assert shown(items(f'{{"{name}":[{element}],"symbol":"A",{GOOD}}}')) == ["A"]
        assert shown(items(f'{{"A":{{{GOOD}}},"bots":[ ],"_bots":[]}}')) == ["A"]

    def test_a_bot_that_is_too_large_is_rejected(self) -> None:
        """A bot over the size limit is rejected. Its positions count for its size, containers nested deeper do not."""
        deep = '{"bots":{"b":{"positions":{"A":{"qty":1,"x":[%s]}}}}}' % ("1," * 5_000 + "1")
        wide = json.dumps({"bots": {"b": {"positions": [{"symbol": "A", "qty": 1}] * 200}}})

        assert shown(items(deep, limit=1_024)) == ["b"]
        (item,) = items(wide, limit=1_024)
        assert isinstance(item, Reject)
        assert (item.reason, item.name) == (RejectReason.BOT, "b")
        assert "bytes without its nested containers" in item.details

    def test_a_later_bot_replaces_an_earlier_one(self) -> None:
        """Of bots with the same name, in any sections, the last one counts."""
        result = ScanResult(Selection(1))
        for item in items('{"bots":{"b":{"equity":1},"c":{}},"_bots":{"b":{"equity":2}}}'):
            result.take(item)

        assert [(one.name, one.equity) for one in result.bots] == [("b", 2.0), ("c", None)]


class TestBotFiles:
    """A bot file is one object, the bot."""

    @pytest.mark.parametrize("text", ["{}", ' {"equity":1} \n', "\ufeff{}"])
    def test_one_object(self, text: str) -> None:
        """A file with one object is a bot, also with white space or a byte order mark around it."""
        assert isinstance(scan_bot([text.encode()], "b", max_record_bytes=LIMIT), Bot)

    @pytest.mark.parametrize("text", ["", "[]", "[{}]", "{}{}", "{} 1", "1 {}", '"x"', "null", "{},"])
    def test_anything_else_is_rejected(self, text: str) -> None:
        """A file that is not one object is rejected, with what was expected."""
        result = scan_bot([text.encode()], "b", max_record_bytes=LIMIT)

        assert isinstance(result, Reject)
        assert "expected one JSON object" in result.details

    def test_positions_are_kept(self) -> None:
        """The positions in a bot file are kept, whether it is read whole or byte by byte."""
        text = b'{"positions":{"A":{"qty":1,"x":[[[1]]]}}}'

        whole = scan_bot([text], "b", max_record_bytes=LIMIT)

        assert isinstance(whole, Bot)
        assert whole.positions == (Position("A", 1.0, None),)
        assert scan_bot([bytes((byte,)) for byte in text], "b", max_record_bytes=LIMIT) == whole


class TestBounds:
    """Text and memory that bots may take are bounded, and sums stay finite."""

    @pytest.mark.parametrize(
        "body",
        [
            '"@":{}',
            '"b":{"last_updated":"@"}',
            '"b":{"positions":{"@":{"qty":1}}}',
            '"b":{"positions":[{"symbol":"@","qty":1}]}',
        ],
    )
    def test_kept_text_of_bots_is_short(self, body: str) -> None:
        """A bot whose text has the maximal length is used.

        One more character rejects it, and its name in the reject is cut.
        """
        limit = 1_024 if "last_updated" in body else 256
        (good,) = items(f'{{"bots":{{{body.replace("@", "x" * limit)}}}}}')
        bad = reject(f'{{"bots":{{{body.replace("@", "x" * (limit + 1))}}}}}')

        assert isinstance(good, Bot)
        assert bad.reason == RejectReason.BOT
        assert len(bad.name or "") <= SHOWN_CHARACTERS
        assert f"has {limit + 1:,} characters, expected {limit:,} at most" in bad.details

    @pytest.mark.slow
    def test_a_hundred_bots_with_names_of_900_kb_take_no_memory(self) -> None:
        """A hundred bots with names of 900 KB are rejected one by one, and nothing of their names stays in memory."""
        chunks = itertools.chain(
            [b'{"bots":{'], (b'"%s%d":{},' % (b"x" * 900_000, number) for number in range(100)), [b'"b":{}}}']
        )
        result = ScanResult(Selection(10))
        tracemalloc.start()
        try:
            for item in scan_all(chunks, current(), max_record_bytes=LIMIT):
                result.take(item)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

        assert [bot.name for bot in result.bots] == ["b"]
        assert result.tallies()[0].count == 100
        assert peak < 30_000_000

    def test_a_position_of_any_size_leaves_the_sums_finite(self) -> None:
        """A position with a quantity or cost that no market has rejects its bot, so that sums stay finite."""
        position = '{"symbol": "X", "qty": %s, "avg": %s}'
        for quantity, cost in (("1.7e308", "1"), ("-1e101", "1"), ("1", "1e101")):
            bots = '{"bots": {"b": {"positions": [' + position % (quantity, cost) + "]}}}"
            assert [item.reason for item in scan([bots.encode()], max_record_bytes=10_000) if isinstance(item, Reject)]

    def test_bots_are_not_held_back_without_bound(self) -> None:
        """Positions of bots count among the thousand objects after which a root is a map.

        A text `symbol` later does not change that.
        """
        bot = '"%s": {"positions": [' + ", ".join(['{"symbol": "X", "qty": 1}'] * 600) + "]}"
        text = '{"bots": {' + ", ".join(bot % name for name in "abcd") + '}, "symbol": "LATE"}'
        items = scan([text.encode()], max_record_bytes=100_000)
        assert [item.name for item in items if isinstance(item, Bot)] == ["a", "b", "c", "d"]
