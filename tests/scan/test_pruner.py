"""The pruner alone, and the scan as a whole: nothing depends on where the input is cut into chunks."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from optimizer.errors import RollingError, SourceMalformed, SourceTorn
from optimizer.models import Bot, Record, Reject, RejectReason
from optimizer.scan.decoder import Item
from optimizer.scan.fragment import MAX_DEPTH, Fragment, FragmentKind
from optimizer.scan.layout import Layout
from optimizer.scan.scanner import scan_bot
from tests.support import engines
from tests.support.engines import current, pruner, scan
from tests.support.examples import examples
from tests.support.large_inputs import scan_filled
from tests.support.strategies import Members, containers, cuts, discarded, render, rolling_bytes, styles

pytestmark = pytest.mark.usefixtures("engine")

LIMIT = 1 << 20
RECORD = b'{"prediction":1,"confidence":0.9,"last_price":3}'
FIELDS = RECORD[1:-1]


def prune(*chunks: bytes, limit: int = LIMIT) -> list[Fragment]:
    return list(engines.prune(*chunks, limit=limit))


def units(*chunks: bytes, limit: int = LIMIT) -> list[bytes]:
    return [fragment.data for fragment in prune(*chunks, limit=limit) if fragment.kind is FragmentKind.UNIT]


def outcome(chunks: Iterable[bytes], *, limit: int = LIMIT) -> list[Item] | tuple[str, str]:
    """Return what a scan yields, or the class and the message of the error that it ends with."""
    try:
        return list(scan(chunks, max_record_bytes=limit))
    except RollingError as error:
        return type(error).__name__, str(error)


def one_by_one(data: bytes) -> list[bytes]:
    return [bytes((byte,)) for byte in data]


def names(items: list[Item] | tuple[str, str]) -> list[str]:
    """Return the symbols of records and the reasons of rejects, without bots."""
    assert isinstance(items, list), items
    return [
        item.symbol if isinstance(item, Record) else str(item.reason) for item in items if not isinstance(item, Bot)
    ]


class TestCuts:
    """The outcome of a scan does not depend on where its input is cut."""

    @hypothesis_settings(max_examples=examples(200))
    @given(st.data(), rolling_bytes(), st.sampled_from([16, 64, 300, LIMIT]))
    def test_items_and_errors_do_not_depend_on_cuts(self, data: st.DataObject, whole: bytes, limit: int) -> None:
        """Whole, byte by byte and cut anywhere, a file gives the same items, or the same error."""
        expected = outcome([whole], limit=limit)

        assert outcome(one_by_one(whole), limit=limit) == expected
        assert outcome(data.draw(cuts(whole)), limit=limit) == expected

    @given(st.data(), rolling_bytes(), st.sampled_from([16, 64, LIMIT]))
    def test_pieces_do_not_depend_on_cuts(self, data: st.DataObject, whole: bytes, limit: int) -> None:
        """The pruner's units, and the text between them, are the same for every chunking."""
        expected = self._stream([whole], limit)

        assert self._stream(one_by_one(whole), limit) == expected
        assert self._stream(data.draw(cuts(whole)), limit) == expected

    @staticmethod
    def _stream(chunks: Iterable[bytes], limit: int) -> object:
        """Return the units, and between them all text as one; or the error."""
        stream: list[tuple[int, int, bytes]] = []
        text, size = b"", 0
        try:
            for fragment in prune(*chunks, limit=limit):
                if fragment.kind is FragmentKind.UNIT:
                    stream += [(-1, size, text), (fragment.offset, fragment.size, fragment.data)]
                    text, size = b"", 0
                else:
                    text, size = text + fragment.data, size + fragment.size
        except RollingError as error:
            return type(error).__name__, str(error)
        return [*stream, (-1, size, text)]

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b'{"A":{1}}}', "byte 6: Expecting property name"),
            (b'{"A" 1, "B":' + b"[" * 1_001, "byte 5: object key and value"),
            (b"[1 2 " + b"9" * 200 + b"]", "byte 3: after array element"),
            (b'{"A":{},,"B":{"x":[}]', "byte 8: invalid object key"),
        ],
    )
    def test_the_first_of_two_errors_is_told(self, data: bytes, message: str) -> None:
        """An error of the decoder is raised before one that the pruner meets later in the same chunk."""
        result = outcome([data], limit=100)

        assert result[0] == "SourceMalformed"
        assert message in str(result[1])
        assert outcome(one_by_one(data), limit=100) == result

    @pytest.mark.parametrize("end", range(len(RECORD) + 6))
    def test_a_file_that_ends_early_is_torn(self, end: int) -> None:
        """Every proper prefix of an object is `SourceTorn`, with the number of bytes; an empty input is no error."""
        whole = b'{"A":' + RECORD + b"}"
        assert end < len(whole)

        result = outcome([whole[:end]])

        assert result == [] if end == 0 else (result[0] == "SourceTorn" and f"after {end} bytes" in str(result[1]))


