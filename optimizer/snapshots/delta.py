"""What a version changed: made of two contents, applied to one, encoded for the stream of changes. No I/O.

    change_between(before, after)     whole new values of what was added or changed, names of what was removed
    apply_change(before, change)      gives `after` again, record for record and in order

The order is not part of a change: predictions are in order of confidence, then symbol, bots of their names, holdings of
their symbols. Values are compared as JSON: in Python 1, 1.0 and True are equal.

    chain(changes, ...)               those that lead from a version to the current one

A change holds for every version with the content of the one before: from `since`, which first had it, to `before`. So
versions that changed nothing here need no change of their own.

Errors: `ChangesMissing` where changes are not held any more.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Final, Protocol, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from optimizer.errors import ChangesMissing
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
)

__all__ = [
    "BotsChange",
    "Change",
    "HoldingsChange",
    "Link",
    "PredictionsChange",
    "StoredChange",
    "apply_change",
    "apply_predictions",
    "chain",
    "change_between",
    "count_changes",
    "decode_stored",
    "encode_stored",
    "is_same_content",
    "oldest_start",
]

C = TypeVar("C", bound=VersionContent)
L = TypeVar("L", bound="Link")
T = TypeVar("T")

# The entry is compressed once and inflated by each reader: the fast levels differ little for so small a text.
GZIP_LEVEL: Final = 6

_encode: Final = msgspec.json.Encoder().encode


class PredictionsChange(Value, frozen=True):
    """Predictions that were added or changed, as whole records, best first, and the symbols of those removed."""

    changed: list[Record]
    removed: list[str]


class BotsChange(Value, frozen=True):
    """Bots that were added or changed, whole, by name, and the names of those removed."""

    changed: dict[str, BotSummary]
    removed: list[str]


class HoldingsChange(Value, frozen=True):
    """Holdings that were added or changed, whole, by symbol, and the symbols of those removed."""

    changed: list[Holding]
    removed: list[str]


class Change(Value, frozen=True):
    """What `version` changed in the content that the versions from `since` to `before` have.

    `timestamp` is the new one of each of the three that is there; one that is absent has not changed.
    """

    version: int
    before: int
    since: int
    timestamp: str
    predictions: PredictionsChange | UnsetType = UNSET
    bots: BotsChange | UnsetType = UNSET
    holdings: HoldingsChange | UnsetType = UNSET


class Link(Protocol):
    """What a chain needs of a change."""

    @property
    def version(self) -> int:
        """The version that the change leads to."""

    @property
    def before(self) -> int:
        """The newest version that it may be applied to."""

    @property
    def since(self) -> int:
        """The oldest version that it may be applied to."""


class StoredChange(msgspec.Struct, frozen=True):
    """An entry of the stream of changes: the change, and what turns the new predictions into the old ones again.

    From the latter a process that has just started knows what was shown before. Not set if predictions did not change.
    """

    change: Change
    undo: PredictionsChange | UnsetType = UNSET


_STORED: Final = msgspec.json.Decoder(StoredChange)


def change_between(before: VersionContent, after: VersionContent, *, since: int | None = None) -> StoredChange | None:
    """Return what changed, or `None` if predictions, bots and holdings are equal.

    Args:
        before: The content before.
        after: The content after.
        since: The oldest version from which on the content has been the same as `before`; by default its version.
    """
    old, new = _by_symbol(before.predictions.predictions), _by_symbol(after.predictions.predictions)
    predictions, undo = _records_change(old, new), _records_change(new, old)
    changed, removed = _difference(before.bots.bots, after.bots.bots)
    bots = BotsChange(changed, removed) if changed or removed else UNSET
    held, dropped = _difference(_holdings(before), _holdings(after))
    holdings = HoldingsChange(list(held.values()), dropped) if held or dropped else UNSET
    if predictions is UNSET and bots is UNSET and holdings is UNSET:
        return None
    change = Change(
        version=after.version,
        before=before.version,
        since=before.version if since is None else since,
        timestamp=after.generated_at,
        predictions=predictions,
        bots=bots,
        holdings=holdings,
    )
    return StoredChange(change, undo)


def apply_change(content: C, change: Change) -> C:
    """Return the content after a change; `content` is of a version from `change.since` to `change.before`."""
    predictions, bots, portfolio = content.predictions, content.bots, content.portfolio
    if not isinstance(change.predictions, UnsetType):
        records = apply_predictions(predictions.predictions, change.predictions)
        predictions = PredictionsSnapshot(records, change.timestamp, len(records))
    if not isinstance(change.bots, UnsetType):
        merged = _merge(bots.bots, change.bots.changed, change.bots.removed)
        bots = BotsSnapshot(dict(sorted(merged.items())), change.timestamp)
    if not isinstance(change.holdings, UnsetType):
        changed = {holding.symbol: holding for holding in change.holdings.changed}
        held = _merge(_holdings(content), changed, change.holdings.removed)
        portfolio = PortfolioSnapshot([held[symbol] for symbol in sorted(held)], change.timestamp)
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
    return sorted(merged.values(), key=_rank)


def is_same_content(one: VersionContent, other: VersionContent) -> bool:
    """Whether predictions, bots and holdings are the same in both, with their order and times."""
    return all(
        _encode(a) == _encode(b)
        for a, b in (
            (one.predictions, other.predictions),
            (one.bots, other.bots),
            (one.portfolio, other.portfolio),
        )
    )


def chain(changes: Iterable[L], since: int, current: int, content_since: int | None = None) -> list[L]:
    """Return the changes that lead from a version to the current one, oldest first.

    Args:
        changes: The changes that are held, oldest first; there may be gaps.
        since: The version to start from; from one that is newer than the current one there is nothing to do.
        current: The current version.
        content_since: As its manifest says; `None`, as in older releases, if it is not known to have older content.

    Raises:
        ChangesMissing: One of them is not held.
    """
    content_since = current if content_since is None else content_since
    if since >= content_since:
        return []
    needed = [change for change in changes if since < change.version <= current]
    reached = since
    for change in needed:
        if not change.since <= reached <= change.before:
            break
        reached = change.version
    else:
        if reached >= content_since:
            return needed
    raise ChangesMissing(
        f"the changes from version {since} to {current} are not held any more; take the whole snapshot of version "
        f"{current}, and the changes since then"
    )


def oldest_start(changes: Sequence[L], current: int, content_since: int | None = None) -> int | None:
    """Return the oldest version with other content from which `chain` leads to the current one; `None` if none does."""
    target = current if content_since is None else content_since
    known = [change for change in changes if change.version <= current]
    if not known or known[-1].version < target:
        return None
    oldest = None
    for change, earlier in pairwise([*reversed(known), None]):
        assert change is not None  # noqa: S101 - for mypy: only the last one is
        start = change.since if earlier is None else max(change.since, earlier.version)
        if start > change.before:
            break
        oldest = start
        if earlier is None or earlier.version < change.since:
            break
    return oldest


def count_changes(before: VersionContent, stored: StoredChange | None) -> ChangeCounts:
    """Count what a change adds, changes and removes; `None` is no change."""
    if stored is None:
        return ChangeCounts()
    change = stored.change
    counts = [KindCounts()] * 3
    if not isinstance(change.predictions, UnsetType):
        names = [record.symbol for record in change.predictions.changed]
        counts[0] = _counts(_by_symbol(before.predictions.predictions), names, change.predictions.removed)
    if not isinstance(change.bots, UnsetType):
        counts[1] = _counts(before.bots.bots, change.bots.changed, change.bots.removed)
    if not isinstance(change.holdings, UnsetType):
        names = [holding.symbol for holding in change.holdings.changed]
        counts[2] = _counts(_holdings(before), names, change.holdings.removed)
    return ChangeCounts(*counts)


def encode_stored(stored: StoredChange) -> bytes:
    """Encode an entry as gzipped JSON."""
    return gzip.compress(_encode(stored), GZIP_LEVEL, mtime=0)


def decode_stored(data: bytes) -> StoredChange:
    """Decode an entry; raises what gzip raises, or one of `UNDECODABLE`."""
    return _STORED.decode(gzip.decompress(data))


def _records_change(old: Mapping[str, Record], new: Mapping[str, Record]) -> PredictionsChange | UnsetType:
    changed, removed = _difference(old, new)
    return PredictionsChange(list(changed.values()), removed) if changed or removed else UNSET


def _difference(old: Mapping[str, T], new: Mapping[str, T]) -> tuple[dict[str, T], list[str]]:
    """What is new or differs, in the order of the new ones, and the sorted names of what is gone."""
    changed = {name: value for name, value in new.items() if name not in old or _encode(old[name]) != _encode(value)}
    return changed, sorted(old.keys() - new.keys())


def _merge(values: Mapping[str, T], changed: Mapping[str, T], removed: Iterable[str]) -> dict[str, T]:
    merged = {**values, **changed}
    for name in removed:
        merged.pop(name, None)
    return merged


def _counts(old: Mapping[str, object], changed: Iterable[str], removed: Iterable[str]) -> KindCounts:
    names = list(changed)
    added = sum(name not in old for name in names)
    return KindCounts(added, len(names) - added, len(list(removed)))


def _by_symbol(records: Iterable[Record]) -> dict[str, Record]:
    return {record.symbol: record for record in records}


def _holdings(content: VersionContent) -> dict[str, Holding]:
    return {holding.symbol: holding for holding in content.portfolio.holdings}


def _rank(record: Record) -> tuple[float, str]:
    return -record.confidence, record.symbol
