"""What the processes of a distributed run leave to each other in Redis: results of parts, and the run's assignment.

A part's result is kept under a digest of the part, as bytes that the caller encodes; it outlives the run, so that a
part that has not changed is not scanned again. The assignment says what a dispatched run has to do; it is stored under
the token of the run's lock, which alone travels in messages.

Errors: `CacheUnavailable`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, cast

from optimizer.cache.client import CacheClient
from optimizer.cache.damage import delete_unusable, warn_of_damage
from optimizer.cache.keys import PART
from optimizer.cache.lock import dispatch_ttl_s
from optimizer.cache.scripts import DISPATCH, END_DISPATCH

__all__ = ["AssignmentStore", "PartStore"]

PART_TTL_S: Final = 3_600


class PartStore:
    """The results of a source's parts."""

    def __init__(self, cache: CacheClient) -> None:
        self._cache = cache
        self._keys = cache.keys
        self._ttl_s = max(PART_TTL_S, round(3 * cache.interval_s))

    def renew(self, digests: Sequence[str]) -> list[bool]:
        """Renew the expiry of the results of these parts, and delete the results of all others.

        Returns:
            For each digest whether there is a result.
        """
        wanted = {digest.encode() for digest in digests}
        with self._cache.commands() as client:
            delete_unusable(client, {self._keys.part(digest): PART for digest in digests})
            stored = cast("set[bytes]", client.smembers(self._keys.parts))
            pipeline = client.pipeline(transaction=False)
            for digest in digests:
                pipeline.expire(self._keys.part(digest), self._ttl_s)
            for other in stored - wanted:  # bytes: any client may have added what is not text
                pipeline.unlink(self._keys.part("").encode() + other)
                pipeline.srem(self._keys.parts, other)
            if wanted - stored:
                pipeline.sadd(self._keys.parts, *wanted)
            return [bool(there) for there in pipeline.execute()[: len(digests)]]

    def read(self, digest: str) -> bytes | None:
        """Read a result; `None` if it is gone."""
        with self._cache.commands() as client:
            return cast("bytes | None", client.get(self._keys.part(digest)))

    def store(self, digest: str, data: bytes) -> None:
        """Store a result."""
        with self._cache.commands() as client:
            pipeline = client.pipeline()
            pipeline.sadd(self._keys.parts, digest)
            pipeline.set(self._keys.part(digest), data, ex=self._ttl_s)
            pipeline.execute()

    def drop(self, digest: str) -> None:
        """Delete a result that cannot be decoded, so that the part is scanned again."""
        with self._cache.commands() as client:
            warn_of_damage(f"{self._keys.part(digest)} cannot be read")
            client.delete(self._keys.part(digest))


class AssignmentStore:
    """The assignment of a source's dispatched run; there is at most one."""

    def __init__(self, cache: CacheClient) -> None:
        self._cache = cache
        self._keys = cache.keys

    def dispatch(self, token: str, assignment: bytes) -> bool:
        """Store what a run has to do; false if it does not hold the lock any more."""
        with self._cache.commands() as client:
            ttl_ms = round(1000 * dispatch_ttl_s(self._cache.interval_s))
            return bool(client.eval(DISPATCH, 2, self._keys.lock, self._keys.handed, token, assignment, str(ttl_ms)))

    def read(self, token: str) -> bytes | None:
        """Read what the run with this token has to do; `None` if it has ended or another run has replaced it."""
        with self._cache.commands() as client:
            stored = cast("list[bytes | None]", client.hmget(self._keys.handed, ["token", "assignment"]))
            return stored[1] if stored[0] == token.encode() else None

    def end(self, token: str) -> None:
        """Delete the assignment of this run."""
        with self._cache.commands() as client:
            client.eval(END_DISPATCH, 1, self._keys.handed, token)

    def take_unfinished(self) -> bytes | None:
        """Return and delete the assignment of a run that has not ended; `None` if there is none."""
        with self._cache.commands() as client:
            pipeline = client.pipeline()
            pipeline.hget(self._keys.handed, "assignment")
            pipeline.delete(self._keys.handed)
            return cast("bytes | None", pipeline.execute()[0])