class TestUnits:
    """What the pruner keeps of a unit, which is a record or a bot."""

    @given(st.lists(st.tuples(st.text(max_size=5), st.one_of(discarded, containers)), max_size=5), styles)
    def test_containers_are_emptied(self, members: list[tuple[str, Any]], style: Any) -> None:
        """A record keeps its own plain fields and the types of its containers, and nothing inside those."""
        record = Members([*members, ("last", "}")])
        text = render(Members([("A", record), ("B", [record]), ("C", record)]), style).encode(
            "utf-8", "surrogateescape"
        )

        parsed = [json.loads(unit.decode("utf-8", "surrogateescape"), parse_int=float) for unit in units(text)]

        expected = json.loads(render(record, style), parse_constant=lambda _: None, parse_int=float)
        emptied = {key: type(value)() if isinstance(value, dict | list) else value for key, value in expected.items()}
        assert parsed == [emptied, emptied]

    def test_bots_keep_their_positions(self) -> None:
        """Units in `bots` and `_bots` keep two levels more than records; deeper ones are emptied."""
        bot = b'{"positions":[{"symbol":"A","qty":1,"orders":[[1],{"a":1}]}],"x":{"y":{"z":{}}}}'

        pruned = units(b'{"bots":{"b":' + bot + b'},"_bots":{"b":' + bot + b'},"A":' + bot + b"}")

        kept = b'{"positions":[{"symbol":"A","qty":1,"orders":[]}],"x":{"y":{"z":{}}}}'
        assert pruned == [kept, kept, b'{"positions":[],"x":{}}']

    @pytest.mark.parametrize("key", ["predictions", "symbols"])
    def test_sections_hold_units_one_level_deeper(self, key: str) -> None:
        """The members of a section are units, in a map and in an array."""
        assert units(f'{{"{key}":{{"A":{{"x":[1]}}}}}}'.encode()) == [b'{"x":[]}']
        assert units(f'{{"{key}":[{{"x":[1]}}]}}'.encode()) == [b'{"x":[]}']

    @hypothesis_settings(max_examples=examples(50))
    @given(st.data(), rolling_bytes().filter(lambda data: b"N" not in data and b"I" not in data))
    def test_every_kept_byte_knows_its_place(self, data: st.DataObject, whole: bytes) -> None:
        """`input_offset` leads from each byte of a fragment back to that byte in the source."""
        try:
            fragments = prune(*data.draw(cuts(whole)))
        except RollingError:
            return
        for fragment in fragments:
            places = [fragment.input_offset(position) for position in range(len(fragment.data))]
            assert bytes(whole[place] for place in places) == fragment.data

    def test_numbers_that_are_none_become_null(self) -> None:
        """`NaN`, `Infinity` and `-Infinity` become `null` where they are whole tokens, and stay text inside strings."""
        record = b'{"a":NaN,"b": -Infinity ,"c":Infinity,"d":"NaN, -Infinity: Infinity","e\\"NaN":[NaN]}'

        assert units(b'{"A":' + record + b"}") == [
            b'{"a":null,"b": null      ,"c":null    ,"d":"NaN, -Infinity: Infinity","e\\"NaN":[]}'
        ]

    @pytest.mark.parametrize("token", [b"1NaN", b"NaN1", b"-NaN", b"NaNNaN", b"--Infinity", b"InfinityNaN", b"nan"])
    def test_parts_of_tokens_are_left_alone(self, token: bytes) -> None:
        """A token that only contains `NaN` passes the pruner unchanged and is malformed, not a number or two values."""
        assert units(b'{"A":{"a":' + token + b"}}") == [b'{"a":' + token + b"}"]
        for file in (b'{"A":{"a":' + token + b"}}", b'{"a":' + token + b"}", token, b"[" + token + b"]"):
            assert outcome([file])[0] == "SourceMalformed", file

    @pytest.mark.parametrize("token", [b"NaN", b"-Infinity", b"Infinity"])
    def test_offsets_lead_past_a_replaced_number(self, token: bytes) -> None:
        """Offsets of bytes after a `NaN` or `Infinity` are right, though `null` is longer or shorter."""
        whole = b'{"A":{"a":' + token + b',"b":"here"}}'
        (unit,) = [fragment for fragment in prune(whole) if fragment.kind is FragmentKind.UNIT]

        assert unit.input_offset(unit.data.index(b"here")) == whole.index(b"here")
        assert unit.input_offset(unit.data.index(b"null")) == whole.index(token)


