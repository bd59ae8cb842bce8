"""Times as text, and how long ago a version was confirmed, though no two clocks agree.

A confirmation carries the time of some clock: of Redis, of a worker, of a file server. The reader's own clock may
be ahead of it or behind. So a reader looks at the time of a confirmation once, when it first sees it, and from then on
counts with its monotonic clock.
"""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime
from typing import Final

__all__ = ["FUTURE_TOLERANCE_S", "Sightings", "seconds_of", "text_of"]

# How far ahead a confirmation may be and still count as made just now. NTP keeps clocks within milliseconds, object
# stores and old file systems round to one or two seconds. A fleet that died is noticed later by this much at most.
FUTURE_TOLERANCE_S: Final = 5.0

# The years that `datetime` knows; a file may have been given any time.
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


class Sightings:
    """The confirmations that one place shows, the pointer or the files, dated by the monotonic clock of this process.

    Args:
        stale_after_s: The age from which a version is stale.
    """

    def __init__(self, stale_after_s: float) -> None:
        self._stale_after_s = stale_after_s
        self._seen: tuple[int, float] | None = None
        self._since_s = 0.0
        self._looked_s = 0.0

    def since_s(self, version: int, told_s: float, now_s: float, *, same_clock: bool) -> float:
        """When the confirmation was made, in seconds of `time.monotonic`.

        Args:
            version: The version that is confirmed.
            told_s: When that was done, in seconds since the epoch.
            now_s: The time now, likewise.
            same_clock: Whether both are of one clock. If not, a confirmation that was not there at the last look is
                known to be no older than that look, whatever the clocks say.
        """
        looked_before_s, self._looked_s = self._looked_s, time.monotonic()
        if (version, told_s) != self._seen:
            at_most_s = math.inf if self._seen is None else self._looked_s - looked_before_s
            self._seen = (version, told_s)
            self._since_s = self._looked_s - self._age_s(now_s - told_s, at_most_s, same_clock=same_clock)
        return self._since_s

    def _age_s(self, told_age_s: float, at_most_s: float, *, same_clock: bool) -> float:
        if told_age_s < -FUTURE_TOLERANCE_S:
            # It tells nothing: unless it is known to be new, it is stale.
            return min(at_most_s, self._stale_after_s - told_age_s)
        return max(0.0, told_age_s if same_clock else min(told_age_s, at_most_s))
