"""The scan: chunks of JSON in, items out, through the pruner of the chosen engine and the decoder.

Pure but for what the iterable of chunks does. Memory is constant; nothing is known to be true before the iterator has
ended by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from optimizer.models import Bot, Record, Reject, RejectReason
from optimizer.scan.batch import RecordRun
from optimizer.scan.decoder import LAYOUTS, RECORD_LAYOUT, Decoder, Found, Item
from optimizer.scan.engine import Engine
from optimizer.scan.fragment import Layout, Piece, PieceKind
from optimizer.scan.pruner import Pruner
from optimizer.scan.validation import decode_bot, where

__all__ = ["scan", "scan_bot", "scan_items"]

# A bot file is one bot: its root is the unit, and keeps its positions and their fields.
_BOT_FILE_LAYOUT = Layout(unit_level=1, kept_levels=3)


def scan(chunks: Iterable[bytes], engine: Engine, *, max_record_bytes: int) -> Iterator[Found]:
    """Yield every record, bot and reject of a rolling file, in the order of the input, and notes about the whole.

    Args:
        chunks: JSON in any of the four shapes, cut anywhere.
        engine: What prunes.
        max_record_bytes: The longest record, without its nested containers.

    Raises:
        SourceMalformed: A syntax error in what is kept; unbalanced or too deep nesting anywhere.
        SourceTorn: The JSON ends early.
    """
    pruner = engine.pruner(default=RECORD_LAYOUT, members=LAYOUTS, max_unit_bytes=max_record_bytes)
    decoder = Decoder(max_record_bytes=max_record_bytes)
    for chunk in chunks:
        yield from decoder.feed(pruner.feed(chunk))
    yield from decoder.feed(pruner.close())
    decoder.close()


def scan_items(chunks: Iterable[bytes], engine: Engine, *, max_record_bytes: int) -> Iterator[Item]:
    """The items one by one: records that came many at a time are taken apart, notes about the file are left out."""
    for found in scan(chunks, engine, max_record_bytes=max_record_bytes):
        if isinstance(found, RecordRun):
            yield from found.records()
        elif isinstance(found, Record | Bot | Reject):
            yield found


def scan_bot(chunks: Iterable[bytes], name: str, *, max_record_bytes: int) -> Bot | Reject:
    """Read the one bot of a bot file. These are small: the pruner in Python does.

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
