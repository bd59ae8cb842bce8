"""The native engine compared with the one in Python (`ijson`): the same items, or the same error, for any input."""

from __future__ import annotations

import gc
import json
import re
import threading
import time
import tracemalloc
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from optimizer.config.field_map import parse_mapping
from optimizer.errors import RollingError
from optimizer.models import Record, Reject
from optimizer.models.field_map import UNMAPPED, InputMapping
from optimizer.scan.batch import BatchDecoder, EncodedBatch, RecordBatch
from optimizer.scan.decoder import Item, RootShape, ScanEvent
from optimizer.scan.engine import Engine, choose_engine
from optimizer.scan.layout import LAYOUTS, RECORD_LAYOUT
from optimizer.scan.pruner import Pruner
from optimizer.scan.scanner import scan, scan_items
from optimizer.scan.validation import ExtrasDropped, SymbolsIgnored
from tests.support.broken_documents import BrokenDocuments
from tests.support.engines import decline, require_engine
from tests.support.examples import examples
from tests.support.rolling_files import a_record
from tests.support.strategies import MAPPINGS, cuts, rolling_bytes

LIMIT = 1 << 20
IJSON = choose_engine("ijson")


@pytest.fixture(scope="module", name="native")
def native_engine() -> Engine:
    """The native engine."""
    return require_engine("native")


def outcome(
    chunks: Iterable[bytes], engine: Engine, limit: int = LIMIT, mapping: InputMapping = UNMAPPED
) -> list[Item | tuple[str, str]]:
    """Return what a scan yields, and the class and the message of the error that it ends with."""
    outcomes: list[Item | tuple[str, str]] = []
    ignored = dropped = 0
    try:
        for item in scan(chunks, engine, max_record_bytes=limit, mapping=mapping):  # items before an error count too
            if isinstance(item, RecordBatch):
                outcomes.extend(item.records())
            elif isinstance(item, SymbolsIgnored):
                ignored += item.number
            elif isinstance(item, ExtrasDropped):
                dropped += item.number
            elif isinstance(item, RootShape):
                outcomes.append(("root", item.text))
            else:
                outcomes.append(item)
    except RollingError as error:
        outcomes.append((type(error).__name__, str(error)))
    return [*outcomes, ("symbols ignored", f"{ignored}"), ("extras dropped", f"{dropped}")]


def one_by_one(data: bytes) -> list[bytes]:
    return [bytes((byte,)) for byte in data]