class TestDiscarded:
    """Discarded text is checked only for closed strings, balanced brackets and depth."""

    @pytest.mark.parametrize(
        "junk", [b"nul", b",,:", b'"\\q"', b'"\xff\xfe"', b'"\\ud800"', b"01", b"\x00", b'1 "a" 2']
    )
    def test_anything_may_stand_there(self, junk: bytes) -> None:
        """Bad syntax inside a nested container is not checked, and its record counts."""
        file = b'{"A":{' + FIELDS + b',"x":[' + junk + b'],"y":{' + junk + b"}}}"

        assert names(outcome([file])) == names(outcome(one_by_one(file))) == ["A"]

    @pytest.mark.parametrize(
        "junk", [b'"}]"', b'"\\""', b'"\\\\"', b'"\\\\\\"]"', b'"[{"', b'{"]":"}"}', b'"\\u0022]"']
    )
    def test_brackets_and_quotes_in_strings_are_text(self, junk: bytes) -> None:
        """A string ends at its quote, whatever brackets and escapes it holds."""
        file = b'{"A":{"x":[' + junk + b"]," + FIELDS + b'},"B":' + RECORD + b"}"

        assert names(outcome([file])) == names(outcome(one_by_one(file))) == ["A", "B"]

    @pytest.mark.parametrize("junk", [b"[{]", b"[}", b"{[}", b'{"a":[1}', b"[[{]]"])
    def test_brackets_balance_by_kind(self, junk: bytes) -> None:
        """A container closed by the other kind of bracket is an error: it is malformed, or never closed and so torn."""
        result = outcome([b'{"A":{"x":[' + junk + b"]}}"])

        assert result[0] in ("SourceMalformed", "SourceTorn")

    def test_the_place_of_unbalanced_brackets_is_told(self) -> None:
        """The message about unbalanced brackets has the byte at which the discarded container ends."""
        with pytest.raises(SourceMalformed, match=r"ends at byte 13$"):
            prune(b'{"A":{"x":[[]}')

    def test_a_bracket_too_many_is_malformed(self) -> None:
        """A bracket that closes nothing is `SourceMalformed`, with its byte."""
        assert outcome([b'{"A":' + RECORD + b"} ]"]) == (
            "SourceMalformed",
            f"malformed JSON at byte {len(RECORD) + 7}: ']' closes a container that was never opened",
        )


