"""Times as text, and the age of a confirmation in spite of clocks that differ.

A confirmation is dated by one clock: of Redis, of a worker, or of a file server. The reader's clock may be ahead of it
or behind. So a reader uses the time of a confirmation once, when it first sees it, and then counts with its monotonic
clock.
"""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime
from typing import Final

__all__ = ["FUTURE_TOLERANCE_S", "Sightings", "elapsed_s", "seconds_of", "text_of"]

# How far in the future a confirmation may be and still count as made just now. NTP keeps clocks within milliseconds,
# object stores and old file systems round to one or two seconds. This is also the most by which it delays noticing a
# fleet that has died.
FUTURE_TOLERANCE_S: Final = 5.0

# The range of `datetime`; a file may have any time.
EARLIEST_S: Final = -62_135_596_800.0
LATEST_S: Final = 253_402_300_799.0


def text_of(seconds: float) -> str:
    """Seconds since the epoch as ISO 8601 in UTC, of the years 1 to 9999."""
    return (
        datetime.fromtimestamp(min(max(seconds, EARLIEST_S), LATEST_S), UTC)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z")
    )


def seconds_of(text: str) -> float:
    """ISO 8601 as seconds since the epoch."""
    return datetime.fromisoformat(text).timestamp()


def elapsed_s(since_s: float | None, until_s: float) -> float | None:
    """Seconds between two times by the clocks of two hosts, to 1 ms: at least 0, `None` if one is unknown."""
    return None if since_s is None else round(max(0.0, until_s - since_s), 3)


class Sightings:
    """Dates the confirmations of the pointer and of the files by the monotonic clock of this process.

    Args:
        stale_after_s: The age from which a version is stale.
    """

    def __init__(self, stale_after_s: float) -> None:
        self._stale_after_s = stale_after_s
        self._seen: tuple[int, float] | None = None
        self._since_s = 0.0
        self._last_call_s = 0.0

    def since_s(self, version: int, confirmed_s: float, now_s: float, *, same_clock: bool) -> float:
        """Return when the confirmation was made, in seconds of `time.monotonic`.

        Args:
            version: The version that is confirmed.
            confirmed_s: The time of the confirmation, in seconds since the epoch.
            now_s: The time now, in the same unit.
            same_clock: Whether both times are from one clock. If not, a confirmation that is new since the last call is
                taken to be no older than that call, whatever the clocks say.
        """
        call_before_s, self._last_call_s = self._last_call_s, time.monotonic()
        if (version, confirmed_s) != self._seen:
            at_most_s = math.inf if self._seen is None else self._last_call_s - call_before_s
            self._seen = (version, confirmed_s)
            self._since_s = self._last_call_s - self._age_s(now_s - confirmed_s, at_most_s, same_clock=same_clock)
        return self._since_s

    def _age_s(self, shown_age_s: float, at_most_s: float, *, same_clock: bool) -> float:
        if shown_age_s < -FUTURE_TOLERANCE_S:
            # A time in the future says nothing: unless it is known to be new, the confirmation is stale.
            return min(at_most_s, self._stale_after_s - shown_age_s)
        return max(0.0, shown_age_s if same_clock else min(shown_age_s, at_most_s))
