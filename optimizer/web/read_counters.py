"""The number of responses from Redis and from the files: counted in each process, summed over all processes in Redis.

A scrape reaches one process of many. About once a second, each process adds its counts to one number per origin: the
user of Redis may only add to these keys, and so cannot make them grow (`docs/redis-acl.conf`). While Redis is away, or
if the user may not write, the counts stay in the process, and are shown together with the last sums that it read.
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
    """Responses by origin. The event loop counts, threads share; each value is written by only one of them."""

    def __init__(self) -> None:
        self._counted = dict.fromkeys(ORIGINS, 0)
        # The last sums from Redis, and this process's share of them; replaced together.
        self._shared = (dict.fromkeys(ORIGINS, 0), dict.fromkeys(ORIGINS, 0))
        self._logged = False
        self._lock = threading.Lock()

    def count(self, origin: Origin) -> None:
        """Count a response."""
        self._counted[origin] += 1

    def totals(self) -> dict[Origin, int]:
        """Return the sums over all processes, as far as this one knows them."""
        sums, own = self._shared
        return {origin: sums[origin] + self._counted[origin] - own[origin] for origin in ORIGINS}

    @property
    def are_shared(self) -> bool:
        """Whether Redis has all counts of this process."""
        return self._counted == self._shared[1]

    def share(self, follower: Follower) -> None:
        """Add this process's counts to the sums in Redis, and read the sums; blocks."""
        if not follower.redis.up:
            return
        # One at a time, so that nothing is added twice: for Prometheus, a counter that falls has been reset.
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
