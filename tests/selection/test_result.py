"""`ScanResult` counts the events of a scan, which it takes one by one, and names a limited number of them."""

from __future__ import annotations

from optimizer.models import Bot, Position, Record, Reject, RejectReason
from optimizer.selection.result import MAX_BOT_TEXT_BYTES, MAX_BOTS, MAX_POSITIONS, ScanResult
from optimizer.selection.top_n import Selection


def a_bot(name: str, equity: float) -> Bot:
    """A bot without positions."""
    return Bot(
        name=name, enabled=True, equity=equity, pnl_today=None, position_count=0, positions=(), last_updated=None
    )


def test_rejects_are_counted_and_the_first_few_named() -> None:
    """Rejects are counted by reason, the most frequent one first, and the first three of each are named.

    Bots do not count as records.
    """
    result = ScanResult(Selection(10))
    result.take(Record("AAPL", 1.0, 0.5, 1.0))
    for number in range(5):
        result.take(Reject(RejectReason.CONFIDENCE, f"S{number}", f"byte {number}", "confidence is missing"))
    for number in range(7):
        result.take(Reject(RejectReason.BOT, f"bot {number}", "bots", "torn"))

    assert (result.records_seen, result.records_rejected, result.records_used) == (6, 5, 1)
    bots, confidences = result.tallies()
    assert (bots.reason, bots.count, [reject.name for reject in bots.first]) == (
        RejectReason.BOT,
        7,
        ["bot 0", "bot 1", "bot 2"],
    )
    assert (confidences.count, [reject.name for reject in confidences.first]) == (5, ["S0", "S1", "S2"])
    assert result.summary() == ("6 records seen; 7 x BotInvalid (torn); 5 x ConfidenceInvalid (confidence is missing)")


def test_a_summary_gives_two_examples_of_a_reason() -> None:
    """A summary gives two examples of a reason.

    The first may be an object of metadata, which says nothing about the thousands of records after it.
    """
    result = ScanResult(Selection(10))
    result.take(Reject(RejectReason.CONFIDENCE, "meta", "byte 9", "confidence is missing"))
    for number in range(5):
        result.take(Reject(RejectReason.CONFIDENCE, f"S{number}", f"byte {number}", f"confidence={60 + number}"))
    assert result.summary() == "6 records seen; 6 x ConfidenceInvalid (confidence is missing; confidence=60)"


def test_bots_are_bounded() -> None:
    """At most 10,000 bots are kept, so that a file of nothing but bots takes no more memory than these.

    Further ones are rejected; those that are kept may still be replaced.
    """
    result = ScanResult(Selection(10))
    for number in range(MAX_BOTS + 2):
        result.take(a_bot(f"bot {number}", 1.0))
    result.take(a_bot("bot 0", 2.0))

    assert len(result.bots) == MAX_BOTS
    assert result.bots[0].equity == 2.0
    (tally,) = result.tallies()
    assert (tally.count, tally.first[0].name) == (2, f"bot {MAX_BOTS}")
    assert "more than 10,000 bots" in tally.first[0].details


def test_the_text_of_all_bots_is_bounded() -> None:
    """A bot whose names, symbols and times would exceed 8 MiB over all bots is rejected, since they are held.

    A bot that occurs again frees its own text first.
    """
    result = ScanResult(Selection(1))
    positions = tuple(Position("é" * 256, 1.0) for _ in range(8_000))  # of 4 MB

    for name in ("a", "b", "c", "a", "d"):
        result.take(
            Bot(
                name,
                enabled=True,
                equity=None,
                pnl_today=None,
                position_count=0,
                positions=positions,
                last_updated=None,
            )
        )

    assert [bot.name for bot in result.bots] == ["a", "b"]
    (tally,) = result.tallies()
    assert (tally.count, [reject.name for reject in tally.first]) == (2, ["c", "d"])
    assert f"more than {MAX_BOT_TEXT_BYTES:,} bytes" in tally.first[0].details


def test_positions_of_all_bots_are_bounded() -> None:
    """A bot whose positions would exceed 100,000 over all bots is rejected by name.

    A bot that occurs again replaces its positions.
    """
    result = ScanResult(Selection(1))
    held = tuple(Position(f"S{number}", 1.0) for number in range(MAX_POSITIONS // 2))

    for name in ("a", "b", "a", "c"):
        result.take(
            Bot(name, enabled=True, equity=None, pnl_today=None, position_count=0, positions=held, last_updated=None)
        )

    assert [bot.name for bot in result.bots] == ["a", "b"]
    assert [(tally.count, tally.first[0].name) for tally in result.tallies()] == [(1, "c")]
