"""The offset map of a pruned stream: from offsets in the pruned stream to offsets in the input.

The kernel emits an entry wherever the output continues at another place of the input: a pair of native 64-bit integers,
the offset in the output and the one in the input, in ascending order. Entries are kept as long as they may be needed.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

__all__ = ["OffsetMap"]


class OffsetMap:
    """Entries in the order of the stream; up to the first one, both offsets are the same."""

    def __init__(self) -> None:
        self._outputs = array("Q", [0])
        self._inputs = array("Q", [0])

    def extend(self, raw: bytes) -> None:
        """Add entries, as the kernel returns them."""
        if raw:
            pairs = array("Q", raw)
            self._outputs.extend(pairs[0::2])
            self._inputs.extend(pairs[1::2])

    def forget(self, output: int) -> None:
        """Drop the entries that only concern bytes before this offset."""
        index = bisect_right(self._outputs, output) - 1
        if index > 0:
            del self._outputs[:index]
            del self._inputs[:index]

    def locate(self, output: int) -> int:
        """Return the offset in the input of a byte of the stream."""
        index = bisect_right(self._outputs, output) - 1
        return output - self._outputs[index] + self._inputs[index]

    def between(self, start: int, end: int) -> Sequence[tuple[int, int]]:
        """Return the entries after `start` and before `end`."""
        first, last = bisect_right(self._outputs, start), bisect_left(self._outputs, end)
        if first == last:
            return ()
        return list(zip(self._outputs[first:last], self._inputs[first:last], strict=True))
