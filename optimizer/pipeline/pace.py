"""The rate limit of versions from updates: the generic cell rate algorithm. Pure.

Each version costs every reader a read and every page an event, so updates beyond the rate are merged. A single update
is not delayed: after a pause, a few versions may follow each other at once.
"""

from __future__ import annotations

from typing import Final

__all__ = ["delay_ms", "next_tat_ms"]

# Four versions a second are as fast as people can read, and a tenth of what a router's events take.
INTERVAL_MS: Final = 250.0
BURST: Final = 4


def delay_ms(tat_ms: float, now_ms: float) -> float:
    """Return how long the next version has to wait, given its theoretical arrival time.

    A clock that was set back does not stop updates: the arrival time counts as at most a burst ahead.
    """
    if tat_ms > now_ms + BURST * INTERVAL_MS:
        return 0.0
    return max(0.0, tat_ms - (BURST - 1) * INTERVAL_MS - now_ms)


def next_tat_ms(tat_ms: float, now_ms: float) -> float:
    """Return the theoretical arrival time after a version that is made now."""
    if tat_ms > now_ms + BURST * INTERVAL_MS:
        tat_ms = now_ms
    return max(tat_ms, now_ms) + INTERVAL_MS
