"""How many responses were from Redis and how many from the files: counted in the process, summed over all in Redis.

A scrape reaches one process of many. Each adds what it has counted to one number an origin, about once a second: the
user of Redis may add to these keys alone, and so cannot let them grow (`docs/redis-acl.conf`). While Redis is away, or
if the user may not write, the counts stay in the process, and are shown with the sums that it last read.
"""

from __future__ import annotations

import threading

from optimizer.cache.client import is_away
from optimizer.cache.keys import ORIGINS
from optimizer.errors import CacheUnavailable
from optimizer.log import SourceLog
from optimizer.models import Origin
from optimizer.reader.follower import Follower

__all__ = ["ReadCounters"]

_log = SourceLog(__name__)


class ReadCounters:
    """Responses by origin. The event loop counts and threads share, so each value is written by one of them alone."""

    def __init__(self) -> None:
        self._counted = dict.fromkeys(ORIGINS, 0)
        # The sums as Redis last had them, and how many of these were counted here; replaced together.
        self._shared = (dict.fromkeys(ORIGINS, 0), dict.fromkeys(ORIGINS, 0))
        self._logged = False
        self._lock = threading.Lock()

    def count(self, origin: Origin) -> None:
        """Count a response."""
        self._counted[origin] += 1

    def totals(self) -> dict[Origin, int]:
        """The sums over all processes, as far as this one knows them."""
        sums, own = self._shared
        return {origin: sums[origin] + self._counted[origin] - own[origin] for origin in ORIGINS}

    @property
    def are_shared(self) -> bool:
        """Whether Redis has all that was counted here."""
        return self._counted == self._shared[1]

    def share(self, follower: Follower) -> None:
        """Add what was counted to the sums in Redis, and read them; blocks."""
        if not follower.redis.up:
            return
        # One at a time: to Prometheus a counter that falls has started again, so nothing may be added twice.
        with self._lock:
            counted, (_, before) = dict(self._counted), self._shared
            try:
                sums = follower.redis.add_reads({origin: number - before[origin] for origin, number in counted.items()})
            except CacheUnavailable as error:
                if not self._logged and not is_away(error):
                    _log.info("reads are counted by this process alone", source=follower.source, error=error)
                    self._logged = True
                return
            self._shared = (dict(zip(counted, sums, strict=True)), counted)
