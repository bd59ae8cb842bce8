"""How many answers were from Redis and how many from the files: counted in the process, summed over all in Redis.

A scrape reaches one process of many. Each adds what it has counted to one number an origin, about once a second: the
user of Redis may add to these keys alone, and so cannot let them grow (`docs/redis-acl.conf`). Where Redis is
away or the user may not write, the counts stay with the process, and are shown with what it knew of the sums.
"""

from __future__ import annotations

import asyncio
import logging

from optimizer.cache.client import is_away
from optimizer.cache.keys import ORIGINS
from optimizer.errors import CacheUnavailable
from optimizer.models import Origin
from optimizer.reader.async_reader import AsyncSnapshotReader
from optimizer.reader.follower import call

__all__ = ["Reads"]

_log = logging.getLogger(__name__)


class Reads:
    """Answers by origin."""

    def __init__(self) -> None:
        self._own = dict.fromkeys(ORIGINS, 0)  # not in Redis yet
        self._sums = dict.fromkeys(ORIGINS, 0)  # as Redis had them
        self._told = False

    def open(self) -> None:
        """Begin to share, in this event loop."""
        self._lock = asyncio.Lock()

    def count(self, origin: Origin) -> None:
        """Count an answer."""
        self._own[origin] += 1

    def totals(self) -> dict[Origin, int]:
        """All that is known of."""
        return {origin: self._sums[origin] + self._own[origin] for origin in ORIGINS}

    @property
    def is_shared(self) -> bool:
        """Whether Redis has all that was counted here."""
        return not any(self._own.values())

    async def share(self, reader: AsyncSnapshotReader) -> None:
        """Add what was counted to the sums in Redis, and read them."""
        if not reader.follower.cache_up:
            return
        # One at a time: whoever read the sums while they are added to would count that twice, and a counter that falls
        # again is one that has begun anew, to Prometheus.
        async with self._lock:
            added = dict(self._own)
            key = reader.follower.keys.reads
            try:
                sums = await reader.ask([call("incrby", key(origin), number) for origin, number in added.items()])
                self._sums = {origin: int(total) for origin, total in zip(added, sums, strict=True)}
            except (CacheUnavailable, ValueError) as error:
                if not self._told and not (isinstance(error, CacheUnavailable) and is_away(error)):
                    _log.info("[RollingOptimizer] reads are counted by this process alone: %s", error)
                    self._told = True
                return
            for origin, number in added.items():
                self._own[origin] -= number
