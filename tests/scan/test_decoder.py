"""From JSON to records, bots and rejects: shapes, fields, reasons, and the byte offsets of errors."""

from __future__ import annotations

import itertools
import json
import tracemalloc
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.errors import RollingError, SourceMalformed
from optimizer.models import Bot, Position, Record, Reject, RejectReason
from optimizer.scan.decoder import Item
from optimizer.scan.fragment import SHOWN_CHARACTERS
from optimizer.scan.scanner import scan as scan_all
from optimizer.scan.scanner import scan_bot
from optimizer.scan.schema import FIELD_NAMES
from optimizer.selection.result import Found
from optimizer.selection.top_n import Selection
from tests.support.engines import current, scan
from tests.support.rolling_files import a_record
from tests.support.strategies import Members, Style, discarded, no_objects, render, styles

pytestmark = pytest.mark.usefixtures("engine")

LIMIT = 1 << 20
STYLE = Style(",", ":", "", "utf-8")
GOOD = '"prediction":1.5,"confidence":0.9,"last_price":3'


def items(text: str | bytes, *, limit: int = LIMIT) -> list[Item]:
    data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    whole = list(scan([data], max_record_bytes=limit))
    assert list(scan((data[i : i + 7] for i in range(0, len(data), 7)), max_record_bytes=limit)) == whole
    return whole


def record(text: str | bytes) -> Record:
    """The one record of a file."""
    (found,) = items(text)
    assert isinstance(found, Record), found
    return found


def found_in(chunks: list[bytes]) -> Found:
    """What a run finds."""
    found = Found(Selection(10))
    for item in scan_all(chunks, current(), max_record_bytes=LIMIT):
        found.take(item)
    return found


def reject(text: str | bytes) -> Reject:
    """The one reject of a file."""
    (found,) = items(text)
    assert isinstance(found, Reject), found
    return found


def bot(body: str) -> Bot | Reject:
    """What becomes of a bot."""
    (found,) = items(f'{{"bots":{{"b":{body}}}}}')
    assert isinstance(found, Bot | Reject), found
    return found


def malformed_at(text: str | bytes) -> tuple[int, str]:
    """Byte offset and message of the error; the same from small chunks."""
    data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    with pytest.raises(SourceMalformed) as caught:
        list(scan([data], max_record_bytes=LIMIT))
    with pytest.raises(SourceMalformed) as again:
        list(scan((data[i : i + 1] for i in range(len(data))), max_record_bytes=LIMIT))
    message = str(caught.value)
    assert str(again.value) == message
    assert message.startswith("malformed JSON at byte ")
    return int(message.split()[4].rstrip(":").replace(",", "")), message


def shown(found: list[Item]) -> list[str]:
    return [
        item.symbol if isinstance(item, Record) else item.name if isinstance(item, Bot) else item.reason.value
        for item in found
    ]


# A record's fields in each of the four shapes; `%s` stands among its own members.
SHAPES = {
    "map": '{"A":{%s}}',
    "section map": '{"predictions":{"A":{%s}}}',
    "section array": '{"symbols":[{"symbol":"A",%s}]}',
    "array": '[{"symbol":"A",%s}]',
    "lines": '{"symbol":"A",%s}',
}


