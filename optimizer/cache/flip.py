"""The flip, which makes staged values the current version: for runs (`writer.py`) and updates (`update_writer.py`).

In: values that are staged under a token, then a seal; and the entries that the version takes from the queue of updates.

Errors: those of redis-py; `PublishRefused` if the script refuses.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final, cast

import msgspec
import redis

from optimizer.cache.keys import CHANGES_BYTES, CHANGES_KEPT, VERSION_KINDS, VERSION_TYPES, Keys
from optimizer.cache.pointer import pointer_fields
from optimizer.cache.scripts import FLIP
from optimizer.cache.update_queue import QueueState
from optimizer.errors import PublishRefused
from optimizer.models import Manifest, QueuedUpdate

__all__ = ["STAGED_TTL_S", "STAGED_TYPES", "Consumed", "flip", "new_seal"]

STAGED_TTL_S: Final = 180
# Staged and flipped together: a version, and the updates in force, which are stored beside it.
STAGED_TYPES: Final = {**VERSION_TYPES, "updates": "hash"}


def new_seal() -> str:
    """Make a unique value."""
    return secrets.token_hex(8)


@dataclass(frozen=True)
class Consumed:
    """What a version takes from the queue of updates: a drain takes whole entries, a scan what its input supersedes.

    Attributes:
        applied_before: The number of the last entry that was applied before.
        entries: How many entries it takes.
        records: How many records and removals they have.
        applied: The number of the last of these entries.
        tat_ms: The theoretical arrival time of the next version, see `pipeline/pace.py`.
        left: For each of these entries, what a scan leaves of it, put back in its place.
    """

    applied_before: int = 0
    entries: int = 0
    records: int = 0
    applied: int = 0
    tat_ms: int = 0
    left: Sequence[QueuedUpdate] = ()

    @classmethod
    def by_scan(cls, waiting: QueueState, left: Sequence[QueuedUpdate]) -> Consumed:
        """Return what a scan takes if it leaves these of the first entries."""
        sizes = (entry.size for entry in waiting.entries[: len(left)])
        return cls(
            applied_before=waiting.applied,
            entries=len(left),
            records=sum(sizes) - sum(entry.size for entry in left),
            applied=waiting.applied,
            tat_ms=round(waiting.tat_ms),
            left=left,
        )


def flip(
    pipeline: redis.client.Pipeline,
    keys: Keys,
    manifest: Manifest,
    *,
    lock_key: str,
    token: str,
    seal: str,
    checked_at: str,
    version_before: int | None,
    old_versions: Iterable[int],
    old_ttl_s: int,
    change: bytes,
    updates: int,
    consumed: Consumed | None = None,
) -> None:
    """Make the values that are staged under a token the current version.

    Args:
        pipeline: Commands that stage the last values; they are executed in the same transaction.
        keys: The names of the source's keys.
        manifest: The manifest of the version.
        lock_key: The lock that has to hold the token.
        token: The token.
        seal: The last value that was staged.
        checked_at: The time by Redis' clock.
        version_before: The version that the pointer, if it exists, has to name; `None` if none.
        old_versions: The versions that expire from now on.
        old_ttl_s: Seconds until they expire.
        change: The entry of the stream of changes, empty for none.
        updates: How many updates are staged: all that are in force, or those that are added.
        consumed: What it takes from the queue of updates and adds to the updates in force.

    Raises:
        PublishRefused: The lock is lost, or another version was published since.
    """
    consumed = consumed or Consumed()
    old = [keys.payload(each, kind) for each in set(old_versions) - {manifest.version} for kind in VERSION_KINDS]
    pipeline.eval(
        FLIP,
        8 + 2 * len(STAGED_TYPES) + len(old),
        *(lock_key, keys.current, keys.published, keys.deltas, keys.flipped, keys.queue, keys.queued),
        *(keys.staged(token, kind) for kind in ("seal", *STAGED_TYPES)),
        *(keys.payload(manifest.version, kind) for kind in VERSION_KINDS),
        keys.updates,
        *old,
        token,
        str(manifest.version),
        "" if version_before is None else str(version_before),
        str(old_ttl_s),
        str(len(STAGED_TYPES)),
        str(CHANGES_KEPT),
        str(CHANGES_BYTES),
        change,
        str(updates),
        str(consumed.applied_before),
        str(consumed.entries),
        str(consumed.records),
        str(consumed.applied),
        str(consumed.tat_ms),
        str(len(consumed.left)),
        seal,
        *STAGED_TYPES.values(),
        *chain.from_iterable(pointer_fields(manifest, checked_at).items()),
        *map(msgspec.json.encode, consumed.left),
    )
    reply = pipeline.execute()[-1]
    if reply != b"ok":
        raise PublishRefused(
            f"version {manifest.version} of {manifest.source} was not published: "
            f"{cast('bytes', reply).decode()}; the next tick makes it again"
        )
