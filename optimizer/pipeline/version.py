"""The version before the one that a run makes.

It is the newest of the files' version and of Redis' pointer; at equal numbers, the one in the files. Its content is
read from either. The content is unknown if another version came in between, of which only the number is left, or if
files and Redis have different sets with the same number: then no statement about changes would be true for all readers.

If it is not the current version in Redis, a run with other files may have published another version after it, which
readers have seen. In that case `content_since` is set to the new version, even if the content is equal.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Unpack

from msgspec.structs import replace

from optimizer.cache.client import UNREADABLE
from optimizer.errors import OutputUnreadable
from optimizer.models import Manifest
from optimizer.pipeline.session import Session
from optimizer.snapshots.format import SetValues, SnapshotSet
from optimizer.snapshots.store import SnapshotStore
from optimizer.snapshots.successor import encode_next

__all__ = ["Predecessor", "encode_version", "read_predecessor"]


@dataclass(frozen=True)
class Predecessor:
    """The version before: its manifest, and its set if that is known. A set from Redis has no index.

    `is_in_redis` says that Redis shows this set, so that no run with other files has published a version after it.
    """

    manifest: Manifest
    snapshots: SnapshotSet | None
    is_in_redis: bool = False


def read_predecessor(store: SnapshotStore, session: Session) -> Predecessor | None:
    """Read the version before, as of the beginning of the run; `None` if there is none."""
    manifest, pointer = session.newest_manifest, session.pointer
    if manifest is None:
        return None
    in_redis = pointer.manifest if pointer else None
    if session.is_ambiguous or session.newest() > manifest.version:
        return Predecessor(manifest, None)
    snapshots = None
    if manifest is session.in_files:
        with suppress(OutputUnreadable):
            snapshots = store.read_set(manifest=manifest)
    if (snapshots is None or snapshots.manifest != manifest) and in_redis and in_redis.version == manifest.version:
        payloads = session.payloads_before()
        snapshots = SnapshotSet(manifest, payloads) if payloads else None
    return Predecessor(manifest, snapshots, is_in_redis=in_redis is not None and in_redis.is_same_set(manifest))


def encode_version(before: Predecessor | None, **values: Unpack[SetValues]) -> SnapshotSet:
    """Encode the run's version; if nothing differs, it is the version before, with another manifest."""
    try:
        snapshots = encode_next(before.snapshots if before else None, **values)
    except UNREADABLE:  # the version before was written by another release
        return encode_next(None, **values)
    version = snapshots.manifest.version
    if before is None or before.is_in_redis or version == before.manifest.version:
        return snapshots
    return SnapshotSet(replace(snapshots.manifest, content_since=version), snapshots.payloads)