class TestShapes:
    """Four shapes, found on the way."""

    @pytest.mark.parametrize("shape", SHAPES)
    def test_every_shape_gives_the_same_record(self, shape: str) -> None:
        """A record is the same wherever it stands."""
        fields = json.dumps(a_record())[1:-1]

        assert record(SHAPES[shape] % fields) == Record(
            "A", 101.5, 0.75, 100.0, "bullish", 105.0, 95.0, "2026-11-01T10:00:00Z"
        )

    def test_sections_and_records_may_stand_side_by_side(self) -> None:
        """Sections come in any order among members of a map, more than once, and by both names."""
        one = f"{{{GOOD}}}"
        text = (
            f'{{"bots":{{"x":{{}}}},"A":{one},"symbols":[{{"symbol":"B",{GOOD}}}],"_bots":{{"y":{{}}}},'
            f'"predictions":{{"C":{one}}},"D":{one},"predictions":[{{"symbol":"E",{GOOD}}}]}}'
        )

        assert shown(items(text)) == ["x", "A", "B", "y", "C", "D", "E"]

    @pytest.mark.parametrize("key", ["predictions", "symbols", "bots", "_bots", "symbol"])
    def test_names_may_be_written_with_escapes(self, key: str) -> None:
        """A key with escapes for plain letters means what it says."""
        escaped = f"\\u{ord(key[0]):04x}{key[1:]}"
        body = '"A"' if key == "symbol" else f'{{"A":{{{GOOD}}}}}'

        plain, spelled = [f'{{"{name}":{body},{GOOD}}}' for name in (key, escaped)]

        assert items(spelled) == items(plain)

    def test_what_is_no_record_is_passed_over(self) -> None:
        """Root members that begin with an underscore or are no objects do not count, not even as rejects."""
        text = f'{{"_meta":{{{GOOD}}},"_":{{}},"timestamp":"t","count":1,"x":[{{{GOOD}}}],"n":null,"A":{{{GOOD}}}}}'

        assert shown(items(text)) == ["A"]

    @pytest.mark.parametrize("between", ["\n", "\r\n", " ", "", "\n\n"])
    def test_texts_one_after_another(self, between: str) -> None:
        """Records follow each other with or without white space; the symbol may come last."""
        texts = [f'{{"symbol":"A",{GOOD}}}', f'{{{GOOD},"x":{{"a":1}},"symbol":"B"}}', f'[{{"symbol":"C",{GOOD}}}]']

        assert shown(items(between.join(texts))) == ["A", "B", "C"]

    def test_lines_without_a_symbol(self) -> None:
        """A line that lost its symbol is one reject."""
        assert shown(items(f'{{"symbol":"A",{GOOD}}}\n{{{GOOD},"x":[1]}}\n{{"symbol":5,{GOOD}}}')) == [
            "A",
            "SymbolMissing",
            "SymbolMissing",
        ]

    @pytest.mark.parametrize(
        "line",
        [
            '{"ticker":"B","prediction":1,"last_price":2}',
            '{"symbol":5}',
            '{"symbol":null,"x":[1]}',
            '{"symbol":[],"note":"x"}',
            '{"confidence":1,"bots":null}',
            '{"price":3,"timestamp":"t"}',
        ],
    )
    def test_a_line_that_lacks_more_than_its_symbol(self, line: str) -> None:
        """A root object without objects and sections, but with a record's fields, is one reject."""
        assert shown(items(line)) == ["SymbolMissing"]
        assert shown(items(f'{line}\n{{"symbol":"A",{GOOD}}}\n{line}')) == ["SymbolMissing", "A", "SymbolMissing"]

    @pytest.mark.parametrize(
        "text",
        [
            "{}",
            '{"_meta":{"confidence":1}}',
            '{"_meta":{},"confidence":1}',
            '{"generated_at":"t","predictions":{}}',
            '{"confidence":1,"symbols":[]}',
            '{"timestamp":"t","count":5,"_x":1}',
            '{"bots":{},"price":1}',
            '{"predictions":null,"bots":NaN}',
            '{"data":[1,2]}',
        ],
    )
    def test_what_may_be_a_map_is_no_line(self, text: str) -> None:
        """Sections, objects and metadata alone are not taken for a record."""
        assert items(text) == []

    def test_after_a_line_all_are_lines(self) -> None:
        """Where a record has been a root of its own, an object with any other members is a broken record."""
        lines = [f'{{"symbol":"A",{GOOD}}}', '{"ticker":"B","note":1}', "{}", '{"_end":1}', '{"_x":{},"note":1}']

        assert shown(items("\n".join(lines))) == ["A", "SymbolMissing"]
        assert shown(items("\n".join(lines[1:]))) == []
        assert shown(items(f"{{{GOOD}}}\n{lines[1]}")) == ["SymbolMissing"] * 2

    @pytest.mark.parametrize(("value", "kind"), [("5", "a number"), ('"x"', "a string"), ("true", "a boolean")])
    def test_sections_of_a_wrong_type_are_rejected(self, value: str, kind: str) -> None:
        """They are named; null is like nothing, and an array is no section of bots."""
        for name, reason in (
            ("predictions", RejectReason.NOT_AN_OBJECT),
            ("symbols", RejectReason.NOT_AN_OBJECT),
            ("bots", RejectReason.BOT),
            ("_bots", RejectReason.BOT),
        ):
            text = f'{{"{name}":{value},"confidence":1}}'
            found = reject(text)
            assert (found.reason, found.name, found.where) == (reason, name, f"byte {text.index(value)}")
            assert found.details.endswith(f"got {kind}")
            assert shown(items(f'{{"{name}":null,"A":{{{GOOD}}}}}')) == ["A"]
            assert shown(items(f'{{"{name}":{value},"symbol":"A",{GOOD}}}')) == ["A"]

    @pytest.mark.parametrize("value", ["1", '"text"', "null", "true", "NaN", "[]", "[[]]"])
    def test_what_is_no_object_is_rejected(self, value: str) -> None:
        """Where a record should stand, anything else is a reject; an array at the root holds records."""
        for text in (f"[{value}]", f'{{"predictions":[{value}]}}', f'{{"predictions":{{"A":{value}}}}}'):
            assert reject(text).reason == RejectReason.NOT_AN_OBJECT
        expected = {"[]": [], "[[]]": ["RecordNotObject"]}.get(value, ["RecordNotObject"])
        assert shown(items(value)) == expected

    def test_a_record_may_have_a_thousand_members(self) -> None:
        """A root with a thousand objects is a map, whatever plain values it has; one fewer may still be a record."""

        def root(objects: int) -> str:
            return "{" + "".join(f'"k{i}":{{}},' for i in range(objects)) + f'"symbol":"A",{GOOD}}}'

        assert shown(items(root(999))) == ["A"]
        assert len(items(root(1_000))) == 1_000

    def test_items_come_before_the_end(self) -> None:
        """A map's records are handed on while it is still open: nothing but the first thousand is held back."""
        text = "{" + ",".join(f'"k{i}":{{{GOOD}}}' for i in range(2_000))

        found = scan([text.encode(), b"}"], max_record_bytes=LIMIT)

        assert isinstance(next(found), Record)

    @pytest.mark.parametrize("text", ["", " \n", "{}", "[]", "{}\n{}", '{"predictions":{}}', '{"bots":[]}'])
    def test_nothing_is_no_error(self, text: str) -> None:
        """A file without records gives none."""
        assert [item for item in items(text) if not isinstance(item, Reject)] == []


SHAPES_UNDERSTOOD = "an object of records by symbol, an object with the section predictions or symbols"


class TestRoots:
    """Where nothing can be used, the message says what the input is, and what it should be."""

    @pytest.mark.parametrize(
        "name", ["prediction", "confidence", "last_price", "last", "price", "sentiment", "stop_loss"]
    )
    def test_a_field_of_a_record_tells_wherever_it_stands(self, name: str) -> None:
        """Among any number of plain members, which pass in bulk, it makes the root a record without a symbol."""
        fillers = [f'"x{number}":{number}' for number in range(20)]
        for place in (0, 10, 20):
            text = "{" + ",".join((*fillers[:place], f'"{name}":null', *fillers[place:])) + "}"

            (found,) = items(text)

            assert isinstance(found, Reject)
            assert found.reason is RejectReason.SYMBOL

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("", "the input is empty;"),
            ("{}", "the input is an empty object;"),
            ("[]", "the input is an array;"),
            ("5", "the input is a number;"),
            (f'{{"data":[{{{GOOD}}}]}}', "the input is an object with the members 'data' (an array);"),
            (f'{{"data":{{"A":{{{GOOD}}}}}}}', "the input is an object with the members 'data' (an object);"),
            (
                '{"a":1,"b":"x","c":null,"\\udcff":[],"e":true,"f":{}}',
                "'a' (a number), 'b' (a string), 'c' (null), '\ufffd' (an array), 'e' (a boolean), ...;",
            ),
            ('{"%s":1}' % ("k" * 500), f"'{'k' * SHOWN_CHARACTERS}' (a number);"),
            ('{"ticker":"A","px":1}\n{"ticker":"B","px":2}', "the members 'ticker' (a string), 'px' (a number);"),
        ],
    )
    def test_nothing_usable(self, text: str, says: str) -> None:
        """Its first members are named with their kinds, whatever the engine and the cuts."""
        for chunks in ([text.encode()], [bytes((byte,)) for byte in text.encode()]):
            summary = found_in(chunks).summary()
            assert says in f"{summary};"
            assert (SHAPES_UNDERSTOOD in summary) == bool(text)

    @pytest.mark.parametrize(
        "text", [f'{{"A":{{{GOOD}}}}}', f'{{"symbol":"A",{GOOD}}}', f'{{}}\n[{{"symbol":"A",{GOOD}}}]']
    )
    def test_with_a_record_it_says_no_more(self, text: str) -> None:
        """There is nothing to explain."""
        assert found_in([text.encode()]).summary() == "1 records seen"

    def test_lines_that_are_rejected_say_why_themselves(self) -> None:
        """Their shape is understood."""
        summary = found_in([b'{"symbol":"A","confidence":7}\n{"symbol":"B","confidence":8}']).summary()

        assert summary.startswith("2 records seen; 2 x ConfidenceInvalid")
        assert "the input is" not in summary

    def test_parts_say_which(self) -> None:
        """Of many files the first that holds nothing is described."""
        found = Found(Selection(10))
        for name, text in (("a.json", '{"x":1}'), ("b.json", "[]")):
            found.take_findings(found_in([text.encode()]).findings(), name)

        assert "the input is a.json: an object with the members 'x' (a number);" in found.summary()


