"""The best records by confidence, each symbol once, in memory that does not grow with the file.

Pure: records in, records out. The order everywhere is **confidence descending, then symbol ascending** by code point.
A symbol that comes again counts once, with its highest confidence; at equal confidence the earlier record stays.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Final

from optimizer.records import Record

__all__ = ["Selection", "rank", "top"]

_MAX_COUNTED_SYMBOLS: Final = 4_000_000


def rank(record: Record) -> tuple[float, str]:
    """Sort key: the best record first."""
    return (-record.confidence, record.symbol)


def top(ranked: Iterable[Record], *, limit: int, min_confidence: float) -> list[Record]:
    """The first `limit` of already ranked records whose confidence is at least `min_confidence`."""
    return [record for record in ranked if record.confidence >= min_confidence][:limit]


class Selection:
    """Keeps the best `limit` records of a stream.

    Up to twice `limit` records are held; then the worse half goes and the worst that stays is the bar for what comes.
    That is exact: a record below the bar is below `limit` better symbols, and later records only raise it.

    `duplicates` counts records whose symbol came before. It is exact up to four million different symbols (which take
    64 MB); beyond, new symbols are no longer remembered, so repeats of those are not counted.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._best: dict[str, Record] = {}
        self._bar = -1.0
        self._seen = _SymbolSet(_MAX_COUNTED_SYMBOLS)
        self.duplicates = 0

    def add(self, record: Record) -> None:
        """Offer one record."""
        symbol = record.symbol
        self.duplicates += self._seen.add(symbol)
        if record.confidence < self._bar:
            return
        held = self._best.get(symbol)
        if held is None or record.confidence > held.confidence:
            self._best[symbol] = record
            if len(self._best) >= 2 * self._limit:
                self._trim()

    def ranked(self) -> list[Record]:
        """The best `limit` records, best first."""
        return sorted(self._best.values(), key=rank)[: self._limit]

    def _trim(self) -> None:
        ranked = self.ranked()
        self._best = {record.symbol: record for record in ranked}
        self._bar = ranked[-1].confidence


class _SymbolSet:
    """Which symbols came before: 64-bit hashes in one flat table, 16 bytes a symbol where a set of str takes 100.

    Open addressing with linear probing, at most half full (Knuth, The Art of Computer Programming 3, section 6.4).
    Two symbols with one hash are taken for the same: one chance in 36 million at a million symbols.
    """

    def __init__(self, max_symbols: int) -> None:
        self._max = max_symbols
        self._count = 0
        self._table = array("Q", bytes(8 * 1024))

    def add(self, symbol: str) -> bool:
        """Remember a symbol; return whether it was there already."""
        hashed = hash(symbol) & 0xFFFF_FFFF_FFFF_FFFF or 1  # 0 marks a free slot
        slot = self._find(hashed)
        if self._table[slot]:
            return True
        if self._count < self._max:
            self._table[slot] = hashed
            self._count += 1
            if 2 * self._count > len(self._table):
                self._grow()
        return False

    def _find(self, hashed: int) -> int:
        table, mask = self._table, len(self._table) - 1
        slot = hashed & mask
        while table[slot] and table[slot] != hashed:
            slot = (slot + 1) & mask
        return slot

    def _grow(self) -> None:
        old = self._table
        self._table = array("Q", bytes(8 * 2 * len(old)))
        for hashed in old:
            if hashed:
                self._table[self._find(hashed)] = hashed
