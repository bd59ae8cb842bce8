"""Runs: stretches of pruned JSON in which records follow each other, decoded as a whole. Pure.

In: a `Run` as the native pruner cuts it. Out: a `RecordRun` where every record counts, items where some do not, `None`
where it takes a closer look: then nothing has been decided, and the run goes the way of single pieces.

Most records of most files are good, so msgspec gets hundreds at once and checks all that makes a record count: types,
ranges and lengths. What it accepts, `judge.decode_record` accepts with the same values; the tests hold the two against
each other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Any, Final, NamedTuple

import msgspec

from optimizer.errors import SourceMalformed
from optimizer.judge import MAX_SYMBOL_CHARACTERS, MAX_TEXT_CHARACTERS, decode_record
from optimizer.pieces import SPACE, STRING, Piece
from optimizer.prune import UNIT
from optimizer.records import Record, Reject

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
    data: bytes
    count: int
    longest: int
    place: Callable[[int], int]
    piece: Callable[[int, int], Piece]
    taken: bool = False

    def own_text(self) -> Iterator[tuple[bytes, int]]:
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
    fields: Collection[_Fields]

    def records(self) -> Iterator[Record]:
        """The records one by one."""
        return (fields.record(symbol) for symbol, fields in zip(self.symbols, self.fields, strict=True))


def decode_run(run: Run, *, max_bytes: int) -> list[RecordRun | Record | Reject] | None:
    """Decode all records of a run.

    Args:
        run: The run.
        max_bytes: The longest record that counts.

    Returns:
        What became of the records, in their order; `None` where something is wrong with the text of the run.
    """
    if run.longest > max_bytes:
        return None
    for shape in _SHAPES:
        try:
            found = shape.decode(run)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        if len(found.fields) == run.count:  # else a name came twice in the object
            return [found]
        break
    return _decode_one_by_one(run, max_bytes)


# ---- all at once

_Confidence = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Price = Annotated[float, msgspec.Meta(gt=0)]
_Text = Annotated[str, msgspec.Meta(max_length=MAX_TEXT_CHARACTERS)]
_Symbol = Annotated[str, msgspec.Meta(max_length=MAX_SYMBOL_CHARACTERS)]


class _Fields(msgspec.Struct, gc=False, kw_only=True):
    """What a record must have to count, but for its symbol and its price. msgspec takes no number for infinite."""

    prediction: float
    confidence: _Confidence
    sentiment: _Text | None = None
    target_price: float | None = None
    stop_loss: float | None = None
    timestamp: _Text | int | float | None = None

    def record(self, symbol: str) -> Record:
        """The record as it is selected and published."""
        return Record(
            symbol,
            self.prediction,
            self.confidence,
            self._current_price(),
            self.sentiment if self.sentiment is not None else "neutral",
            self.target_price,
            self.stop_loss,
            self.timestamp,
        )

    def _current_price(self) -> float:
        raise NotImplementedError


class _WithLastPrice(_Fields, gc=False, kw_only=True):
    last_price: _Price

    def _current_price(self) -> float:
        return self.last_price


class _WithLast(_Fields, gc=False, kw_only=True):
    last: _Price
    last_price: None = None

    def _current_price(self) -> float:
        return self.last


class _WithPrice(_Fields, gc=False, kw_only=True):
    price: _Price
    last_price: None = None
    last: None = None

    def _current_price(self) -> float:
        return self.price


class _Shape:
    """Decoders for records that name their price in one way."""

    def __init__(self, fields: type[_Fields]) -> None:
        named = msgspec.defstruct(f"{fields.__name__}AndSymbol", [("symbol", _Symbol)], bases=(fields,), gc=False)
        self._members = msgspec.json.Decoder(dict[_Symbol, fields])  # type: ignore[valid-type]
        self._elements = msgspec.json.Decoder(list[named])  # type: ignore[valid-type]
        self._lines = msgspec.json.Decoder(named)

    def decode(self, run: Run) -> RecordRun:
        """Decode all records of a run.

        Raises:
            msgspec.DecodeError, UnicodeDecodeError: One of them does not fit, or the text is no JSON.
        """
        if run.kind is RunKind.MEMBERS:
            members = self._members.decode(b"{" + run.data + b"}")
            return RecordRun(members.keys(), members.values())
        found: list[Any]  # of structs made at run time, whose fields no type checker knows
        if run.kind is RunKind.ELEMENTS:
            found = self._elements.decode(b"[" + run.data + b"]")
        else:
            found = list(self._lines.decode_lines(run.data))
        return RecordRun([fields.symbol for fields in found], found)


# A file's records mostly name their price alike; those of the other shapes fail at the first record then.
_SHAPES: Final = (_Shape(_WithLastPrice), _Shape(_WithLast), _Shape(_WithPrice))

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
_KEY = msgspec.json.Decoder(str)


def _decode_one_by_one(run: Run, max_bytes: int) -> list[RecordRun | Record | Reject] | None:
    items: list[RecordRun | Record | Reject] = []
    position = 0
    expected = _FIRST[run.kind]
    try:
        for _ in range(run.count):
            found = expected.match(run.data, position)
            if found is None:
                return None
            symbol = _KEY.decode(found.group(1)) if run.kind is RunKind.MEMBERS else None
            items.append(decode_record(run.piece(*found.span(2)), symbol, max_bytes=max_bytes))
            position = found.end()
            expected = _NEXT[run.kind]
    except (SourceMalformed, msgspec.DecodeError, UnicodeDecodeError):
        return None  # the records before it come out first, and the error is told in its place
    return items if position == len(run.data) else None
