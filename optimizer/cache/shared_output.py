"""Whether a run writes to the directory that the other runs of its source write to.

Redis names the id of that directory, as its `snapshots/marker.py` holds it, until no run has written there for ten
intervals. A run finds one of these:

    no marker             the directory is new: it gets an id, which replaces what Redis names
    Redis names none      it is new, has lost its data, or no run was made for long: it gets this directory's id
    Redis names this id   its expiry is renewed
    Redis names another   another run has written to another directory since

So neither a Redis that has lost its data nor a directory that was deleted or moved looks like the last. Redis is told
before the marker is written: a run that dies in between leaves a directory without a marker, which is new again.

Errors: `CacheUnavailable`.
"""

from __future__ import annotations

import secrets
from typing import cast

import redis

from optimizer.cache.client import CacheClient
from optimizer.cache.lock import dispatch_ttl_s
from optimizer.cache.scripts import NAME_OUTPUT
from optimizer.snapshots.marker import Marker

__all__ = ["is_shared_output"]


def is_shared_output(cache: CacheClient, marker: Marker) -> bool:
    """Whether Redis names the directory of this marker, or does so from now on; for the holder of the source's lock."""
    with cache.commands() as client:
        found = marker.read()
        if found:
            return _name(cache, client, found, replaced="") == found
        named = cast("bytes | None", client.get(cache.keys.output))
        drawn = secrets.token_hex(16)
        if _name(cache, client, drawn, replaced=_text(named)) == drawn:
            written = marker.create(drawn)
            if written not in (drawn, ""):  # over NFS a marker is seen late
                _name(cache, client, written, replaced=drawn)
        return True


def _name(cache: CacheClient, client: redis.Redis, output_id: str, *, replaced: str) -> str:
    """Name an id if Redis names none, this one, or the one to be replaced; return the id that it then names."""
    ttl_ms = str(round(1000 * dispatch_ttl_s(cache.interval_s)))
    return _text(cast("bytes", client.eval(NAME_OUTPUT, 1, cache.keys.output, output_id, replaced, ttl_ms)))


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace")
