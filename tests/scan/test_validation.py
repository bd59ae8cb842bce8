"""How a unit becomes a record or a reject: fields, symbols, text, reasons and limits."""

from __future__ import annotations

import itertools
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.errors import RollingError
from optimizer.models import Bot, Record, Reject, RejectReason
from optimizer.scan.fragment import SHOWN_CHARACTERS
from optimizer.scan.schema import schema_of
from optimizer.selection.result import ScanResult
from optimizer.selection.top_n import Selection
from tests.support.engines import scan
from tests.support.scanned import GOOD, SHAPES, items, malformed_at, record, reject, scan_result, shown

pytestmark = pytest.mark.usefixtures("engine")


class TestFields:
    """The values that a record's fields may have."""

    def test_only_three_are_needed(self) -> None:
        """A record needs a prediction, a confidence and a price.

        Sentiment is neutral by default; target, stop and timestamp may be missing or null.
        """
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
        """The price is `last_price`, else `last`, else `price`.

        A null or `NaN` passes on to the next name, and names after the one that is used are not read.
        """
        assert record(f'{{"A":{{"prediction":1,"confidence":1,{fields}}}}}').last_price == price

    @pytest.mark.parametrize("text", ["0", "1", "-0.0", "0.0", "1.0", "1e0", "0.3e-5", "100000e-5"])
    def test_confidence_reaches_from_0_to_1(self, text: str) -> None:
        """A confidence from 0 to 1, both included, becomes a float; it may be a whole number."""
        decoded = record(f'{{"A":{{"prediction":-1,"confidence":{text},"last_price":1}}}}')

        assert (decoded.confidence, type(decoded.confidence)) == (float(text), float)

    @given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**30), 10**30))
    def test_numbers_are_read_as_python_reads_them(self, number: float) -> None:
        """A number becomes the nearest double, as in Python, by the decoder's fast way and by its slow way."""
        numbers = f'"prediction":{number!r},"target_price":{number!r},"confidence":1,"price":1'

        fast, slow = record(f'{{"A":{{{numbers}}}}}'), record(f'{{"A":{{"confidence":null,{numbers}}}}}')

        assert fast == slow
        assert (fast.prediction, fast.target_price) == (float(number), float(number))

    @pytest.mark.parametrize(
        "value", ['"2026-11-01"', "1760000000", "1760000000.25", '""', str(2**64 - 1), str(10**30)]
    )
    def test_timestamps_are_passed_on(self, value: str) -> None:
        """A timestamp is passed on as the engine wrote it, as text or as a number."""
        assert record(f'{{"A":{{{GOOD},"timestamp":{value}}}}}').timestamp == json.loads(value)

    def test_a_field_that_comes_twice_counts_last(self) -> None:
        """Of a field that comes twice the last value counts, as in `json.loads`, also where the first one was bad."""
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
        """Numbers of any size and halves of surrogate pairs are no errors in fields that are not read."""
        assert record(SHAPES[shape] % f"{field},{GOOD}").symbol == "A"
        assert record(SHAPES[shape] % f"{GOOD},{field}").symbol == "A"
        if ":{" not in field:
            assert record(f'{{"x1":1,{field},"A":{{{GOOD}}}}}').symbol == "A"

    @pytest.mark.parametrize("shape", SHAPES)
    def test_invalid_utf8_is_harmless_where_it_is_not_read(self, shape: str) -> None:
        """Invalid UTF-8 is no error in a discarded container and in a discarded field."""
        text = (SHAPES[shape] % f'"x":["@"],"y":"@",{GOOD},"z":{{"a":"@"}}').encode()

        assert record(text.replace(b"@", b"\xff\xc3")).symbol == "A"


