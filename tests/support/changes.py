"""The changes in Redis, and a check that they lead from a version to the current one."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from typing import cast

import msgspec
import redis
from msgspec import UNSET

from optimizer.cache.keys import PAYLOAD_KINDS, Keys
from optimizer.cache.pointer import Pointer
from optimizer.errors import ChangesMissing
from optimizer.models import VersionContent
from optimizer.snapshots.chain import chain
from optimizer.snapshots.delta import StoredChange, apply_change, apply_predictions, decode_stored
from optimizer.snapshots.format import SnapshotSet

__all__ = ["held", "kinds_of", "lead", "shown"]


def shown(client: redis.Redis, keys: Keys) -> SnapshotSet | None:
    """The version that the pointer names, without its index; `None` unless it is whole."""
    pointer = Pointer.from_hash(cast("dict[bytes, bytes]", client.hgetall(keys.current)))
    if pointer is None:
        return None
    payloads = {kind: cast("bytes", client.get(keys.payload(pointer.version, kind))) for kind in PAYLOAD_KINDS}
    return None if None in payloads.values() else SnapshotSet(pointer.manifest, payloads)


def held(client: redis.Redis, keys: Keys) -> list[StoredChange]:
    """The changes in the stream, oldest first, as a reader gets them."""
    entries = cast("list[tuple[bytes, dict[bytes, bytes]]]", client.xrange(keys.deltas))
    stored = [decode_stored(fields[b"change"]) for _, fields in entries if b"change" in fields]
    assert [b"%d-0" % one.change.version for one in stored] == [name for name, fields in entries if b"change" in fields]
    return stored


def kinds_of(content: VersionContent) -> dict[str, bytes]:
    """Return predictions, bots and holdings as JSON."""
    kinds = (content.predictions, content.bots, content.portfolio)
    return {kind: msgspec.json.encode(value) for kind, value in zip(PAYLOAD_KINDS, kinds, strict=True)}


def lead(stored: Sequence[StoredChange], old: VersionContent, new: SnapshotSet) -> bool:
    """Check that the changes lead from `old` to `new`, and their inverses back; return false if a change is missing."""
    manifest = new.manifest
    try:
        changes = chain([one.change for one in stored], old.version, manifest.version, manifest.content_since)
    except ChangesMissing:
        return False
    expected = new.content()
    content = old
    for change in changes:
        content = apply_change(content, change)
    assert (content.predictions, content.bots, content.portfolio) == (
        *(expected.predictions, expected.bots, expected.portfolio),
    )
    plain = {kind: gzip.decompress(data) for kind, data in new.payloads.items() if kind in PAYLOAD_KINDS}
    assert kinds_of(content) == plain
    records = expected.predictions.predictions
    undone = {one.change.version: one.undo for one in stored}
    for change in reversed(changes):
        undo = undone[change.version]
        assert (undo is UNSET) == (change.predictions is UNSET)
        if not isinstance(undo, msgspec.UnsetType):
            records = apply_predictions(records, undo)
    assert msgspec.json.encode(records) == msgspec.json.encode(old.predictions.predictions)
    return True
