"""The runs of a source in Redis: which tick is taken, the streams of reports, and the number of runs by outcome.

The streams are trimmed. The numbers only rise as long as Redis keeps its data, so Prometheus can use them as counters.
A run that ends while Redis is away is in neither.

Errors: `CacheUnavailable`.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import redis

from optimizer.cache.client import CacheClient
from optimizer.cache.damage import delete_unusable
from optimizer.cache.keys import NUMBER, TICK, number_of
from optimizer.models import Report

__all__ = ["RunLog", "decode_outcomes"]

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
            # redis-py repeats a command whose reply was lost: then the key holds this token.
            return bool(taken) or client.get(key) == token.encode()

    def add(self, report: Report) -> int:
        """Append a report to the stream of runs, and a scan's to the stream of scans too: most runs find no change.

        The run is counted in the same transaction.

        Returns:
            How many entries the queue of updates has; asking here saves a round trip.
        """
        runs_kept = min(10_000, max(100, round(86_400 / self._cache.interval_s)))
        fields: Any = {"report": msgspec.json.encode(report)}
        outcome = f"{report.status} {report.error or ''}".rstrip()
        with self._cache.commands() as client, client.pipeline() as pipeline:
            pipeline.xadd(self._keys.runs, fields, maxlen=runs_kept, approximate=True)
            if report.status == "success" and report.pinned is None:  # a rollback scans nothing
                pipeline.xadd(self._keys.scans, fields, maxlen=SCANS_KEPT, approximate=False)
            pipeline.hincrby(self._keys.outcomes, outcome)
            pipeline.llen(self._keys.queue)
            *replies, counted, waiting = pipeline.execute(raise_on_error=False)
            for reply in (*replies, waiting):
                if isinstance(reply, Exception):
                    raise reply
            if isinstance(counted, redis.ResponseError):  # its value is no number: start from zero
                client.hset(self._keys.outcomes, outcome, "1")
            return int(waiting)


def decode_outcomes(entries: Mapping[bytes, bytes]) -> dict[tuple[str, str], int]:
    """Decode the hash: the number of runs by status and error name, which is empty unless the runs failed.

    Entries that cannot be read are left out.
    """
    return {
        (status, error): number_of(number)
        for field, number in entries.items()
        for status, _, error in [field.decode("utf-8", "replace").partition(" ")]
        if NUMBER.fullmatch(number.decode("ascii", "replace"))
    }
