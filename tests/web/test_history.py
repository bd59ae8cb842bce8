"""The history, whichever way it was made, against a model that keeps every whole version."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from optimizer.cache.clocks import text_of
from optimizer.models import (
    BotsSnapshot,
    BotSummary,
    Holding,
    KindCounts,
    PortfolioSnapshot,
    PredictionsSnapshot,
    Record,
    VersionContent,
)
from optimizer.reader.changes import HeldChange
from optimizer.snapshots.delta import StoredChange, change_between, encode_stored
from optimizer.web.history import History, HistoryPoint, follow
from optimizer.web.history_steps import LISTED, ConfidenceMove, HistoryStep, Ranked, RankMove

SYMBOLS: Final = ["A", "B", "C", "D/é", "E"]


def content_at(
    version: int,
    records: dict[str, tuple[float, float]],
    bots: dict[str, int] | None = None,
    held: dict[str, int] | None = None,
) -> VersionContent:
    """Make a version from confidence and prediction by symbol, positions by bot, and quantities by symbol."""
    at = text_of(1_795_000_000 + version)
    best = [
        Record(symbol, prediction, confidence, 10.0) for symbol, (confidence, prediction) in (records or {}).items()
    ]
    best.sort(key=lambda record: (-record.confidence, record.symbol))
    summaries = {
        name: BotSummary(enabled=True, equity=None, pnl_today=None, positions=positions, last_updated=None)
        for name, positions in sorted((bots or {}).items())
    }
    holdings = [Holding(symbol, float(quantity), None) for symbol, quantity in sorted((held or {}).items())]
    return VersionContent(
        version=version,
        generated_at=at,
        predictions=PredictionsSnapshot(best, at, len(best)),
        bots=BotsSnapshot(summaries, at),
        portfolio=PortfolioSnapshot(holdings, at),
    )


@dataclass
class Model:
    """A model that keeps every whole version, and the stream of changes with its limit."""

    kept: int
    versions: list[VersionContent] = field(default_factory=list)
    # For each version that changed the content: the version before, itself, the entry, and whether it was lost.
    made: list[tuple[VersionContent, VersionContent, StoredChange, bool]] = field(default_factory=list)
    content_since: int = 0

    @property
    def content(self) -> VersionContent:
        """The current version."""
        return self.versions[-1]

    @property
    def stream(self) -> list[HeldChange]:
        """The entries of the stream, as readers hold them."""
        there = [entry for _, _, entry, is_lost in self.made if not is_lost]
        return [
            HeldChange(entry.change.version, entry.change.before, entry.change.since, encode_stored(entry))
            for entry in there[-self.kept :]
        ]

    def publish(self, content: VersionContent, *, is_lost: bool = False) -> None:
        """Make a version current."""
        before = self.versions[-1] if self.versions else None
        self.versions.append(content)
        entry = None if before is None else change_between(before, content, since=self.content_since)
        if before is None or entry is not None:
            self.content_since = content.version
        if before is not None and entry is not None:
            self.made.append((before, content, entry, is_lost))

    def known(self) -> list[tuple[VersionContent, VersionContent, StoredChange]]:
        """The changes that the history must have, with the versions before and after each."""
        in_stream = {entry.version for entry in self.stream}
        known: list[tuple[VersionContent, VersionContent, StoredChange]] = []
        for before, after, entry, _ in reversed(self.made):
            if after.version not in in_stream:
                break
            known.insert(0, (before, after, entry))
        return known

    def steps(self) -> list[HistoryStep]:
        """Each step, made from the whole versions, newest first."""
        return [_step(*change) for change in reversed(self.known())]

    def points(self) -> dict[str, list[HistoryPoint]]:
        """The points of each symbol, made from the whole versions."""
        known = self.known()
        since = known[0][2].change.since if known else self.content_since
        first = known[0][0] if known else self.content
        points: dict[str, list[HistoryPoint]] = {}
        shown: dict[str, bytes] = {}
        for version, at, content in [
            (since, text_of(since / 1e3), first),
            *((after.version, after.generated_at, after) for _, after, _ in known),
        ]:
            records = {record.symbol: record for record in content.predictions.predictions}
            for symbol in {*records, *shown}:
                record = records.get(symbol)
                data = b"" if record is None else msgspec.json.encode(record)
                if data != shown.get(symbol, b""):
                    values = (
                        (None,) * 3 if record is None else (record.confidence, record.prediction, record.last_price)
                    )
                    points.setdefault(symbol, []).append(HistoryPoint(version, at, *values))
                shown[symbol] = data
        return points


def _step(before: VersionContent, after: VersionContent, entry: StoredChange) -> HistoryStep:
    old = {record.symbol: (rank, record) for rank, record in enumerate(before.predictions.predictions, 1)}
    new = {record.symbol: (rank, record) for rank, record in enumerate(after.predictions.predictions, 1)}
    both = sorted(old.keys() & new.keys())
    moved = [RankMove(symbol, old[symbol][0], new[symbol][0]) for symbol in both]
    confidence = [ConfidenceMove(symbol, old[symbol][1].confidence, new[symbol][1].confidence) for symbol in both]
    return HistoryStep(
        after.version,
        before.version,
        after.generated_at,
        entry.counts,
        [Ranked(name, rank, record.confidence) for name, (rank, record) in new.items() if name not in old][:LISTED],
        [Ranked(name, rank, record.confidence) for name, (rank, record) in old.items() if name not in new][:LISTED],
        sorted((move for move in moved if move.from_ != move.to), key=lambda move: -abs(move.to - move.from_))[:LISTED],
        sorted((move for move in confidence if move.from_ != move.to), key=lambda move: -abs(move.to - move.from_))[
            :LISTED
        ],
    )


def steps_of(history: History) -> list[HistoryStep]:
    """All steps of a history, newest first."""
    return [msgspec.json.decode(step, type=HistoryStep) for step in history.latest(1_000)]


def check(history: History, model: Model) -> None:
    """Check that a history has the steps, the points and the first version of the model."""
    assert steps_of(history) == model.steps()
    points = model.points()
    assert {symbol: history.of_symbol(symbol) for symbol in history.points} == points
    assert history.of_symbol("MISSING") is None
    known = model.known()
    assert history.since == (known[0][2].change.since if known else model.content_since)


NAMES: Final = st.sampled_from(SYMBOLS)
CONTENTS = st.fixed_dictionaries(
    {
        "records": st.dictionaries(
            NAMES, st.tuples(st.sampled_from([0.0, -0.0, 0.25, 0.5, 0.9]), st.sampled_from([1.0, -2.5]))
        ),
        "bots": st.dictionaries(NAMES, st.integers(0, 1)),
        "held": st.dictionaries(NAMES, st.integers(1, 2)),
    }
)
# By how much the version rises, its content (none: as before), whether its change is lost, and whether the history
# that follows only some versions follows it.
VERSIONS = st.lists(
    st.tuples(st.integers(1, 3), st.none() | CONTENTS, st.integers(0, 9).map(lambda n: n == 0), st.booleans()),
    min_size=1,
    max_size=14,
)


@given(kept=st.integers(1, 6), versions=VERSIONS)
def test_steps_and_points_are_those_of_the_whole_versions(
    kept: int, versions: list[tuple[int, dict[str, Any] | None, bool, bool]]
) -> None:
    """A history has the steps and points of the whole versions, whether it followed all, some, or only the last.

    That holds if changes were lost, and if old ones have dropped out of the stream.
    """
    model = Model(kept)
    every: History | None = None
    some: History | None = None
    number = 0
    values: dict[str, Any] = {"records": {}}
    for rise, drawn, is_lost, is_seen in versions:
        number += rise
        values = values if drawn is None else drawn
        model.publish(content_at(number, **values), is_lost=is_lost)
        stream = model.stream
        every = follow(every, model.content, model.content_since, stream)
        check(every, model)
        check(follow(None, model.content, model.content_since, stream), model)
        if is_seen:
            some = follow(some, model.content, model.content_since, stream)
            check(some, model)


def test_a_step_lists_the_twenty_biggest_and_counts_all() -> None:
    """A step counts all changes and lists at most twenty of each kind.

    Symbols that entered or left are listed from the best on, moves of rank and confidence from the biggest on.
    """
    old = {f"OLD{number:02}": (0.5 + number / 100, 1.0) for number in range(30)}
    stay = {f"STAY{number:02}": (0.9 - number / 1_000, 1.0) for number in range(30)}
    new = {f"NEW{number:02}": (0.4 + number / 100, 1.0) for number in range(25)}
    shaken = {
        symbol: (confidence * (0.7 + number / 100), 1.0)
        for number, (symbol, (confidence, _)) in enumerate(stay.items())
    }
    model = Model(120)
    for version, records in enumerate([old | stay, new | shaken], 1):
        model.publish(content_at(version, records))
    history = follow(None, model.content, model.content_since, model.stream)
    check(history, model)
    (step,) = steps_of(history)
    assert [len(listed) for listed in (step.entered, step.left, step.moved, step.confidence)] == [20] * 4
    assert step.counts.predictions == KindCounts(25, 30, 30)
    assert (step.left[0].symbol, step.entered[0].symbol, step.confidence[0].symbol) == ("OLD29", "NEW24", "STAY00")
