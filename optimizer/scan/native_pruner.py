"""The native pruner: the compiled kernel does the pruning, this room makes pieces and runs of what it leaves.

The kernel (`kernel/prune.h`) hands out the same JSON, pruned, and tells which stretches of it are runs of
records. A run is offered to the decoder as a whole. Whatever is left, or was not taken, goes through `prune.Pruner`
like any other input: it is small by now. So each rule is written once, and what the kernel adds is speed.

Invariant: pruning is idempotent. `prune.Pruner` makes the same pieces of the kernel's output as of the source, but for
their places, which are put right here. The tests hold the two pruners against each other.

Errors: those of `prune.Pruner`, with the same words.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from optimizer.errors import RollingError, SourceMalformed
from optimizer.scan import _prune
from optimizer.scan.batch import Run, RunKind
from optimizer.scan.fragment import (
    MAX_DEPTH,
    RECORD_KEY,
    Layout,
    Piece,
    PieceKind,
    never_opened,
    too_deep,
    torn,
    unbalanced,
)
from optimizer.scan.offset_map import Seams
from optimizer.scan.pruner import Pruner

__all__ = ["VARIANT", "NativePruner"]

VARIANT: Final[str] = _prune.VARIANT

# What the kernel gives: pruned bytes, runs (start, end, count, longest, kind), seams, where what is pending begins, and
# how many bytes were read.
_Batch = tuple[bytes, list[tuple[int, int, int, int, int]], bytes, int, int]
_KINDS: Final = {int(kind): kind for kind in RunKind}
# The beginning of a record waits for its end; a longer one is better taken apart.
MAX_CARRIED_BYTES: Final = 4 << 20
LOOK_BYTES: Final = 16 << 10
# To offer a run costs as much as to take so many bytes apart.
MIN_RUN_BYTES: Final = 128


class NativePruner:
    """Cut a stream of JSON texts into pieces and runs; feed it bytes in any chunking, then close it.

    Arguments as for `prune.Pruner`. Units that stand where `default` says are records, and so are those of `members`
    with the same `kept_levels`; they come as runs.
    """

    def __init__(self, *, default: Layout, members: Mapping[bytes, Layout], max_unit_bytes: int) -> None:
        self._kernel = _prune.Pruner(
            (*default, True),
            {
                name.strip(b'"'): (*layout, layout.kept_levels == default.kept_levels)
                for name, layout in members.items()
            },
            RECORD_KEY.encode(),
            max_unit_bytes,
            MAX_DEPTH,
        )
        self._most_held = min(max_unit_bytes, MAX_CARRIED_BYTES)
        self._seams = Seams()
        self._pruner = Pruner(
            default=default, members=members, max_unit_bytes=max_unit_bytes, locate=self._seams.locate
        )
        self._held = bytearray()  # of the pruned stream: the beginning of what may become part of a run
        self._refusal: RollingError | None = None
        self._unit_place = (0, 0)  # of a unit that was open at the end of a batch: in the pruned stream, in the source
        self._position = 0  # offset in the pruned stream of what comes next

    def feed(self, chunk: bytes) -> Iterator[Piece | Run]:
        """Take the next bytes; yield the pieces and runs that they complete. Each run is an offer, see `Run.taken`.

        Raises:
            SourceMalformed: Here or at the next call, as with `prune.Pruner`: pieces from before the error come first.
        """
        if self._refusal is not None:
            raise self._refusal
        start = self._kernel.consumed
        left = memoryview(chunk)
        while left and self._kernel.error is None:
            batch = self._kernel.feed(left)
            left = left[batch[-1] :]
            yield from self._take(batch)
        if self._kernel.error is not None:
            self._refusal = _refusal(self._kernel.error, chunk, start)
            yield from self._end(self._refusal)

    def close(self) -> Iterator[Piece | Run]:
        """End the input: yield the last pieces.

        Raises:
            SourceMalformed: An error in what was fed that has not been raised yet.
            SourceTorn: A string or a container is still open.
        """
        if self._refusal is not None:
            raise self._refusal
        in_string, depth = self._kernel.in_string, self._kernel.depth
        if in_string or depth:
            self._refusal = torn(self._kernel.consumed, in_string=in_string, depth=depth)
        else:
            yield from self._take(self._kernel.finish())
        yield from self._end(self._refusal)

    def _end(self, error: RollingError | None) -> Iterator[Piece]:
        yield from self._closer_look(bytes(self._held))
        yield from self._translated(self._pruner.end(error))

    def _take(self, batch: _Batch) -> Iterator[Piece | Run]:
        """Take runs as such, what is between them piece by piece, and hold what may become part of the next one."""
        data, runs, seams, pending, _ = batch
        self._seams.extend(seams)
        end = self._position + len(self._held) + len(data)
        if end - pending > self._most_held:
            pending = end
        if not runs and pending <= self._position:
            self._held += data
        else:
            # All that is held moves at least this once in its life, and not much more often, however small chunks are.
            begin, whole = self._position, b"".join((self._held, data)) if self._held else data
            for run in runs:
                yield from self._take_run(run, whole, begin)
            yield from self._closer_look(whole[self._position - begin : max(pending - begin, 0)])
            self._held[:] = whole[self._position - begin :]
        self._forget()

    def _take_run(self, run: tuple[int, int, int, int, int], data: bytes, begin: int) -> Iterator[Piece | Run]:
        start, end, count, longest, kind = run
        if start < self._position or end - start < MIN_RUN_BYTES:
            return  # its first record was taken for too long, and is half out already; or it is not worth it
        yield from self._closer_look(data[self._position - begin : start - begin])
        if not self._pruner.between_tokens:
            return
        records = memoryview(data)[start - begin : end - begin]
        offer = Run(_KINDS[kind], records, count, longest, self._placer(start), self._cutter(start, records))
        yield offer
        if offer.taken:
            self._pruner.pass_over(len(records))
            self._position = end

    def _closer_look(self, data: bytes) -> Iterator[Piece]:
        # A little at a time: each byte may become a piece.
        for start in range(0, len(data), LOOK_BYTES):
            part = data[start : start + LOOK_BYTES]
            self._position += len(part)
            yield from self._translated(self._pruner.feed(part))

    def _forget(self) -> None:
        """Let go of seams that nobody needs any more."""
        unit = self._pruner.open_unit
        if unit is not None and unit != self._unit_place[0]:
            self._unit_place = (unit, self._seams.locate(unit))
        self._seams.forget(min(self._position, self._pruner.kept_since))

    def _placer(self, begin: int) -> Callable[[int], int]:
        """What tells places in the source of data that begins at this offset of the pruned stream."""
        return lambda position: self._seams.locate(begin + position)

    def _cutter(self, begin: int, data: memoryview) -> Callable[[int, int], Piece]:
        """What cuts units out of data that begins at this offset of the pruned stream."""
        return lambda start, end: self._unit(begin + start, bytes(data[start:end]))

    def _translated(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        """The pieces with their places in the source."""
        for piece in pieces:
            starts = piece.seams[0::2]
            seams = self._seams_of(piece.offset, 0, starts[0] if starts else len(piece.data))
            if starts:
                # It has gaps of its own, besides those that the kernel has left.
                for start, stop, offset in zip(starts, [*starts[1:], len(piece.data)], piece.seams[1::2], strict=True):
                    seams.extend((start, self._seams.locate(offset)))
                    seams.extend(self._seams_of(offset, start, stop))
            yield Piece(piece.kind, self._locate(piece.offset), piece.size, piece.data, seams)

    def _seams_of(self, offset: int, start: int, stop: int) -> array[int]:
        """The gaps between two positions of a piece that follow each other in the pruned stream, from `offset` on."""
        found = self._seams.between(offset, offset + stop - start)
        if not found:
            return array("Q")
        return array("Q", [place for output, source in found for place in (output - offset + start, source)])

    def _unit(self, start: int, data: bytes) -> Piece:
        return Piece(PieceKind.UNIT, self._locate(start), len(data), data, self._seams_of(start, 0, len(data)))

    def _locate(self, start: int) -> int:
        return self._unit_place[1] if start == self._unit_place[0] else self._seams.locate(start)


def _refusal(error: tuple[str, int], chunk: bytes, chunk_start: int) -> SourceMalformed:
    name, offset = error
    if name == "never opened":
        return never_opened(offset, memoryview(chunk)[offset - chunk_start])
    return too_deep(offset) if name == "too deep" else unbalanced(offset)
