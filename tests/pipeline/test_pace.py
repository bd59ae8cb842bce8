"""The rate at which updates make versions."""

from __future__ import annotations

from optimizer.pipeline.pace import BURST, INTERVAL_MS, delay_ms, next_tat_ms


def test_a_burst_is_at_once_and_then_one_an_interval() -> None:
    """After a pause a burst of versions is made without a delay, then four a second, however many updates come."""
    now_ms = tat_ms = 1_795_000_000_000.0
    made = []
    for _ in range(BURST + 8):
        now_ms += delay_ms(tat_ms, now_ms)
        made.append(now_ms)
        tat_ms = next_tat_ms(tat_ms, now_ms)

    assert made[:BURST] == [made[0]] * BURST
    assert [later - earlier for earlier, later in zip(made[BURST - 1 :], made[BURST:], strict=False)] == [
        INTERVAL_MS
    ] * 8
    assert delay_ms(tat_ms, now_ms + 4 * INTERVAL_MS) == 0


def test_a_clock_that_went_back_does_not_stop_updates() -> None:
    """If the clock is set back, updates are not delayed.

    A stored time that is further ahead than any burst allows is of another clock.
    """
    tat_ms = next_tat_ms(0.0, 10_000_000.0)
    assert delay_ms(tat_ms, 5_000_000.0) == 0
    assert next_tat_ms(tat_ms, 5_000_000.0) == 5_000_000.0 + INTERVAL_MS
