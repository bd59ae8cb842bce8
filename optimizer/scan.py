"""The scan: chunks of JSON in, items out, through the pruner and the decoder of the chosen engine.

Pure but for what the iterable of chunks does. Memory is constant; nothing is known to be true before the iterator has
ended by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from optimizer.decode import LAYOUTS, RECORD_LAYOUT, Decoder, Item
from optimizer.judge import decode_bot, where
from optimizer.prune import Layout, Piece, PieceKind, Pruner
from optimizer.records import Bot, Reject, RejectReason

__all__ = ["ENGINE", "scan", "scan_bot"]

ENGINE: Final = "ijson"

# A bot file is one bot: its root is the unit, and keeps its positions and their fields.
_BOT_FILE_LAYOUT = Layout(unit_level=1, kept_levels=3)


def scan(chunks: Iterable[bytes], *, max_record_bytes: int) -> Iterator[Item]:
    """Yield every record, bot and reject of a rolling file, in the order of the input.

    Args:
        chunks: JSON in any of the four shapes, cut anywhere.
        max_record_bytes: The longest record, without its nested containers.

    Raises:
        SourceMalformed: A syntax error in what is kept; unbalanced or too deep nesting anywhere.
        SourceTorn: The JSON ends early.
    """
    pruner = Pruner(default=RECORD_LAYOUT, members=LAYOUTS, max_unit_bytes=max_record_bytes)
    decoder = Decoder(max_record_bytes=max_record_bytes)
    yield from decoder.feed(_pieces(pruner, chunks))
    decoder.close()


def scan_bot(chunks: Iterable[bytes], name: str, *, max_record_bytes: int) -> Bot | Reject:
    """Read the one bot of a bot file.

    Raises:
        SourceMalformed: It is no JSON.
        SourceTorn: The JSON ends early.
    """
    pruner = Pruner(default=_BOT_FILE_LAYOUT, members={}, max_unit_bytes=max_record_bytes)
    found: Bot | Reject | None = None
    others = 0
    for piece in _pieces(pruner, chunks):
        if piece.kind is PieceKind.UNIT and found is None:
            found = decode_bot(piece, name, max_bytes=max_record_bytes)
        else:
            others += piece.kind is PieceKind.UNIT or not piece.data.isspace()
    if found is None or others:
        return Reject(RejectReason.BOT, name, where(0), "expected one JSON object, the bot")
    return found


def _pieces(pruner: Pruner, chunks: Iterable[bytes]) -> Iterator[Piece]:
    for chunk in chunks:
        yield from pruner.feed(chunk)
    yield from pruner.close()
