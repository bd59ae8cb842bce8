"""The history of a source's versions, as one value: steps to show, and the values of each symbol over time. No I/O.

    history = follow(None, content, content_since, held)       at the start: backwards from the content, by the inverses
    history = follow(history, content, content_since, held)    later: adds new steps, drops those that the stream
    dropped

`held` are the changes in the stream, oldest first. Both calls have the same result. A history is immutable, so any
thread may read it. If a change is missing, the history begins after the gap.

In memory are each version's step as JSON, and for each symbol 32 bytes per version that changed its record.
"""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import msgspec
from msgspec import UnsetType

from optimizer.cache.clocks import text_of
from optimizer.models import Record, Value, VersionContent
from optimizer.reader.changes import HeldChange
from optimizer.snapshots.chain import chain, oldest_start
from optimizer.snapshots.delta import StoredChange
from optimizer.web.history_steps import HistoryStep, Ranking, fill

__all__ = ["History", "HistoryPoint", "follow"]

# Version, confidence, prediction, last price; NaN from the version at which the symbol left. Versions have at most 15
# digits.
_POINT: Final = struct.Struct("<4d")
_LEFT: Final = (math.nan,) * 3
_encode: Final = msgspec.json.Encoder().encode


class HistoryPoint(Value, frozen=True):
    """A symbol's values from a version on; null where it left."""

    version: int
    timestamp: str
    confidence: float | None
    prediction: float | None
    last_price: float | None


class HeldStep(NamedTuple):
    """A step in memory: `json` is a `HistoryStep`, `symbols` are those with a point at this version."""

    version: int
    since: int
    timestamp: str
    symbols: tuple[str, ...]
    json: msgspec.Raw


@dataclass(frozen=True, slots=True)
class History:
    """The steps that led to a version, oldest first, and the points of each symbol.

    Attributes:
        version: The version that the last step made, or the first version if there is no step.
        since: The oldest version whose predictions are known: the one before the first step.
        steps: The steps.
        points: By symbol, its points in order: the first is at `since`, or at the version in which the symbol appeared.
        ranking: The predictions of `version`.
    """

    version: int
    since: int
    steps: tuple[HeldStep, ...]
    points: dict[str, bytes]
    ranking: Ranking

    @classmethod
    def at(cls, version: int, records: Iterable[Record]) -> History:
        """Return a history that begins at a version, without a step."""
        points, ranking = {}, []
        for record in records:
            symbol = sys.intern(record.symbol)
            points[symbol] = _point(version, record)
            ranking.append((-record.confidence, symbol))
        ranking.sort()
        return cls(version, version, (), points, ranking)

    def latest(self, limit: int) -> list[msgspec.Raw]:
        """Return the last steps, newest first, each a `HistoryStep` as JSON."""
        return [step.json for step in self.steps[-limit:][::-1]]

    def of_symbol(self, symbol: str) -> list[HistoryPoint] | None:
        """Return the points of a symbol, oldest first; `None` if no known version has it."""
        data = self.points.get(symbol)
        if data is None:
            return None
        # Before the first step, only the version is known; it is in milliseconds since the epoch.
        timestamps = {step.version: step.timestamp for step in self.steps} | {self.since: text_of(self.since / 1e3)}
        points = []
        for made, *values in _POINT.iter_unpack(data):
            version = max(int(made), self.since)
            shown = (None, None, None) if math.isnan(values[0]) else values
            points.append(HistoryPoint(version, timestamps[version], *shown))
        return points

    def after(self, stored: StoredChange) -> History:
        """Return the history with one more step; the change starts from the content of `version`."""
        change, points, ranking = stored.change, self.points, self.ranking
        step = HistoryStep(change.version, change.before, change.timestamp, stored.counts, [], [], [], [])
        symbols: tuple[str, ...] = ()
        if not isinstance(change.predictions, UnsetType):
            changed = {sys.intern(record.symbol): record for record in change.predictions.changed}
            removed = set(map(sys.intern, change.predictions.removed))
            symbols = (*changed, *removed)
            kept = [key for key in ranking if key[1] not in changed and key[1] not in removed]
            ranking = sorted([*kept, *((-record.confidence, symbol) for symbol, record in changed.items())])
            points = {**points}
            for symbol in symbols:
                points[symbol] = points.get(symbol, b"") + _point(change.version, changed.get(symbol))
            step = fill(step, self.ranking, ranking, changed, removed)
        held = HeldStep(change.version, change.since, change.timestamp, symbols, msgspec.Raw(_encode(step)))
        steps = (*self.steps, held)
        return History(change.version, steps[0].since, steps, points, ranking)

    def without_oldest(self) -> History:
        """Return the history without its first step."""
        first, *rest = self.steps
        points = {**self.points}
        for symbol in first.symbols:
            data = points.pop(symbol)
            # At most one point is older than the step; a point that says only that the symbol left is dropped with it.
            if _POINT.unpack_from(data)[0] < first.version:
                data = data[_POINT.size :]
            if math.isnan(_POINT.unpack_from(data)[1]):
                data = data[_POINT.size :]
            if data:
                points[symbol] = data
        since = rest[0].since if rest else first.version
        return replace(self, since=since, steps=tuple(rest), points=points)


def follow(
    history: History | None, content: VersionContent, content_since: int | None, held: Sequence[HeldChange]
) -> History:
    """Return the history of a version.

    Args:
        history: The history so far, if there is one.
        content: The content of the version.
        content_since: The oldest version since which the content has been the same; by default the version itself.
        held: The changes in the stream, oldest first.
    """
    oldest = oldest_start(held, content.version, content_since)
    links = [] if oldest is None else chain(held, oldest, content.version, content_since)
    extended = None if history is None else _extended(history, links)
    if extended is not None:
        return extended
    records = {record.symbol: record for record in content.predictions.predictions}
    for link in reversed(links):
        undo = link.stored().undo
        if not isinstance(undo, UnsetType):
            records |= {record.symbol: record for record in undo.changed}
            for symbol in undo.removed:
                records.pop(symbol, None)
    since = links[0].since if links else content.version if content_since is None else content_since
    history = History.at(since, records.values())
    for link in links:
        history = history.after(link.stored())
    return history


def _extended(history: History, links: Sequence[HeldChange]) -> History | None:
    """Return the history of exactly these changes; `None` if `history` cannot be extended to it."""
    for link in links:
        if link.version > history.version:
            if not link.since <= history.version <= link.before:
                return None
            history = history.after(link.stored())
    while links and history.steps and history.steps[0].version < links[0].version:
        history = history.without_oldest()
    versions = [step.version for step in history.steps]
    return history if versions and versions == [link.version for link in links] else None


def _point(version: int, record: Record | None) -> bytes:
    """Encode a point; without a record, the symbol left."""
    if record is None:
        return _POINT.pack(version, *_LEFT)
    return _POINT.pack(version, record.confidence, record.prediction, record.last_price)