# Where nesting may be: the text before it, how many containers are open there, the text after it.
PLACES = {
    "root": (b"", 0, b""),
    "root member": (b'{"x":', 1, b"}"),
    "record field": (b'{"A":{' + FIELDS + b',"x":', 2, b"}}"),
    "array element": (b"[", 1, b"]"),
    "element's field": (b'[{"x":', 2, b"}]"),
    "section": (b'{"predictions":', 1, b"}"),
    "section's record": (b'{"predictions":{"A":{"x":', 3, b"}}}"),
    "bot": (b'{"bots":{"b":{"positions":[{"x":', 5, b"}]}}}"),
    "after a line": (b'{"symbol":"A"}\n{"x":', 1, b"}"),
}


class TestDepth:
    """1,000 containers inside each other are accepted; one more is malformed, and refused where it opens."""

    @pytest.mark.parametrize("place", PLACES)
    @pytest.mark.parametrize("pair", [b"[]", b'{"":}'])
    def test_one_thousand_pass(self, place: str, pair: bytes) -> None:
        """Nesting to the limit is no error, kept or discarded, in one chunk or byte by byte."""
        opening, depth, closing = PLACES[place]
        count = MAX_DEPTH - depth
        file = opening + pair[:-1] * count + b"1" * (pair != b"[]") + pair[-1:] * count + closing

        assert isinstance(outcome([file]), list)
        assert outcome(one_by_one(file)) == outcome([file])

    @pytest.mark.parametrize("place", PLACES)
    @pytest.mark.parametrize("pair", [b"[]", b'{"":}'])
    def test_one_more_is_refused(self, place: str, pair: bytes) -> None:
        """One container more than the limit is `SourceMalformed`, with the byte of its bracket."""
        opening, depth, closing = PLACES[place]
        count = MAX_DEPTH - depth + 1
        file = opening + pair[:-1] * count + b"1" + pair[-1:] * count + closing

        result = outcome([file])

        byte = len(opening) + len(pair[:-1]) * (count - 1)
        assert result == ("SourceMalformed", f"malformed JSON at byte {byte:,}: nested deeper than 1,000 containers")
        assert outcome(one_by_one(file)) == result

    def test_bot_files_have_the_same_limit(self) -> None:
        """A bot file may have 1,000 containers inside each other, and is refused with one more."""

        def nested(count: int) -> bytes:
            return b'{"x":' + b"[" * count + b"]" * count + b"}"

        assert not isinstance(scan_bot([nested(999)], "b", max_record_bytes=LIMIT), Reject)
        with pytest.raises(SourceMalformed, match="nested deeper"):
            scan_bot([nested(1_000)], "b", max_record_bytes=LIMIT)

    @pytest.mark.parametrize("opening", [b"", b'{"A":{"x":', b'{"bots":{"b":{"positions":'])
    def test_a_hundred_million_brackets_cost_nothing(self, opening: bytes) -> None:
        """Of a hundred million brackets, the scan reads two chunks at most, since the depth limit ends it."""
        asked = 0

        def chunks() -> Iterator[bytes]:
            nonlocal asked
            yield opening
            for _ in range(400):
                asked += 1
                yield b"[" * 250_000

        with pytest.raises(SourceMalformed, match=r"byte 1,0\d\d: nested deeper"):
            list(scan(chunks(), max_record_bytes=LIMIT))
        assert asked <= 2


