"""Pruned bytes in, fragments out: joins what the pruner keeps, and drops units that are too long. Pure."""

from __future__ import annotations

from array import array

from optimizer.scan.fragment import NO_OFFSETS, Fragment, FragmentKind

__all__ = ["FragmentBuilder"]


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
