"""The best records by confidence, each symbol once, in memory that does not grow with the file.

Pure: records in, records out. The order everywhere is **confidence descending, then symbol ascending** by code point.
A symbol that comes again counts once, with its highest confidence; at equal confidence the earlier record stays.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable
from operator import attrgetter
from typing import Final

from optimizer.models import Record
from optimizer.scan.batch import RecordRun

__all__ = ["Selection", "rank", "top"]

_MAX_COUNTED_SYMBOLS: Final = 4_000_000
_COMPACT_EVERY: Final = 1 << 16

_symbol: Final = attrgetter("symbol")
_confidence: Final = attrgetter("confidence")


def rank(record: Record) -> tuple[float, str]:
    """Sort key: the best record first."""
    return (-record.confidence, record.symbol)


def top(ranked: Iterable[Record], *, limit: int, min_confidence: float) -> list[Record]:
    """The first `limit` of already ranked records whose confidence is at least `min_confidence`."""
    return [record for record in ranked if record.confidence >= min_confidence][:limit]


class Selection:
    """Keeps the best `limit` records of a stream.

    Up to twice `limit` records are held, and one run more; then the worse half goes, and the worst that stays is the
    bar for what comes.
    That is exact: a record below the bar is below `limit` better symbols, and later records only raise it.

    `duplicates` counts records whose symbol came before. It is exact up to four million different symbols (which take
    32 to 64 MB); beyond, records are no longer counted.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._best: dict[str, Record] = {}
        self._bar = -1.0
        self._symbols = _SymbolCount(_MAX_COUNTED_SYMBOLS)

    @property
    def duplicates(self) -> int:
        """Records whose symbol came before."""
        return self._symbols.repeats()

    def finish(self) -> list[Record]:
        """End the stream: the best `limit` records, best first. Of the others nothing is kept but their number."""
        ranked = self.ranked()
        self._best = {record.symbol: record for record in ranked}
        self._symbols.finish()
        return ranked

    def add(self, record: Record) -> None:
        """Offer one record."""
        self._symbols.add((record.symbol,))
        self._offer(record)

    def add_run(self, run: RecordRun) -> None:
        """Offer many records. Most are below the bar, so only the others become records at all."""
        self._symbols.add(run.symbols)
        bar, best = self._bar, self._best
        above = [entry for entry in zip(run.symbols, run.fields, strict=True) if entry[1].confidence >= bar]
        for symbol, fields in above:
            held = best.get(symbol)
            if held is None or fields.confidence > held.confidence:
                best[symbol] = fields.record(symbol)
        if len(best) >= 2 * self._limit:
            self._trim()

    def ranked(self) -> list[Record]:
        """The best `limit` records, best first."""
        # Twice by one field, which sorting keeps in order, is twice as fast as once by `rank`.
        ranked = sorted(self._best.values(), key=_symbol)
        ranked.sort(key=_confidence, reverse=True)
        return ranked[: self._limit]

    def _offer(self, record: Record) -> None:
        if record.confidence < self._bar:
            return
        held = self._best.get(record.symbol)
        if held is None or record.confidence > held.confidence:
            self._best[record.symbol] = record
            if len(self._best) >= 2 * self._limit:
                self._trim()

    def _trim(self) -> None:
        ranked = self.ranked()
        self._best = {record.symbol: record for record in ranked}
        self._bar = ranked[-1].confidence


class _SymbolCount:
    """How many symbols came that had come before.

    64-bit hashes lie in flat arrays: 8 to 16 bytes a symbol, where a set of str takes 100. Each goes into one of 256
    arrays by its last byte. When the arrays have doubled, each is freed of what stands in it twice, which takes a set
    of a 256th part of the symbols. Two symbols with one hash are taken for the same: one chance in 36 million at a
    million symbols.
    """

    def __init__(self, max_symbols: int) -> None:
        self._max = max_symbols
        self._hashes = [array("q") for _ in range(256)]
        self._append = [hashes.append for hashes in self._hashes]
        self._count = 0  # symbols added
        self._repeats = 0  # of which have been freed
        self._compact_at = _COMPACT_EVERY
        self._full = False

    def add(self, symbols: Collection[str]) -> None:
        """Count some symbols."""
        if self._full:
            return
        append = self._append
        for hashed in map(hash, symbols):
            append[hashed & 0xFF](hashed)
        self._count += len(symbols)
        if self._count - self._repeats >= self._compact_at:
            different = self._compact()
            self._compact_at = different + max(different, _COMPACT_EVERY)
            self._full = different >= self._max

    def repeats(self) -> int:
        """How many came before."""
        if not self._full:
            self._compact()
        return self._repeats

    def finish(self) -> None:
        """Count no more, and let the hashes go."""
        self.repeats()
        self._full = True
        self._hashes, self._append = [], []

    def _compact(self) -> int:
        """Free the arrays of repeats; return how many different symbols there are."""
        different = 0
        for place, hashes in enumerate(self._hashes):
            once = set(hashes)
            different += len(once)
            if len(once) < len(hashes):
                self._hashes[place] = array("q", once)
                self._append[place] = self._hashes[place].append
        self._repeats = self._count - different
        return different