# A symbol as it is written in JSON, and the text that it stands for.
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
    """Any text may be a symbol."""

    @pytest.mark.parametrize("written", SYMBOLS)
    def test_names_are_decoded(self, written: str) -> None:
        """A symbol is decoded with any escapes, as a key and as a field."""
        name = SYMBOLS[written]

        if not name.startswith("_"):
            assert record(f'{{"{written}":{{{GOOD}}}}}').symbol == name
        assert record(f'{{"predictions":{{"{written}":{{{GOOD}}}}}}}').symbol == name
        assert record(f'[{{{GOOD},"symbol":"{written}"}}]').symbol == name
        assert record(f'{{{GOOD},"symbol":"{written}"}}').symbol == name

    def test_the_key_is_the_symbol(self) -> None:
        """In a map the key is the symbol, whatever the record has as its own `symbol`."""
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
        """Own symbols that differ from the key are counted, in a map and in a section.

        In rejected records they are not counted.
        """
        names = ["A"] if len(own) == 1 else [f"S{number}" for number in range(len(own))]
        members = [f'"{name}":{{"symbol":{value},{GOOD}}}' for name, value in zip(names, own, strict=True)]
        bad = '"bad":{"symbol":"other","confidence":7}'
        for text in (f"{{{','.join(members)}}}", f'{{"symbols":{{{",".join([*members, bad])}}}}}'):
            for chunks in ([text.encode()], [bytes((byte,)) for byte in text.encode()]):
                result = scan_result(chunks)
                assert (result.records_used, result.symbols_ignored) == (len(own), ignored)
                assert result.part_result().symbols_ignored == ignored

    def test_symbols_inside_a_record_are_not_counted(self) -> None:
        """A symbol in an object inside a record is discarded and not counted, even if the record's own is last."""
        text = f'{{"x":{{"symbol":"B",{GOOD}}},"symbol":"A",{GOOD}}}'

        assert scan_result([text.encode()]).symbols_ignored == 0

    @pytest.mark.parametrize("bad", ["\\x", "\\u12", "\\ud800\\x", "tab\t", "\x00", "\udcff\x01"])
    def test_bad_names_are_malformed(self, bad: str) -> None:
        """A bad escape or a control character in a symbol ends the scan with an error that has its byte."""

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
    """Invalid Unicode in a kept field rejects that one record; elsewhere it is ignored."""

    @pytest.mark.parametrize("place", KEPT_TEXTS)
    @pytest.mark.parametrize("fields", BAD_RECORDS)
    def test_in_a_symbol(self, place: str, fields: str) -> None:
        """Bad text in a symbol rejects the record, whatever else is wrong with it.

        The reject shows the name with replacement characters.
        """
        for bad in BAD_TEXTS:
            rejected = reject((KEPT_TEXTS[place] % fields).encode().replace(b"@", bad))

            assert rejected.reason == RejectReason.TEXT
            assert rejected.details.startswith("symbol is not valid text: ")
            assert rejected.name == "A" or (rejected.name and "\ufffd" in rejected.name)
            msgspec.json.encode(rejected)

    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("name", [name for name in schema_of().record_names if name != "symbol"])
    def test_in_a_kept_field(self, shape: str, name: str) -> None:
        """Bad text in a kept field rejects the record, also where a number belongs.

        So it does under a name of the price that would not be used.
        """
        for bad, written in itertools.product(BAD_TEXTS, (name, f"\\u{ord(name[0]):04x}{name[1:]}")):
            fields = f'"h":[1,2,{{"a":"é"}}],{GOOD},"{written}":"a@"'
            rejected = reject((SHAPES[shape] % fields).encode().replace(b"@", bad))

            assert (rejected.reason, rejected.name) == (RejectReason.TEXT, "A")
            assert rejected.details.startswith(f"{name} is not valid text: ")

    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize(
        "field",
        ['"note":"@"', '"@":"x"', '"n@":[1]', '"last_updated":"@"', '"name":["@"]', '"equity":"@"', '"o":{"@":1}'],
    )
    def test_what_is_not_read(self, shape: str, field: str) -> None:
        """Bad text in names, and in fields that are not read, also if bots have them, is ignored.

        A record with such text is accepted, or rejected for its own flaw.
        """
        for bad in BAD_TEXTS:
            for fields in (f"{field},{GOOD}", f"{GOOD},{field}"):
                assert record((SHAPES[shape] % fields).encode().replace(b"@", bad)).symbol == "A"
            rejected = reject((SHAPES[shape] % f'"confidence":"high",{field}').encode().replace(b"@", bad))
            assert rejected.reason == RejectReason.CONFIDENCE

    @pytest.mark.parametrize("bad", BAD_TEXTS)
    @pytest.mark.parametrize(
        "member", ['"@":1', '"@":"x"', '"@":[1]', '"x":"@"', '"_@":{}', '"@":null', '"timestamp":"@"']
    )
    def test_around_the_records(self, bad: bytes, member: str) -> None:
        """Bad text in members of the root that are no records is ignored."""
        for text in (f'{{{member},"A":{{{GOOD}}}}}', f'{{"predictions":{{"A":{{{GOOD}}}}},{member}}}'):
            assert record(text.encode().replace(b"@", bad)).symbol == "A"

    @pytest.mark.parametrize("bad", BAD_TEXTS)
    def test_under_a_name_in_a_section(self, bad: bytes) -> None:
        """A section's member that is not an object is rejected for that reason, before its bad name counts."""
        rejected = reject(b'{"predictions":{"%s":5}}' % bad)

        assert rejected.reason == RejectReason.NOT_AN_OBJECT
        msgspec.json.encode(rejected)

    def test_a_field_that_comes_twice_counts_last(self) -> None:
        """Of a field that comes twice only the last text is read: bad text in the first one is ignored."""
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
        """Bad text in a bot's name, time or position symbols makes it an invalid bot."""
        rejected = reject(f'{{"bots":{{{body}}}}}'.encode().replace(b"@", bad))

        assert rejected.reason == RejectReason.BOT
        assert "is not valid text" in rejected.details
        msgspec.json.encode(rejected)

    @pytest.mark.parametrize("bad", BAD_TEXTS)
    @pytest.mark.parametrize(
        "field", ['"symbol":"@"', '"sentiment":"@"', '"@":1', '"timestamp":"@"', '"positions":[],"x":["@"]']
    )
    def test_what_is_not_read_in_a_bot(self, bad: bytes, field: str) -> None:
        """Bad text in names, and in fields that only records have, is ignored in a bot."""
        (item,) = items(f'{{"bots":{{"b":{{{field}}}}}}}'.encode().replace(b"@", bad))

        assert isinstance(item, Bot)

    @given(st.binary(max_size=6) | st.text(max_size=4).map(lambda text: json.dumps(text)[1:-1].encode()))
    def test_python_says_what_is_valid(self, text: bytes) -> None:
        """Text is a symbol if `json.loads` reads it and the result can be encoded as UTF-8.

        Otherwise the scan ends with an error, or the record is rejected.
        """
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
    """Bad records are counted by reason and named, and the scan continues."""

    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize(("fields", "reason", "details"), CASES)
    def test_each_reason(self, shape: str, fields: str, reason: RejectReason, details: str) -> None:
        """A reject has the reason, the name, the byte offset and the bad value, in every shape."""
        text = SHAPES[shape] % f"{GOOD},{fields}"

        rejected = reject(text)

        begin = text.rindex("{", 0, text.index('"prediction":'))
        assert (rejected.reason, rejected.name, rejected.where) == (reason, "A", f"byte {begin}")
        assert details in rejected.details
        assert len(rejected.details) < 200

    @pytest.mark.parametrize("value", ["null", "7", "true", "[]", '{"a":1}', "NaN", None])
    def test_a_missing_symbol(self, value: str | None) -> None:
        """A record in an array or a line has to name its symbol by text; otherwise it is `SymbolMissing`."""
        field = f'"symbol":{value},' if value else ""

        for text in (f"[{{{field}{GOOD}}}]", f'{{"predictions":[{{{field}{GOOD}}}]}}'):
            assert reject(text).reason == RejectReason.SYMBOL
        if value not in ("[]", '{"a":1}'):
            assert reject(f"{{{field}{GOOD}}}").reason == RejectReason.SYMBOL

    def test_reasons_have_an_order(self) -> None:
        """Of several flaws the first one in a fixed order is the reason.

        The order is size, symbol, confidence, prediction, last price, other fields.
        """
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
            (item,) = items(f'[{{"symbol":"A",{GOOD},{members}}}]', limit=1_024)
            assert isinstance(item, Reject)
            assert item.reason == next(iter(flaws))
            del flaws[item.reason]

    def test_too_large_says_how_large_and_what_to_do(self) -> None:
        """The reject of a record that is too large has the size of its own level, and names the setting."""
        scanned = items(f'{{"A":{{{GOOD},"x":"{"y" * 2_000}","z":[{"1," * 5_000}1]}},"B":{{{GOOD}}}}}', limit=1_024)

        assert shown(scanned) == ["RecordTooLarge", "B"]
        assert isinstance(scanned[0], Reject)
        assert (scanned[0].name, scanned[0].where) == ("A", "byte 5")
        assert scanned[0].details.startswith("2,064 bytes without its nested containers, over ROLLING_MAX_RECORD_BYTES")

    def test_long_names_are_cut(self) -> None:
        """Long names and values are truncated in rejects, so that a report stays small."""
        name = "N" * 5_000
        texts = [
            f'{{"{name}":{{}}}}',
            f'{{"predictions":{{"{name}":1}}}}',
            f'[{{"symbol":"{name}"}}]',
            f'{{"bots":{{"{name}":{{"equity":"{name}"}}}}}}',
            f'{{"bots":{{"b":{{"positions":[{{"symbol":"{name}","qty":"{name}"}}]}}}}}}',
        ]
        for text in texts:
            rejected = reject(text)
            assert rejected.name in (name[:SHOWN_CHARACTERS], "b")
            assert len(rejected.details) < 300

    def test_the_first_three_of_each_reason_are_named(self) -> None:
        """Each reason has the number of its rejects and the names of the first three.

        Bots do not count as records.
        """
        result = ScanResult(Selection(10))
        bad = '"A":{},"B":{},"C":{},"D":{},"E":{"confidence":1},"bots":{"x":1}'
        text = f'{{{bad},"F":{{{GOOD}}}}}'
        for item in items(text):
            result.take(item)

        assert [(tally.reason.value, tally.count, [one.name for one in tally.first]) for tally in result.tallies()] == [
            ("ConfidenceInvalid", 4, ["A", "B", "C"]),
            ("BotInvalid", 1, ["x"]),
            ("PredictionInvalid", 1, ["E"]),
        ]
        assert (result.records_seen, result.records_rejected, result.records_used) == (6, 5, 1)


class TestBounds:
    """The text that is kept of every record is short."""

    @pytest.mark.parametrize(("field", "limit"), [("symbol", 256), ("sentiment", 1_024), ("timestamp", 1_024)])
    def test_kept_text_is_short(self, field: str, limit: int) -> None:
        """Kept text is accepted at its limit, and is a field of a wrong type beyond it.

        The decoder's fast way and its slow way agree.
        """
        for alias in ("", '"last": 1e999, '):
            good, bad = (
                one(json.dumps({"symbol": "A"} | {field: "x" * size} | GOOD_FIELDS).replace("{", "{" + alias, 1))
                for size in (limit, limit + 1)
            )
            assert isinstance(good, Record)
            assert isinstance(bad, Reject)
            assert (bad.reason, "expected" in bad.details) == (RejectReason.FIELD_TYPE, True)


GOOD_FIELDS = {"confidence": 0.5, "prediction": 1, "last_price": 2}


def one(record: str) -> object:
    """Return the one item of an array of one record."""
    (item,) = scan([f"[{record}]".encode()], max_record_bytes=10_000)
    return item