class TestFields:
    """What a record's fields may be."""

    def test_only_three_are_needed(self) -> None:
        """Sentiment is neutral by default; target, stop and timestamp may be missing or null."""
        plain = Record("A", 1.5, 0.9, 3.0, "neutral", None, None, None)

        assert record(f'{{"A":{{{GOOD}}}}}') == plain
        nulls = '"sentiment":null,"target_price":null,"stop_loss":NaN,"timestamp":-Infinity'
        assert record(f'{{"A":{{{GOOD},{nulls}}}}}') == plain

    @pytest.mark.parametrize(
        ("fields", "price"),
        [
            ('"last_price":3,"last":4,"price":5', 3.0),
            ('"last_price":null,"last":4,"price":5', 4.0),
            ('"last":4,"price":5', 4.0),
            ('"price":5', 5.0),
            ('"price":5,"last":NaN,"last_price":Infinity', 5.0),
            ('"last_price":NaN,"price":5.25,"last":null', 5.25),
            ('"last_price":3,"last":"unread","price":[1]', 3.0),
            ('"last_price":3,"last":true', 3.0),
            ('"last_price":123456789012345678901234567890', 123456789012345678901234567890.0),
            ('"last_price":1e-320', 1e-320),
        ],
    )
    def test_the_price_has_three_names(self, fields: str, price: float) -> None:
        """`last_price`, else `last`, else `price`; a `NaN` falls through, and what comes after is not read."""
        assert record(f'{{"A":{{"prediction":1,"confidence":1,{fields}}}}}').last_price == price

    @pytest.mark.parametrize("text", ["0", "1", "-0.0", "0.0", "1.0", "1e0", "0.3e-5", "100000e-5"])
    def test_confidence_reaches_from_0_to_1(self, text: str) -> None:
        """Both ends count, and whole numbers too."""
        found = record(f'{{"A":{{"prediction":-1,"confidence":{text},"last_price":1}}}}')

        assert (found.confidence, type(found.confidence)) == (float(text), float)

    @given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**30), 10**30))
    def test_numbers_are_read_as_python_reads_them(self, number: float) -> None:
        """Both ways through the decoder give the nearest double."""
        numbers = f'"prediction":{number!r},"target_price":{number!r},"confidence":1,"price":1'

        fast, slow = record(f'{{"A":{{{numbers}}}}}'), record(f'{{"A":{{"confidence":null,{numbers}}}}}')

        assert fast == slow
        assert (fast.prediction, fast.target_price) == (float(number), float(number))

    @pytest.mark.parametrize(
        "value", ['"2026-11-01"', "1760000000", "1760000000.25", '""', str(2**64 - 1), str(10**30)]
    )
    def test_timestamps_are_passed_on(self, value: str) -> None:
        """Text or a number, as the engine wrote it."""
        assert record(f'{{"A":{{{GOOD},"timestamp":{value}}}}}').timestamp == json.loads(value)

    def test_a_field_that_comes_twice_counts_last(self) -> None:
        """As in `json.loads`, also where the first one was bad."""
        assert record(f'{{"A":{{"confidence":"x",{GOOD},"prediction":7}}}}').prediction == 7
        assert record(f'{{"A":{{{GOOD},"confidence":NaN,"confidence":0.25}}}}').confidence == 0.25

    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize(
        "field",
        [
            *('"x":1e999', '"x":-1e-999', '"x":1e99999999999999999999', f'"x":{"1" * 5000}', f'"x":-{"9" * 5000}'),
            *('"x":"\\ud800"', '"x":"\\udc00\\ud800"', '"x":["\\ud800"]', '"x":{"\\ud800":1}', '"x":"NaN"'),
            *('"x":NaN', '"x":[NaN,-Infinity]', '"\\u0000":0', '"x":"' + "y" * 5000 + '"', '"x":1,"x":2'),
        ],
    )
    def test_discarded_fields_are_harmless(self, shape: str, field: str) -> None:
        """Numbers of any size and halves of surrogate pairs stop nothing where nobody reads them."""
        assert record(SHAPES[shape] % f"{field},{GOOD}").symbol == "A"
        assert record(SHAPES[shape] % f"{GOOD},{field}").symbol == "A"
        if ":{" not in field:
            assert record(f'{{"x1":1,{field},"A":{{{GOOD}}}}}').symbol == "A"

    @pytest.mark.parametrize("shape", SHAPES)
    def test_invalid_utf8_is_harmless_where_nobody_reads(self, shape: str) -> None:
        """In a discarded container, and in a discarded field."""
        text = (SHAPES[shape] % f'"x":["@"],"y":"@",{GOOD},"z":{{"a":"@"}}').encode()

        assert record(text.replace(b"@", b"\xff\xc3")).symbol == "A"


# JSON as it is written, and the name it means.
SYMBOLS = {
    "BRK/B": "BRK/B",
    "BRK\\/B": "BRK/B",
    'say \\"hi\\"': 'say "hi"',
    "back\\\\slash\\\\": "back\\slash\\",
    "É€😀": "É€😀",
    "\\u00c9\\u20AC\\ud83d\\ude00": "É€😀",
    "": "",
    " ": " ",
    "tab\\tline\\nnull\\u0000": "tab\tline\nnull\0",
    "}{][,:": "}{][,:",
    "NaN": "NaN",
    "predictions ": "predictions ",
    "\\u005F not hidden in an array": "_ not hidden in an array",
}


