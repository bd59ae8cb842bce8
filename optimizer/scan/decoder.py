"""Fragments of pruned JSON in, typed records, bots and rejects out. Pure: no I/O.

Two parsers share the work. **ijson** follows the text around the units (`structure`), in constant memory for any number
of members. **msgspec** decodes each unit alone, or a batch of them, straight into structs.

Four shapes are recognised, root by root (a file may hold several JSON texts one after another):

- an object: each member that is an object is a record, its key the symbol; members named `predictions` or `symbols`
  are sections of records, `bots` or `_bots` of bots; other names that begin with `_` are not records;
- an array: each element is a record, with its `symbol`;
- an object with a member `symbol` that is a string: one record (NDJSON). That member may come last, so the object's
  items are held until it ends, or has so many members that it is a map (`root`). An object with a record's fields and
  neither objects nor sections is a record without a symbol, and so is any object without objects and sections after a
  line that was a record.

Errors: `SourceMalformed` with the byte offset, for a syntax error in anything that is kept. A well-formed record that
cannot be used becomes a `Reject`, and the stream continues; text that is not valid Unicode is such a case.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Final, NamedTuple

from optimizer.errors import RollingError
from optimizer.models import Record, Reject, RejectReason
from optimizer.scan.batch import BatchDecoder, BatchKind, EncodedBatch, RecordBatch
from optimizer.scan.bots import BotDecoder
from optimizer.scan.fragment import Fragment, FragmentKind
from optimizer.scan.layout import BOT_SECTIONS, RECORD_SECTIONS, Objects
from optimizer.scan.patterns import GAP, SPACE, STRING, compiled
from optimizer.scan.root import Item, Root, RootShape, ScanEvent, Shape, kind_of, telling_names
from optimizer.scan.schema import Schema
from optimizer.scan.structure import LITERALS, NUMBER, Structure
from optimizer.scan.validation import RecordDecoder, shown_name, where

__all__ = ["Decoder", "Item", "RootShape", "ScanEvent"]

# A text of nothing but plain values yields an item for every two bytes.
MOST_ITEMS: Final = 1_000

_TOKEN = STRING + rb'|[{}\[\],:]|[ \t\n\r]++|[^ \t\n\r,:"{}\[\]]++'
# Plain values and emptied arrays, each with its comma, are skipped without the parser: with it, gigabytes of them would
# take hours. In objects, only members with plain ASCII names that have no meaning are skipped.
_VALUE = STRING + rb"|\[\]|" + NUMBER + b"".join(b"|" + literal for literal in LITERALS)
_MEMBER = rb"%b%%b%b:%b%%b%b," % (GAP, GAP, GAP, GAP)
_TOKENS, _VALUES = map(compiled, (_TOKEN, _VALUE))


class _Patterns(NamedTuple):
    """The patterns that depend on the names with a meaning."""

    part: re.Pattern[bytes]
    members: re.Pattern[bytes]


@lru_cache(maxsize=32)
def _patterns(telling: frozenset[str], key: str) -> _Patterns:
    meaningful = "|".join(map(re.escape, (key, *sorted(telling), *RECORD_SECTIONS, *BOT_SECTIONS))).encode()
    name = rb'"(?!(?:' + meaningful + rb')")[ !#-\[\]-~]*+"'
    return _Patterns(
        part=compiled(
            rb"(?<=[{,])(?P<members>(?:%b)++)" % (_MEMBER % (name, rb"(?:%b)" % _VALUE))
            + rb"|(?<=[\[,])(?P<elements>(?:%b(?:%b)%b,)++)|(?P<token>%b)" % (GAP, _VALUE, GAP, _TOKEN)
        ),
        members=compiled(_MEMBER % (rb"(%b)" % name, rb"(%b)" % _VALUE)),
    )


class Decoder:
    """Turn the fragments of a pruned stream into items, in the order of the input.

    Args:
        max_record_bytes: The pruner's limit; a record that is longer, without its nested containers, is rejected as
    `RecordTooLarge`.
        schema: The rows of the fields of records and bots.
        objects: The objects that the pruner keeps in records.
    """

    def __init__(self, *, max_record_bytes: int, schema: Schema, objects: Objects) -> None:
        self._limit = max_record_bytes
        self._records = RecordDecoder(schema, max_bytes=max_record_bytes)
        self._batches = BatchDecoder(self._records)
        self._bots = BotDecoder(schema, max_bytes=max_record_bytes)
        self._key = schema.records["symbol"].names[0]
        self._objects = objects
        self._telling = telling_names(schema)
        self._patterns = _patterns(self._telling, self._key)
        self._structure = Structure()
        self._items: list[ScanEvent] = []
        self._lines = False  # a root object was a record
        self._root_matters = True  # no record was found yet, and no root was described
        self._list_of_bots: int | None = None  # offset of an array of bots that has had no element yet
        self._begin_root(0)

    def feed(self, fragments: Iterable[Fragment]) -> Iterator[ScanEvent]:
        """Process the next fragments; yield the items that they, and batches between them, complete."""
        try:
            for fragment in fragments:
                if fragment.kind is FragmentKind.UNIT:
                    self._take_unit(fragment)
                elif fragment.kind is FragmentKind.BEGUN:
                    self._send(fragment.data, fragment.offset)
                else:
                    for _ in self._take_text(fragment):
                        yield from self._completed()
                if self._items:
                    yield from self._completed()
        except RollingError:
            yield from self._completed()  # items before an error are yielded before it
            raise
        yield from self._completed()

    def take_batch(self, batch: EncodedBatch) -> bool:
        """Decode a batch, the next part of the stream; return False to get it as fragments instead."""
        if not self._expects(batch):
            return False
        items = self._batches.decode(batch)
        if items is None:
            return False
        if batch.kind is BatchKind.LINES:
            self._items += items
            self._lines = True
            return True
        is_members = batch.kind is BatchKind.MEMBERS
        is_root_level = len(self._structure.kinds) == 1
        self._structure.send_batch(members=is_members)
        for item in items:
            if is_root_level and is_members and self._root.shape is not Shape.MAP:
                self._root.add_objects(item)
            self._emit(item)
        if self._root.shape is not Shape.MAP:
            for text, offset in batch.own_text():
                self._root.add_own(text, offset)
        return True

    def close(self) -> None:
        """End the stream; all items have been yielded."""
        self._structure.close()

    def _completed(self) -> list[ScanEvent]:
        """Return the items since the last call."""
        items, self._items = self._items, []
        self._root_matters = self._root_matters and not _holds_record(items)
        return items

    # ---- the text around the units

    def _take_text(self, fragment: Fragment) -> Iterator[None]:
        """Process text; yield whenever many items are ready to be fetched."""
        for match in self._patterns.part.finditer(fragment.data):
            start, stop = match.span()
            if match.lastgroup == "token":
                self._take_token(match.group(), fragment.input_offset(start))
            elif match.lastgroup == "members" and self._structure.kinds == ["start_map"]:
                self._take_members(fragment, start, stop)
            elif match.lastgroup == "elements" and self._structure.kinds[-1:] == ["start_array"]:
                yield from self._take_elements(fragment, start, stop)
            else:
                for token in _TOKENS.finditer(fragment.data, start, stop):
                    self._take_token(token.group(), fragment.input_offset(token.start()))
                    if len(self._items) > MOST_ITEMS:
                        yield
            if len(self._items) > MOST_ITEMS:
                yield
        self._root.add_left_out(fragment.size - len(fragment.data))

    def _take_token(self, token: bytes, offset: int) -> None:
        if self._structure.started or token[0] not in SPACE:
            self._send(token, offset)
            self._root.add_own(token, offset)
            for event in self._structure.events():
                if event not in ("end_map", "end_array"):
                    self._take_value(event, offset)
                elif not self._structure.kinds:
                    self._end_root(event)

    def _send(self, token: bytes, offset: int) -> None:
        # The names in a record matter only when it is decoded, except the names of objects, which come as units.
        with_keys = self._root.shape is not Shape.RECORD or bool(self._objects)
        self._structure.send(token, offset, with_keys=with_keys)

    def _take_members(self, fragment: Fragment, start: int, stop: int) -> None:
        """Process plain members of the root whose names have no meaning."""
        for match in self._patterns.members.finditer(fragment.data, start, stop):
            if not self._root.learns_by_names:
                break
            self._structure.keys[0] = match[1][1:-1].decode()
            self._take_root_member(_event(match[2]), fragment.input_offset(match.start(2)))
        self._structure.send_plain(members=True)
        self._add_own_parts(fragment, start, stop)

    def _take_elements(self, fragment: Fragment, start: int, stop: int) -> Iterator[None]:
        """Process plain elements of an array."""
        for match in _VALUES.finditer(fragment.data, start, stop):
            self._take_value(_event(match.group()), fragment.input_offset(match.start()))
            if len(self._items) > MOST_ITEMS:
                yield
        self._structure.send_plain(members=False)
        self._add_own_parts(fragment, start, stop)

    def _add_own_parts(self, fragment: Fragment, start: int, stop: int) -> None:
        for text, offset in fragment.contiguous_parts(start, stop):
            self._root.add_own(text, offset)

    # ---- units and batches

    def _take_unit(self, unit: Fragment) -> None:
        self._structure.send_unit(unit.offset)
        name = self._structure.key
        if self._is_in_record(name):
            # The root is a record that has this object, or may turn out to be one.
            self._add_own_parts(unit, 0, len(unit.data))
            self._root.add_left_out(unit.size - len(unit.data))
            if self._root.shape is Shape.RECORD:
                return
        else:
            self._root.add_own(b"{}", unit.offset)
        is_root_level = len(self._structure.kinds) == 1
        if is_root_level and name is not None:
            self._root.add_object(name)
            if name.startswith("_"):
                return
        if is_root_level or self._structure.keys[0] in RECORD_SECTIONS:
            for item in self._records.decode(unit, name):
                self._emit(item)
        elif name is not None:
            self._emit(self._bots.decode(unit, name))
        else:
            self._reject_list_of_bots()

    def _is_in_record(self, name: str | None) -> bool:
        """Whether a unit of this name is an object that is kept in records, if the root is one."""
        if not self._objects or name is None:
            return False
        objects = self._objects if len(self._structure.kinds) == 1 else self._objects.get(self._structure.keys[0], {})
        return name in objects

    def _expects(self, batch: EncodedBatch) -> bool:
        """Whether records of a batch may come next."""
        level = len(self._structure.kinds)
        if batch.kind is BatchKind.LINES:
            return not level
        if not level or not (level == 1 or self._structure.keys[0] in RECORD_SECTIONS):
            return False
        is_members = batch.kind is BatchKind.MEMBERS
        return self._structure.in_object == is_members and self._structure.last in (b"{" if is_members else b"[", b",")

    def _emit(self, item: ScanEvent) -> None:
        if self._structure.kinds:
            self._items += self._root.add_item(item)
        else:
            self._items.append(item)

    # ---- values that are not units: plain ones, arrays, and containers that hold units

    def _take_value(self, event: str, offset: int) -> None:
        level = len(self._structure.kinds)
        if level == 0:
            self._begin_root(offset)
            if event == "start_array":
                self._root.shape = Shape.MAP
            if event not in ("start_map", "start_array"):
                self._reject_value(RejectReason.NOT_AN_OBJECT, event, offset)
                self._describe_root(kind_of(event))
        elif level == 1 and self._structure.in_object:
            self._take_root_member(event, offset)
        elif level == 1 or self._structure.keys[0] in RECORD_SECTIONS:
            self._reject_value(RejectReason.NOT_AN_OBJECT, event, offset)
        elif self._structure.in_object:
            self._reject_value(RejectReason.BOT, event, offset)
        else:
            self._reject_list_of_bots()

    def _take_root_member(self, event: str, offset: int) -> None:
        root, key = self._root, self._structure.keys[0]
        if root.shape is Shape.RECORD:
            return
        root.name_member(key, event)
        if key == self._key and event == "string" and root.shape is Shape.UNDECIDED:
            root.add_symbol()
        elif key in RECORD_SECTIONS:
            root.add_section(is_null=event == "null")
            if event not in ("start_map", "start_array", "null"):
                self._reject_value(RejectReason.NOT_AN_OBJECT, event, offset, "an object or an array of records")
        elif key in BOT_SECTIONS:
            root.add_section(is_null=event == "null")
            if event == "start_array":
                self._list_of_bots = offset  # an empty one says that there are none
            elif event not in ("start_map", "null"):
                self._reject_value(RejectReason.BOT, event, offset)
        else:
            root.add_plain(key)

    def _reject_list_of_bots(self) -> None:
        """Reject a section of bots that is an array, at its first element."""
        if self._list_of_bots is not None:
            name, place = shown_name(self._structure.keys[0]), where(self._list_of_bots)
            self._list_of_bots = None
            self._emit(Reject(RejectReason.BOT, name, place, f"expected an object, got {kind_of('start_array')}"))

    def _reject_value(self, reason: RejectReason, event: str, offset: int, expected: str = "an object") -> None:
        key = self._structure.key
        name = None if key is None else shown_name(key)
        self._emit(Reject(reason, name, where(offset), f"expected {expected}, got {kind_of(event)}"))

    # ---- the root

    def _begin_root(self, offset: int) -> None:
        self._list_of_bots = None
        self._root = Root(
            offset,
            max_record_bytes=self._limit,
            telling=self._telling,
            after_records=self._lines,
            described=self._root_matters,
        )

    def _end_root(self, event: str) -> None:
        if event == "end_array":
            self._describe_root("an array")
        elif self._root.is_record:
            self._lines = True
            self._items += self._records.decode(self._root.unit, None)
            if self._root.shape is not Shape.RECORD:
                self._describe_root(self._root.description)
        else:
            self._items += self._root.held
            self._describe_root(self._root.description)

    def _describe_root(self, text: str) -> None:
        """Add a note that describes a root which is not a record, unless a record has come."""
        if self._root_matters and not _holds_record(self._items):
            self._items.append(RootShape(text))
        self._root_matters = False


def _event(value: bytes) -> str:
    """Return the ijson event of a plain value, or of the beginning of an array."""
    return {b'"'[0]: "string", b"["[0]: "start_array"}.get(value[0]) or LITERALS.get(value, "number")


def _holds_record(items: list[ScanEvent]) -> bool:
    return any(isinstance(item, Record | RecordBatch) for item in items)
