"""The native pruner: the compiled kernel prunes; this module turns its output into fragments and batches.

The kernel (`kernel/prune.h`) returns the pruned JSON, and the spans of it in which records follow each other. Each span
is offered to `on_batch`, which may decode it as a whole. The rest, and every batch that was not taken, goes through
`pruner.Pruner` like any other input, and is small after pruning. So each rule is written once, and the kernel only adds
speed.

Invariant: pruning is idempotent. `pruner.Pruner` makes the same fragments from the kernel's output as from the input,
except for their offsets, which are translated here. The tests compare the two pruners.

Errors: those of `pruner.Pruner`, with the same messages.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from optimizer.errors import RollingError, SourceMalformed
from optimizer.scan._prune import VARIANT
from optimizer.scan._prune import Pruner as Kernel
from optimizer.scan.batch import BatchKind, EncodedBatch, OnBatch
from optimizer.scan.fragment import (
    MAX_DEPTH,
    Fragment,
    FragmentKind,
    never_opened,
    too_deep,
    torn,
    unbalanced,
)
from optimizer.scan.layout import DEFAULT_NAMES, Layout, Objects, RecordNames
from optimizer.scan.offset_map import OffsetMap
from optimizer.scan.pruner import Pruner

__all__ = ["VARIANT", "NativePruner"]

# The kernel's output: pruned bytes, spans (start, end, count, longest, kind), entries of the offset map, the offset at
# which a unit is still incomplete, and the number of bytes read.
_Output = tuple[bytes, list[tuple[int, int, int, int, int]], bytes, int, int]
_KINDS: Final = {int(kind): kind for kind in BatchKind}
# The beginning of a record is held until its end arrives; a longer one is passed on in fragments.
MAX_CARRIED_BYTES: Final = 4 << 20
# The most bytes passed to the pruner in Python in one call: each may become a fragment.
STEP_BYTES: Final = 16 << 10
# Decoding a batch costs as much as this many bytes of fragments.
MIN_BATCH_BYTES: Final = 128


class NativePruner:
    """Cut a stream of JSON texts into fragments and batches; feed it bytes in any chunking, then close it.

    Args:
        default: As for `pruner.Pruner`; units there are records, and so are those of `members` with as many kept
            levels.
        members: As for `pruner.Pruner`.
        max_unit_bytes: As for `pruner.Pruner`.
        names: As for `pruner.Pruner`.
        on_batch: Called with each span of records, when all fragments before it have been consumed. Returns whether it
            took them; otherwise their fragments follow.
    """

    def __init__(
        self,
        *,
        default: Layout,
        members: Mapping[bytes, Layout],
        max_unit_bytes: int,
        on_batch: OnBatch,
        names: RecordNames = DEFAULT_NAMES,
    ) -> None:
        self._kernel = Kernel(
            (*default, True),
            {
                name.strip(b'"'): (*layout, layout.kept_levels == default.kept_levels)
                for name, layout in members.items()
            },
            names.key.encode(),
            max_unit_bytes,
            MAX_DEPTH,
            _kept_objects(names.objects),
        )
        self._on_batch = on_batch
        self._max_held_bytes = min(max_unit_bytes, MAX_CARRIED_BYTES)
        self._offset_map = OffsetMap()
        self._pruner = Pruner(
            default=default,
            members=members,
            max_unit_bytes=max_unit_bytes,
            names=names,
            locate=self._offset_map.locate,
        )
        self._held = bytearray()  # bytes of the pruned stream that may become part of a batch
        self._error: RollingError | None = None
        self._unit_offsets = (0, 0)  # of a unit that is open at the end of an output: in the pruned stream, the input
        self._position = 0  # offset in the pruned stream of the next byte

    def feed(self, chunk: bytes | memoryview) -> Iterator[Fragment]:
        """Process the next bytes; yield the fragments that they complete.

        Raises:
            SourceMalformed: Here or at the next call, as in `pruner.Pruner`: fragments before the error come first.
        """
        if self._error is not None:
            raise self._error
        start = self._kernel.consumed
        left = memoryview(chunk)
        while left and self._kernel.error is None:
            output = self._kernel.feed(left)
            left = left[output[-1] :]
            yield from self._take(output)
        if self._kernel.error is not None:
            self._error = _as_malformed(self._kernel.error, chunk, start)
            yield from self._end(self._error)

    def close(self) -> Iterator[Fragment]:
        """End the input: yield the last fragments.

        Raises:
            SourceMalformed: An error in the bytes fed that has not been raised yet.
            SourceTorn: A string or a container is still open.
        """
        if self._error is not None:
            raise self._error
        in_string, depth = self._kernel.in_string, self._kernel.depth
        if in_string or depth:
            self._error = torn(self._kernel.consumed, in_string=in_string, depth=depth)
        else:
            yield from self._take(self._kernel.finish())
        yield from self._end(self._error)

    def _end(self, error: RollingError | None) -> Iterator[Fragment]:
        yield from self._pruned(bytes(self._held))
        yield from self._translated(self._pruner.end(error))

    def _take(self, output: _Output) -> Iterator[Fragment]:
        """Offer the spans as batches, prune the bytes between them, and hold what may belong to the next batch."""
        data, spans, offsets, pending, _ = output
        self._offset_map.extend(offsets)
        end = self._position + len(self._held) + len(data)
        if end - pending > self._max_held_bytes:
            pending = end
        if not spans and pending <= self._position:
            self._held += data
        else:
            # Every held byte is copied here about once, however small the chunks are.
            begin, whole = self._position, b"".join((self._held, data)) if self._held else data
            for span in spans:
                yield from self._take_span(span, whole, begin)
            yield from self._pruned(whole[self._position - begin : max(pending - begin, 0)])
            self._held[:] = whole[self._position - begin :]
        self._forget()

    def _take_span(self, span: tuple[int, int, int, int, int], data: bytes, begin: int) -> Iterator[Fragment]:
        start, end, count, longest, kind = span
        if start < self._position or end - start < MIN_BATCH_BYTES:
            return  # its first record was too long to hold, so half of it was passed on; or the span is too short
        yield from self._pruned(data[self._position - begin : start - begin])
        if not self._pruner.between_tokens:
            return
        records = memoryview(data)[start - begin : end - begin]
        batch = EncodedBatch(
            _KINDS[kind],
            records,
            count,
            longest,
            locate=lambda position: self._offset_map.locate(start + position),
            unit=lambda begin, end: self._unit(start + begin, bytes(records[begin:end])),
        )
        if self._on_batch(batch):
            self._pruner.pass_over(len(records))
            self._position = end

    def _pruned(self, data: bytes) -> Iterator[Fragment]:
        for start in range(0, len(data), STEP_BYTES):
            part = data[start : start + STEP_BYTES]
            self._position += len(part)
            yield from self._translated(self._pruner.feed(part))

    def _forget(self) -> None:
        """Drop the entries of the offset map that are no longer needed."""
        unit = self._pruner.open_unit
        if unit is not None and unit != self._unit_offsets[0]:
            self._unit_offsets = (unit, self._offset_map.locate(unit))
        self._offset_map.forget(min(self._position, self._pruner.kept_since))

    def _translated(self, fragments: Iterable[Fragment]) -> Iterator[Fragment]:
        """Yield the fragments with their offsets in the input."""
        for fragment in fragments:
            starts = fragment.offsets[0::2]
            offsets = self._offsets_of(fragment.offset, 0, starts[0] if starts else len(fragment.data))
            if starts:
                # It has gaps from this pruner too, besides those from the kernel.
                stops = [*starts[1:], len(fragment.data)]
                for start, stop, offset in zip(starts, stops, fragment.offsets[1::2], strict=True):
                    offsets.extend((start, self._offset_map.locate(offset)))
                    offsets.extend(self._offsets_of(offset, start, stop))
            yield Fragment(fragment.kind, self._locate(fragment.offset), fragment.size, fragment.data, offsets)

    def _offsets_of(self, offset: int, start: int, stop: int) -> array[int]:
        """Return the entries between two positions of a fragment; the first one is at `offset` of the stream."""
        entries = self._offset_map.between(offset, offset + stop - start)
        if not entries:
            return array("Q")
        return array("Q", [number for output, input_ in entries for number in (output - offset + start, input_)])

    def _unit(self, start: int, data: bytes) -> Fragment:
        offsets = self._offsets_of(start, 0, len(data))
        return Fragment(FragmentKind.UNIT, self._locate(start), len(data), data, offsets)

    def _locate(self, start: int) -> int:
        return self._unit_offsets[1] if start == self._unit_offsets[0] else self._offset_map.locate(start)


def _kept_objects(objects: Objects) -> tuple[tuple[bytes, int, int], ...]:
    """Return the kept objects in the kernel's format: level by level, the objects inside one object adjacent."""
    if not objects:
        return ()
    flat: list[tuple[bytes, int, int]] = [(b"", 0, 0)]
    level = [("", objects)]
    while level:
        first = len(flat) + len(level)
        for name, inside in level:
            flat.append((name.encode(), first, len(inside)))
            first += len(inside)
        level = [inside for _, outer in level for inside in outer.items()]
    return tuple(flat)


def _as_malformed(error: tuple[str, int], chunk: bytes | memoryview, chunk_start: int) -> SourceMalformed:
    name, offset = error
    if name == "never opened":
        return never_opened(offset, memoryview(chunk)[offset - chunk_start])
    return too_deep(offset) if name == "too deep" else unbalanced(offset)