class TestSymbols:
    """Any text is a symbol."""

    @pytest.mark.parametrize("written", SYMBOLS)
    def test_names_are_decoded(self, written: str) -> None:
        """As a key and as a field, with whatever escapes."""
        name = SYMBOLS[written]

        if not name.startswith("_"):
            assert record(f'{{"{written}":{{{GOOD}}}}}').symbol == name
        assert record(f'{{"predictions":{{"{written}":{{{GOOD}}}}}}}').symbol == name
        assert record(f'[{{{GOOD},"symbol":"{written}"}}]').symbol == name
        assert record(f'{{{GOOD},"symbol":"{written}"}}').symbol == name

    def test_the_key_is_the_symbol(self) -> None:
        """In a map the key counts, whatever the record calls itself."""
        assert record(f'{{"A":{{"symbol":"B",{GOOD}}}}}').symbol == "A"
        assert record(f'{{"A":{{"symbol":5,{GOOD}}}}}').symbol == "A"

    @pytest.mark.parametrize(
        ("own", "ignored"),
        [
            *((['"A"'], 0), (["null"], 0), (["NaN"], 0), (['"B"'], 1), (["5"], 1), (["{}"], 1), (["1e999"], 1)),
            (['"S0"', '"x"', "null", '"S3"', "[1]", '"S5"'], 2),
        ],
    )
    def test_other_symbols_than_the_key_are_counted(self, own: list[str], ignored: int) -> None:
        """Those of records that count, in a map and in a section, whatever is wrong with others."""
        names = ["A"] if len(own) == 1 else [f"S{number}" for number in range(len(own))]
        members = [f'"{name}":{{"symbol":{value},{GOOD}}}' for name, value in zip(names, own, strict=True)]
        bad = '"bad":{"symbol":"other","confidence":7}'
        for text in (f"{{{','.join(members)}}}", f'{{"symbols":{{{",".join([*members, bad])}}}}}'):
            for chunks in ([text.encode()], [bytes((byte,)) for byte in text.encode()]):
                found = found_in(chunks)
                assert (found.records_used, found.symbols_ignored) == (len(own), ignored)
                assert found.findings().symbols_ignored == ignored

    def test_symbols_inside_a_record_are_not_counted(self) -> None:
        """A line's own objects are discarded, also where its symbol comes last."""
        text = f'{{"x":{{"symbol":"B",{GOOD}}},"symbol":"A",{GOOD}}}'

        assert found_in([text.encode()]).symbols_ignored == 0

    @pytest.mark.parametrize("bad", ["\\x", "\\u12", "\\ud800\\x", "tab\t", "\x00", "\udcff\x01"])
    def test_bad_names_are_malformed(self, bad: str) -> None:
        """A bad escape or a control character in a symbol stops the run, with its byte."""

        def place(text: str) -> int:
            return malformed_at(text.encode("utf-8", "surrogateescape"))[0]

        assert place(f'{{"{bad}":{{{GOOD}}}}}') == 1
        assert place(f'{{"predictions":{{"{bad}":{{{GOOD}}}}}}}') == len('{"predictions":{')
        for text in (f'[{{{GOOD},"symbol":"{bad}"}}]', f'{{{GOOD},"symbol":"{bad}"}}'):
            start = text.index('"symbol"')
            assert start <= place(text) <= text.rindex('"')


BAD_TEXTS = [
    b"\xff",
    b"x\xc3",
    b"\xed\xa0\x80",
    b"\\ud83d",
    b"x\\udfff",
    b"\\ud800\\ud800",
    b"\xc0\xaf",
    b"\\ud83d\xff",
]
# Where text of a record is kept: `@` is the bad text.
KEPT_TEXTS = {
    "key": '{"a@":{%s}}',
    "section key": '{"predictions":{"a@":{%s}}}',
    "own symbol": '{"A":{"symbol":"@",%s}}',
    "own symbol in a section": '{"symbols":{"A":{%s,"symbol":"@"}}}',
    "element": '[{"symbol":"@",%s}]',
    "section element": '{"predictions":[{%s,"symbol":"@"}]}',
    "line": '{"symbol":"a@",%s}',
    "symbol last": '{"x":{"y":1},%s,"symbol":"@"}',
}
BAD_RECORDS = [GOOD, '"confidence":"no"', '"x":{"a":[1]}', f'{GOOD},"sentiment":5']


