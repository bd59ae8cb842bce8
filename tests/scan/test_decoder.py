"""The four shapes of an input, what a root object is, and the byte offsets of errors."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.errors import RollingError, SourceMalformed
from optimizer.models import Record, Reject, RejectReason
from optimizer.scan.fragment import SHOWN_CHARACTERS
from optimizer.selection.result import ScanResult
from optimizer.selection.top_n import Selection
from tests.support.engines import scan
from tests.support.rolling_files import a_record
from tests.support.scanned import GOOD, LIMIT, SHAPES, items, malformed_at, record, reject, scan_result, shown
from tests.support.strategies import Members, Style, discarded, no_objects, render, styles

pytestmark = pytest.mark.usefixtures("engine")

STYLE = Style(",", ":", "", "utf-8")


class TestShapes:
    """The four shapes of an input, which are detected while it is read."""

    @pytest.mark.parametrize("shape", SHAPES)
    def test_every_shape_gives_the_same_record(self, shape: str) -> None:
        """A record is the same in every shape."""
        fields = json.dumps(a_record())[1:-1]

        assert record(SHAPES[shape] % fields) == Record(
            "A", 101.5, 0.75, 100.0, "bullish", 105.0, 95.0, "2026-11-01T10:00:00Z"
        )

    def test_sections_and_records_may_stand_side_by_side(self) -> None:
        """Sections may be in any order among the members of a map, more than once, and under both names."""
        one = f"{{{GOOD}}}"
        text = (
            f'{{"bots":{{"x":{{}}}},"A":{one},"symbols":[{{"symbol":"B",{GOOD}}}],"_bots":{{"y":{{}}}},'
            f'"predictions":{{"C":{one}}},"D":{one},"predictions":[{{"symbol":"E",{GOOD}}}]}}'
        )

        assert shown(items(text)) == ["x", "A", "B", "y", "C", "D", "E"]

    @pytest.mark.parametrize("key", ["predictions", "symbols", "bots", "_bots", "symbol"])
    def test_names_may_be_written_with_escapes(self, key: str) -> None:
        """A key in which a plain letter is written as an escape has the same meaning."""
        escaped = f"\\u{ord(key[0]):04x}{key[1:]}"
        body = '"A"' if key == "symbol" else f'{{"A":{{{GOOD}}}}}'

        plain, spelled = [f'{{"{name}":{body},{GOOD}}}' for name in (key, escaped)]

        assert items(spelled) == items(plain)

    def test_what_is_no_record_is_passed_over(self) -> None:
        """Root members whose names begin with `_`, or that are no objects, are neither records nor rejects."""
        text = f'{{"_meta":{{{GOOD}}},"_":{{}},"timestamp":"t","count":1,"x":[{{{GOOD}}}],"n":null,"A":{{{GOOD}}}}}'

        assert shown(items(text)) == ["A"]

    @pytest.mark.parametrize("between", ["\n", "\r\n", " ", "", "\n\n"])
    def test_texts_one_after_another(self, between: str) -> None:
        """Records may follow each other with or without white space, and the symbol may be their last member."""
        texts = [f'{{"symbol":"A",{GOOD}}}', f'{{{GOOD},"x":{{"a":1}},"symbol":"B"}}', f'[{{"symbol":"C",{GOOD}}}]']

        assert shown(items(between.join(texts))) == ["A", "B", "C"]

    def test_lines_without_a_symbol(self) -> None:
        """A line without a text `symbol` is one reject."""
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
        """A root object that has only sections, objects and metadata is not taken for a record."""
        assert items(text) == []

    def test_after_a_line_all_are_lines(self) -> None:
        """After a root that was a record, a root object with other plain members is a record without a symbol.

        An empty object, one with only names that begin with `_`, and one with an object are not.
        """
        lines = [f'{{"symbol":"A",{GOOD}}}', '{"ticker":"B","note":1}', "{}", '{"_end":1}', '{"_x":{},"note":1}']

        assert shown(items("\n".join(lines))) == ["A", "SymbolMissing"]
        assert shown(items("\n".join(lines[1:]))) == []
        assert shown(items(f"{{{GOOD}}}\n{lines[1]}")) == ["SymbolMissing"] * 2

    @pytest.mark.parametrize(("value", "kind"), [("5", "a number"), ('"x"', "a string"), ("true", "a boolean")])
    def test_sections_of_a_wrong_type_are_rejected(self, value: str, kind: str) -> None:
        """A section of a wrong type is rejected by its name, and null counts as absent.

        In a root that is a record, such a member is not read.
        """
        for name, reason in (
            ("predictions", RejectReason.NOT_AN_OBJECT),
            ("symbols", RejectReason.NOT_AN_OBJECT),
            ("bots", RejectReason.BOT),
            ("_bots", RejectReason.BOT),
        ):
            text = f'{{"{name}":{value},"confidence":1}}'
            rejected = reject(text)
            assert (rejected.reason, rejected.name, rejected.where) == (reason, name, f"byte {text.index(value)}")
            assert rejected.details.endswith(f"got {kind}")
            assert shown(items(f'{{"{name}":null,"A":{{{GOOD}}}}}')) == ["A"]
            assert shown(items(f'{{"{name}":{value},"symbol":"A",{GOOD}}}')) == ["A"]

    @pytest.mark.parametrize("value", ["1", '"text"', "null", "true", "NaN", "[]", "[[]]"])
    def test_what_is_no_object_is_rejected(self, value: str) -> None:
        """A value in place of a record that is no object is a reject. An array at the root contains records."""
        for text in (f"[{value}]", f'{{"predictions":[{value}]}}', f'{{"predictions":{{"A":{value}}}}}'):
            assert reject(text).reason == RejectReason.NOT_AN_OBJECT
        expected = {"[]": [], "[[]]": ["RecordNotObject"]}.get(value, ["RecordNotObject"])
        assert shown(items(value)) == expected

    def test_a_record_may_have_a_thousand_members(self) -> None:
        """A root with a thousand objects is a map, whatever plain values it has.

        With one object fewer it may still be a record.
        """

        def root(objects: int) -> str:
            return "{" + "".join(f'"k{i}":{{}},' for i in range(objects)) + f'"symbol":"A",{GOOD}}}'

        assert shown(items(root(999))) == ["A"]
        assert len(items(root(1_000))) == 1_000

    def test_items_come_before_the_end(self) -> None:
        """The records of a map are yielded while it is still open: only the first thousand are held back."""
        text = "{" + ",".join(f'"k{i}":{{{GOOD}}}' for i in range(2_000))

        events = scan([text.encode(), b"}"], max_record_bytes=LIMIT)

        assert isinstance(next(events), Record)

    @pytest.mark.parametrize("text", ["", " \n", "{}", "[]", "{}\n{}", '{"predictions":{}}', '{"bots":[]}'])
    def test_nothing_is_no_error(self, text: str) -> None:
        """An input without records yields none, and is no error."""
        assert [item for item in items(text) if not isinstance(item, Reject)] == []


SHAPES_UNDERSTOOD = "an object of records by symbol, an object with the section predictions or symbols"


class TestRoots:
    """If nothing of an input can be used, the message says what the input is, and what it should be."""

    @pytest.mark.parametrize(
        "name", ["prediction", "confidence", "last_price", "last", "price", "sentiment", "stop_loss"]
    )
    def test_a_field_of_a_record_tells_wherever_it_stands(self, name: str) -> None:
        """A field of a record makes the root a record without a symbol, wherever it is among plain members.

        Those are skipped in bulk.
        """
        fillers = [f'"x{number}":{number}' for number in range(20)]
        for place in (0, 10, 20):
            text = "{" + ",".join((*fillers[:place], f'"{name}":null', *fillers[place:])) + "}"

            (item,) = items(text)

            assert isinstance(item, Reject)
            assert item.reason is RejectReason.SYMBOL

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
        """The message names the first members of the input with their kinds, also if it is read byte by byte."""
        for chunks in ([text.encode()], [bytes((byte,)) for byte in text.encode()]):
            summary = scan_result(chunks).summary()
            assert says in f"{summary};"
            assert (SHAPES_UNDERSTOOD in summary) == bool(text)

    @pytest.mark.parametrize(
        "text", [f'{{"A":{{{GOOD}}}}}', f'{{"symbol":"A",{GOOD}}}', f'{{}}\n[{{"symbol":"A",{GOOD}}}]']
    )
    def test_with_a_record_it_says_no_more(self, text: str) -> None:
        """If there is a record, the message does not describe the input, since there is nothing to explain."""
        assert scan_result([text.encode()]).summary() == "1 records seen"

    def test_lines_that_are_rejected_say_why_themselves(self) -> None:
        """If all records are rejected, the message has the reasons and does not describe the input.

        Its shape is understood.
        """
        summary = scan_result([b'{"symbol":"A","confidence":7}\n{"symbol":"B","confidence":8}']).summary()

        assert summary.startswith("2 records seen; 2 x ConfidenceInvalid")
        assert "the input is" not in summary

    def test_parts_say_which(self) -> None:
        """Of many files, the message describes the first one without records, and names it."""
        result = ScanResult(Selection(10))
        for name, text in (("a.json", '{"x":1}'), ("b.json", "[]")):
            result.take_part(scan_result([text.encode()]).part_result(), name)

        assert "the input is a.json: an object with the members 'x' (a number);" in result.summary()


class TestMalformed:
    """A syntax error in what is kept stops the scan, with its byte in the input."""

    @pytest.mark.parametrize("lead", ["", "\ufeff", " \n\t", "\ufeff\r\n"])
    @pytest.mark.parametrize(
        "text",
        [
            # `@` marks the byte that the message names, and is removed from the text
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
        """The error names the exact byte, whatever was pruned before it, with and without a byte order mark.

        It is the same whether the input is read whole or byte by byte.
        """
        data = (lead + text.replace("@", "")).encode()
        expected = len((lead + text[: text.index("@")]).encode())

        offset, message = malformed_at(data)

        # Parsers of the text between records name the token at which they stop: white space before it may be skipped.
        assert data[expected:offset].strip() == b"", message
        assert offset >= expected, message

    @given(st.data(), styles)
    def test_the_byte_is_that_of_json_loads(self, data: st.DataObject, style: Any) -> None:
        """Damage between the members of a record is reported where `json.loads` of the whole file finds it."""
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

        if damage in ('"a', "[1}"):  # it includes what follows, so the error may be at another byte
            with pytest.raises(RollingError):
                items(text)
            return
        assert malformed_at(text)[0] == expected

    def test_nothing_after_it_is_read(self) -> None:
        """Records before a syntax error are yielded, then the error is raised; the rest of the input is not read."""
        lines = [f'{{"symbol":"{name}",{GOOD}}}\n'.encode() for name in "ABC"]
        chunks = iter([*lines, b"{1}", *lines])
        events = scan(chunks, max_record_bytes=LIMIT)

        assert [item.symbol for item in itertools.islice(events, 3) if isinstance(item, Record)] == ["A", "B", "C"]
        with pytest.raises(SourceMalformed):
            next(events)
        assert list(events) == []
        assert list(chunks) == lines

    @given(no_objects)
    def test_plain_members_of_a_map_are_never_too_much(self, value: Any) -> None:
        """Any well-formed value that is not an object may be between the records of a map."""
        text = render(Members([("before", value), ("A", Members([("x", value)])), ("after", value)]), STYLE)

        assert shown(items(text)) == ["ConfidenceInvalid"]
