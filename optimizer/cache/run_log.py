"""The runs of a source in Redis: which tick is taken, and the streams of reports.

Errors: `CacheUnavailable`.
"""

from __future__ import annotations

import secrets
from typing import Any, Final, cast

import msgspec

from optimizer.cache.client import CacheClient
from optimizer.cache.damage import delete_unusable
from optimizer.cache.keys import TICK
from optimizer.models import Report

__all__ = ["RunLog"]

SCANS_KEPT: Final = 100


class RunLog:
    """The ticks and reports of one source."""

    def __init__(self, cache: CacheClient) -> None:
        self._cache = cache
        self._keys = cache.keys

    def take_tick(self, number: int) -> bool:
        """Take a tick; false if another run has it."""
        key, token = self._keys.tick(number), secrets.token_hex(16)
        with self._cache.commands() as client:
            types = {self._keys.tick(each): TICK for each in (number, number - 1)}
            delete_unusable(client, types, self._keys.source)
            taken = client.set(key, token, nx=True, px=round(1000 * max(1.0, 2 * self._cache.interval_s)))
            # redis-py repeats a command whose reply was lost: then the token in the key is ours.
            return bool(taken) or client.get(key) == token.encode()

    def add(self, report: Report) -> int:
        """Append a report to the stream of runs, and a scan's to the stream of scans too: most runs find no change.

        Returns:
            How many entries the queue of updates has: asked here, it takes no round trip of its own.
        """
        runs_kept = min(10_000, max(100, round(86_400 / self._cache.interval_s)))
        fields: Any = {"report": msgspec.json.encode(report)}
        with self._cache.commands() as client, client.pipeline() as pipeline:
            pipeline.xadd(self._keys.runs, fields, maxlen=runs_kept, approximate=True)
            if report.status == "success" and report.pinned is None:  # a rollback scans nothing
                pipeline.xadd(self._keys.scans, fields, maxlen=SCANS_KEPT, approximate=False)
            pipeline.llen(self._keys.queue)
            return cast("int", pipeline.execute()[-1])