class TestBadText:
    """Text that is no Unicode in what is kept of a record is one rejected record; elsewhere it is no concern."""

    @pytest.mark.parametrize("place", KEPT_TEXTS)
    @pytest.mark.parametrize("fields", BAD_RECORDS)
    def test_in_a_symbol(self, place: str, fields: str) -> None:
        """Whatever else is wrong with the record; the name is shown with replacement characters."""
        for bad in BAD_TEXTS:
            found = reject((KEPT_TEXTS[place] % fields).encode().replace(b"@", bad))

            assert found.reason == RejectReason.TEXT
            assert found.details.startswith("symbol is not valid text: ")
            assert found.name == "A" or (found.name and "\ufffd" in found.name)
            msgspec.json.encode(found)

    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("name", [name for name in FIELD_NAMES if name != "symbol"])
    def test_in_a_kept_field(self, shape: str, name: str) -> None:
        """Also where a number belongs, and under a name of the price that would not be used."""
        for bad, written in itertools.product(BAD_TEXTS, (name, f"\\u{ord(name[0]):04x}{name[1:]}")):
            fields = f'"h":[1,2,{{"a":"é"}}],{GOOD},"{written}":"a@"'
            found = reject((SHAPES[shape] % fields).encode().replace(b"@", bad))

            assert (found.reason, found.name) == (RejectReason.TEXT, "A")
            assert found.details.startswith(f"{name} is not valid text: ")

    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize(
        "field",
        ['"note":"@"', '"@":"x"', '"n@":[1]', '"last_updated":"@"', '"name":["@"]', '"equity":"@"', '"o":{"@":1}'],
    )
    def test_where_nobody_reads(self, shape: str, field: str) -> None:
        """Under other names, those of bots included, and in names: the record counts, or is rejected for its flaw."""
        for bad in BAD_TEXTS:
            for fields in (f"{field},{GOOD}", f"{GOOD},{field}"):
                assert record((SHAPES[shape] % fields).encode().replace(b"@", bad)).symbol == "A"
            found = reject((SHAPES[shape] % f'"confidence":"high",{field}').encode().replace(b"@", bad))
            assert found.reason == RejectReason.CONFIDENCE

    @pytest.mark.parametrize("bad", BAD_TEXTS)
    @pytest.mark.parametrize(
        "member", ['"@":1', '"@":"x"', '"@":[1]', '"x":"@"', '"_@":{}', '"@":null', '"timestamp":"@"']
    )
    def test_around_the_records(self, bad: bytes, member: str) -> None:
        """Members of the root that are no records."""
        for text in (f'{{{member},"A":{{{GOOD}}}}}', f'{{"predictions":{{"A":{{{GOOD}}}}},{member}}}'):
            assert record(text.encode().replace(b"@", bad)).symbol == "A"

    @pytest.mark.parametrize("bad", BAD_TEXTS)
    def test_under_a_name_in_a_section(self, bad: bytes) -> None:
        """What is no object is that first of all."""
        found = reject(b'{"predictions":{"%s":5}}' % bad)

        assert found.reason == RejectReason.NOT_AN_OBJECT
        msgspec.json.encode(found)

    def test_a_field_that_comes_twice_counts_last(self) -> None:
        """What is overwritten is not read."""
        bad, good = '"sentiment":"\\ud800"', '"sentiment":"up"'

        assert record(f'{{"A":{{{GOOD},{bad},{good}}}}}').sentiment == "up"
        assert reject(f'{{"A":{{{GOOD},{good},{bad}}}}}').reason == RejectReason.TEXT

    @pytest.mark.parametrize("bad", BAD_TEXTS)
    @pytest.mark.parametrize(
        "body",
        [
            '"b@":{}',
            '"b":{"last_updated":"@"}',
            '"b":{"positions":{"@":{"qty":1}}}',
            '"b":{"positions":[{"symbol":"@","qty":1}]}',
        ],
    )
    def test_in_a_bot(self, bad: bytes, body: str) -> None:
        """A bot's kept text makes it an invalid bot."""
        found = reject(f'{{"bots":{{{body}}}}}'.encode().replace(b"@", bad))

        assert found.reason == RejectReason.BOT
        assert "is not valid text" in found.details
        msgspec.json.encode(found)

    @pytest.mark.parametrize("bad", BAD_TEXTS)
    @pytest.mark.parametrize(
        "field", ['"symbol":"@"', '"sentiment":"@"', '"@":1', '"timestamp":"@"', '"positions":[],"x":["@"]']
    )
    def test_where_nobody_reads_in_a_bot(self, bad: bytes, field: str) -> None:
        """A record's names are nothing to a bot."""
        (found,) = items(f'{{"bots":{{"b":{{{field}}}}}}}'.encode().replace(b"@", bad))

        assert isinstance(found, Bot)

    @given(st.binary(max_size=6) | st.text(max_size=4).map(lambda text: json.dumps(text)[1:-1].encode()))
    def test_python_says_what_is_valid(self, text: bytes) -> None:
        """A string is a symbol if `json.loads` reads it and the outcome can be encoded."""
        data = b'[{"symbol":"%s",%s}]' % (text, GOOD.encode())
        try:
            (expected,) = json.loads(data.decode("utf-8", "surrogateescape"), object_pairs_hook=list)
        except ValueError:
            with pytest.raises(RollingError):
                items(data)
            return
        if expected[0][0] != "symbol" or len(expected) != 4:
            return  # a quote in the text has changed the structure
        try:
            expected[0][1].encode()
        except UnicodeEncodeError:
            assert reject(data).reason == RejectReason.TEXT
        else:
            assert record(data).symbol == expected[0][1]


CASES = [
    # fields that replace the good ones, reason, and what the details say
    ('"confidence":null', RejectReason.CONFIDENCE, "confidence is missing"),
    ('"confidence":NaN', RejectReason.CONFIDENCE, "confidence is missing"),
    ('"confidence":Infinity', RejectReason.CONFIDENCE, "confidence is missing"),
    ('"confidence":true', RejectReason.CONFIDENCE, "confidence is True"),
    ('"confidence":"0.9"', RejectReason.CONFIDENCE, "confidence is '0.9'"),
    ('"confidence":1.0000000000000002', RejectReason.CONFIDENCE, "from 0 to 1"),
    ('"confidence":-1e-300', RejectReason.CONFIDENCE, "from 0 to 1"),
    ('"confidence":90', RejectReason.CONFIDENCE, "from 0 to 1"),
    ('"confidence":1e999', RejectReason.CONFIDENCE, "confidence is inf"),
    (f'"confidence":{"1" * 5000}', RejectReason.CONFIDENCE, "confidence is inf"),
    (f'"confidence":{"1" * 400}', RejectReason.CONFIDENCE, "from 0 to 1"),
    ('"confidence":[0.9]', RejectReason.CONFIDENCE, "confidence is []"),
    ('"confidence":{"value":0.9}', RejectReason.CONFIDENCE, "confidence is {}"),
    ('"prediction":null', RejectReason.PREDICTION, "prediction is missing"),
    ('"prediction":-Infinity', RejectReason.PREDICTION, "prediction is missing"),
    ('"prediction":"1"', RejectReason.PREDICTION, "prediction is '1'"),
    ('"prediction":false', RejectReason.PREDICTION, "prediction is False"),
    ('"prediction":-1e400', RejectReason.PREDICTION, "prediction is -inf"),
    (f'"prediction":-{"1" * 5000}', RejectReason.PREDICTION, "prediction is -inf"),
    ('"prediction":[]', RejectReason.PREDICTION, "prediction is []"),
    ('"last_price":null', RejectReason.LAST_PRICE, "last_price is missing, expected a number above 0"),
    (
        '"last_price":NaN,"last":NaN,"price":NaN',
        RejectReason.LAST_PRICE,
        "last_price is missing, expected a number above 0",
    ),
    ('"last_price":0', RejectReason.LAST_PRICE, "last_price is 0,"),
    ('"last_price":-0.0', RejectReason.LAST_PRICE, "above 0"),
    ('"last_price":-5,"last":5', RejectReason.LAST_PRICE, "last_price is -5,"),
    ('"last_price":"100","last":5', RejectReason.LAST_PRICE, "last_price is '100'"),
    ('"last_price":null,"last":true', RejectReason.LAST_PRICE, "last is True"),
    ('"last_price":null,"last":0,"price":5', RejectReason.LAST_PRICE, "last is 0,"),
    ('"last_price":null,"price":[]', RejectReason.LAST_PRICE, "price is []"),
    ('"last_price":1e999,"last":5', RejectReason.LAST_PRICE, "last_price is inf"),
    ('"last_price":1e-400', RejectReason.LAST_PRICE, "last_price is 0.0,"),
    (f'"last_price":{"9" * 5000}', RejectReason.LAST_PRICE, "last_price is inf"),
    ('"sentiment":5', RejectReason.FIELD_TYPE, "sentiment is 5"),
    ('"sentiment":["bullish"]', RejectReason.FIELD_TYPE, "sentiment is []"),
    ('"target_price":"105"', RejectReason.FIELD_TYPE, "target_price is '105'"),
    ('"target_price":1e999', RejectReason.FIELD_TYPE, "target_price is inf"),
    ('"stop_loss":true', RejectReason.FIELD_TYPE, "stop_loss is True"),
    ('"stop_loss":{}', RejectReason.FIELD_TYPE, "stop_loss is {}"),
    ('"timestamp":true', RejectReason.FIELD_TYPE, "timestamp is True"),
    ('"timestamp":{"s":1}', RejectReason.FIELD_TYPE, "timestamp is {}"),
    ('"timestamp":1e999', RejectReason.FIELD_TYPE, "timestamp is inf"),
    (f'"timestamp":{"1" * 5000}', RejectReason.FIELD_TYPE, "timestamp is inf"),
]


