"""The best records by confidence, each symbol once, in memory that does not grow with the file.

Pure: records in, records out. The order everywhere is **confidence descending, then symbol ascending** by code point.
A symbol that occurs again counts once, with its highest confidence; at equal confidence the earlier record stays.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable
from operator import attrgetter
from typing import Final

from optimizer.models import Record
from optimizer.scan.batch import RecordBatch

__all__ = ["Selection", "top"]

_MAX_COUNTED_SYMBOLS: Final = 4_000_000
_COMPACT_EVERY: Final = 1 << 16

_symbol: Final = attrgetter("symbol")
_confidence: Final = attrgetter("confidence")


def top(ranked: Iterable[Record], *, limit: int, min_confidence: float) -> list[Record]:
    """Return the first `limit` of ranked records whose confidence is at least `min_confidence`."""
    return [record for record in ranked if record.confidence >= min_confidence][:limit]


class Selection:
    """Keeps the best `limit` records of a stream.

    Up to twice `limit` records, and one more batch, are held; then only the best `limit` stay, and the confidence of
    the worst of them becomes the cutoff. That is exact: there are `limit` better symbols than a record below the
    cutoff, and later records can only raise it.

    `duplicates` counts records whose symbol occurred before. It is exact up to four million different symbols (which
    take 32 to 64 MB); beyond that, records are no longer counted.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._best: dict[str, Record] = {}
        self._cutoff = -1.0
        self._symbols = _SymbolCount(_MAX_COUNTED_SYMBOLS)

    @property
    def duplicates(self) -> int:
        """The number of records whose symbol occurred before."""
        return self._symbols.repeats()

    def finish(self) -> list[Record]:
        """End the stream; return the best `limit` records, best first. Only the number of the others is kept."""
        ranked = self.ranked()
        self._best = {record.symbol: record for record in ranked}
        self._symbols.finish()
        return ranked

    def add(self, record: Record) -> None:
        """Add one record."""
        self._symbols.add((record.symbol,))
        if record.confidence >= self._cutoff:
            current = self._best.get(record.symbol)
            if current is None or record.confidence > current.confidence:
                self._best[record.symbol] = record
                self._trim()

    def add_batch(self, batch: RecordBatch) -> None:
        """Add many records. Most are below the cutoff, and only the others are turned into `Record`s."""
        self._symbols.add(batch.symbols)
        cutoff, best = self._cutoff, self._best
        above = [
            (symbol, fields)
            for symbol, fields in zip(batch.symbols, batch.fields, strict=True)
            if fields.confidence >= cutoff
        ]
        for symbol, fields in above:
            current = best.get(symbol)
            if current is None or fields.confidence > current.confidence:
                best[symbol] = fields.record(symbol)
        self._trim()

    def ranked(self) -> list[Record]:
        """Return the best `limit` records, best first."""
        # Two stable sorts by one field each are twice as fast as one by `rank`.
        ranked = sorted(self._best.values(), key=_symbol)
        ranked.sort(key=_confidence, reverse=True)
        return ranked[: self._limit]

    def _trim(self) -> None:
        """Drop all but the best `limit` records if there are twice as many."""
        if len(self._best) >= 2 * self._limit:
            ranked = self.ranked()
            self._best = {record.symbol: record for record in ranked}
            self._cutoff = ranked[-1].confidence


class _SymbolCount:
    """Counts symbols that occurred before.

    64-bit hashes are kept in flat arrays: 8 to 16 bytes a symbol, where a set of str takes 100. The last byte of a hash
    selects one of 256 arrays. When the arrays have doubled in size, the repeats are removed from each, by a set of a
    256th of the symbols. Two symbols with the same hash count as one: a chance of one in 36 million for a million
    symbols.
    """

    def __init__(self, max_symbols: int) -> None:
        self._max = max_symbols
        self._hashes = [array("q") for _ in range(256)]
        self._append = [hashes.append for hashes in self._hashes]
        self._count = 0  # symbols added
        self._repeats = 0  # those of them that were removed from the arrays
        self._compact_at = _COMPACT_EVERY
        self._full = False

    def add(self, symbols: Collection[str]) -> None:
        """Count symbols."""
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
        """Return the number of symbols that occurred before."""
        if not self._full:
            self._compact()
        return self._repeats

    def finish(self) -> None:
        """Stop counting, and free the hashes."""
        self.repeats()
        self._full = True
        self._hashes, self._append = [], []

    def _compact(self) -> int:
        """Remove the repeats; return the number of different symbols."""
        different = 0
        for place, hashes in enumerate(self._hashes):
            once = set(hashes)
            different += len(once)
            if len(once) < len(hashes):
                self._hashes[place] = array("q", once)
                self._append[place] = self._hashes[place].append
        self._repeats = self._count - different
        return different
