"""The changes that a version makes: computed from two contents, applied to one, encoded for the stream. No I/O.

    change_between(before, after)     whole new values that were added or changed, and names that were removed
    apply_change(before, change)      reproduces `after`, record for record and in order

The order is not part of a change: predictions are ordered by confidence, then symbol, bots by name, holdings by symbol.
Values are compared as JSON, since in Python 1, 1.0 and True are equal.

A change applies to every version with the same content as the one before: from `since`, the first of them, to `before`.
So versions that changed nothing need no change; `chain.py` selects those that lead to the current version.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from optimizer.models import (
    BotsSnapshot,
    BotSummary,
    ChangeCounts,
    Holding,
    KindCounts,
    PortfolioSnapshot,
    PredictionsSnapshot,
    Record,
    Value,
    VersionContent,
    rank,
)

__all__ = [
    "BotsChange",
    "Change",
    "HoldingsChange",
    "PredictionsChange",
    "StoredChange",
    "apply_change",
    "apply_predictions",
    "change_between",
    "decode_stored",
    "encode_stored",
    "entry_between",
]

C = TypeVar("C", bound=VersionContent)
T = TypeVar("T")

# The entry is compressed once and inflated by each reader; for such small texts the fast levels differ little.
GZIP_LEVEL: Final = 6

_encode: Final = msgspec.json.Encoder().encode


class PredictionsChange(Value, frozen=True):
    """Predictions that were added or changed, as whole records, best first, and the symbols of those removed."""

    changed: list[Record]
    removed: list[str]
    timestamp: str | UnsetType = UNSET


class BotsChange(Value, frozen=True):
    """Bots that were added or changed, whole, by name, and the names of those removed."""

    changed: dict[str, BotSummary]
    removed: list[str]
    timestamp: str | UnsetType = UNSET


class HoldingsChange(Value, frozen=True):
    """Holdings that were added or changed, whole, by symbol, and the symbols of those removed."""

    changed: list[Holding]
    removed: list[str]
    timestamp: str | UnsetType = UNSET


class Change(Value, frozen=True):
    """The changes from the content of the versions `since` to `before` to the content of `version`.

    A kind (predictions, bots, holdings) that is absent has not changed. `timestamp` is the new timestamp of each kind
    that is present, unless that has its own, as after a rollback to content of another time.
    """

    version: int
    before: int
    since: int
    timestamp: str
    predictions: PredictionsChange | UnsetType = UNSET
    bots: BotsChange | UnsetType = UNSET
    holdings: HoldingsChange | UnsetType = UNSET


class StoredChange(msgspec.Struct, frozen=True):
    """An entry of the stream of changes: the change, and its inverse for predictions.

    The inverse tells a process that has just started what was shown before; it is not set if predictions did not
    change. `counts` distinguishes added from changed values, which the change alone does not.
    """

    change: Change
    undo: PredictionsChange | UnsetType = UNSET
    counts: ChangeCounts = ChangeCounts()


_STORED: Final = msgspec.json.Decoder(StoredChange)


def change_between(before: VersionContent, after: VersionContent, *, since: int | None = None) -> StoredChange | None:
    """Return the change, or `None` if predictions, bots and holdings are equal.

    Args:
        before: The content before.
        after: The content after.
        since: The oldest version since which the content has equalled `before`; by default the version of `before`.
    """
    old, new = _by_symbol(before.predictions.predictions), _by_symbol(after.predictions.predictions)
    records, gone = _difference(old, new)
    bots, gone_bots = _difference(before.bots.bots, after.bots.bots)
    held, gone_holdings = _difference(_holdings(before), _holdings(after))
    if not (records or gone or bots or gone_bots or held or gone_holdings):
        return None

    def own(snapshot: PredictionsSnapshot | BotsSnapshot | PortfolioSnapshot) -> str | UnsetType:
        return UNSET if snapshot.timestamp == after.generated_at else snapshot.timestamp

    change = Change(
        version=after.version,
        before=before.version,
        since=before.version if since is None else since,
        timestamp=after.generated_at,
        predictions=PredictionsChange(list(records.values()), gone, own(after.predictions))
        if records or gone
        else UNSET,
        bots=BotsChange(bots, gone_bots, own(after.bots)) if bots or gone_bots else UNSET,
        holdings=HoldingsChange(list(held.values()), gone_holdings, own(after.portfolio))
        if held or gone_holdings
        else UNSET,
    )
    undone, added = _difference(new, old)
    return StoredChange(
        change,
        PredictionsChange(list(undone.values()), added) if undone or added else UNSET,
        ChangeCounts(
            _counts(old, records, gone),
            _counts(before.bots.bots, bots, gone_bots),
            _counts(_holdings(before), held, gone_holdings),
        ),
    )


def apply_change(content: C, change: Change) -> C:
    """Return the content after a change; `content` is of a version from `change.since` to `change.before`."""
    predictions, bots, portfolio = content.predictions, content.bots, content.portfolio
    if not isinstance(change.predictions, UnsetType):
        records = apply_predictions(predictions.predictions, change.predictions)
        predictions = PredictionsSnapshot(records, change.predictions.timestamp or change.timestamp, len(records))
    if not isinstance(change.bots, UnsetType):
        merged = _merge(bots.bots, change.bots.changed, change.bots.removed)
        bots = BotsSnapshot(dict(sorted(merged.items())), change.bots.timestamp or change.timestamp)
    if not isinstance(change.holdings, UnsetType):
        changed = {holding.symbol: holding for holding in change.holdings.changed}
        held = _merge(_holdings(content), changed, change.holdings.removed)
        timestamp = change.holdings.timestamp or change.timestamp
        portfolio = PortfolioSnapshot([held[symbol] for symbol in sorted(held)], timestamp)
    return replace(
        content,
        version=change.version,
        generated_at=change.timestamp,
        predictions=predictions,
        bots=bots,
        portfolio=portfolio,
    )


def apply_predictions(records: Iterable[Record], change: PredictionsChange) -> list[Record]:
    """Return the predictions after a change, best first."""
    merged = _merge(_by_symbol(records), _by_symbol(change.changed), change.removed)
    return sorted(merged.values(), key=rank)


def entry_between(before: VersionContent, after: VersionContent, *, since: int | None = None) -> bytes:
    """Encode the entry of the stream that leads from one content to another; arguments as in `change_between`.

    Returns:
        The entry. It is empty if nothing changed, and if a kind is equal but has another timestamp, which a change
        cannot express; that may happen after versions that were made while Redis was away.
    """
    stored = change_between(before, after, since=since)
    if stored is None:
        return b""
    change = stored.change
    is_exact = all(
        value is not UNSET or old.timestamp == new.timestamp
        for value, old, new in (
            (change.predictions, before.predictions, after.predictions),
            (change.bots, before.bots, after.bots),
            (change.holdings, before.portfolio, after.portfolio),
        )
    )
    return encode_stored(stored) if is_exact else b""


def encode_stored(stored: StoredChange) -> bytes:
    """Encode an entry as gzipped JSON."""
    return gzip.compress(_encode(stored), GZIP_LEVEL, mtime=0)


def decode_stored(data: bytes) -> StoredChange:
    """Decode an entry; raises the errors of gzip, or one of `UNDECODABLE`."""
    return _STORED.decode(gzip.decompress(data))


def _difference(old: Mapping[str, T], new: Mapping[str, T]) -> tuple[dict[str, T], list[str]]:
    """Return the values that are new or differ, in the order of `new`, and the sorted names that are gone."""
    changed = {name: value for name, value in new.items() if name not in old or _encode(old[name]) != _encode(value)}
    return changed, sorted(old.keys() - new.keys())


def _merge(values: Mapping[str, T], changed: Mapping[str, T], removed: Iterable[str]) -> dict[str, T]:
    merged = {**values, **changed}
    for name in removed:
        merged.pop(name, None)
    return merged


def _counts(old: Mapping[str, object], changed: Iterable[str], removed: Sequence[str]) -> KindCounts:
    names = list(changed)
    added = sum(name not in old for name in names)
    return KindCounts(added, len(names) - added, len(removed))


def _by_symbol(records: Iterable[Record]) -> dict[str, Record]:
    return {record.symbol: record for record in records}


def _holdings(content: VersionContent) -> dict[str, Holding]:
    return {holding.symbol: holding for holding in content.portfolio.holdings}
