"""Check that a run writes to the same directory as the other runs of its source.

Redis stores the id of that directory (`snapshots/marker.py`) until no run has written there for ten intervals. There
are four cases:

    no marker             the directory is new: it gets an id, which replaces the one in Redis
    Redis has no id       it is new, has lost its data, or no run was made for long: it gets this directory's id
    Redis has this id     its expiry is renewed
    Redis has another id  another run has written to another directory since

So a Redis that has lost its data, and a directory that was deleted or moved, are not mistaken for the last case. The id
is stored in Redis before the marker is written: a run that dies in between leaves a directory that still counts as new.

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
    """Whether Redis has the id of this marker's directory, or gets it now; the caller holds the source's lock."""
    with cache.commands() as client:
        found = marker.read()
        if found:
            return _name(cache, client, found, replaced="") == found
        named = cast("bytes | None", client.get(cache.keys.output))
        drawn = secrets.token_hex(16)
        if _name(cache, client, drawn, replaced=_text(named)) == drawn:
            written = marker.create(drawn)
            if written not in (drawn, ""):  # over NFS a new marker is visible late
                _name(cache, client, written, replaced=drawn)
        return True


def _name(cache: CacheClient, client: redis.Redis, output_id: str, *, replaced: str) -> str:
    """Store an id if Redis has none, this one, or the one to be replaced; return the id that it then has."""
    ttl_ms = str(round(1000 * dispatch_ttl_s(cache.interval_s)))
    return _text(cast("bytes", client.eval(NAME_OUTPUT, 1, cache.keys.output, output_id, replaced, ttl_ms)))


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace")
