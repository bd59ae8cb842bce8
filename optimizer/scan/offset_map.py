"""Where bytes of a pruned stream stood in the source: the kernel's seams, kept as long as somebody may ask.

A seam is a pair of offsets: from `output` on, bytes come from `source` on. The kernel gives them as native 64-bit
integers, some for each batch, in order.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

__all__ = ["Seams"]


class Seams:
    """Seams in the order of the stream; up to the first one, both offsets are the same."""

    def __init__(self) -> None:
        self._outputs = array("Q", [0])
        self._sources = array("Q", [0])

    def extend(self, raw: bytes) -> None:
        """Add the seams of the next batch."""
        if raw:
            pairs = array("Q", raw)
            self._outputs.extend(pairs[0::2])
            self._sources.extend(pairs[1::2])

    def forget(self, output: int) -> None:
        """Let go of what is needed only for bytes before this one."""
        place = bisect_right(self._outputs, output) - 1
        if place > 0:
            del self._outputs[:place]
            del self._sources[:place]

    def locate(self, output: int) -> int:
        """Where in the source a byte of the stream stood."""
        place = bisect_right(self._outputs, output) - 1
        return output - self._outputs[place] + self._sources[place]

    def between(self, start: int, end: int) -> Sequence[tuple[int, int]]:
        """The seams that lie behind `start` and before `end`, an offset in the stream and one in the source each."""
        first, last = bisect_right(self._outputs, start), bisect_left(self._outputs, end)
        if first == last:
            return ()
        return list(zip(self._outputs[first:last], self._sources[first:last], strict=True))
