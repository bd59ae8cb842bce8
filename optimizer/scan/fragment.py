"""The interface between pruner and decoder: fragments of pruned JSON with their offsets in the input. Pure.

`FragmentBuilder` joins what the pruner in Python keeps, and drops units that are too long.

Also the errors that both pruners raise, so that their messages are the same.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from enum import Enum, auto
from itertools import pairwise
from typing import Final, NamedTuple

from optimizer.errors import SourceMalformed, SourceTorn

__all__ = [
    "MAX_DEPTH",
    "NO_OFFSETS",
    "SHOWN_CHARACTERS",
    "Fragment",
    "FragmentBuilder",
    "FragmentKind",
    "malformed",
    "never_opened",
    "null_for",
    "shown",
    "too_deep",
    "torn",
    "unbalanced",
]

SHOWN_CHARACTERS: Final = 60

# json.loads and msgspec stop at about this depth too.
MAX_DEPTH: Final = 1000


class FragmentKind(Enum):
    """The kind of a fragment.

    `BEGUN` stands for a unit (`{`) or a string (`""`) that never becomes complete, since an error follows.
    """

    TEXT = auto()
    UNIT = auto()
    BEGUN = auto()


class Fragment(NamedTuple):
    """A part of the pruned stream: one unit, or text around the units.

    `size` counts also bytes that were left out because the fragment is too long: above `max_unit_bytes`, a unit's
    `data` is empty, and an overlong string in a text is `""`. `offset` is the byte of the input at which the fragment
    begins. `offsets` are flat pairs (position in `data`, offset in the input from there on), one for each gap.
    """

    kind: FragmentKind
    offset: int
    size: int
    data: bytes
    offsets: array[int]

    def input_offset(self, position: int) -> int:
        """Return the offset in the input of the byte at `position` of `data`."""
        offsets = self.offsets
        entry = bisect_right(range(0, len(offsets), 2), position, key=offsets.__getitem__) - 1
        return position + self.offset if entry < 0 else position - offsets[2 * entry] + offsets[2 * entry + 1]

    def contiguous_parts(self, start: int, stop: int) -> Iterator[tuple[bytes, int]]:
        """Yield the bytes between two positions of `data` in parts without gaps, each with its offset in the input."""
        starts = self.offsets[0::2] if self.offsets else NO_OFFSETS
        cuts = [start, *starts[bisect_right(starts, start) : bisect_left(starts, stop)], stop]
        for begin, end in pairwise(cuts):
            yield self.data[begin:end], self.input_offset(begin)


# Of a fragment without gaps.
NO_OFFSETS: Final = array("Q")


class FragmentBuilder:
    """Build the current fragment, text or a unit, and collect those that are complete.

    Args:
        max_unit_bytes: The longest unit that is kept.
    """

    def __init__(self, max_unit_bytes: int) -> None:
        self.in_unit = False
        self.size = 0  # of the current fragment, including bytes that were left out
        self._limit = max_unit_bytes
        self._offset: int | None = None  # at which it begins
        self._data = bytearray()
        self._offsets: array[int] = array("Q")
        self._next = 0  # offset of the next byte if there is no gap
        self._fragments: list[Fragment] = []

    @property
    def open_unit(self) -> int | None:
        """The offset of the current unit."""
        return self._offset if self.in_unit else None

    def add(self, offset: int, data: bytes, *, size: int | None = None) -> None:
        """Add bytes; `size` is their number in the input if some have been left out."""
        if not data:
            return
        self.size += len(data) if size is None else size
        if self._offset is None:
            self._offset = offset
        elif self.in_unit and self.size > self._limit:
            self._data.clear()
            del self._offsets[:]
            return
        elif offset != self._next:
            self._offsets.extend((len(self._data), offset))
        self._data += data
        self._next = offset + len(data)

    def start_unit(self, offset: int, *, is_too_long: bool, consumed: int) -> None:
        """Begin a unit with its bracket; one that is too long already is only counted."""
        self.finish(FragmentKind.TEXT, consumed)
        self.in_unit = True
        self._offset = self._next = offset
        self.size = self._limit if is_too_long else 0
        self.add(offset, b"{")

    def finish(self, kind: FragmentKind, consumed: int) -> None:
        """End the current fragment; `consumed` is its offset if no byte of it was kept."""
        if self.size:
            offset = consumed if self._offset is None else self._offset
            self._fragments.append(Fragment(kind, offset, self.size, bytes(self._data), self._offsets or NO_OFFSETS))
        self.in_unit = False
        self._offset = None
        self.size = 0
        self._data.clear()
        if self._offsets:
            self._offsets = array("Q")

    def add_begun(self, offset: int, data: bytes) -> None:
        """Add the beginning of a unit or a string that never becomes complete."""
        self._fragments.append(Fragment(FragmentKind.BEGUN, offset, 1, data, NO_OFFSETS))

    def completed(self, consumed: int) -> list[Fragment]:
        """Return the fragments completed since the last call; text counts as complete at any point."""
        if not self.in_unit:
            self.finish(FragmentKind.TEXT, consumed)
        fragments, self._fragments = self._fragments, []
        return fragments


def null_for(constant_bytes: int) -> bytes:
    """Return the replacement of NaN or Infinity, padded to the same length, so that only NaN shifts later offsets."""
    return b"null".ljust(constant_bytes)


def malformed(offset: int, reason: str, excerpt: bytes = b"") -> SourceMalformed:
    """Return the error for bad syntax at a byte of the JSON, with an excerpt that begins there."""
    near = f", at {shown(excerpt.decode('utf-8', 'replace'))}" if excerpt else ""
    return SourceMalformed(f"malformed JSON at byte {offset:,}: {reason}{near}")


def shown(value: object) -> str:
    """Return a value as error messages show it: truncated if it is long, `missing` for null."""
    text = "missing" if value is None else repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "..."


def never_opened(offset: int, bracket: int) -> SourceMalformed:
    """Return the error for a bracket that closes nothing."""
    return malformed(offset, f"{chr(bracket)!r} closes a container that was never opened")


def too_deep(offset: int) -> SourceMalformed:
    """Return the error for a bracket that opens a container beyond the depth limit."""
    return malformed(offset, f"nested deeper than {MAX_DEPTH:,} containers")


def unbalanced(offset: int) -> SourceMalformed:
    """Return the error for a discarded container whose curly and square brackets do not match."""
    return SourceMalformed(
        "malformed JSON: curly and square brackets do not balance in the discarded container that ends at "
        f"byte {offset:,}"
    )


def torn(size: int, *, in_string: bool, depth: int) -> SourceTorn:
    """Return the error for an input of `size` bytes that ends inside a string, or inside `depth` containers."""
    if in_string:
        return SourceTorn(f"the JSON ends inside a string, after {size:,} bytes")
    return SourceTorn(f"the JSON ends early, after {size:,} bytes, with {depth:,} of its containers open")
