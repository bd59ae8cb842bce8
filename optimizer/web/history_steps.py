"""One step of the history: the changes of a version, as pages show them. Values in, values out."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Set
from typing import Final

import msgspec

from optimizer.models import ChangeCounts, Record, Value

__all__ = ["ConfidenceMove", "HistoryStep", "RankMove", "Ranked", "Ranking", "fill"]

# The longest list of a step.
LISTED: Final = 20

# The sort key of predictions, best first: minus the confidence, and the symbol.
Ranking = list[tuple[float, str]]


class Ranked(Value, frozen=True):
    """A prediction that entered or left, with its rank, from 1, and its confidence in the version that has it."""

    symbol: str
    rank: int
    confidence: float


class RankMove(Value, frozen=True):
    """A prediction whose rank has changed."""

    symbol: str
    from_: int = msgspec.field(name="from")
    to: int


class ConfidenceMove(Value, frozen=True):
    """A prediction whose confidence has changed."""

    symbol: str
    from_: float = msgspec.field(name="from")
    to: float


class HistoryStep(Value, frozen=True):
    """The changes of one version; `counts` count all of them, each list has at most 20 entries.

    Predictions that entered or left are sorted best first, the others biggest move first.
    """

    version: int
    before: int
    timestamp: str
    counts: ChangeCounts
    entered: list[Ranked]
    left: list[Ranked]
    moved: list[RankMove]
    confidence: list[ConfidenceMove]


def fill(
    step: HistoryStep,
    old: Ranking,
    new: Ranking,
    changed: Mapping[str, Record],
    removed: Set[str],
) -> HistoryStep:
    """Return a step with the changes of the predictions.

    Args:
        step: The step so far.
        old: The predictions before.
        new: The predictions after.
        changed: The records that were added or changed, by symbol.
        removed: The symbols that were removed.
    """
    before = {symbol: rank for rank, (_, symbol) in enumerate(old, 1)}
    entered: list[Ranked] = []
    moves: list[tuple[int, str, int, int]] = []
    for rank, (minus, symbol) in enumerate(new, 1):
        was = before.get(symbol)
        if was is None:
            entered.append(Ranked(symbol, rank, -minus))
        elif was != rank:
            moves.append((-abs(rank - was), symbol, was, rank))
    left = sorted((before[symbol], symbol) for symbol in removed if symbol in before)
    confidence = [
        (-abs(confidence_was - record.confidence), symbol, confidence_was, record.confidence)
        for symbol, record in changed.items()
        if symbol in before and (confidence_was := -old[before[symbol] - 1][0]) != record.confidence
    ]
    return msgspec.structs.replace(
        step,
        entered=entered[:LISTED],
        left=[Ranked(symbol, rank, -old[rank - 1][0]) for rank, symbol in left[:LISTED]],
        moved=[RankMove(symbol, was, rank) for _, symbol, was, rank in heapq.nsmallest(LISTED, moves)],
        confidence=[ConfidenceMove(symbol, *both) for _, symbol, *both in heapq.nsmallest(LISTED, confidence)],
    )