class TestBothEngines:
    """Both engines give the same items and errors, with the same offsets in their messages."""

    @hypothesis_settings(max_examples=examples(200))
    @given(st.data(), rolling_bytes(), st.sampled_from([16, 64, 300, LIMIT]))
    def test_on_rolling_files(self, native: Engine, data: st.DataObject, whole: bytes, limit: int) -> None:
        """Both engines agree on files of every shape, read whole, byte by byte and cut anywhere."""
        expected = outcome([whole], IJSON, limit)

        for chunks in ([whole], one_by_one(whole), data.draw(cuts(whole))):
            assert outcome(chunks, native, limit) == expected

    @hypothesis_settings(max_examples=examples(600))
    @given(st.data(), st.sampled_from(MAPPINGS), st.sampled_from([64, 300, LIMIT]))
    def test_on_files_with_fields_of_their_own(
        self, native: Engine, data: st.DataObject, mapping: InputMapping, limit: int
    ) -> None:
        """Both engines agree under mappings with names, divisors, paths and extra fields, however the file is cut."""
        whole = data.draw(rolling_bytes(mapping))
        expected = outcome([whole], IJSON, limit, mapping)

        for chunks in ([whole], one_by_one(whole), data.draw(cuts(whole))):
            assert outcome(chunks, native, limit, mapping) == expected
        assert outcome(data.draw(cuts(whole)), IJSON, limit, mapping) == expected

    @pytest.mark.no_cover
    @pytest.mark.slow
    @pytest.mark.parametrize("seed", range(10))
    def test_on_broken_documents(self, native: Engine, seed: int) -> None:
        """Both engines yield the same items of a damaged file up to the damage, and then the same error."""
        documents = BrokenDocuments(seed)
        for _ in range(150):
            whole = documents.file()
            limit = (16, 64, 100, 300, LIMIT)[len(whole) % 5]
            expected = outcome([whole], IJSON, limit)
            for chunks in ([whole], one_by_one(whole), documents.cuts(whole)):
                assert outcome(chunks, native, limit) == expected, whole

    @pytest.mark.parametrize("opening", ["{%s}", '{"predictions":{%s}}'])
    @pytest.mark.parametrize("defect", ["", "tru", '"a" 1', "1,", ',"x":1', "\\", '"\\q":1', '"\x01":1', '"\\ud800":1'])
    def test_one_bad_record_among_hundreds(self, native: Engine, opening: str, defect: str) -> None:
        """With one bad record among 400, both engines yield the same records, and the same reject or error.

        The error is the one of the bad record alone, with its offset in the whole file.
        """
        records = [f'"S{number}":{json.dumps(a_record())}' for number in range(400)]
        records[300] = f'"S300":{{"prediction":1,"confidence":0.5,"last_price":2,"h":[1,2],{defect}}}'
        data = (opening % ",".join(records)).encode()
        bad, *_ = outcome([(opening % records[300]).encode()], IJSON)
        if isinstance(bad, tuple):
            before = len(",".join(records[:300]) + ",")
            bad = (bad[0], re.sub(r"(?<=byte )\d+", lambda offset: f"{int(offset[0]) + before:,}", bad[1]))

        result = outcome([data], native)

        assert result == outcome([data], IJSON)
        assert bad in result

    @pytest.mark.no_cover
    @pytest.mark.slow
    @pytest.mark.parametrize("shape", ["map", "array", "lines"])
    @pytest.mark.parametrize(
        "fields",
        [
            {"last_price": None, "last": 5},
            {"last_price": None, "last": None, "price": 5},
            {"last_price": 10**30},
            {"last_price": 0},
            {"confidence": None},
            {"confidence": 1.5},
            {"prediction": "1"},
            {"sentiment": None, "timestamp": 1_700_000_000},
            {"sentiment": "x" * 1_025},
            {"timestamp": 10**400},
            {"target_price": "5"},
            {"symbol": "x" * 257},
            {"symbol": None},
            {"symbol": "K7"},
            {"symbol": 5},
            {"symbol": "\ud83d"},
            {"price": "\ud83d", "last": "unread"},
            {"note": "\ud83d", "\udcff": 1},
        ],
        ids=str,
    )
    def test_every_kind_of_record_in_a_batch(self, native: Engine, shape: str, fields: dict[str, Any]) -> None:
        """Both engines agree on records with unusual fields, whether all 50 have them or every seventh."""
        for every in (1, 7):
            records = [
                {"symbol": f"S{number}"} | a_record() | (fields if number % every == 0 else {}) for number in range(50)
            ]
            texts = [json.dumps(record) for record in records]
            data = {
                "map": "{" + ",".join(f'"K{number}":{text}' for number, text in enumerate(texts)) + "}",
                "array": "[" + ",".join(texts) + "]",
                "lines": "\n".join(texts),
            }[shape].encode()

            expected = outcome([data], IJSON)
            assert outcome([data], native) == expected
            assert outcome(one_by_one(data), native) == expected

    @pytest.mark.slow
    @pytest.mark.parametrize("bad", [b"\xff", b"\\ud83d", b"\xc3\xa9\xc3", b"\\x", b"\x01"])
    @pytest.mark.parametrize(
        "text",
        [
            b'{"S@":{%s},"T":{%s}}',
            b'{"T":{%s},"predictions":{"@":{%s}}}',
            b'{"A":{"symbol":"@",%s},"H":{"confidence":"no"},"I":{%s}}',
            b'[{"symbol":"A",%s,"price":"@"},{"symbol":"B",%s}]',
            b'[{"symbol":"@",%s},{"symbol":"B",%s}]',
            b'{"symbol":"@",%s}\n{"symbol":"B",%s}',
            b'{%s,"symbol":"@"}\n{%s,"x":{"a":1},"symbol":"B@"}',
            b'{"A":{%s},"B":{"confidence":"high","last_updated":"@"},"C":{%s}}',
            b'{"bots":{"b":{"symbol":"@"}},"A":{%s},"@":1,"C":{%s}}',
            b'{"bots":{"b@":{"last_updated":"@"}},"A":{"@":"@",%s},"_@":{%s}}',
        ],
    )
    def test_bad_text_in_every_place(self, native: Engine, text: bytes, bad: bytes) -> None:
        """Both engines give the same items, rejects and errors, wherever bad text is and the input is cut.

        Only bad escapes and control characters end the scan with an error.
        """
        good = b'"prediction":1,"confidence":0.5,"last_price":2'
        data = (text % (good, good)).replace(b"@", bad)
        expected = outcome([data], IJSON)

        assert ("SourceMalformed" in repr(expected)) == (bad in (b"\\x", b"\x01")), expected
        assert outcome([data], native) == expected
        for engine in (native, IJSON):
            assert outcome(one_by_one(data), engine) == expected
        for cut in range(1, len(data)):
            assert outcome([data[:cut], data[cut:]], native) == expected

    def test_names_that_come_twice_in_a_batch(self, native: Engine) -> None:
        """A symbol that comes again in a batch is yielded each time, since the selection counts duplicates."""
        data = ("{" + ",".join(f'"S{number % 10}":{json.dumps(a_record())}' for number in range(100)) + "}").encode()

        result = outcome([data], native)

        assert [item.symbol for item in result if isinstance(item, Record)] == [
            f"S{number % 10}" for number in range(100)
        ]
        assert result == outcome([data], IJSON)


