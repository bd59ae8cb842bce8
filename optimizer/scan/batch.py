"""Batches: spans of pruned JSON in which records follow each other, decoded as a whole. Pure.

In: an `EncodedBatch` as the native pruner cuts it. Out: a `RecordBatch` if all records are valid, single items if some
are not, or `None` if the text of the batch cannot be decoded: then nothing has been emitted, and the caller decodes
record by record.

Most records of most files are good, so msgspec gets hundreds at once, with the structs that also decode a single
record.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from enum import IntEnum
from operator import attrgetter, ne
from typing import Any, Final, NamedTuple

import msgspec

from optimizer.errors import SourceMalformed
from optimizer.models import Record, Reject
from optimizer.scan.fragment import Fragment
from optimizer.scan.patterns import GAP, STRING, UNIT, compiled
from optimizer.scan.structs import Fields, record_structs
from optimizer.scan.validation import ExtrasDropped, RecordDecoder, SymbolsIgnored, decode_key

__all__ = ["BatchDecoder", "BatchKind", "EncodedBatch", "OnBatch", "RecordBatch"]


class BatchKind(IntEnum):
    """What the records of a batch are: members of an object, elements of an array, or consecutive roots."""

    MEMBERS = 1
    ELEMENTS = 2
    LINES = 3


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """`count` records and the text between them; the longest record has `longest` bytes, its key included.

    The text between records should be commas and white space; with anything else, decoding fails.

    `locate(position)` returns the offset in the input of a byte of `data`; `unit(start, end)` cuts a unit out of
    `data`.
    """

    kind: BatchKind
    data: memoryview
    count: int
    longest: int
    locate: Callable[[int], int]
    unit: Callable[[int, int], Fragment]

    def own_text(self) -> Iterator[tuple[bytes | memoryview, int]]:
        """Yield the text with each unit as `{}`, in contiguous parts with their offsets in the input.

        Its length counts towards the size of the root if the root turns out to be one record.
        """
        done = level = start = 0
        for match in _BRACKET_OR_STRING.finditer(self.data):
            if match.lastgroup == "opening":
                start = start if level else match.start()
                level += 1
            elif match.lastgroup == "closing":
                level -= 1
                if not level:
                    yield self.data[done:start], self.locate(done)
                    yield b"{}", self.locate(start)
                    done = match.end()


# Decodes a batch, or returns False; then the caller passes its records as fragments.
OnBatch = Callable[[EncodedBatch], bool]


class RecordBatch(NamedTuple):
    """Valid records: the symbol and the fields of each."""

    symbols: Collection[str]
    fields: Collection[Any]

    def records(self) -> Iterator[Record]:
        """Yield the records one by one."""
        return (fields.record(symbol) for symbol, fields in zip(self.symbols, self.fields, strict=True))


_Items = list[RecordBatch | Record | Reject | SymbolsIgnored | ExtrasDropped]
_BRACKETS: Final = {BatchKind.MEMBERS: (b"{", b"}"), BatchKind.ELEMENTS: (b"[", b"]"), BatchKind.LINES: (b"", b"")}


class BatchDecoder:
    """Decode batches of records, with the same schema and limit as single ones."""

    def __init__(self, one_by_one: RecordDecoder) -> None:
        schema = one_by_one.schema
        self._one_by_one = one_by_one
        symbol: Any = schema.records["symbol"].type
        named = record_structs(schema, named=True)
        keyed = record_structs(schema, named=False)
        self._decoders: dict[BatchKind, list[msgspec.json.Decoder[Any]]] = {
            BatchKind.MEMBERS: [msgspec.json.Decoder(dict[symbol, fields]) for fields in keyed],  # type: ignore[valid-type]
            BatchKind.ELEMENTS: [msgspec.json.Decoder(list[fields]) for fields in named],  # type: ignore[valid-type]
            BatchKind.LINES: [msgspec.json.Decoder(fields) for fields in named],
        }

    def decode(self, batch: EncodedBatch) -> _Items | None:
        """Decode all records of a batch.

        Returns:
            The records and rejects in their order; `None` if the text of the batch is not valid.
        """
        if batch.longest > self._one_by_one.max_bytes:
            return None
        opening, closing = _BRACKETS[batch.kind]
        data = b"".join((opening, batch.data, closing))  # the only copy
        for decoder in self._decoders[batch.kind]:
            try:
                records = _decode(decoder, batch.kind, data)
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue
            if len(records.fields) != batch.count:
                break  # a name occurred twice in the object
            ignored = _symbols_ignored(records) if batch.kind is BatchKind.MEMBERS else 0
            return [records, SymbolsIgnored(ignored)] if ignored else [records]
        return _decode_one_by_one(batch, self._one_by_one)


# ---- all at once


def _decode(decoder: msgspec.json.Decoder[Any], kind: BatchKind, data: bytes) -> RecordBatch:
    if kind is BatchKind.MEMBERS:
        members: dict[str, Fields] = decoder.decode(data)
        return RecordBatch(members.keys(), members.values())
    records: list[Fields] = decoder.decode(data) if kind is BatchKind.ELEMENTS else decoder.decode_lines(data)
    return RecordBatch([fields.symbol for fields in records], records)


_OWN_SYMBOL: Final = attrgetter("symbol")


def _symbols_ignored(batch: RecordBatch) -> int:
    own = list(map(_OWN_SYMBOL, batch.fields))
    if own == list(batch.symbols) or own.count(None) == len(own):  # the usual cases, checked in a tenth of the time
        return 0
    return sum(map(bool, map(ne, own, batch.symbols))) - own.count(None)


# ---- one by one

# Objects on a mapped path are kept, so a unit may have any number of levels.
_BRACKET_OR_STRING: Final = compiled(rb"(?P<opening>[{\[])|(?P<closing>[}\]])|" + STRING)
_COMMA = GAP + rb"," + GAP
_MEMBER = rb"(" + STRING + rb")" + GAP + rb":" + GAP + rb"(" + UNIT + rb")"
_ELEMENT = rb"()(" + UNIT + rb")"
_FIRST: Final = {
    BatchKind.MEMBERS: compiled(_MEMBER),
    BatchKind.ELEMENTS: compiled(_ELEMENT),
    BatchKind.LINES: compiled(_ELEMENT),
}
_NEXT: Final = {
    BatchKind.MEMBERS: compiled(_COMMA + _MEMBER),
    BatchKind.ELEMENTS: compiled(_COMMA + _ELEMENT),
    BatchKind.LINES: compiled(GAP + _ELEMENT),
}


def _decode_one_by_one(batch: EncodedBatch, decoder: RecordDecoder) -> _Items | None:
    items: _Items = []
    position = 0
    expected = _FIRST[batch.kind]
    try:
        for _ in range(batch.count):
            match = expected.match(batch.data, position)
            if match is None:
                return None
            symbol = decode_key(match.group(1)) if batch.kind is BatchKind.MEMBERS else None
            items += decoder.decode(batch.unit(*match.span(2)), symbol)
            position = match.end()
            expected = _NEXT[batch.kind]
    except (SourceMalformed, ValueError):
        return None  # decoded again as fragments: records before the error come first, and it gets its exact offset
    return items if position == len(batch.data) else None
