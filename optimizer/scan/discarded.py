"""The container that the pruner discards: finds its end without keeping any of its content. Pure.

It checks closed strings, balanced brackets of each kind, and the depth limit.
"""

from __future__ import annotations

from typing import Final

from optimizer.scan.fragment import MAX_DEPTH, too_deep, unbalanced
from optimizer.scan.patterns import FLAT, SKIPPED, SKIPPED_LEVELS, compiled

__all__ = ["DiscardedContainer"]

_SKIPPED: Final = compiled(SKIPPED)
_FLAT: Final = compiled(FLAT)
_QUOTE: Final = b'"'[0]
_OPENING: Final = b"{["
_CURLY: Final = b"{}"


class DiscardedContainer:
    """The position inside the discarded container; `depth` is 0 if there is none."""

    def __init__(self) -> None:
        self.depth = 0
        self._max_depth = 0
        self._is_curly = False  # a curly bracket opened it
        self._curly = 0  # open curly brackets; the rest of the depth is square

    def open(self, bracket: int, depth: int) -> None:
        """Begin at its opening bracket, inside `depth` kept containers."""
        self.depth = 1
        self._max_depth = MAX_DEPTH - depth
        self._is_curly = bracket in _CURLY
        self._curly = int(self._is_curly)

    def skip(self, buffer: bytes, position: int, consumed: int) -> int:
        """Return the position of its closing bracket, of a string that the buffer cuts, or the end of the buffer.

        Args:
            buffer: The bytes.
            position: Where to begin.
            consumed: The offset of the buffer in the input.

        Raises:
            SourceMalformed: Nested too deep, or brackets that do not balance.
        """
        end = len(buffer)
        while True:
            pattern = _FLAT if self.depth > self._max_depth - SKIPPED_LEVELS else _SKIPPED
            position = pattern.match(buffer, position).end()  # type: ignore[union-attr]  # it matches nothing too
            if position == end or buffer[position] == _QUOTE:
                return position
            bracket = buffer[position]
            if bracket in _OPENING:
                if self.depth == self._max_depth:
                    raise too_deep(consumed + position)
                self.depth += 1
                self._curly += bracket in _CURLY
            else:
                self.depth -= 1
                self._curly -= bracket in _CURLY
                if not self.depth:
                    if self._curly or (bracket in _CURLY) != self._is_curly:
                        raise unbalanced(consumed + position)
                    return position
            position += 1
