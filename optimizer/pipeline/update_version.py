"""The version that updates make from the current one: predictions, manifest, and entry of the stream of changes.

In: the current version as read from Redis, and the staged index. Out: the values that the flip needs. No I/O.

Bots and holdings stay as they are, and so do predictions if they are equal: a kind keeps its bytes, and its ETag. The
manifest has no index until the files have caught up (`catch_up` in `confirm.py`).
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
from msgspec.structs import replace

from optimizer.cache.clocks import text_of
from optimizer.cache.update_writer import Base
from optimizer.config.settings import Settings
from optimizer.models import (
    BotsSnapshot,
    ChangeCounts,
    HeldUpdate,
    Manifest,
    PortfolioSnapshot,
    PredictionsSnapshot,
    Record,
    VersionContent,
)
from optimizer.pipeline.process import user_at_host
from optimizer.snapshots.delta import change_between, encode_stored
from optimizer.snapshots.format import CONTENT_KINDS, SnapshotSet, encode_payload, entry_of

__all__ = ["NextVersion", "decode_predictions", "encode_updated"]

_PREDICTIONS: Final = msgspec.json.Decoder(PredictionsSnapshot)


def decode_predictions(base: Base) -> PredictionsSnapshot:
    """Decode the predictions of a version; raises the errors of gzip, or one of `UNDECODABLE`."""
    return _PREDICTIONS.decode(gzip.decompress(base.payloads["predictions"]))


@dataclass(frozen=True)
class NextVersion:
    """A version to publish; `predictions` is `None` if they are unchanged, `change` is empty if nothing changed."""

    manifest: Manifest
    predictions: bytes | None
    change: bytes

    def set_with(self, before: Base) -> SnapshotSet:
        """Return the set, completed by payloads of the version before."""
        payloads = {kind: data for kind, data in before.payloads.items() if kind in CONTENT_KINDS}
        if self.predictions is not None:
            payloads["predictions"] = self.predictions
        return SnapshotSet(self.manifest, payloads)


def encode_updated(
    base: Base,
    *,
    shown: PredictionsSnapshot,
    best: Sequence[Record],
    changed: Mapping[str, HeldUpdate],
    settings: Settings,
    version: int,
    now_s: float,
) -> NextVersion:
    """Encode the next version.

    Args:
        base: The version before, as read from Redis.
        shown: Its predictions.
        best: The predictions of the next version.
        changed: The updates that the next version applies.
        settings: All settings of the source.
        version: Its number.
        now_s: The time, in seconds since the epoch.
    """
    before, now = base.pointer.manifest, text_of(now_s)
    predictions = PredictionsSnapshot(list(best), now, len(best))
    stored = change_between(
        _content(before.version, before.generated_at, shown),
        _content(version, now, predictions),
        since=before.content_since,
    )
    snapshots = {kind: before.snapshots[kind] for kind in CONTENT_KINDS}
    data = None
    if stored is not None:
        data = encode_payload(predictions, settings.gzip_level)
        snapshots["predictions"] = entry_of("predictions", data, len(best))
    fresh = sum(symbol in base.not_held for symbol in changed)
    manifest = replace(
        before,
        version=version,
        generated_at=now,
        snapshots=snapshots,
        content_since=(before.content_since or before.version) if stored is None else version,
        changes=ChangeCounts() if stored is None else stored.counts,
        made_by=user_at_host(),
        restored_from=None,
        scan_version=before.lineage,
        updates=base.held_count + fresh,
    )
    return NextVersion(manifest, data, b"" if stored is None else encode_stored(stored))


def _content(version: int, time: str, predictions: PredictionsSnapshot) -> VersionContent:
    """Return a content with empty bots and holdings: updates do not change these, so they are not compared."""
    return VersionContent(
        version=version,
        generated_at=time,
        predictions=predictions,
        bots=BotsSnapshot({}, ""),
        portfolio=PortfolioSnapshot([], ""),
    )
