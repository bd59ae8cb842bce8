"""The native pruner: the compiled kernel does the pruning, this room makes pieces and runs of what it leaves.

The kernel (`optimizer/kernel/prune.h`) hands out the same JSON, pruned, and tells which stretches of it are runs of
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

from optimizer import _prune
from optimizer.errors import SourceMalformed
from optimizer.pieces import (
    MAX_DEPTH,
    RECORD_KEY,
    SPACE,
    Layout,
    Piece,
    PieceKind,
    never_opened,
    too_deep,
    torn,
    unbalanced,
)
from optimizer.prune import Pruner
from optimizer.runs import Run, RunKind
from optimizer.seams import Seams

__all__ = ["VARIANT", "NativePruner"]

VARIANT: Final[str] = _prune.VARIANT

# What the kernel gives: pruned bytes, runs (start, end, count, longest, kind), seams, and where what is pending begins.
# The beginning of a record is copied with each chunk that comes before its end; a longer one is better taken apart.
MAX_CARRIED_BYTES: Final = 4 << 20
_KINDS: Final = {int(kind): kind for kind in RunKind}
_Batch = tuple[bytes, list[tuple[int, int, int, int, int]], bytes, int]


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
        self._most_carried = min(max_unit_bytes, MAX_CARRIED_BYTES)
        self._seams = Seams()
        self._pruner = Pruner(
            default=default, members=members, max_unit_bytes=max_unit_bytes, locate=self._seams.locate
        )
        self._carry = b""  # of the pruned stream: the beginning of what may become part of a run
        self._refusal: SourceMalformed | None = None
        self._unit_place = (0, 0)  # of a unit that was open at the end of a chunk: in the pruned stream, in the source
        self._position = 0  # offset in the pruned stream of what comes next

    def feed(self, chunk: bytes) -> Iterator[Piece | Run]:
        """Take the next bytes; yield the pieces and runs that they complete. Each run is an offer, see `Run.taken`.

        Raises:
            SourceMalformed: Here or at the next call, as with `prune.Pruner`: pieces from before the error come first.
        """
        if self._refusal is not None:
            raise self._refusal
        start = self._kernel.consumed
        yield from self._take_all(self._kernel.feed(chunk))
        if self._kernel.error is not None:
            self._refusal = _refusal(self._kernel.error, chunk, start)
            yield from self._closer_look(self._carry)
            yield from self._translated(self._pruner.end_token())  # a bracket ends it
            raise self._refusal

    def close(self) -> Iterator[Piece | Run]:
        """End the input: yield the last pieces.

        Raises:
            SourceMalformed: An error in what was fed that has not been raised yet.
            SourceTorn: A string or a container is still open.
        """
        if self._refusal is not None:
            raise self._refusal
        in_string, depth = self._kernel.in_string, self._kernel.depth
        if not (in_string or depth):
            yield from self._take_all(self._kernel.finish())
        yield from self._closer_look(self._carry)
        if in_string or depth:
            self._pruner.feed(b"")  # what it has met comes before
            raise torn(self._kernel.consumed, in_string=in_string, depth=depth)
        yield from self._translated(self._pruner.close())

    def _take_all(self, batches: list[_Batch]) -> Iterator[Piece | Run]:
        for data, runs, seams, pending in batches:
            self._seams.extend(seams)
            yield from self._take(self._carry + data if self._carry else data, runs, pending)
            self._forget()

    def _take(self, data: bytes, runs: list[tuple[int, int, int, int, int]], pending: int) -> Iterator[Piece | Run]:
        begin = self._position  # offset of `data`
        for start, end, count, longest, kind in runs:
            if start < self._position:
                continue  # its first record was taken for too long, and is half out already
            before = data[self._position - begin : start - begin]
            is_comma = before.strip(SPACE) == b","  # and no more, as between the last run of a chunk and the next one
            if not is_comma:
                yield from self._closer_look(before)
            record_run = memoryview(data)[start - begin : end - begin]
            if self._pruner.between_tokens:
                run = Run(
                    _KINDS[kind],
                    before if is_comma else b"",
                    record_run,
                    count,
                    longest,
                    self._placer(start),
                    self._cutter(start, record_run),
                )
                yield run
                if run.taken:
                    self._pruner.pass_over(end - self._position)
                    self._position = end
                    continue
            yield from self._closer_look(data[self._position - begin : end - begin])
        # A record in the making is carried on, with the comma before it, unless it is too long already.
        whole = max(pending, self._position)
        if begin + len(data) - whole > self._most_carried:
            whole = begin + len(data)
        elif data[self._position - begin : whole - begin].strip(SPACE) == b",":
            whole = self._position
        rest = data[self._position - begin :]
        self._carry = data[whole - begin :]
        yield from self._closer_look(rest[: len(rest) - len(self._carry)])

    def _closer_look(self, data: bytes) -> Iterator[Piece]:
        if data:
            self._position += len(data)
            yield from self._translated(self._pruner.feed(data))

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
        """The pieces with their places in the source, cut where the source has a gap."""
        for piece in pieces:
            if piece.kind is PieceKind.UNIT:
                yield self._unit(piece.offset, piece.data)._replace(size=piece.size)
                continue
            done = 0
            for output, _ in self._seams.between(piece.offset, piece.offset + len(piece.data)):
                cut = output - piece.offset
                yield self._text(piece, done, cut)
                done = cut
            yield self._text(piece, done, len(piece.data))

    def _text(self, piece: Piece, start: int, end: int) -> Piece:
        whole = end - start == len(piece.data)
        return piece._replace(
            offset=self._seams.locate(piece.offset + start),
            size=piece.size if whole else end - start,
            data=piece.data[start:end],
        )

    def _unit(self, start: int, data: bytes) -> Piece:
        seams = array("Q")
        for output, source in self._seams.between(start, start + len(data)):
            seams.extend((output - start, source))
        place = self._unit_place[1] if start == self._unit_place[0] else self._seams.locate(start)
        return Piece(PieceKind.UNIT, place, len(data), data, seams)


def _refusal(error: tuple[str, int], chunk: bytes, chunk_start: int) -> SourceMalformed:
    name, offset = error
    if name == "never opened":
        return never_opened(offset, memoryview(chunk)[offset - chunk_start])
    return too_deep(offset) if name == "too deep" else unbalanced(offset)
