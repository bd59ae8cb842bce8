"""Decide which of several records of a symbol is used: the shown one, an update, or one of a later scan. Pure.

    merge     applies the entries of the queue, in their order, to the shown records
    rebase    applies the updates in force to the ranking of a new scan, without those that the scan supersedes
    answer    removes from the entries of the queue what a new scan supersedes

If both records have a time, the newer one is used. Otherwise the later update is used; between an update and a scan,
whichever was written later, the update or the file. A time is `Record.timestamp` if that is a number (seconds since the
epoch) or ISO 8601 text (UTC if it names no zone); any other text counts as no time. A removal has no time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from msgspec.structs import replace

from optimizer.models import HeldUpdate, QueuedUpdate, Record, rank

__all__ = ["Merged", "answer", "merge", "merge_held", "rebase", "symbols_of", "time_s"]


@dataclass
class Merged:
    """The changes that entries of the queue make: for each symbol, the update that is in force from now on.

    `outdated` lists the symbols of records that are older than the record that they would replace.
    """

    held: dict[str, HeldUpdate] = field(default_factory=dict)
    outdated: list[str] = field(default_factory=list)


def time_s(record: Record | None) -> float | None:
    """Return the time of a record in seconds since the epoch; `None` if it has none."""
    if record is None or record.timestamp is None:
        return None
    if not isinstance(record.timestamp, str):
        return record.timestamp
    try:
        time = datetime.fromisoformat(record.timestamp)
    except ValueError:
        return None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def merge(entries: Iterable[QueuedUpdate], current: Mapping[str, Record | None]) -> Merged:
    """Apply entries of the queue in their order.

    Args:
        entries: The entries.
        current: For each of their symbols, the record that is shown, or in force though not among the best.
    """
    merged, now = Merged(), dict(current)
    for entry in entries:
        for record in entry.records:
            update_s, current_s = time_s(record), time_s(now.get(record.symbol))
            if update_s is not None and current_s is not None and update_s < current_s:
                merged.outdated.append(record.symbol)
                continue
            now[record.symbol] = record
            merged.held[record.symbol] = HeldUpdate(entry.at_ms, record)
        for symbol in entry.removed:
            now[symbol] = None
            merged.held[symbol] = HeldUpdate(entry.at_ms, None)
    return merged


def merge_held(*stores: Mapping[str, HeldUpdate]) -> dict[str, HeldUpdate]:
    """Merge the updates in force in several stores; of two updates of a symbol, use the one that was accepted later."""
    merged: dict[str, HeldUpdate] = {}
    for store in stores:
        for symbol, update in store.items():
            if symbol not in merged or merged[symbol].at_ms < update.at_ms:
                merged[symbol] = update
    return merged


def rebase(
    ranked: Sequence[Record],
    held: Mapping[str, HeldUpdate],
    *,
    limit: int,
    modified_ms: Callable[[str], float],
) -> tuple[list[Record], dict[str, HeldUpdate]]:
    """Apply the updates in force to the ranking of a new scan.

    Args:
        ranked: The best records of the scan, best first.
        held: The updates in force.
        limit: How many records are kept.
        modified_ms: When the file that has a symbol was last written to, in milliseconds since the epoch.

    Returns:
        The new ranking, and the updates that stay in force.
    """
    if not held:
        return list(ranked), {}
    scanned = {record.symbol: record for record in ranked}
    staying = {
        symbol: update for symbol, update in held.items() if _outlasts(update, scanned.get(symbol), modified_ms(symbol))
    }
    for symbol, update in staying.items():
        if update.record is None:
            scanned.pop(symbol, None)
        else:
            scanned[symbol] = update.record
    return sorted(scanned.values(), key=rank)[:limit], staying


def symbols_of(entries: Iterable[QueuedUpdate]) -> set[str]:
    """Return the symbols of entries of the queue."""
    return {symbol for entry in entries for symbol in (*(record.symbol for record in entry.records), *entry.removed)}


def answer(
    entries: Sequence[QueuedUpdate], ranked: Sequence[Record], *, modified_ms: Callable[[str], float]
) -> list[QueuedUpdate]:
    """Remove from entries of the queue what a new scan supersedes; otherwise an old update would undo the scan.

    Args:
        entries: The waiting entries, oldest first.
        ranked: The best records of the scan.
        modified_ms: As in `rebase`.

    Returns:
        The entries up to the last one that is changed; an entry that has nothing left stays, empty.
    """
    if not entries:
        return []
    scanned = {record.symbol: record for record in ranked}

    def stays(at_ms: int, symbol: str, record: Record | None) -> bool:
        written_ms = modified_ms(symbol)
        return at_ms >= written_ms or _outlasts(HeldUpdate(at_ms, record), scanned.get(symbol), written_ms)

    left = [
        replace(
            entry,
            records=[record for record in entry.records if stays(entry.at_ms, record.symbol, record)],
            removed=[symbol for symbol in entry.removed if stays(entry.at_ms, symbol, None)],
        )
        for entry in entries
    ]
    changed = [number for number, (new, old) in enumerate(zip(left, entries, strict=True), 1) if new.size < old.size]
    return left[: changed[-1]] if changed else []


def _outlasts(update: HeldUpdate, scanned: Record | None, modified_ms: float) -> bool:
    update_s, scanned_s = time_s(update.record), time_s(scanned)
    if update_s is not None and scanned_s is not None and update_s != scanned_s:
        return update_s > scanned_s
    return update.at_ms >= modified_ms
