"""Pruned pieces in, typed records, bots and rejects out. Pure: no I/O.

Two parsers share the work. **ijson** follows the text around the units: the root's brackets, keys and plain values, in
constant memory however many members a map has. **msgspec** decodes each unit alone, straight into a struct.

Four shapes are recognised on the way, root by root (a file may hold several JSON texts one after another):

- an object: each member that is an object is a record, its key the symbol; members named `predictions` or `symbols`
  are sections of records, `bots` or `_bots` of bots; other names that begin with `_` are no records;
- an array: each element is a record, with its `symbol`;
- an object with a string `symbol` of its own: one record (NDJSON). Its own `symbol` may come last, so what its members
  look like is held back until the object ends, or has shown so many members that it is a map. One that has neither
  objects nor sections, and has a record's fields, is a record without a symbol; so is any such object after a line that
  was a record.

Where records follow each other by the hundred, the native pruner offers them as a run, which is decoded at once.

Errors: `SourceMalformed` with the byte offset, for a syntax error in anything that is kept. A record that is well
formed and of no use is a `Reject`, and the stream goes on; text that is no Unicode is well formed.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterable, Iterator
from enum import Enum, auto
from typing import Any, Final, NamedTuple

import ijson

from optimizer.errors import SourceMalformed
from optimizer.models import Bot, Record, Reject, RejectReason
from optimizer.scan.batch import RecordRun, Run, RunKind, decode_run
from optimizer.scan.fragment import RECORD_KEY, SPACE, STRING, Layout, Piece, PieceKind, malformed
from optimizer.scan.schema import FIELD_NAMES
from optimizer.scan.validation import SymbolsIgnored, decode_bot, decode_key, decode_record, shown_name, where

__all__ = ["LAYOUTS", "RECORD_LAYOUT", "Decoder", "Found", "Item", "RootShape"]


class RootShape(NamedTuple):
    """What the first JSON text of a file is, in words; told where no record was found up to its end."""

    text: str


Item = Record | Bot | Reject
# What comes out: items, many records at once where they came that way, and notes about the file.
Found = Item | RecordRun | SymbolsIgnored | RootShape

RECORD_SECTIONS: Final = ("predictions", "symbols")
BOT_SECTIONS: Final = ("bots", "_bots")
RECORD_LAYOUT: Final = Layout(unit_level=2, kept_levels=1)
LAYOUTS: Final = {
    **{f'"{name}"'.encode(): Layout(unit_level=3, kept_levels=1) for name in RECORD_SECTIONS},
    # A bot keeps its own fields, its positions, and the fields of each.
    **{f'"{name}"'.encode(): Layout(unit_level=3, kept_levels=3) for name in BOT_SECTIONS},
}

# What ijson gets for a run: one member or one element, of no content.
_STAND_INS: Final = {RunKind.MEMBERS: (b'""', b":", b"{}"), RunKind.ELEMENTS: (b"{}",)}
_A_KEY: Final = b"a key"

# A root object with so many objects in it, positions of bots included, is a map, whatever plain values it has besides.
MAP_MEMBERS: Final = 1_000
# So many members of a root are named where nothing in it could be used.
MEMBERS_NAMED: Final = 5
# Plain values by which a root object without objects shows that it should be a record. Maps have timestamps, too.
_TELLING_NAMES: Final = frozenset(FIELD_NAMES) - {"timestamp"}

# A text of nothing but plain values gives an item for each two bytes.
MOST_ITEMS: Final = 1_000

_TOKEN = STRING + rb'|[{}\[\],:]|[ \t\n\r]++|[^ \t\n\r,:"{}\[\]]++'
_NUMBER = rb"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:[eE][+-]?[0-9]++)?+"
_LITERALS: Final = {b"true": "boolean", b"false": "boolean", b"null": "null"}
# Stretches of the text that need no parser: plain values and emptied arrays, each with its comma. Junk by
# the gigabyte would keep a scan busy for hours otherwise. Names of members are plain, and none that means something.
_GAP = rb"[" + SPACE + rb"]*+"
_VALUE = STRING + rb"|\[\]|" + _NUMBER + b"".join(b"|" + literal for literal in _LITERALS)
_MEANINGFUL = "|".join((RECORD_KEY, *sorted(_TELLING_NAMES), *RECORD_SECTIONS, *BOT_SECTIONS)).encode()
_NAME = rb'"(?!(?:' + _MEANINGFUL + rb')")[ !#-\[\]-~]*+"'
_MEMBER = rb"%b%%b%b:%b%%b%b," % (_GAP, _GAP, _GAP, _GAP)
_PART = re.compile(
    rb"(?<=[{,])(?P<members>(?:%b)++)" % (_MEMBER % (_NAME, rb"(?:%b)" % _VALUE))
    + rb"|(?<=[\[,])(?P<elements>(?:%b(?:%b)%b,)++)|(?P<token>%b)" % (_GAP, _VALUE, _GAP, _TOKEN),
    re.DOTALL,
)
_TOKENS, _VALUES, _A_NUMBER = (re.compile(pattern, re.DOTALL) for pattern in (_TOKEN, _VALUE, _NUMBER))
_MEMBERS = re.compile(_MEMBER % (rb"(%b)" % _NAME, rb"(%b)" % _VALUE), re.DOTALL)


class _Root(Enum):
    """What the root object at hand turned out to be."""

    UNDECIDED = auto()
    MAP = auto()  # or an array
    RECORD = auto()


class Decoder:
    """Turn the pieces of a pruned stream into items, in the order of the input.

    Args:
        max_record_bytes: The pruner's limit; a record whose own level is longer is rejected as `RecordTooLarge`.
    """

    def __init__(self, *, max_record_bytes: int) -> None:
        self._limit = max_record_bytes
        self._events: list[tuple[str, Any]] = ijson.sendable_list()
        self._parser = ijson.basic_parse_coro(self._events, multiple_values=True)
        self._started = False
        self._last = b""  # the last token that is no white space
        self._kinds: list[str] = []  # start events of the open containers around the units, root first
        self._keys: list[str] = ["", ""]  # the member at hand of the root and of its section
        self._items: list[Found] = []
        self._root = _Root.UNDECIDED
        self._lines = False  # a root object was a record
        self._root_matters = True  # no record has come, and no root was described
        self._list_of_bots: int | None = None  # where an array of bots began that has shown no element yet
        self._begin_root(0)

    def feed(self, pieces: Iterable[Piece | Run]) -> Iterator[Found]:
        """Take the next pieces, and yield the items that they complete.

        A run is an offer: where it cannot be taken as a whole, `taken` stays false, and its pieces have to come next.
        """
        for piece in pieces:
            try:
                if isinstance(piece, Run):
                    piece.taken = self._take_run(piece)
                elif piece.kind is PieceKind.UNIT:
                    self._take_unit(piece)
                elif piece.kind is PieceKind.BEGUN:
                    self._send(piece.data, piece.offset)
                else:
                    for _ in self._take_text(piece):
                        yield from self._completed()
            except SourceMalformed:
                yield from self._items  # what comes before an error comes out before it
                raise
            if self._items:
                yield from self._completed()

    def close(self) -> None:
        """End the stream. Every item is out by now: the pruner has seen to it that all containers are closed."""
        if self._started:
            self._parser.close()

    def _completed(self) -> list[Found]:
        """The items since the last call."""
        items, self._items = self._items, []
        self._root_matters = self._root_matters and not _holds_record(items)
        return items

    # ---- the text around the units

    def _take_text(self, piece: Piece) -> Iterator[None]:
        """Take text; yield where there are many items to be taken away."""
        for found in _PART.finditer(piece.data):
            start, stop = found.span()
            if found.lastgroup == "token":
                self._take_token(found.group(), piece.source_offset(start))
            elif found.lastgroup == "members" and self._kinds == ["start_map"]:
                self._take_members(piece, start, stop)
            elif found.lastgroup == "elements" and self._kinds[-1:] == ["start_array"]:
                yield from self._take_elements(piece, start, stop)
            else:
                for token in _TOKENS.finditer(piece.data, start, stop):
                    self._take_token(token.group(), piece.source_offset(token.start()))
                    if len(self._items) > MOST_ITEMS:
                        yield
            if len(self._items) > MOST_ITEMS:
                yield
        self._own_size += piece.size - len(piece.data)

    def _take_token(self, token: bytes, offset: int) -> None:
        if self._started or token[0] not in SPACE:
            self._send(token, offset)
            self._add_own(token, offset)
            self._handle_events(offset)

    def _take_members(self, piece: Piece, start: int, stop: int) -> None:
        """Take plain members of the root, of which none has a name that means something by itself."""
        for found in _MEMBERS.finditer(piece.data, start, stop):
            if not self._learns_by_names:
                break
            self._keys[0] = found[1][1:-1].decode()
            self._take_root_member(_event(found[2]), piece.source_offset(found.start(2)))
        self._pass_over(piece, start, stop, b'"":0,')

    def _take_elements(self, piece: Piece, start: int, stop: int) -> Iterator[None]:
        """Take plain elements of an array."""
        for found in _VALUES.finditer(piece.data, start, stop):
            self._take_value(_event(found.group()), len(self._kinds), piece.source_offset(found.start()))
            if len(self._items) > MOST_ITEMS:
                yield
        self._pass_over(piece, start, stop, b"0,")

    def _pass_over(self, piece: Piece, start: int, stop: int, stand_in: bytes) -> None:
        """Take members or elements up to a comma as read; `stand_in` is what ijson gets for them, and accepts."""
        self._parser.send(stand_in)
        self._events.clear()
        self._last = b","
        for text, offset in piece.stretches(start, stop):
            self._add_own(text, offset)

    def _take_unit(self, piece: Piece) -> None:
        self._send(b"{}", piece.offset)
        self._events.clear()
        self._add_own(b"{}", piece.offset)
        level = len(self._kinds)
        in_object = self._kinds[-1] == "start_map"
        name = self._keys[level - 1] if in_object else None
        if level == 1 and in_object:
            self._add_object(self._keys[0])
            if self._keys[0].startswith("_"):
                return
        if level == 1 or self._keys[0] in RECORD_SECTIONS:
            for item in decode_record(piece, name, max_bytes=self._limit):
                self._emit(item)
        elif name is not None:
            self._emit(decode_bot(piece, name, max_bytes=self._limit))
        else:
            self._reject_list_of_bots()

    def _take_run(self, run: Run) -> bool:
        """Take many records at once; return whether that could be done."""
        level = len(self._kinds)
        if not self._expects(run):
            return False
        found = decode_run(run, max_bytes=self._limit)
        if found is None:
            return False
        if run.kind is RunKind.LINES:
            self._items += found
            self._lines = True
            return True
        # To ijson all of them are one member, or one element. It expects one here, so this fails nowhere.
        for token in _STAND_INS[run.kind]:
            self._send(token, 0)
        self._events.clear()
        if self._root is not _Root.MAP:
            for text, offset in run.own_text():
                self._add_own(text, offset)
        for item in found:
            if level == 1 and run.kind is RunKind.MEMBERS and self._root is not _Root.MAP:
                for name in _names(item):
                    self._add_object(name)
            self._emit(item)
        return True

    def _expects(self, run: Run) -> bool:
        """Whether records of a run may come next."""
        level = len(self._kinds)
        if run.kind is RunKind.LINES:
            return not level
        if not level or not (level == 1 or self._keys[0] in RECORD_SECTIONS):
            return False
        if (self._kinds[-1] == "start_map") != (run.kind is RunKind.MEMBERS):
            return False
        return self._last in (b"{" if run.kind is RunKind.MEMBERS else b"[", b",")

    def _send(self, token: bytes, offset: int) -> None:
        """Hand ijson one token, so that an error is known to be in this token.

        Of strings and numbers only the type matters here: a record's own are checked with the record, and names are
        decoded here. So ijson gets short ones: it would fail on a number that is too long for an int, and on text that
        is no Unicode.
        """
        sent = token
        is_key = False
        if token[0] in b'"':
            is_key = self._last != b":" and bool(self._kinds) and self._kinds[-1] == "start_map"
            sent = b'""'
            if is_key:
                # A record's own names matter when it is decoded.
                self._keys[len(self._kinds) - 1] = "" if self._root is _Root.RECORD else _decoded(token, offset)
        elif _A_NUMBER.fullmatch(token):
            sent = b"0"
        elif token[0] not in b"{}[],: \t\n\r" and token not in _LITERALS:
            raise malformed(offset, "neither a number nor true, false or null", token)
        try:
            # yajl holds a number back until it sees what ends it; the pruner's tokens are whole.
            self._parser.send(sent if sent[0] in b'"{}[],:' else sent + b" ")
        except ijson.JSONError as error:
            raise malformed(offset, _reason(error), token) from error
        self._started = True
        if token[0] not in SPACE:
            self._last = _A_KEY if is_key else token

    def _handle_events(self, offset: int) -> None:
        for event, _ in self._events:
            level = len(self._kinds)
            if event in ("end_map", "end_array"):
                self._kinds.pop()
                if level == 1:
                    self._end_root(event)
            elif event != "map_key":
                self._take_value(event, level, offset)
                if event in ("start_map", "start_array"):
                    self._kinds.append(event)
        self._events.clear()

    def _take_value(self, event: str, level: int, offset: int) -> None:
        """Take a value that is no unit: a plain one, an array, or a container that holds units."""
        if level == 0:
            self._begin_root(offset)
            if event == "start_array":
                self._root = _Root.MAP
            if event not in ("start_map", "start_array"):
                self._reject_value(RejectReason.NOT_AN_OBJECT, event, offset)
                self._describe_root(_kind(event))
        elif level == 1 and self._kinds[0] == "start_map":
            self._take_root_member(event, offset)
        elif level == 1 or self._keys[0] in RECORD_SECTIONS:
            self._reject_value(RejectReason.NOT_AN_OBJECT, event, offset)
        elif self._kinds[1] == "start_map":
            self._reject_value(RejectReason.BOT, event, offset)
        else:
            self._reject_list_of_bots()

    def _take_root_member(self, event: str, offset: int) -> None:
        key = self._keys[0]
        if self._root is _Root.RECORD:
            return
        self._name_member(key, event)
        if key == RECORD_KEY and event == "string" and self._root is _Root.UNDECIDED:
            self._root = _Root.RECORD
            self._held.clear()
        elif key in RECORD_SECTIONS:
            self._is_map |= event != "null"
            if event not in ("start_map", "start_array", "null"):
                self._reject_value(RejectReason.NOT_AN_OBJECT, event, offset, "an object or an array of records")
        elif key in BOT_SECTIONS:
            self._is_map |= event != "null"
            if event == "start_array":
                self._list_of_bots = offset  # an empty one says that there are none
            elif event not in ("start_map", "null"):
                self._reject_value(RejectReason.BOT, event, offset)
        elif key in _TELLING_NAMES or (self._lines and not key.startswith("_")):
            self._tells = True

    def _reject_list_of_bots(self) -> None:
        """Reject a section of bots that is an array, at its first element."""
        if self._list_of_bots is not None:
            name, place = shown_name(self._keys[0]), where(self._list_of_bots)
            self._list_of_bots = None
            self._emit(Reject(RejectReason.BOT, name, place, f"expected an object, got {_kind('start_array')}"))

    def _reject_value(self, reason: RejectReason, event: str, offset: int, expected: str = "an object") -> None:
        named = self._kinds and self._kinds[-1] == "start_map"
        name = shown_name(self._keys[len(self._kinds) - 1]) if named else None
        self._emit(Reject(reason, name, where(offset), f"expected {expected}, got {_kind(event)}"))

    # ---- the root: a map or one record?

    def _begin_root(self, offset: int) -> None:
        self._root = _Root.UNDECIDED
        self._root_offset = offset
        self._is_map = False  # it has objects or sections
        self._tells = False  # it has plain values by which it should be a record
        self._named: list[str] = []  # its first members, in words
        self._held: list[Found] = []
        self._held_objects = 0
        self._list_of_bots = None
        # The root's own level, in case it is a record: its opening bracket is the token at hand.
        self._own = bytearray(b"{")
        self._own_size = 1
        self._own_seams: array[int] = array("Q")
        self._own_end = offset + 1  # where in the JSON the last of its tokens ended

    def _add_own(self, token: bytes | memoryview, offset: int) -> None:
        self._own_size += len(token)
        if self._root is not _Root.MAP:
            if offset != self._own_end:
                self._own_seams.extend((len(self._own), offset))
            self._own += token
            self._own_end = offset + len(token)
            if len(self._own) > self._limit:
                self._own.clear()  # own_size tells that it is too long
                del self._own_seams[:]

    def _emit(self, item: Found) -> None:
        if not self._kinds or self._root is _Root.MAP:
            self._items.append(item)
        elif self._root is _Root.UNDECIDED:
            self._held.append(item)
            self._held_objects += _objects_in(item)
            if self._held_objects >= MAP_MEMBERS:
                self._root = _Root.MAP
                self._items += self._held
                self._held = []
                self._own.clear()

    def _add_object(self, name: str) -> None:
        """Take note of a member of the root that is an object."""
        self._is_map = True
        self._name_member(name, "start_map")

    @property
    def _learns_by_names(self) -> bool:
        """Whether another plain member of the root could tell more about it, whatever its name."""
        is_described = not self._root_matters or len(self._named) > MEMBERS_NAMED
        return self._root is not _Root.RECORD and not (is_described and (self._tells or not self._lines))

    def _name_member(self, name: str, event: str) -> None:
        if self._root_matters and len(self._named) <= MEMBERS_NAMED:
            self._named.append(f"{shown_name(name)!r} ({_kind(event)})")

    def _end_root(self, event: str) -> None:
        if event == "end_array":
            self._describe_root("an array")
            return
        is_record = self._root is _Root.RECORD
        if is_record or (self._root is _Root.UNDECIDED and self._tells and not self._is_map):
            self._lines = True
            whole = Piece(PieceKind.UNIT, self._root_offset, self._own_size, bytes(self._own), self._own_seams)
            self._items += decode_record(whole, None, max_bytes=self._limit)
        else:
            self._items += self._held
        self._held = []
        if not is_record:
            more = ", ..." if len(self._named) > MEMBERS_NAMED else ""
            members = ", ".join(self._named[:MEMBERS_NAMED])
            self._describe_root(f"an object with the members {members}{more}" if members else "an empty object")

    def _describe_root(self, text: str) -> None:
        """Tell what a root is that is no record, unless a record has come."""
        if self._root_matters and not _holds_record(self._items):
            self._items.append(RootShape(text))
        self._root_matters = False


def _event(value: bytes) -> str:
    """What ijson calls a plain value, or the beginning of an array."""
    return {b'"'[0]: "string", b"["[0]: "start_array"}.get(value[0]) or _LITERALS.get(value, "number")


def _objects_in(item: Found) -> int:
    if isinstance(item, RecordRun):
        return len(item.symbols)
    if isinstance(item, Bot):
        return 1 + len(item.positions)
    return int(isinstance(item, Record | Reject))


def _holds_record(items: list[Found]) -> bool:
    return any(isinstance(item, Record | RecordRun) for item in items)


def _names(item: Found) -> Iterable[str]:
    """The names under which records of a run stand, as `shown_name` shows them where they are rejected."""
    if isinstance(item, RecordRun):
        return item.symbols
    if isinstance(item, Record):
        return (item.symbol,)
    return (item.name or "",) if isinstance(item, Reject) else ()


def _kind(event: str) -> str:
    return {"start_map": "an object", "start_array": "an array", "null": "null"}.get(event, f"a {event}")


def _decoded(token: bytes, offset: int) -> str:
    try:
        return decode_key(token)
    except json.JSONDecodeError as error:
        raise malformed(offset, error.msg, token) from None


def _reason(error: ijson.JSONError) -> str:
    """What a parser says, without the picture that yajl draws under it."""
    found = re.search(r"error: ([^\\\n]+)", str(error))
    return found.group(1) if found else str(error)
