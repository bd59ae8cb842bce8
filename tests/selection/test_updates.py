"""Which record of a symbol counts: from an update, from the version before, or from a scan."""

from __future__ import annotations

import math

import pytest

from optimizer.models import HeldUpdate, QueuedUpdate, Record, Timestamp
from optimizer.selection.updates import merge, merge_held, rebase, time_s


def a(
    symbol: str = "A", *, prediction: float = 1.0, confidence: float = 0.5, timestamp: Timestamp | None = None
) -> Record:
    """Return a record."""
    return Record(symbol, prediction, confidence, 1.0, timestamp=timestamp)


@pytest.mark.parametrize(
    ("timestamp", "expected"),
    [
        (None, None),
        (5, 5.0),
        (5.25, 5.25),
        ("1970-01-01T00:00:05Z", 5.0),
        ("1970-01-01T00:00:05", 5.0),
        ("1970-01-01T01:00:05+01:00", 5.0),
        ("0001-01-01T00:00:00+23:59", -62135683140.0),
        ("yesterday", None),
        ("", None),
    ],
)
def test_the_time_of_a_record(timestamp: Timestamp | None, expected: float | None) -> None:
    """A timestamp that is a number is seconds since the epoch, and ISO 8601 without a zone is UTC.

    Any other value is no time.
    """
    assert time_s(a(timestamp=timestamp)) == expected


@pytest.mark.parametrize(
    ("current", "update", "is_taken"),
    [
        (None, 1, True),
        (2, None, True),
        (2, 3, True),
        (2, 2, True),
        (2, 1, False),
        ("1970-01-01T00:00:02Z", 1.5, False),
        ("not a time", 1, True),
    ],
)
def test_an_update_replaces_what_is_not_newer(
    current: Timestamp | None, update: Timestamp | None, *, is_taken: bool
) -> None:
    """An update replaces the current record, unless both have a time and the current one is newer.

    An update that is not used is named as outdated.
    """
    record = a(timestamp=update, prediction=2.0)
    merged = merge([QueuedUpdate(1, 7, [record], [])], {"A": a(timestamp=current)})

    assert merged.held == ({"A": HeldUpdate(7, record)} if is_taken else {})
    assert merged.outdated == ([] if is_taken else ["A"])


def test_entries_are_taken_in_their_order() -> None:
    """Updates are applied in their order, so the last one of a symbol counts.

    After a removal any record counts, also an older one; a symbol that one entry both adds and removes is removed.
    """
    old, new = a(timestamp=1), a(timestamp=2)
    entries = [
        QueuedUpdate(1, 10, [new], []),
        QueuedUpdate(2, 20, [old], ["B"]),
        QueuedUpdate(3, 30, [a("C")], ["A", "C"]),
        QueuedUpdate(4, 40, [old], []),
    ]
    merged = merge(entries, {"A": None, "B": a("B"), "C": None})

    assert merged.held == {"A": HeldUpdate(40, old), "B": HeldUpdate(20, None), "C": HeldUpdate(30, None)}
    assert merged.outdated == ["A"]


def test_of_two_stores_the_later_update_counts() -> None:
    """Of two stores' updates of a symbol the later one counts, whichever store has it."""
    early, late = HeldUpdate(1, a()), HeldUpdate(2, None)
    assert merge_held({"A": early}, {"A": late, "B": early}) == {"A": late, "B": early}
    assert merge_held({"A": late, "B": early}, {"A": early}) == {"A": late, "B": early}


@pytest.mark.parametrize(
    ("scanned", "update", "modified_ms", "stays"),
    [
        (a(), HeldUpdate(10, a(prediction=2.0)), 10, True),
        (a(), HeldUpdate(10, a(prediction=2.0)), 10.5, False),
        (a(timestamp=1), HeldUpdate(10, a(timestamp=2)), 99, True),
        (a(timestamp=2), HeldUpdate(10, a(timestamp=1)), 0, False),
        (a(timestamp=2), HeldUpdate(10, a(timestamp=2, prediction=2.0)), 99, False),
        (a(timestamp=2), HeldUpdate(10, None), 0, True),
        (a(timestamp=2), HeldUpdate(10, None), 99, False),
        (None, HeldUpdate(10, a(timestamp=1)), 0, True),
        (None, HeldUpdate(10, a(timestamp=1)), 99, False),
        (a(), HeldUpdate(10, a(prediction=2.0)), -math.inf, True),
    ],
)
def test_a_scan_answers_an_update(
    scanned: Record | None, update: HeldUpdate, modified_ms: float, *, stays: bool
) -> None:
    """After a scan, the newer one of the update and the scanned record counts, if both have a time and these differ.

    Otherwise the update counts, unless the file was written after it was accepted.
    """
    other = a("Z", confidence=0.1)
    ranked = [other] if scanned is None else [scanned, other]
    shown, held = rebase(ranked, {"A": update}, limit=5, modified_ms=lambda _: modified_ms)

    assert held == ({"A": update} if stays else {})
    expected = update.record if stays else scanned
    assert shown == ([other] if expected is None else [expected, other])


def test_the_best_are_kept() -> None:
    """The best records are shown, by confidence and then by symbol.

    An update that is not among them stays in force all the same.
    """
    update = HeldUpdate(1, a("B", confidence=0.4))
    shown, held = rebase(
        [a("A"), a("C")], {"B": update, "D": HeldUpdate(1, a("D"))}, limit=3, modified_ms=lambda _: 0.0
    )
    assert [record.symbol for record in shown] == ["A", "C", "D"]
    assert held.keys() == {"B", "D"}
