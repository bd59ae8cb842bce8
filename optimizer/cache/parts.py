"""The results of a source's parts in Redis, as gzipped JSON, each under a digest of the part as it was scanned.

A result outlives its run: a part that has not changed is not scanned again.

Errors: `CacheUnavailable`.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from typing import Final, cast

import msgspec

from optimizer.cache.client import UNREADABLE, CacheClient
from optimizer.cache.damage import delete_unusable, warn_of_damage
from optimizer.cache.keys import PART
from optimizer.models import PartResult
from optimizer.snapshots.compression import QUICK_GZIP_LEVEL, compress_gzip

__all__ = ["PartStore"]

PART_TTL_S: Final = 3_600
# Results are read in groups: for parts of 10,000 records, each has some 0.5 MB. 1,024 parts take 64 round trips.
LOADED_TOGETHER: Final = 16

_RESULT: Final = msgspec.json.Decoder(PartResult)


class PartStore:
    """The results of a source's parts."""

    def __init__(self, cache: CacheClient) -> None:
        self._cache = cache
        self._keys = cache.keys
        self._ttl_s = max(PART_TTL_S, round(3 * cache.interval_s))

    def renew(self, digests: Sequence[str]) -> list[bool]:
        """Renew the expiry of the results of these parts, and delete the results of all others.

        Returns:
            For each digest, whether there is a result.
        """
        wanted = {digest.encode() for digest in digests}
        with self._cache.commands() as client:
            types = {self._keys.part(digest): PART for digest in digests}
            delete_unusable(client, types, self._keys.source)
            stored = cast("set[bytes]", client.smembers(self._keys.parts))
            pipeline = client.pipeline(transaction=False)
            for digest in digests:
                pipeline.expire(self._keys.part(digest), self._ttl_s)
            for other in stored - wanted:  # compared as bytes: another client may have added members that are not text
                pipeline.unlink(self._keys.part("").encode() + other)
                pipeline.srem(self._keys.parts, other)
            if wanted - stored:
                pipeline.sadd(self._keys.parts, *wanted)
            return [bool(there) for there in pipeline.execute()[: len(digests)]]

    def load(self, digests: Sequence[str]) -> Iterator[PartResult | None]:
        """Yield the results of parts in their order; `None` for a missing one, or a damaged one, which is deleted."""
        for start in range(0, len(digests), LOADED_TOGETHER):
            names = [self._keys.part(digest) for digest in digests[start : start + LOADED_TOGETHER]]
            with self._cache.commands() as client:
                loaded = cast("list[bytes | None]", client.mget(names))
            for name in names:
                yield self._decoded(name, loaded.pop(0))

    def _decoded(self, name: str, data: bytes | None) -> PartResult | None:
        try:
            return None if data is None else _RESULT.decode(gzip.decompress(data))
        except UNREADABLE:
            warn_of_damage(f"{name} cannot be read", self._keys.source)
            with self._cache.commands() as client:
                client.delete(name)
            return None

    def save(self, digest: str, result: PartResult) -> None:
        """Store a result."""
        # It is read once or twice, and soon, so speed matters more than size.
        data = compress_gzip(msgspec.json.encode(result), QUICK_GZIP_LEVEL)
        with self._cache.commands() as client:
            pipeline = client.pipeline()
            pipeline.sadd(self._keys.parts, digest)
            pipeline.set(self._keys.part(digest), data, ex=self._ttl_s)
            pipeline.execute()