class TestRejects:
    """Bad records are counted by reason, named, and the stream goes on."""

    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize(("fields", "reason", "details"), CASES)
    def test_each_reason(self, shape: str, fields: str, reason: RejectReason, details: str) -> None:
        """Reason, name, place and value, in every shape."""
        text = SHAPES[shape] % f"{GOOD},{fields}"

        found = reject(text)

        begin = text.rindex("{", 0, text.index('"prediction":'))
        assert (found.reason, found.name, found.where) == (reason, "A", f"byte {begin}")
        assert details in found.details
        assert len(found.details) < 200

    @pytest.mark.parametrize("value", ["null", "7", "true", "[]", '{"a":1}', "NaN", None])
    def test_a_missing_symbol(self, value: str | None) -> None:
        """In an array a record names its symbol itself, by text."""
        field = f'"symbol":{value},' if value else ""

        for text in (f"[{{{field}{GOOD}}}]", f'{{"predictions":[{{{field}{GOOD}}}]}}'):
            assert reject(text).reason == RejectReason.SYMBOL
        if value not in ("[]", '{"a":1}'):
            assert reject(f"{{{field}{GOOD}}}").reason == RejectReason.SYMBOL

    def test_reasons_have_an_order(self) -> None:
        """Of several flaws the first counts: size, symbol, confidence, prediction, last price, others."""
        flaws = {
            RejectReason.TOO_LARGE: ("x", '"%s"' % ("y" * 2_000)),
            RejectReason.SYMBOL: ("symbol", "1"),
            RejectReason.CONFIDENCE: ("confidence", "2"),
            RejectReason.PREDICTION: ("prediction", "null"),
            RejectReason.LAST_PRICE: ("last_price", "0"),
            RejectReason.FIELD_TYPE: ("stop_loss", '"x"'),
        }
        while flaws:
            members = ",".join(f'"{name}":{value}' for name, value in flaws.values())
            (found,) = items(f'[{{"symbol":"A",{GOOD},{members}}}]', limit=1_024)
            assert isinstance(found, Reject)
            assert found.reason == next(iter(flaws))
            del flaws[found.reason]

    def test_too_large_says_how_large_and_what_to_do(self) -> None:
        """The size is that of the record's own level, and the message names the setting."""
        found = items(f'{{"A":{{{GOOD},"x":"{"y" * 2_000}","z":[{"1," * 5_000}1]}},"B":{{{GOOD}}}}}', limit=1_024)

        assert shown(found) == ["RecordTooLarge", "B"]
        assert isinstance(found[0], Reject)
        assert (found[0].name, found[0].where) == ("A", "byte 5")
        assert found[0].details.startswith("2,064 bytes without its nested containers, over ROLLING_MAX_RECORD_BYTES")

    def test_long_names_are_cut(self) -> None:
        """A report stays small whatever the names of what it rejects."""
        name = "N" * 5_000
        texts = [
            f'{{"{name}":{{}}}}',
            f'{{"predictions":{{"{name}":1}}}}',
            f'[{{"symbol":"{name}"}}]',
            f'{{"bots":{{"{name}":{{"equity":"{name}"}}}}}}',
            f'{{"bots":{{"b":{{"positions":[{{"symbol":"{name}","qty":"{name}"}}]}}}}}}',
        ]
        for text in texts:
            found = reject(text)
            assert found.name in (name[:SHOWN_CHARACTERS], "b")
            assert len(found.details) < 300

    def test_the_first_three_of_each_reason_are_named(self) -> None:
        """A tally has the number and the first few; bots do not count as records."""
        found = Found(Selection(10))
        bad = '"A":{},"B":{},"C":{},"D":{},"E":{"confidence":1},"bots":{"x":1}'
        text = f'{{{bad},"F":{{{GOOD}}}}}'
        for item in items(text):
            found.take(item)

        assert [(tally.reason.value, tally.count, [one.name for one in tally.first]) for tally in found.tallies()] == [
            ("ConfidenceInvalid", 4, ["A", "B", "C"]),
            ("BotInvalid", 1, ["x"]),
            ("PredictionInvalid", 1, ["E"]),
        ]
        assert (found.records_seen, found.records_rejected, found.records_used) == (6, 5, 1)


