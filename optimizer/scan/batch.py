"""Runs: stretches of pruned JSON in which records follow each other, decoded as a whole. Pure.

In: a `Run` as the native pruner cuts it. Out: a `RecordRun` where every record counts, items where some do not, `None`
where the text of the run cannot be decoded: then nothing is decided, and the caller decodes record by record.

Most records of most files are good, so msgspec gets hundreds at once and checks all that makes a record count, by the
same struct as one record alone (`schema.Fields`), of which there is a variant for each name of the price.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from enum import IntEnum
from operator import attrgetter
from typing import Any, Final, NamedTuple

import msgspec

from optimizer.errors import SourceMalformed
from optimizer.models import Record, Reject
from optimizer.scan.fragment import SPACE, STRING, Piece
from optimizer.scan.pruner import UNIT
from optimizer.scan.schema import Fields, Symbol, variants_by_price
from optimizer.scan.validation import SymbolsIgnored, decode_key, decode_record

__all__ = ["RecordRun", "Run", "RunKind", "decode_run"]


class RunKind(IntEnum):
    """What the records of a run are: members of an object, elements of an array, or roots, one after another."""

    MEMBERS = 1
    ELEMENTS = 2
    LINES = 3


@dataclass(slots=True)
class Run:
    """`count` records, the longest of `longest` bytes with its key, and what stands between them.

    That should be commas and white space; anything else makes its decoding fail.

    `place(position)` is where in the source a byte of `data` stood, and `piece(start, end)` cuts a unit out of it.
    Whoever decodes the run sets `taken`.
    """

    kind: RunKind
    data: memoryview
    count: int
    longest: int
    place: Callable[[int], int]
    piece: Callable[[int, int], Piece]
    taken: bool = False

    def own_text(self) -> Iterator[tuple[bytes | memoryview, int]]:
        """The run as a root that is one record sees it, each unit `{}`: stretches of text with their places."""
        done = 0
        for found in _UNIT_OR_STRING.finditer(self.data):
            if found.lastgroup == "unit":
                start, end = found.span()
                yield self.data[done:start], self.place(done)
                yield b"{}", self.place(start)
                done = end


class RecordRun(NamedTuple):
    """Records that all count: the symbol and the fields of each."""

    symbols: Collection[str]
    fields: Collection[Fields]

    def records(self) -> Iterator[Record]:
        """The records one by one."""
        return (fields.record(symbol) for symbol, fields in zip(self.symbols, self.fields, strict=True))


def decode_run(run: Run, *, max_bytes: int) -> list[RecordRun | Record | Reject | SymbolsIgnored] | None:
    """Decode all records of a run.

    Args:
        run: The run.
        max_bytes: The longest record that counts.

    Returns:
        What became of the records, in their order; `None` where something is wrong with the text of the run.
    """
    if run.longest > max_bytes:
        return None
    opening, closing = _BRACKETS[run.kind]
    data = b"".join((opening, run.data, closing))  # copied once
    for decoder in _DECODERS[run.kind]:
        try:
            found = _decode(decoder, run.kind, data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        if len(found.fields) != run.count:
            break  # a name came twice in the object
        ignored = _symbols_ignored(found) if run.kind is RunKind.MEMBERS else 0
        return [found, SymbolsIgnored(ignored)] if ignored else [found]
    return _decode_one_by_one(run, max_bytes)


# ---- all at once

# A file's records mostly name their price alike; the decoders for other names fail at the first record then.
_KEYED: Final = variants_by_price()
_NAMED: Final = variants_by_price(symbol=Symbol)
_DECODERS: Final[dict[RunKind, list[msgspec.json.Decoder[Any]]]] = {
    RunKind.MEMBERS: [msgspec.json.Decoder(dict[Symbol, fields]) for fields in _KEYED],  # type: ignore[valid-type]
    RunKind.ELEMENTS: [msgspec.json.Decoder(list[fields]) for fields in _NAMED],  # type: ignore[valid-type]
    RunKind.LINES: [msgspec.json.Decoder(fields) for fields in _NAMED],
}
_BRACKETS: Final = {RunKind.MEMBERS: (b"{", b"}"), RunKind.ELEMENTS: (b"[", b"]"), RunKind.LINES: (b"", b"")}


def _decode(decoder: msgspec.json.Decoder[Any], kind: RunKind, data: bytes) -> RecordRun:
    if kind is RunKind.MEMBERS:
        members: dict[str, Fields] = decoder.decode(data)
        return RecordRun(members.keys(), members.values())
    found: list[Fields] = decoder.decode(data) if kind is RunKind.ELEMENTS else decoder.decode_lines(data)
    return RecordRun([fields.symbol for fields in found], found)


_OWN_SYMBOL: Final = attrgetter("symbol")


def _symbols_ignored(found: RecordRun) -> int:
    own = list(map(_OWN_SYMBOL, found.fields))
    if own == list(found.symbols) or own.count(None) == len(own):  # mostly, and fast
        return 0
    return sum(one is not None and one != name for one, name in zip(own, found.symbols, strict=True))


# ---- one by one

_UNIT_OR_STRING = re.compile(rb"(?P<unit>" + UNIT + rb")|" + STRING, re.DOTALL)
_GAP = rb"[" + SPACE + rb"]*+"
_COMMA = _GAP + rb"," + _GAP
_MEMBER = rb"(" + STRING + rb")" + _GAP + rb":" + _GAP + rb"(" + UNIT + rb")"
_ELEMENT = rb"()(" + UNIT + rb")"
_FIRST: Final = {
    RunKind.MEMBERS: re.compile(_MEMBER, re.DOTALL),
    RunKind.ELEMENTS: re.compile(_ELEMENT, re.DOTALL),
    RunKind.LINES: re.compile(_ELEMENT, re.DOTALL),
}
_NEXT: Final = {
    RunKind.MEMBERS: re.compile(_COMMA + _MEMBER, re.DOTALL),
    RunKind.ELEMENTS: re.compile(_COMMA + _ELEMENT, re.DOTALL),
    RunKind.LINES: re.compile(_GAP + _ELEMENT, re.DOTALL),
}


def _decode_one_by_one(run: Run, max_bytes: int) -> list[RecordRun | Record | Reject | SymbolsIgnored] | None:
    items: list[RecordRun | Record | Reject | SymbolsIgnored] = []
    position = 0
    expected = _FIRST[run.kind]
    try:
        for _ in range(run.count):
            found = expected.match(run.data, position)
            if found is None:
                return None
            symbol = decode_key(found.group(1)) if run.kind is RunKind.MEMBERS else None
            items += decode_record(run.piece(*found.span(2)), symbol, max_bytes=max_bytes)
            position = found.end()
            expected = _NEXT[run.kind]
    except (SourceMalformed, ValueError):
        return None  # the records before it come out first, and the error is told in its place
    return items if position == len(run.data) else None
