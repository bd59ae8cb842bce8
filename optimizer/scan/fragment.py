"""What passes from a pruner to the decoder: pieces of pruned JSON that know where in the source they came from.

Here too is what both pruners refuse, in the same words.
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
    "NO_SEAMS",
    "RECORD_KEY",
    "SHOWN_CHARACTERS",
    "SPACE",
    "STRING",
    "Layout",
    "Piece",
    "PieceKind",
    "malformed",
    "never_opened",
    "null_for",
    "shown",
    "too_deep",
    "torn",
    "unbalanced",
]

# A root object with text under this name, before any object of its own, is one record: its objects are discarded.
RECORD_KEY: Final = "symbol"

SPACE: Final = b" \t\n\r"
SHOWN_CHARACTERS: Final = 60

# Where json.loads and msgspec give up too.
MAX_DEPTH: Final = 1000


class Layout(NamedTuple):
    """Where the units of a root member stand, and how much of each is kept.

    `unit_level` counts containers from the root, which is level 1: records of a map or an array stand at 2, those of a
    section (`{"predictions": {...}}`) at 3. `kept_levels` is 1 for a record's own fields, 3 for a bot with positions.
    """

    unit_level: int
    kept_levels: int


class PieceKind(Enum):
    """What a piece is.

    `BEGUN` stands for a unit or a string that never becomes whole, since an error follows: `{` or `""`.
    """

    TEXT = auto()
    UNIT = auto()
    BEGUN = auto()


class Piece(NamedTuple):
    """A stretch of the pruned stream.

    `size` is the bytes before any of them was left out for being too long: where it is over `max_unit_bytes`, a unit's
    `data` is empty, and in a text an overlong string is `""`. `offset` is where the piece begins in the JSON, in bytes.
    """

    kind: PieceKind
    offset: int
    size: int
    data: bytes
    seams: array[int]

    def source_offset(self, position: int) -> int:
        """Where in the JSON the byte at `position` of `data` stood."""
        # Seams are pairs: from this position in `data` on, bytes come from that offset in the source.
        seams = self.seams
        seam = bisect_right(range(0, len(seams), 2), position, key=seams.__getitem__) - 1
        return position + self.offset if seam < 0 else position - seams[2 * seam] + seams[2 * seam + 1]

    def stretches(self, start: int, stop: int) -> Iterator[tuple[bytes, int]]:
        """What lies between two positions of `data`, in one part for each stretch of the source, and where it stood."""
        starts = self.seams[0::2] if self.seams else NO_SEAMS
        cuts = [start, *starts[bisect_right(starts, start) : bisect_left(starts, stop)], stop]
        for begin, end in pairwise(cuts):
            yield self.data[begin:end], self.source_offset(begin)


# Bytes that are contiguous in the source need no seams.
NO_SEAMS: Final = array("Q")

# A string, as bytes of a regular expression. All quantifiers are possessive, so that no input makes the engine go back:
# time is linear.
STRING: Final = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'


def null_for(constant_bytes: int) -> bytes:
    """What stands for a NaN or Infinity of so many bytes: as long as that, so that only NaN moves what follows."""
    return b"null".ljust(constant_bytes)


def malformed(offset: int, reason: str, excerpt: bytes = b"") -> SourceMalformed:
    """The error for bad syntax at a byte of the JSON, with what stands there."""
    near = f", at {shown(excerpt.decode('utf-8', 'replace'))}" if excerpt else ""
    return SourceMalformed(f"malformed JSON at byte {offset:,}: {reason}{near}")


def shown(value: object) -> str:
    """A value as an error message shows it: as JSON would, cut where it is long."""
    text = "missing" if value is None else repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "..."


def never_opened(offset: int, bracket: int) -> SourceMalformed:
    """The error for a bracket that closes nothing."""
    return malformed(offset, f"{chr(bracket)!r} closes a container that was never opened")


def too_deep(offset: int) -> SourceMalformed:
    """The error for the bracket that opens one container too many inside the others."""
    return malformed(offset, f"nested deeper than {MAX_DEPTH:,} containers")


def unbalanced(offset: int) -> SourceMalformed:
    """The error for a discarded container whose brackets close each other, but not each its own kind."""
    return SourceMalformed(
        "malformed JSON: curly and square brackets do not balance in the discarded container that ends at "
        f"byte {offset:,}"
    )


def torn(size: int, *, in_string: bool, depth: int) -> SourceTorn:
    """The error for an input of so many bytes that ends in a string, or inside so many containers."""
    if in_string:
        return SourceTorn(f"the JSON ends inside a string, after {size:,} bytes")
    return SourceTorn(f"the JSON ends early, after {size:,} bytes, with {depth:,} of its containers open")
