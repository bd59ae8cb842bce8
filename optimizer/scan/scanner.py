"""The scan: chunks of JSON in, items out, through the pruner of the chosen engine and the decoder.

Pure, except for what the iterable of chunks does. Memory is constant. Nothing is verified before the iterator is
exhausted: the error may come last.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from optimizer.models import Bot, Record, Reject, RejectReason
from optimizer.models.field_map import UNMAPPED, InputMapping
from optimizer.scan.batch import RecordBatch
from optimizer.scan.bots import BotDecoder
from optimizer.scan.decoder import Decoder, Item, ScanEvent
from optimizer.scan.engine import Engine
from optimizer.scan.fragment import Fragment, FragmentKind
from optimizer.scan.layout import bot_file_layout, file_layout
from optimizer.scan.pruner import Pruner
from optimizer.scan.schema import schema_of
from optimizer.scan.validation import where

__all__ = ["scan", "scan_bot", "scan_items"]


def scan(
    chunks: Iterable[bytes | memoryview], engine: Engine, *, max_record_bytes: int, mapping: InputMapping = UNMAPPED
) -> Iterator[ScanEvent]:
    """Yield every record, bot and reject of a rolling file, in the order of the input, and notes about the whole file.

    Args:
        chunks: JSON in any of the four shapes, cut anywhere.
        engine: Which pruner to use.
        max_record_bytes: The longest record, without its nested containers.
        mapping: The members from which the fields are read.

    Raises:
        SourceMalformed: A syntax error in a part that is kept; unbalanced brackets or too deep nesting anywhere.
        SourceTorn: The JSON ends early.
    """
    layout = file_layout(mapping)
    decoder = Decoder(max_record_bytes=max_record_bytes, schema=schema_of(mapping), objects=layout.names.objects)
    pruner = engine.pruner(
        default=layout.default,
        members=layout.members,
        max_unit_bytes=max_record_bytes,
        on_batch=decoder.take_batch,
        names=layout.names,
    )
    for chunk in chunks:
        yield from decoder.feed(pruner.feed(chunk))
    yield from decoder.feed(pruner.close())
    decoder.close()


def scan_items(
    chunks: Iterable[bytes | memoryview], engine: Engine, *, max_record_bytes: int, mapping: InputMapping = UNMAPPED
) -> Iterator[Item]:
    """Yield the items one by one, also those of batches; notes about the file are left out."""
    for event in scan(chunks, engine, max_record_bytes=max_record_bytes, mapping=mapping):
        if isinstance(event, RecordBatch):
            yield from event.records()
        elif isinstance(event, Record | Bot | Reject):
            yield event


def scan_bot(
    chunks: Iterable[bytes | memoryview], name: str, *, max_record_bytes: int, mapping: InputMapping = UNMAPPED
) -> Bot | Reject:
    """Read the one bot of a bot file. These files are small, so the pruner in Python is fast enough.

    Raises:
        SourceMalformed: It is not valid JSON.
        SourceTorn: The JSON ends early.
    """
    pruner = Pruner(default=bot_file_layout(mapping), members={}, max_unit_bytes=max_record_bytes)
    decoder = BotDecoder(schema_of(mapping), max_bytes=max_record_bytes)
    bot: Bot | Reject | None = None
    others = 0
    for fragment in _fragments(pruner, chunks):
        if fragment.kind is FragmentKind.UNIT and bot is None:
            bot = decoder.decode(fragment, name)
        else:
            others += fragment.kind is FragmentKind.UNIT or not fragment.data.isspace()
    if bot is None or others:
        return Reject(RejectReason.BOT, name, where(0), "expected one JSON object, the bot")
    return bot


def _fragments(pruner: Pruner, chunks: Iterable[bytes | memoryview]) -> Iterator[Fragment]:
    for chunk in chunks:
        yield from pruner.feed(chunk)
    yield from pruner.close()