class TestMalformed:
    """A syntax error in what is kept stops the run, with its byte in the source."""

    @pytest.mark.parametrize("lead", ["", "\ufeff", " \n\t", "\ufeff\r\n"])
    @pytest.mark.parametrize(
        "text",
        [
            # `@` marks the byte that the message names, and is taken out
            '{"A":{"x":@tru}}',
            '{"A":{"h":[1,[2,{"é":"]"}]],"x":@tru,"y":{}}}',
            '{"A":{"a":NaN,"b":[],"c":-Infinity,"x":0@1}}',
            '{"A":{"x":1@ "y":2}}',
            '{"A":{"x":1,@,"y":2}}',
            '{"A":{"x"@ 1}}',
            '{"A":{@x:1}}',
            '{"A":{"x":[1,2,3],"y":"é@\t"}}',
            '{"A":{"x":{"a":"😀"},"y":"é@\\q"}}',
            '{"A":{"x":[1],"y":@.5,"z":[2]}}',
            '[{"symbol":"A","x":[1,2,3],"y":@nul}]',
            '{"predictions":{"A":{"h":{"a":[]},"x":@+1}}}',
            '{"bots":{"b":{"positions":[{"qty":1,"orders":[1,2],"x":@oops}]}}}',
            '{"symbol":"A","h":[1,2,{"a":1}],"x":{"a":[1]},"y":@tru}',
            '{"symbol":"A","h":[1,2,{"a":1}],"x":{"a":[1]},"n":NaN,"y":"é@\\q"}',
            '{"symbol":"A","h":[1,2,{"a":1}],"x":NaN,"y":"é@\x01"}',
            '{"symbol":"A"}\n{"symbol":"B","h":[1,2,3],"y":@tru}',
            # between records
            '{"A":{"x":[1,2,3]}@ "B":{}}',
            '{"A":{"x":[1,2,3]}, "B"@ {}}',
            '{"A":{"x":[1,2,3]},@ {}}',
            '{"A":{"x":[1,2,3]},@, "B":{}}',
            '{"A":{"x":[1,2,3]}, "n":@nan}',
            '{"A":{"x":[1,2,3]}, "n":@-NaN}',
            '{"A":{"x":[1,2,3]}, "n":@01}',
            '{"A":{"x":[1,2,3]}, "n":[1,2]@ "m":3}',
            '{"A":{"x":[1,2,3]}, @\'n\':1}',
            '[{"x":[1,2,3]}@ {"x":1}]',
            '[{"x":[1,2,3]},@]',
            '[{"x":[1,2,3]},1@ 2]',
            '{"predictions":{"A":{"x":[1]}@ "B":{}}}',
            '{"A":{}}@,{"B":{}}',
            '{"A":{}}\n@x',
            '@x{"A":{}}',
            "@\x0c{}",
            '{"A":{}}@}',
        ],
    )
    def test_the_byte_is_exact(self, lead: str, text: str) -> None:
        """Whatever was pruned before it, with and without a byte order mark, whole and byte by byte."""
        data = (lead + text.replace("@", "")).encode()
        expected = len((lead + text[: text.index("@")]).encode())

        found, message = malformed_at(data)

        # Parsers of the text between records name the token at which they stop: white space before it may be skipped.
        assert data[expected:found].strip() == b"", message
        assert found >= expected, message

    @given(st.data(), styles)
    def test_the_byte_is_that_of_json_loads(self, data: st.DataObject, style: Any) -> None:
        """Damage between the members of a record is told where `json.loads` of the whole file finds it."""
        members = data.draw(st.lists(st.tuples(st.text(max_size=3), discarded), max_size=4))
        damage = data.draw(st.sampled_from(["tru", "1 2", "'x'", '"\\q"', '"a', ",", "", "01", "-", "[1}", "\x00"]))
        parts = [render(key, style) + style.colon + render(value, style) for key, value in members]
        parts.insert(data.draw(st.integers(0, len(parts))), f'"é"{style.colon}{damage}')
        before = render(Members([("😀", Members(members))]), style)[:-1]
        text = f'{before},"A":{{{style.item.join(parts)}}}}}'
        try:
            json.loads(text, parse_int=float)
        except json.JSONDecodeError as error:
            expected = len(text[: error.pos].encode("utf-8", "surrogateescape"))
        else:
            pytest.fail(f"{text} is no error")

        if damage in ('"a', "[1}"):  # swallows what follows: where it ends is another question
            with pytest.raises(RollingError):
                items(text)
            return
        assert malformed_at(text)[0] == expected

    def test_nothing_after_it_is_read(self) -> None:
        """Records before the error come out, and then the error."""
        lines = [f'{{"symbol":"{name}",{GOOD}}}\n'.encode() for name in "ABC"]
        found = scan([*lines, b"{1}", *lines], max_record_bytes=LIMIT)

        assert [item.symbol for item in itertools.islice(found, 3) if isinstance(item, Record)] == ["A", "B", "C"]
        with pytest.raises(SourceMalformed):
            next(found)

    @given(no_objects)
    def test_plain_members_of_a_map_are_never_too_much(self, value: Any) -> None:
        """Any well-formed value may stand between records."""
        text = render(Members([("before", value), ("A", Members([("x", value)])), ("after", value)]), STYLE)

        assert shown(items(text)) == ["ConfidenceInvalid"]


