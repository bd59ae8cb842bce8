"""The JSON of a rolling file: records in one of two shapes, then bots.

Records of a mapping become a map by symbol; those of an iterator, each with its own symbol, a list in the section
`predictions`. Both scan at the same rate. Each record begins a line, for `zgrep`.

Errors: `RecordUnwritable`, `InputUnwritable`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from typing import Final

from optimizer.errors import RecordUnwritable
from optimizer.producer.encoding import encode_key, encode_record, symbol_of
from optimizer.producer.members import Members
from optimizer.scan.layout import BOT_SECTIONS, RECORD_SECTIONS

__all__ = ["Document", "Records", "Shape", "entries"]

Records = Mapping[str, object] | Iterable[object]

# Members of a root that have a special meaning, as has every name that begins with `_`.
RESERVED: Final = frozenset((*RECORD_SECTIONS, *BOT_SECTIONS))


class Shape(Enum):
    """The layout of records: the text before and after them in the root object."""

    MAP = (b"{", b"")
    LIST = (b'{"predictions":[', b"]")

    @classmethod
    def of(cls, records: Records) -> Shape:
        """Return the shape in which these records are written."""
        return cls.MAP if isinstance(records, Mapping) else cls.LIST


def entries(records: Records) -> Iterator[tuple[str, bytes]]:
    """Encode records one by one; yield the symbol, and the JSON in its form for the shape.

    Raises:
        RecordUnwritable: A record cannot be written.
    """
    if not isinstance(records, Mapping):
        for number, record in enumerate(records, 1):
            symbol = symbol_of(record, number)
            yield symbol, encode_record(symbol, record)
        return
    for symbol, record in records.items():
        key = encode_key(symbol)
        if symbol in RESERVED or symbol.startswith("_"):
            raise RecordUnwritable(
                f"{symbol!r} cannot be a symbol: in the root of a rolling file this name has a meaning of its own. "
                "Give bots as the argument `bots`, the records of a section by themselves, and leave the rest out"
            )
        yield symbol, key + b":" + encode_record(symbol, record)


class Document:
    """A JSON text that is being written to a file."""

    def __init__(self, members: Members, shape: Shape) -> None:
        self._members = members
        self._opening, self._closing = shape.value
        self._between = self._opening

    @property
    def json_bytes(self) -> int:
        """The size so far."""
        return self._members.json_bytes

    def add(self, entry: bytes) -> None:
        """Add a record, as `entries` returns it."""
        self._members.write(self._between + entry)
        self._between = b",\n"

    def end(self, bots: bytes | None = None) -> None:
        """End the text, with these bots, a JSON object, if any."""
        is_empty = self._between is self._opening
        last = (self._opening if is_empty else b"") + self._closing
        if bots is not None:
            last += (b"" if is_empty and not self._closing else b",\n") + b'"bots":' + bots
        self._members.write(last + b"}\n")
        self._members.end()