class TestPieces:
    """If the decoder takes no batch, both engines give it the same text."""

    @hypothesis_settings(max_examples=examples(200))
    @given(st.data(), rolling_bytes(), st.sampled_from([16, 300, LIMIT]))
    def test_both_engines_give_the_same_pieces(
        self, native: Engine, data: st.DataObject, whole: bytes, limit: int
    ) -> None:
        """The native engine gives the same bytes, units, sizes and offsets as the one in Python, for any cuts."""
        chunks = data.draw(cuts(whole))

        assert self._bytes(native, chunks, limit) == self._bytes(IJSON, [whole], limit)

    @staticmethod
    def _bytes(engine: Engine, chunks: list[bytes], limit: int) -> object:
        """Return each byte of the fragments with its offset in the input, and the size of each unit; or the error."""
        pruner = engine.pruner(default=RECORD_LAYOUT, members=LAYOUTS, max_unit_bytes=limit, on_batch=decline)
        stream: list[object] = []
        try:
            for fragments in (*map(pruner.feed, chunks), pruner.close()):
                for fragment in fragments:
                    stream += [(fragment.input_offset(place), byte) for place, byte in enumerate(fragment.data)]
                    stream += [fragment.size] if fragment.kind.name == "UNIT" else []
        except RollingError as error:
            return type(error).__name__, str(error)
        return stream


def batch_sizes(events: Iterable[ScanEvent]) -> list[int]:
    """Return the number of records in each batch."""
    return [len(event.symbols) for event in events if isinstance(event, RecordBatch)]


