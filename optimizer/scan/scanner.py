"""The scan: chunks of JSON in, items out, through the pruner of the chosen engine and the decoder.

Pure, except for what the iterable of chunks does. Memory is constant. Nothing is verified before the iterator is
exhausted: the error may come last.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from optimizer.models import Bot, Record, Reject, RejectReason
from optimizer.scan.batch import RecordBatch
from optimizer.scan.bots import decode_bot
from optimizer.scan.decoder import Decoder, Item, ScanEvent
from optimizer.scan.engine import Engine
from optimizer.scan.fragment import Fragment, FragmentKind
from optimizer.scan.layout import BOT_FILE_LAYOUT, LAYOUTS, RECORD_LAYOUT
from optimizer.scan.pruner import Pruner
from optimizer.scan.validation import where

__all__ = ["scan", "scan_bot", "scan_items"]


def scan(chunks: Iterable[bytes], engine: Engine, *, max_record_bytes: int) -> Iterator[ScanEvent]:
    """Yield every record, bot and reject of a rolling file, in the order of the input, and notes about the whole.

    Args:
        chunks: JSON in any of the four shapes, cut anywhere.
        engine: Which pruner to use.
        max_record_bytes: The longest record, without its nested containers.

    Raises:
        SourceMalformed: A syntax error in what is kept; unbalanced or too deep nesting anywhere.
        SourceTorn: The JSON ends early.
    """
    decoder = Decoder(max_record_bytes=max_record_bytes)
    pruner = engine.pruner(
        default=RECORD_LAYOUT, members=LAYOUTS, max_unit_bytes=max_record_bytes, on_batch=decoder.take_batch
    )
    for chunk in chunks:
        yield from decoder.feed(pruner.feed(chunk))
    yield from decoder.feed(pruner.close())
    decoder.close()


def scan_items(chunks: Iterable[bytes], engine: Engine, *, max_record_bytes: int) -> Iterator[Item]:
    """Yield the items one by one, also those of batches; notes about the file are left out."""
    for event in scan(chunks, engine, max_record_bytes=max_record_bytes):
        if isinstance(event, RecordBatch):
            yield from event.records()
        elif isinstance(event, Record | Bot | Reject):
            yield event


def scan_bot(chunks: Iterable[bytes], name: str, *, max_record_bytes: int) -> Bot | Reject:
    """Read the one bot of a bot file. These files are small, so the pruner in Python is fast enough.

    Raises:
        SourceMalformed: It is not valid JSON.
        SourceTorn: The JSON ends early.
    """
    pruner = Pruner(default=BOT_FILE_LAYOUT, members={}, max_unit_bytes=max_record_bytes)
    bot: Bot | Reject | None = None
    others = 0
    for fragment in _fragments(pruner, chunks):
        if fragment.kind is FragmentKind.UNIT and bot is None:
            bot = decode_bot(fragment, name, max_bytes=max_record_bytes)
        else:
            others += fragment.kind is FragmentKind.UNIT or not fragment.data.isspace()
    if bot is None or others:
        return Reject(RejectReason.BOT, name, where(0), "expected one JSON object, the bot")
    return bot


def _fragments(pruner: Pruner, chunks: Iterable[bytes]) -> Iterator[Fragment]:
    for chunk in chunks:
        yield from pruner.feed(chunk)
    yield from pruner.close()