class TestBots:
    """Bots, their positions, and what is wrong with them."""

    def test_all_fields(self) -> None:
        """Positions are kept with symbol, quantity and cost."""
        found = bot(
            '{"enabled":true,"equity":10.5,"pnl_today":-2,"last_updated":"t","strategy":{"deep":[[[1]]]},'
            '"positions":[{"symbol":"A","quantity":-2,"avg_price":1.5,"orders":[{"id":1}]}]}'
        )

        assert found == Bot(
            name="b",
            enabled=True,
            equity=10.5,
            pnl_today=-2.0,
            position_count=1,
            positions=(Position("A", -2.0, 1.5),),
            last_updated="t",
        )

    def test_no_fields(self) -> None:
        """A bot that says nothing is not enabled and holds nothing; `NaN` says nothing either."""
        nothing = Bot(
            name="b",
            enabled=False,
            equity=None,
            pnl_today=None,
            position_count=0,
            positions=(),
            last_updated=None,
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
        """A list, a map of symbol to position, or a number; each field has several names."""
        found = bot(f'{{"positions":{positions}}}')

        assert isinstance(found, Bot)
        assert (found.position_count, found.positions) == (count, tuple(Position(*one) for one in held))

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
        """One position that cannot be used rejects the bot: its sums would be wrong."""
        found = bot(body)

        assert isinstance(found, Reject)
        assert (found.reason, found.name) == (RejectReason.BOT, "b")
        assert details in found.details

    @pytest.mark.parametrize(
        "element", ["{}", '{"equity":1}', "[]", "[[1]]", "5", '"x"', "null", "1,2", "{},5", "[],{}"]
    )
    def test_a_list_of_bots_is_one_reject(self, element: str) -> None:
        """How many are in it is not known; of an empty list it is: none."""
        (found,) = items(f'{{"A":{{{GOOD}}},"bots": [{element}]}}')[1:]
        assert isinstance(found, Reject)
        assert found == Reject(RejectReason.BOT, "bots", f"byte {len(GOOD) + 16}", "expected an object, got an array")
        assert shown(items(f'{{"A":{{{GOOD}}},"bots":[ ],"_bots":[]}}')) == ["A"]

    def test_a_bot_that_is_too_large_is_rejected(self) -> None:
        """Its positions count for its size; what is nested deeper does not."""
        deep = '{"bots":{"b":{"positions":{"A":{"qty":1,"x":[%s]}}}}}' % ("1," * 5_000 + "1")
        wide = json.dumps({"bots": {"b": {"positions": [{"symbol": "A", "qty": 1}] * 200}}})

        assert shown(items(deep, limit=1_024)) == ["b"]
        (found,) = items(wide, limit=1_024)
        assert isinstance(found, Reject)
        assert (found.reason, found.name) == (RejectReason.BOT, "b")
        assert "bytes without its nested containers" in found.details

    def test_a_later_bot_replaces_an_earlier_one(self) -> None:
        """A name that comes again, in whichever section, counts once and last."""
        found = Found(Selection(1))
        for item in items('{"bots":{"b":{"equity":1},"c":{}},"_bots":{"b":{"equity":2}}}'):
            found.take(item)

        assert [(one.name, one.equity) for one in found.bots] == [("b", 2.0), ("c", None)]


class TestBotFiles:
    """A bot file is one object, the bot."""

    @pytest.mark.parametrize("text", ["{}", ' {"equity":1} \n', "\ufeff{}"])
    def test_one_object(self, text: str) -> None:
        """White space and a byte order mark around it are fine."""
        assert isinstance(scan_bot([text.encode()], "b", max_record_bytes=LIMIT), Bot)

    @pytest.mark.parametrize("text", ["", "[]", "[{}]", "{}{}", "{} 1", "1 {}", '"x"', "null", "{},"])
    def test_anything_else_is_rejected(self, text: str) -> None:
        """Not one object: rejected, with what was expected."""
        found = scan_bot([text.encode()], "b", max_record_bytes=LIMIT)

        assert isinstance(found, Reject)
        assert "expected one JSON object" in found.details

    def test_positions_are_kept(self) -> None:
        """Whole and byte by byte."""
        text = b'{"positions":{"A":{"qty":1,"x":[[[1]]]}}}'

        whole = scan_bot([text], "b", max_record_bytes=LIMIT)

        assert isinstance(whole, Bot)
        assert whole.positions == (Position("A", 1.0, None),)
        assert scan_bot([bytes((byte,)) for byte in text], "b", max_record_bytes=LIMIT) == whole


class TestBounds:
    """What is held for every record is short, and sums stay finite."""

    @pytest.mark.parametrize(("field", "limit"), [("symbol", 256), ("sentiment", 1_024), ("timestamp", 1_024)])
    def test_kept_text_is_short(self, field: str, limit: int) -> None:
        """At the limit it counts, beyond it is a field of a wrong type; fast way and slow way agree."""
        for alias in ("", '"last": 1e999, '):
            good, bad = (
                one(json.dumps({"symbol": "A"} | {field: "x" * size} | GOOD_FIELDS).replace("{", "{" + alias, 1))
                for size in (limit, limit + 1)
            )
            assert isinstance(good, Record)
            assert isinstance(bad, Reject)
            assert (bad.reason, "expected" in bad.details) == (RejectReason.FIELD_TYPE, True)

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
        """At the limit it counts, beyond it the bot is rejected, and its name is cut."""
        limit = 1_024 if "last_updated" in body else 256
        (good,) = items(f'{{"bots":{{{body.replace("@", "x" * limit)}}}}}')
        bad = reject(f'{{"bots":{{{body.replace("@", "x" * (limit + 1))}}}}}')

        assert isinstance(good, Bot)
        assert bad.reason == RejectReason.BOT
        assert len(bad.name or "") <= SHOWN_CHARACTERS
        assert f"has {limit + 1:,} characters, expected {limit:,} at most" in bad.details

    @pytest.mark.slow
    def test_nine_hundred_bots_with_names_of_900_kb_take_no_memory(self) -> None:
        """They are rejected one by one, and nothing of their names is held."""
        chunks = itertools.chain(
            [b'{"bots":{'], (b'"%s%d":{},' % (b"x" * 900_000, number) for number in range(100)), [b'"b":{}}}']
        )
        found = Found(Selection(10))
        tracemalloc.start()
        try:
            for item in scan_all(chunks, current(), max_record_bytes=LIMIT):
                found.take(item)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

        assert [bot.name for bot in found.bots] == ["b"]
        assert found.tallies()[0].count == 100
        assert peak < 30_000_000

    def test_a_position_of_any_size_leaves_the_sums_finite(self) -> None:
        """Quantities and costs that no market has are no positions."""
        position = '{"symbol": "X", "qty": %s, "avg": %s}'
        for quantity, cost in (("1.7e308", "1"), ("-1e101", "1"), ("1", "1e101")):
            bots = '{"bots": {"b": {"positions": [' + position % (quantity, cost) + "]}}}"
            assert [item.reason for item in scan([bots.encode()], max_record_bytes=10_000) if isinstance(item, Reject)]

    def test_bots_are_not_held_back_without_bound(self) -> None:
        """Their positions count among the thousand objects after which a root is a map, whatever comes later."""
        bot = '"%s": {"positions": [' + ", ".join(['{"symbol": "X", "qty": 1}'] * 600) + "]}"
        text = '{"bots": {' + ", ".join(bot % name for name in "abcd") + '}, "symbol": "LATE"}'
        items = scan([text.encode()], max_record_bytes=100_000)
        assert [item.name for item in items if isinstance(item, Bot)] == ["a", "b", "c", "d"]


GOOD_FIELDS = {"confidence": 0.5, "prediction": 1, "last_price": 2}


def one(record: str) -> object:
    """The one item of an array of one record."""
    (item,) = scan([f"[{record}]".encode()], max_record_bytes=10_000)
    return item
