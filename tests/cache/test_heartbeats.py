"""Heartbeats as a reader decodes them, damaged or from a clock that is ahead."""

from __future__ import annotations

import pytest

from optimizer.cache.heartbeats import decode_processes

NOW_S = 1_800_000_000.0
WORKER = b'{"kind":"worker","name":"one","period_s":5}'


@pytest.mark.parametrize("told", [b"9" * 400, b"-5", b"0", b"", b"nan", b"\xff"])
def test_an_entry_without_a_time_is_left_out(told: bytes) -> None:
    """A number of 400 digits is none that can be divided: one entry would take `/status` and `/metrics` with it."""
    entries = {b"worker one": told + b" " + WORKER, b"worker two": b"1799999999000 " + WORKER}

    assert [process.is_alive for process in decode_processes(entries, NOW_S)] == [True]


@pytest.mark.parametrize(("told_ms", "is_alive"), [(1_800_000_004_000, True), (1_800_000_010_000, False)])
def test_a_heartbeat_from_the_future_is_no_sign_of_life(told_ms: int, *, is_alive: bool) -> None:
    """Where the clock of Redis steps back by an hour, who is dead would live for that hour."""
    (process,) = decode_processes({b"worker one": b"%d " % told_ms + WORKER}, NOW_S)

    assert process.is_alive is is_alive
