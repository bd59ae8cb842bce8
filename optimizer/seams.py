"""Where bytes of a pruned stream stood in the source: the kernel's seams, kept as long as somebody may ask.

A seam is a pair of offsets: from `output` on, bytes come from `source` on. The kernel gives them as native 64-bit
integers, some for each chunk, in order. They are only read where a place has to be told, which is seldom.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from functools import cached_property

__all__ = ["Seams"]

_PAIR_BYTES = 16


class _Block:
    """The seams of one chunk."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self.first = memoryview(raw)[:_PAIR_BYTES].cast("Q")[0]

    @cached_property
    def outputs(self) -> array[int]:
        return self._pairs[0::2]

    @cached_property
    def sources(self) -> array[int]:
        return self._pairs[1::2]

    @cached_property
    def _pairs(self) -> array[int]:
        return array("Q", self._raw)


class Seams:
    """Seams in the order of the stream; up to the first one, both offsets are the same."""

    def __init__(self) -> None:
        self._blocks = [_Block(bytes(_PAIR_BYTES))]

    def extend(self, raw: bytes) -> None:
        """Add the seams of the next chunk."""
        if raw:
            self._blocks.append(_Block(raw))

    def forget(self, output: int) -> None:
        """Let go of what is needed only for bytes before this one."""
        while len(self._blocks) > 1 and self._blocks[1].first <= output:
            del self._blocks[0]

    def locate(self, output: int) -> int:
        """Where in the source a byte of the stream stood."""
        block = next(block for block in reversed(self._blocks) if block.first <= output)
        place = bisect_right(block.outputs, output) - 1
        return output - block.outputs[place] + block.sources[place]

    def between(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The seams that lie behind `start` and before `end`, an offset in the stream and one in the source each."""
        for block in self._blocks:
            first, last = bisect_right(block.outputs, start), bisect_left(block.outputs, end)
            yield from zip(block.outputs[first:last], block.sources[first:last], strict=True)
