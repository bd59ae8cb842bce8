"""Encode the version after another one; equal kinds stay as they are. No I/O.

In: the set before, and the values of the new version. Out: the new set. A kind that is equal keeps its bytes, so that
no reader fetches or decodes it again. If all four are equal, the result is the set before with another manifest.

Errors: `UNREADABLE` if the set before cannot be inflated or decoded.
"""

from __future__ import annotations

from typing import Final, Unpack

import msgspec
from msgspec import UNSET

from optimizer.models import BotsSnapshot, ChangeCounts, Index, PortfolioSnapshot, PredictionsSnapshot, VersionContent
from optimizer.snapshots.delta import StoredChange, change_between
from optimizer.snapshots.format import CONTENT_KINDS, KINDS, SetValues, SnapshotSet, encode_set, index_of

__all__ = ["encode_next", "equal_kinds"]

_encode: Final = msgspec.json.Encoder().encode


def encode_next(before: SnapshotSet | None, **values: Unpack[SetValues]) -> SnapshotSet:
    """Encode a version and count what it changed.

    Args:
        before: The set before; if it lacks its index, the index counts as different. `None` if there is none, or if
            some readers of this version may not have seen that one.
        values: As in `encode_set`.

    Returns:
        The set. If everything is equal, it has the version of the set before.
    """
    version = values["version"]
    if before is None:
        return _with(encode_set(**values), content_since=version)
    old, manifest = before.content(), before.manifest
    stored = change_between(old, _content(values))
    kept = equal_kinds(stored)
    if "index" in before.payloads and _is_same_index(before.decode_index(), values):
        kept.append("index")
    if len(kept) == len(KINDS):
        of_input = {name: values.get(name) for name in ("fingerprint", "input_at", "rejected")}
        return _with(before, **of_input)
    return _with(
        encode_set(**values, kept=SnapshotSet(manifest, {kind: before.payloads[kind] for kind in kept})),
        content_since=(manifest.content_since or manifest.version) if stored is None else version,
        changes=ChangeCounts() if stored is None else stored.counts,
    )


def equal_kinds(stored: StoredChange | None) -> list[str]:
    """Return the kinds that a change leaves as they are."""
    if stored is None:
        return list(CONTENT_KINDS)
    change = stored.change
    values = zip(CONTENT_KINDS, (change.predictions, change.bots, change.holdings), strict=True)
    return [kind for kind, value in values if value is UNSET]


def _is_same_index(old: Index, values: SetValues) -> bool:
    """Whether an index has these records and updates, whatever its time."""
    new = index_of(values["ranked"], old.timestamp, values.get("updates", {}))
    return _encode(old) == _encode(new)


def _with(snapshots: SnapshotSet, **members: object) -> SnapshotSet:
    return SnapshotSet(msgspec.structs.replace(snapshots.manifest, **members), snapshots.payloads)


def _content(values: SetValues) -> VersionContent:
    predictions, time = values["predictions"], values["generated_at"]
    return VersionContent(
        version=values["version"],
        generated_at=time,
        predictions=PredictionsSnapshot(predictions, time, len(predictions)),
        bots=BotsSnapshot(dict(values["bots"]), time),
        portfolio=PortfolioSnapshot(values["holdings"], time),
    )
