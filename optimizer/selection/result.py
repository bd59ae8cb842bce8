"""The result of a scan: the best records, the bots, and the rejects with their reasons. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from msgspec import UNSET

from optimizer.models import Bot, PartResult, Record, Reject, Rejected, RejectReason, RejectTally, Units
from optimizer.scan.batch import RecordBatch
from optimizer.scan.decoder import RootShape, ScanEvent
from optimizer.scan.fragment import SHOWN_CHARACTERS
from optimizer.scan.validation import ExtrasDropped, SymbolsIgnored
from optimizer.selection.top_n import Selection

__all__ = ["MAX_BOTS", "MAX_POSITIONS", "ScanResult"]

REJECTS_NAMED: Final = 3
# All bots are shown and all positions are summed, so all are kept in memory: these limits bound it for any file.
MAX_BOTS: Final = 10_000
MAX_POSITIONS: Final = 100_000
MAX_BOT_TEXT_BYTES: Final = 8 << 20  # of names, symbols and times; 100,000 symbols of 30 characters are 3 MB
SHAPES: Final = (
    "understood are an object of records by symbol, an object with the section predictions or symbols, an array of "
    "records, and one record a line"
)


@dataclass
class ScanResult:
    """Accumulates the events of a scan one by one, in memory that does not grow with the number of records."""

    selection: Selection
    json_bytes: int = 0
    records_seen: int = 0
    records_rejected: int = 0
    bots_seen: int = 0  # every occurrence, also in bot files
    bots_rejected: int = 0
    bot_files_seen: int = 0
    bot_files_rejected: int = 0
    symbols_ignored: int = 0
    extras_dropped: int = 0
    root: str | None = None  # describes the input if no record was found in it
    _duplicates: int = 0  # within the parts whose results were taken
    _bots: dict[str, Bot] = field(default_factory=dict)
    _positions: int = 0
    _bot_text_bytes: int = 0
    _rejects: dict[RejectReason, tuple[int, list[Reject]]] = field(default_factory=dict)

    def take(self, event: ScanEvent) -> None:
        """Take the next event of the scan; a bot that occurs again replaces its earlier occurrence."""
        if isinstance(event, RecordBatch):
            self.records_seen += len(event.symbols)
            self.selection.add_batch(event)
        elif isinstance(event, Record):
            self.records_seen += 1
            self.selection.add(event)
        elif isinstance(event, Reject):
            of_record = event.reason is not RejectReason.BOT
            self.records_seen += of_record
            self.bots_seen += not of_record
            self._reject(event)
        elif isinstance(event, SymbolsIgnored):
            self.symbols_ignored += event.number
        elif isinstance(event, ExtrasDropped):
            self.extras_dropped += event.number
        elif isinstance(event, RootShape):
            self.root = event.text
        else:
            self.bots_seen += 1
            self._take_bot(event)

    def take_bot_file(self, item: Bot | Reject) -> None:
        """Take the next bot of the bots directory; these are also counted separately."""
        rejected = self.bots_rejected
        self.take(item)
        self.bot_files_seen += 1
        self.bot_files_rejected += self.bots_rejected - rejected

    def take_part(self, part: PartResult, name: str) -> None:
        """Take the result of scanning a part.

        Args:
            part: The result, which replaces all events of the part.
            name: The name of the part, prefixed to the locations of its rejects.
        """
        self.records_seen += part.records_seen
        self.records_rejected += part.records_rejected
        self.bots_seen += part.bots_seen
        self.bots_rejected += part.bots_rejected
        self._duplicates += part.duplicates
        self.symbols_ignored += part.symbols_ignored
        self.extras_dropped += part.extras_dropped
        if self.root is None and part.root is not None:
            self.root = f"{name}: {part.root}"
        for record in part.records:
            self.selection.add(record)
        for tally in part.rejects:
            count, first = self._rejects.get(tally.reason, (0, []))
            named = [Reject(one.reason, one.name, f"{name}: {one.where}", one.details) for one in tally.first]
            self._rejects[tally.reason] = (count + tally.count, [*first, *named][:REJECTS_NAMED])
        for bot in part.bots:
            self._take_bot(bot)

    def part_result(self) -> PartResult:
        """End the scan of a part; return its result, from which another process can continue."""
        return PartResult(
            records=self.selection.finish(),
            bots=self.bots,
            rejects=self.tallies(),
            records_seen=self.records_seen,
            records_rejected=self.records_rejected,
            bots_seen=self.bots_seen,
            bots_rejected=self.bots_rejected,
            duplicates=self.duplicates,
            symbols_ignored=self.symbols_ignored,
            extras_dropped=self.extras_dropped,
            root=self.root,
        )

    @property
    def duplicates(self) -> int:
        """The number of records whose symbol occurred before.

        Between parts, a repeated symbol is noticed only if both results have its record. So the number is exact as long
        as no part had more symbols than a selection keeps.
        """
        return self._duplicates + self.selection.duplicates

    def _reject(self, reject: Reject) -> None:
        of_record = reject.reason is not RejectReason.BOT
        self.records_rejected += of_record
        self.bots_rejected += not of_record
        count, first = self._rejects.get(reject.reason, (0, []))
        self._rejects[reject.reason] = (count + 1, first if len(first) >= REJECTS_NAMED else [*first, reject])

    def _take_bot(self, bot: Bot) -> None:
        before = self._bots.get(bot.name)
        positions = self._positions + len(bot.positions) - (len(before.positions) if before else 0)
        text_bytes = self._bot_text_bytes + _text_bytes(bot) - (_text_bytes(before) if before else 0)
        if before is None and len(self._bots) >= MAX_BOTS:
            self._reject(Reject(RejectReason.BOT, bot.name, "bots", f"more than {MAX_BOTS:,} bots"))
        elif positions > MAX_POSITIONS:
            self._reject(Reject(RejectReason.BOT, bot.name, "bots", f"more than {MAX_POSITIONS:,} positions in all"))
        elif text_bytes > MAX_BOT_TEXT_BYTES:
            details = f"more than {MAX_BOT_TEXT_BYTES:,} bytes of names, symbols and times of bots in all"
            self._reject(Reject(RejectReason.BOT, bot.name[:SHOWN_CHARACTERS], "bots", details))
        else:
            self._bots[bot.name] = bot
            self._positions = positions
            self._bot_text_bytes = text_bytes

    @property
    def bots(self) -> list[Bot]:
        """The bots that were not rejected."""
        return list(self._bots.values())

    @property
    def bots_without_fields(self) -> int:
        """The number of bots that were not rejected and have no field at all."""
        return sum(not bot.has_fields for bot in self._bots.values())

    @property
    def records_used(self) -> int:
        """The number of records that were not rejected, duplicates included."""
        return self.records_seen - self.records_rejected

    @property
    def rejected(self) -> Rejected:
        """What the snapshots leave out."""
        return Rejected(
            records=Units(self.records_seen, self.records_rejected),
            bots=Units(self.bots_seen, self.bots_rejected, self.bots_without_fields or UNSET),
        )

    def tallies(self) -> list[RejectTally]:
        """Return the rejects by reason, the most frequent first."""
        ordered = sorted(self._rejects.items(), key=lambda entry: (-entry[1][0], entry[0]))
        return [RejectTally(reason, count, first) for reason, (count, first) in ordered]

    def summary(self) -> str:
        """Summarise what was seen and rejected in one line; if no record can be used, also describe the input."""
        parts = [f"{self.records_seen:,} records seen"]
        for tally in self.tallies():
            # Two examples: the first may be no record at all, such as an object of metadata before the records.
            examples = dict.fromkeys(reject.details for reject in tally.first[:2])
            parts.append(f"{tally.count:,} x {tally.reason} ({'; '.join(examples)})")
        if self.root is not None and not self.records_used:
            parts += (f"the input is {self.root}", SHAPES)
        elif len(parts) == 1 and not self.records_seen:
            parts.append("the input is empty")
        return "; ".join(parts)


def _text_bytes(bot: Bot) -> int:
    """Return the size of a bot's text, whose total has no other limit."""
    time = bot.last_updated if isinstance(bot.last_updated, str) else ""
    return sum(len(text.encode()) for text in (bot.name, time, *(position.symbol for position in bot.positions)))