class TestLimits:
    """The limit `max_unit_bytes`, for records, keys, strings and numbers."""

    @pytest.mark.parametrize(
        "tail", [b'"x":"%s"}', b'"x":%s}', b'%s"x":1}', b'"x":1}%s', b'"%s":1}', b'"x":[],"y":"%s"}']
    )
    @pytest.mark.parametrize(
        "file", [b'{"A":%b,"B":{"symbol":"B",%b}}', b'[%b,{"symbol":"B",%b}]', b'%b{"symbol":"B",%b}']
    )
    def test_a_record_may_be_exactly_as_long(self, file: bytes, tail: bytes) -> None:
        """A record of `max_unit_bytes` is kept and one of a byte more is rejected, whichever part of it is long."""
        head = b'{"symbol":"A",' + FIELDS + b","
        inside = not tail.endswith(b"%s")
        filler = b" " if tail.startswith(b"%s") or not inside else b"7"
        for over in (0, 1, 300 if b'"%s' in tail else 1):
            count = 300 - len(head + tail) + len(b"%s") + over
            whole = file % (head + tail % (filler * count), FIELDS)
            expected = ["RecordTooLarge", "B"] if over and inside else ["A", "B"]

            assert names(outcome([whole], limit=300)) == expected
            assert names(outcome(one_by_one(whole), limit=300)) == expected

    @pytest.mark.parametrize("over", [0, 1])
    def test_a_key_may_be_exactly_as_long(self, over: int) -> None:
        """A symbol of `max_unit_bytes`, quotes included, is kept; one byte more rejects its record."""
        name = b"k" * (98 + over)

        result = outcome([b'{"' + name + b'":' + RECORD + b"}"], limit=100)

        assert names(result) == (["RecordTooLarge"] if over else [name.decode()])

    def test_the_size_counts_what_is_kept(self) -> None:
        """In a unit's size, an emptied container counts two bytes, and a `NaN` four, as the `null` that replaces it."""
        record = b'{"a":NaN,"b":[' + b"1," * 5_000 + b"1]}"
        (unit,) = [
            fragment for fragment in prune(b'{"A":' + record + b"}", limit=1_024) if fragment.kind is FragmentKind.UNIT
        ]

        assert unit.data == b'{"a":null,"b":[]}'
        assert unit.size == len(unit.data)

    def test_names_and_strings_around_units_have_the_same_limit(self) -> None:
        """An overlong key rejects its record; overlong keys and values of other members are harmless."""
        long = b'"' + b"k" * 200 + b'"'
        file = (
            b'{"x":' + long + b"," + long + b":1," + long + b":" + RECORD + b"," + long + b':[1],"B":' + RECORD + b"}"
        )

        assert names(outcome([file], limit=100)) == ["RecordTooLarge", "B"]
        assert names(outcome(one_by_one(file), limit=100)) == ["RecordTooLarge", "B"]

    @pytest.mark.parametrize("text", [b"7" * 101, b"x" * 500, b"\x00" * 200])
    @pytest.mark.parametrize("opening", [b'{"x":', b"[", b"", b'{"predictions":[', b'{"A":' + RECORD + b',"x" : '])
    def test_an_overlong_number_around_units_is_malformed(self, opening: bytes, text: bytes) -> None:
        """A number or literal of more than `max_unit_bytes` outside of records is `SourceMalformed`, with its byte."""
        result = outcome([opening + text + b" 1"], limit=100)

        assert result == (
            "SourceMalformed",
            f"malformed JSON at byte {len(opening)}: a number or literal of more than 100 bytes",
        )
        assert outcome(one_by_one(opening + text), limit=100) == result

    def test_a_long_number_takes_linear_time(self) -> None:
        """A number of 250,000 digits before a blank takes linear time: it is not searched again from each digit."""
        started = time.process_time()

        result = outcome([b'{"A":{' + FIELDS + b',"x":' + b"1" * 250_000 + b" ", b"}}"])

        assert names(result) == ["A"]
        assert time.process_time() - started < 5  # with a search from each digit it took 100 s