class TestBatches:
    """Records are decoded in batches, not one by one: the speed depends on it."""

    @pytest.mark.parametrize("shape", ["map", "sections", "array", "lines"])
    @pytest.mark.parametrize("indent", [None, 2])
    @pytest.mark.parametrize("field", ["last_price", "last", "price"])
    def test_a_chunk_is_one_batch(self, native: Engine, shape: str, indent: int | None, field: str) -> None:
        """The records of each chunk come as one batch at most, and none of them one by one.

        This holds in every shape, pretty-printed or not, for each name of the price, with NaN in every record.
        """
        good = a_record(target_price=float("nan"), stop_loss=float("-inf"))
        good[field] = good.pop("last_price")
        records = [{"symbol": f"S{number}"} | good for number in range(1_500)]
        value: Any = {record["symbol"]: record for record in records}
        text = {
            "map": lambda: json.dumps({"_meta": {"a": 1}, "count": 1_500} | value, indent=indent),
            "sections": lambda: json.dumps({"predictions": value, "bots": {}}, indent=indent),
            "array": lambda: json.dumps(records, indent=indent),
            "lines": lambda: "\n".join(json.dumps(record, indent=indent) for record in records),
        }[shape]()
        data = text.encode()
        chunks = [data[start : start + 100_000] for start in range(0, len(data), 100_000)]

        events = list(scan(chunks, native, max_record_bytes=LIMIT))

        sizes = batch_sizes(events)
        assert len(chunks) >= 3
        assert sum(sizes) == 1_500
        assert len(sizes) <= len(chunks)
        assert not any(isinstance(item, Record | Reject) for item in events)

    def test_a_reject_takes_its_batch_apart_and_no_other(self, native: Engine) -> None:
        """Only the batch with the reject is decoded record by record; the records of other chunks stay batches."""
        records = [
            json.dumps({"symbol": f"S{number}"} | a_record(confidence=2 * (number == 50))) for number in range(300)
        ]
        chunks = [("\n".join(records[start : start + 100]) + "\n").encode() for start in (0, 100, 200)]

        events = list(scan(chunks, native, max_record_bytes=LIMIT))

        assert batch_sizes(events) == [100, 100]
        assert sum(isinstance(item, Record) for item in events) == 99

    @pytest.mark.parametrize("shape", ["map", "array", "lines"])
    def test_a_reject_with_fields_deep_inside(
        self, native: Engine, shape: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A batch with a reject and nested fields is decoded record by record, and not given again as fragments."""
        decode, taken = BatchDecoder.decode, []

        def noted(decoder: BatchDecoder, batch: EncodedBatch) -> Any:
            items = decode(decoder, batch)
            taken.append(items is not None)
            return items

        monkeypatch.setattr(BatchDecoder, "decode", noted)
        fields = {"note": "}]", "price": {"a": [[1, {"x": 2}], "{"], "by": {"venue": {"last": 2}}}, "list": [{"y": {}}]}
        records = [
            {"symbol": f"S{n}", "prediction": 1, "confidence": 2 * (n == 50), **fields} | {"n": n} for n in range(100)
        ]
        text = {
            "map": json.dumps({record["symbol"]: record for record in records}),
            "array": json.dumps(records),
            "lines": "\n".join(map(json.dumps, records)),
        }[shape]
        mapping = parse_mapping("last_price=price.by.venue.last")

        items = list(scan([text.encode()], native, max_record_bytes=LIMIT, mapping=mapping))

        assert taken
        assert all(taken)
        assert sum(isinstance(item, Record) for item in items) == 99
        assert sum(isinstance(item, Reject) for item in items) == 1

    def test_a_batch_that_is_not_taken_comes_as_fragments(self, native: Engine) -> None:
        """If the decoder does not take a batch, the pruner gives its whole text as fragments."""
        data = b"".join(b'{"symbol":"S%d","x":[%d]}\n' % (number, number) for number in range(100))
        offered: list[EncodedBatch] = []

        def note(batch: EncodedBatch) -> bool:
            offered.append(batch)
            return False

        pruner = native.pruner(default=RECORD_LAYOUT, members=LAYOUTS, max_unit_bytes=LIMIT, on_batch=note)
        reference = Pruner(default=RECORD_LAYOUT, members=LAYOUTS, max_unit_bytes=LIMIT)

        text = b"".join(fragment.data for fragment in (*pruner.feed(data), *pruner.close()))

        assert len(offered) == 1
        assert text == b"".join(fragment.data for fragment in (*reference.feed(data), *reference.close()))


@pytest.mark.slow
def test_a_huge_record_takes_linear_time(native: Engine) -> None:
    """With a limit above 120 MB, a record of that size is accepted, and is not copied again with each chunk."""
    fields = b'{"prediction":1,"confidence":0.5,"last_price":2'
    chunks = [b'{"A":' + fields, *[b',"note":"%s"' % (b"x" * 1_000) * 100] * 1_200, b'},"B":' + fields + b"}}"]
    before = time.process_time()

    result = outcome(chunks, native, 1 << 30)

    assert [item.symbol for item in result if isinstance(item, Record)] == ["A", "B"]
    assert time.process_time() - before < 10  # with a copy for each chunk it took half a minute


def abandoned(native: Engine, number: int) -> None:
    """Begin a scan and abandon it: inside a batch, a record, a string, after an error, or closed early."""
    record = json.dumps(a_record(symbol=f"S{number}"))
    texts = (
        f"{record}\n{record}\n{record[:-9]}",
        f'{{"A":{record},"B":{{"x":[1,{{',
        f"[{record},{{]]}}",
        '{"bots":{"b":{"x":"',
    )

    def chunks() -> Iterator[bytes]:
        data = texts[number % len(texts)].encode()
        yield data[: len(data) // 2]
        yield data[len(data) // 2 :]

    events = scan_items(chunks(), native, max_record_bytes=LIMIT)
    try:
        for _ in range(number % 3 + 1):
            next(events, None)
    except RollingError:
        pass


class TestLeaks:
    """An abandoned scan leaves nothing behind."""

    @pytest.mark.no_cover
    @pytest.mark.slow
    def test_thousands_of_abandoned_scans(self, native: Engine) -> None:
        """2,500 abandoned scans leave less than 40 KB, so that a leak of 16 bytes a scan would be seen."""
        tracemalloc.start()
        try:
            for number in range(1_000):
                abandoned(native, number)
            gc.collect()
            before, _ = tracemalloc.get_traced_memory()
            for number in range(2_500):
                abandoned(native, number)
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

        assert after - before < 40_000

    def test_the_memory_of_the_kernel_is_seen(self, native: Engine) -> None:
        """The kernel's buffers are allocated by Python, so the leak test above would see them."""
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            kept = [
                native.pruner(default=RECORD_LAYOUT, members={}, max_unit_bytes=LIMIT, on_batch=decline)
                for _ in range(4)
            ]
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

        assert after - before > 4 * 256 * 1024
        del kept


class TestBinding:
    """The arguments that the extension accepts, and the wrong ones that it refuses."""

    def kernel(self, **changed: Any) -> Any:
        """Return a pruner made with some of its arguments changed."""
        from optimizer.scan import _prune  # noqa: PLC0415 - exists only where it was compiled

        arguments: dict[str, Any] = {
            "fallback": (2, 1, True),
            "members": {},
            "key": b"symbol",
            "bytes": 96,
            "depth": 1_000,
        } | changed
        return _prune.Pruner(*arguments.values())

    @pytest.mark.parametrize(
        ("changed", "error"),
        [
            ({"fallback": (0, 1, True)}, ValueError),
            ({"fallback": (4, 1, True)}, ValueError),
            ({"fallback": (2, 0, True)}, ValueError),
            ({"fallback": (2, 1)}, TypeError),
            ({"fallback": [2, 1, True]}, TypeError),
            ({"fallback": None}, TypeError),
            ({"members": {"text": (2, 1, True)}}, TypeError),
            ({"members": {b"a": None}}, TypeError),
            ({"members": {bytes([65 + n]): (2, 1, True) for n in range(17)}}, ValueError),
            ({"members": []}, TypeError),
            ({"key": "symbol"}, TypeError),
        ],
    )
    def test_bad_arguments(self, native: Engine, changed: dict[str, Any], error: type[Exception]) -> None:
        """A pruner with a wrong argument is refused by `ValueError` or `TypeError`, and its memory is freed."""
        assert native.name == "native"
        with pytest.raises(error):
            self.kernel(**changed)
        tracemalloc.start()
        try:
            for _ in range(50):
                with suppress(error):
                    self.kernel(**changed)
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert after < 20_000  # each pruner takes more than 1 KB, without its buffers

    def test_any_buffer_will_do(self, native: Engine) -> None:
        """`feed` accepts bytes, bytearray and memoryview with the same result, and refuses anything else."""
        assert native.name == "native"
        results = [self.kernel().feed(make(b'{"A":{"x":[1]}}')) for make in (bytes, bytearray, memoryview)]

        assert results[0] == results[1] == results[2]
        assert self.kernel().feed(b"") == (b"", [], b"", 0, 0)
        for wrong in ("text", 5, None, memoryview(b"abcd")[::2]):
            with pytest.raises((TypeError, BufferError)):
                self.kernel().feed(wrong)

    def test_two_threads_cannot_feed_one_pruner(self, native: Engine) -> None:
        """While one thread feeds a pruner, calls of other threads are refused.

        The GIL is released while the kernel works, so the calls would mix their data.
        """
        assert native.name == "native"
        kernel, data = self.kernel(), b'{"A":{"x":[' + b"[1,2,3]," * 2_000_000
        refused = []

        def feed() -> None:
            try:
                kernel.feed(data)
            except RuntimeError as error:
                refused.append(str(error))

        threads = [threading.Thread(target=feed) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert kernel.consumed == (8 - len(refused)) * len(data)
        assert set(refused) <= {"feed is running in another thread"}
        assert refused
