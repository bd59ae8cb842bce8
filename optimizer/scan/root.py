"""One root of the input: whether it is a map of records or one record, and its description in words. Pure.

A root object with a string `symbol` is one record. That member may come last, so the items of the root are held until
the root ends, or has so many objects that it is a map.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from enum import Enum, auto
from typing import Final, NamedTuple

from optimizer.models import Bot, Record, Reject
from optimizer.scan.batch import RecordBatch
from optimizer.scan.fragment import Fragment, FragmentKind
from optimizer.scan.schema import Schema
from optimizer.scan.validation import ExtrasDropped, SymbolsIgnored, shown_name

__all__ = ["Item", "Root", "RootShape", "ScanEvent", "Shape", "kind_of", "telling_names"]

# A root object with this many objects in it, positions of bots included, is a map, whatever plain values it also has.
MAP_MEMBERS: Final = 1_000
# How many members of a root the description names if nothing in the root could be used.
MEMBERS_NAMED: Final = 5


class RootShape(NamedTuple):
    """A description of the first JSON text of a file; emitted if no record was found up to its end."""

    text: str


Item = Record | Bot | Reject
# The events of a scan: items, batches of records, and notes about the file.
ScanEvent = Item | RecordBatch | SymbolsIgnored | ExtrasDropped | RootShape


def telling_names(schema: Schema) -> frozenset[str]:
    """Return the names of plain values that mark a root object without objects as a record.

    Timestamps and extra fields are not among them, since maps may have these too.
    """
    fields = (field for field in schema.records.values() if field.name != "timestamp")
    return frozenset(name for field in fields for name in field.names if "." not in name)


class Shape(Enum):
    """The kinds of roots."""

    UNDECIDED = auto()
    MAP = auto()  # or an array
    RECORD = auto()


class Root:
    """The current root.

    Args:
        offset: Its first byte in the input.
        max_record_bytes: The longest record.
        telling: See `telling_names`.
        after_records: Whether an earlier root was a record.
        described: Whether its description may be needed.
    """

    def __init__(
        self,
        offset: int,
        *,
        max_record_bytes: int,
        telling: frozenset[str],
        after_records: bool,
        described: bool,
    ) -> None:
        self.shape = Shape.UNDECIDED
        self._limit = max_record_bytes
        self._telling = telling
        self._after_records = after_records
        self._described = described
        self._is_map = False  # it has objects or sections
        self._tells = False  # it has plain values that mark it as a record
        self._members: list[str] = []  # the first ones, in words
        self._held: list[ScanEvent] = []
        self._held_objects = 0
        # Its text without nested containers, in case it is a record; the opening bracket is the current token.
        self._offset = offset
        self._own = bytearray(b"{")
        self._own_size = 1
        self._own_offsets: array[int] = array("Q")
        self._own_end = offset + 1  # in the input, of its last token

    def add_own(self, token: bytes | memoryview, offset: int) -> None:
        """Add a token that is not inside a nested container."""
        self._own_size += len(token)
        if self.shape is not Shape.MAP:
            if offset != self._own_end:
                self._own_offsets.extend((len(self._own), offset))
            self._own += token
            self._own_end = offset + len(token)
            if len(self._own) > self._limit:
                self._own.clear()  # the size shows that it is too long
                del self._own_offsets[:]

    def add_left_out(self, size: int) -> None:
        """Count bytes outside nested containers that the pruner has left out."""
        self._own_size += size

    def add_item(self, item: ScanEvent) -> Iterable[ScanEvent]:
        """Add an item; return the items that are final: none as long as the root may be one record."""
        if self.shape is Shape.MAP:
            return (item,)
        if self.shape is Shape.RECORD:
            return ()
        self._held.append(item)
        self._held_objects += _objects_in(item)
        if self._held_objects < MAP_MEMBERS:
            return ()
        self.shape = Shape.MAP
        self._own.clear()
        held, self._held = self._held, []
        return held

    def add_objects(self, item: ScanEvent) -> None:
        """Count the members of the root that a batch, or a single item, stands for."""
        if isinstance(item, RecordBatch):
            for symbol in item.symbols:
                self.add_object(symbol)
        elif isinstance(item, Record):
            self.add_object(item.symbol)
        elif isinstance(item, Reject):
            self.add_object(item.name or "")

    def add_object(self, name: str) -> None:
        """Register a member that is an object."""
        self._is_map = True
        self.name_member(name, "start_map")

    def add_section(self, *, is_null: bool) -> None:
        """Register a section."""
        self._is_map |= not is_null

    def add_symbol(self) -> None:
        """Register a member `symbol` that is a string, in an undecided root: the root is one record."""
        self.shape = Shape.RECORD
        self._held.clear()

    def add_plain(self, name: str) -> None:
        """Register another member."""
        self._tells |= name in self._telling or (self._after_records and not name.startswith("_"))

    def name_member(self, name: str, event: str) -> None:
        """Add to the description."""
        if self._described and len(self._members) <= MEMBERS_NAMED:
            self._members.append(f"{shown_name(name)!r} ({kind_of(event)})")

    @property
    def learns_by_names(self) -> bool:
        """Whether another plain member, whatever its name, could decide what the root is."""
        is_described = not self._described or len(self._members) > MEMBERS_NAMED
        return self.shape is not Shape.RECORD and not (is_described and (self._tells or not self._after_records))

    @property
    def is_record(self) -> bool:
        """Whether the root, which has ended, is one record, with or without a symbol."""
        if self.shape is Shape.UNDECIDED:
            return self._tells and not self._is_map
        return self.shape is Shape.RECORD

    @property
    def unit(self) -> Fragment:
        """The root as the one record that it is."""
        return Fragment(FragmentKind.UNIT, self._offset, self._own_size, bytes(self._own), self._own_offsets)

    @property
    def held(self) -> list[ScanEvent]:
        """The items of a root that has ended and is not a record."""
        return self._held

    @property
    def description(self) -> str:
        """The first members in words."""
        if not self._members:
            return "an empty object"
        more = ", ..." if len(self._members) > MEMBERS_NAMED else ""
        return f"an object with the members {', '.join(self._members[:MEMBERS_NAMED])}{more}"


def kind_of(event: str) -> str:
    """Return an ijson event in words."""
    return {"start_map": "an object", "start_array": "an array", "null": "null"}.get(event, f"a {event}")


def _objects_in(item: ScanEvent) -> int:
    if isinstance(item, RecordBatch):
        return len(item.symbols)
    if isinstance(item, Bot):
        return 1 + len(item.positions)
    return int(isinstance(item, Record | Reject))