# The four shapes: the text before and after the last member of record A; record B follows.
SHAPES = {
    "map": (b'{"A":{%s,' % FIELDS, b'},"B":%s}' % RECORD),
    "sections": (b'{"predictions":{"A":{%s,' % FIELDS, b'},"B":%s}}' % RECORD),
    "array": (b'[{"symbol":"A",%s,' % FIELDS, b'},{"symbol":"B",%s}]' % FIELDS),
    "lines": (b'{"symbol":"A",%s,' % FIELDS, b'}\n{"symbol":"B",%s}\n' % FIELDS),
}
FILLERS = {
    "string": (b'"x":"', b"x", b'"'),
    "escapes": (b'"x":"', b"\\\\", b'"'),
    "key": (b'"', b"k", b'":1'),
    "number": (b'"x":', b"1", b""),
    "white space": (b"", b" \n", b'"x":1'),
}
GROWTH_MB = 20
MEGABYTES = 30


@pytest.mark.slow
class TestMemory:
    """30 MB and more of one thing take less than 20 MB of memory, measured in a separate process each."""

    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("filler", FILLERS)
    def test_what_is_long_in_a_record_is_not_held(self, shape: str, filler: str) -> None:
        """A record with 30 MB of one thing is rejected for its size, and the next one counts.

        A number of that length in a line ends the scan with an error.
        """
        (before, after), (opening, fill, closing) = SHAPES[shape], FILLERS[filler]

        measured = scan_filled(before + opening, fill, MEGABYTES, closing + after)

        if (shape, filler) == ("lines", "number"):
            assert "a number or literal of more than" in measured.items[-1]
        else:
            assert measured.items == ["RecordTooLarge", "B"]
        assert measured.growth_mb < GROWTH_MB

    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize(
        ("opening", "fill", "closing"), [(b'"x":["', b"x", b'"]'), (b'"x":[', b'[{"a":"]"}],', b"1]")]
    )
    def test_what_is_discarded_is_not_held(self, shape: str, opening: bytes, fill: bytes, closing: bytes) -> None:
        """A string or list of 30 MB inside a record's container is not held in memory, and the record counts."""
        before, after = SHAPES[shape]

        measured = scan_filled(before + opening, fill, MEGABYTES, closing + after)

        assert measured.items == ["A", "B"]
        assert measured.growth_mb < GROWTH_MB

    @pytest.mark.parametrize(
        ("opening", "fill", "closing", "expected"),
        [
            (b"", b" ", b'{"B":%s}' % RECORD, ["B"]),
            (b"{", b"\r\n", b'"B":%s}' % RECORD, ["B"]),
            (b"[", b"\t", b'{"symbol":"B",%s}]' % FIELDS, ["B"]),
            (b'{"predictions": {', b" ", b'"B":%s}}' % RECORD, ["B"]),
            (b'{"symbol":"A",%s}' % FIELDS, b"\n", b'{"symbol":"B",%s}' % FIELDS, ["A", "B"]),
            (b'{"x":"', b"x", b'","B":%s}' % RECORD, ["B"]),
            (b'{"', b"k", b'":1,"B":%s}' % RECORD, ["B"]),
            (b'["', b"x", b'",{"symbol":"B",%s}]' % FIELDS, ["RecordNotObject", "B"]),
            (b'"', b"x", b'" {"symbol":"B",%s}' % FIELDS, ["RecordNotObject", "B"]),
            (b'{"bots":{"b":{"x":"', b"x", b'"}},"B":%s}' % RECORD, ["BotInvalid", "B"]),
            (b'{"A":%s,"x":["' % RECORD, b"x", b'"],"B":%s}' % RECORD, ["A", "B"]),
        ],
    )
    def test_what_is_long_between_records_is_not_held(
        self, opening: bytes, fill: bytes, closing: bytes, expected: list[str]
    ) -> None:
        """White space, strings and keys of 30 MB around the records are not held in memory, and the records count."""
        measured = scan_filled(opening, fill, MEGABYTES, closing)

        assert measured.items == expected
        assert measured.growth_mb < GROWTH_MB

    @pytest.mark.parametrize("opening", [b'{"x":1', b'{"symbol":"A"'])
    def test_members_without_end_are_not_held(self, opening: bytes) -> None:
        """Any number of plain members in a root costs time, but no memory.

        This holds however long it is undecided whether the root is a map or a record.
        """
        measured = scan_filled(opening, b',"%s":"%s"' % (b"k" * 50, b"v" * 50), MEGABYTES // 2, b"}")

        assert measured.items == (["RecordTooLarge"] if b"symbol" in opening else [])
        assert measured.growth_mb < GROWTH_MB / 2

    def test_a_string_of_two_gigabytes(self) -> None:
        """A string of 2.2 GB rejects its record, and the next one counts.

        The engine in Python is tested with a tenth of it, since its counters have no end.
        """
        before, after = SHAPES["map"]

        megabytes = 2_200 if current().name == "native" else 220
        measured = scan_filled(before + b'"x":"', b"x", megabytes, b'"' + after)

        assert measured.items == ["RecordTooLarge", "B"]
        assert measured.growth_mb < GROWTH_MB


class TestPruner:
    """The interface of the pruner."""

    def test_other_layouts(self) -> None:
        """With another layout the root is the unit, as in bot files, and its containers are emptied."""
        made = pruner(limit=100, default=Layout(unit_level=1, kept_levels=1), members={})

        fragments = (*made.feed(b'{"a":[1]} '), *made.close())

        assert [(fragment.kind, fragment.data) for fragment in fragments if fragment.data.strip()] == [
            (FragmentKind.UNIT, b'{"a":[]}')
        ]

    def test_an_error_stays(self) -> None:
        """After an error every further call raises it again."""
        made = pruner(limit=100)
        texts = []
        with pytest.raises(SourceMalformed, match="byte 2"):  # noqa: PT012 - at this call, or at the next
            for fragment in itertools.chain.from_iterable(made.feed(chunk) for chunk in (b"[]]", b"[]")):
                texts.append(fragment.data)  # noqa: PERF401
        assert b"".join(texts) == b"[]"

        with pytest.raises(SourceMalformed, match="byte 2"):
            list(made.feed(b"[]"))
        with pytest.raises(SourceMalformed, match="byte 2"):
            list(made.close())

    def test_a_byte_order_mark_counts(self) -> None:
        """A byte order mark at the beginning is skipped, whole or cut, and offsets count it.

        Anywhere else it is malformed, and so is half of one.
        """
        whole = b'\xef\xbb\xbf{"A":' + RECORD + b"}"
        for chunks in ([whole], one_by_one(whole), [whole[:2], whole[2:]], [b"", whole[:1], whole[1:]]):
            (record,) = [fragment for fragment in prune(*chunks) if fragment.kind is FragmentKind.UNIT]
            assert record.offset == 8

        assert outcome([b'[]\xef\xbb\xbf{"A":1}'])[0] == "SourceMalformed"
        assert outcome([b"\xef\xbb"])[0] == "SourceMalformed"

    def test_torn_strings_and_containers_are_told_apart(self) -> None:
        """The message of `SourceTorn` says whether a string or containers were open."""
        with pytest.raises(SourceTorn, match="inside a string, after 6 bytes"):
            prune(b'{"a":"')
        with pytest.raises(SourceTorn, match="with 3 of its containers open"):
            prune(b'{"a":{"b":[')


def test_reject_reasons_are_those_of_the_report() -> None:
    """The reasons of rejects are exactly these words: reports name them, and dashboards filter by them."""
    assert {reason.value for reason in RejectReason} == {
        *("TextInvalid", "ConfidenceInvalid", "PredictionInvalid", "LastPriceInvalid", "FieldTypeInvalid"),
        *("SymbolMissing", "RecordTooLarge", "RecordNotObject", "BotInvalid"),
    }
