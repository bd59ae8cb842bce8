"""Values: the version that a process holds, and what a reader returns of it. No I/O.

A version is held as stored, inflated and decoded. A payload that cannot be inflated or decoded, or does not have its
digest, is left out here; the caller takes it from the other store.

Of a result, `origin` is `redis` or `files`. `age_s` is the time since a run last made or confirmed the version, at the
moment of the call; `stale` says that this is longer than three intervals, so no worker keeps the snapshot fresh any
more. `rejected` counts the records and bots that the version leaves out; `None` if an older release has published it.
"""

from __future__ import annotations

import gzip
import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeVar

import msgspec

from optimizer.cache.client import UNREADABLE
from optimizer.cache.clocks import elapsed_s, seconds_of
from optimizer.cache.keys import PAYLOAD_KINDS
from optimizer.models import (
    BotsSnapshot,
    Index,
    Manifest,
    Origin,
    Pin,
    PortfolioSnapshot,
    PredictionsSnapshot,
    Record,
    Rejected,
    VersionContent,
)

if TYPE_CHECKING:
    from optimizer.snapshots.delta import Change

__all__ = [
    "Answer",
    "CachedVersion",
    "Changes",
    "Origin",
    "Payload",
    "Sighting",
    "Snapshot",
    "State",
    "VersionSnapshot",
    "load_payload",
    "load_payloads",
]

T = TypeVar("T")

_DECODERS: Final[Mapping[str, Callable[[bytes], Any]]] = {
    "predictions": msgspec.json.Decoder(PredictionsSnapshot).decode,
    "bots": msgspec.json.Decoder(BotsSnapshot).decode,
    "portfolio": msgspec.json.Decoder(PortfolioSnapshot).decode,
    "index": msgspec.json.Decoder(Index).decode,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """Which version is current. `generated_at` is when it was made, `checked_at` when a run last confirmed it.

    `pinned` says since when no run replaces it, and by whom; `None` if runs do. `restored_from` is the old version that
    a rollback published again as this one. `updates` is how many updates hold in it, published without a scan.

    `input_at` is the time of the last write to the input that it was made from, and `input_age_s` how long ago that is;
    `None` if the place of the input does not say, or an older release has published it. `input_stale` says that it is
    older than `max_input_age_s`: the engine is silent, though runs confirm what it wrote. A pinned version does not say
    it: runs do not look at the input then.
    """

    version: int
    generated_at: str
    checked_at: str
    origin: Origin
    age_s: float
    stale: bool
    rejected: Rejected | None = None
    pinned: Pin | None = None
    restored_from: int | None = None
    updates: int = 0
    input_at: str | None = None
    input_age_s: float | None = None
    input_stale: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot(Generic[T]):
    """One whole snapshot: `gz` as stored, `value` decoded; `etag` is the SHA-256 of `gz` in hex.

    `gz` and `value` are shared by all results of a version, and may not be changed.
    """

    version: int
    etag: str
    gz: bytes
    value: T
    origin: Origin
    age_s: float
    stale: bool
    rejected: Rejected | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class VersionSnapshot(VersionContent):
    """All snapshots of one version, each as the `value` of its `Snapshot`; shared likewise, and may not be changed."""

    origin: Origin
    age_s: float
    stale: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer(Generic[T]):
    """Part of a snapshot; `etag` stands for the version, which never changes once it is published."""

    version: int
    etag: str
    value: T
    origin: Origin
    age_s: float
    stale: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Changes:
    """What leads from one version to the current one, which is `version`: changes to apply in their order.

    There are none where the content is the same, and where the version asked about is newer than the current one here.
    """

    version: int
    changes: list[Change]
    origin: Origin
    age_s: float
    stale: bool


@dataclass(frozen=True, slots=True)
class Payload:
    """One payload in memory: as stored, inflated, and decoded. `etag` is the SHA-256 of `gz`."""

    etag: str
    origin: Origin
    gz: bytes
    plain: bytes
    value: Any


@dataclass(frozen=True, slots=True)
class Sighting:
    """What a store, Redis or the files, shows at a moment: the manifest, and when a run last confirmed it.

    `checked_at` is by the store's clock; `checked_s` is the same on this process's monotonic clock, from which the age
    is computed.
    """

    manifest: Manifest
    checked_at: str
    checked_s: float

    @property
    def version(self) -> int:
        """The version that is shown."""
        return self.manifest.version

    def etag(self, kind: str) -> str | None:
        """The digest of a payload; `None` if the manifest does not have it."""
        entry = self.manifest.snapshots.get(kind)
        return None if entry is None else entry.sha256

    def confirmed_by(self, held: Sighting | None, *shown: Sighting | None) -> Sighting:
        """The same version with its newest confirmation, and with the manifest that a store shows of it now.

        The manifest of a version may be replaced by one of the same set: of another input with the same content, or
        without a pin. If two stores show different ones, the one that was confirmed last counts. A confirmation of an
        older version of the same input says as much of this one: the input is still what it was.

        Args:
            held: What was held before.
            shown: What the stores show.
        """
        newest, manifest = self, self.manifest
        for each in (held, *shown):
            if each is None:
                continue
            if each.manifest.is_same_set(manifest) or each.manifest.fingerprint == manifest.fingerprint:
                newest = max(newest, each, key=_checked_s)
        # Not the pointer of an older release, which has less in it.
        whole = [
            each for each in shown if each is not None and each.manifest.snapshots.keys() >= manifest.snapshots.keys()
        ]
        same = [each for each in whole if each.manifest.is_same_set(manifest)]
        if same:
            manifest = max(reversed(same), key=_checked_s).manifest
        if manifest.rejected is None:  # as a pointer of an older release; the files may say it
            for each in shown:
                if each is not None and each.version == self.version and each.manifest.rejected:
                    manifest = msgspec.structs.replace(manifest, rejected=each.manifest.rejected)
        if newest is self and manifest == self.manifest:
            return self
        return Sighting(manifest, newest.checked_at, newest.checked_s)


def _checked_s(sighting: Sighting) -> float:
    return sighting.checked_s


@dataclass(frozen=True, slots=True)
class CachedVersion:
    """One version in memory, with the payloads that could be read; never changed, only replaced."""

    sighting: Sighting
    origin: Origin
    payloads: Mapping[str, Payload]
    records: Mapping[str, Record]  # the predictions by symbol
    prepared: Any = None  # what `Follower.prepare` has made of it

    @classmethod
    def load(cls, sighting: Sighting, origin: Origin, payloads: Mapping[str, Payload]) -> Self:
        """The version that a store shows, with these payloads."""
        best = payloads.get("predictions")
        records = {} if best is None else {record.symbol: record for record in best.value.predictions}
        return cls(sighting, origin, payloads, records)

    @property
    def manifest(self) -> Manifest:
        """Its manifest."""
        return self.sighting.manifest

    @property
    def version(self) -> int:
        """Its number."""
        return self.sighting.manifest.version

    @property
    def is_whole(self) -> bool:
        """Whether every payload could be read."""
        return len(self.payloads) == len(PAYLOAD_KINDS)

    def age_s(self) -> float:
        """Seconds since a run last made or confirmed this version."""
        return max(0.0, time.monotonic() - self.sighting.checked_s)

    def input_age_s(self) -> float | None:
        """Seconds since the last write to the input that this version was made from, if its place says when."""
        input_at = self.manifest.input_at
        return None if input_at is None else elapsed_s(seconds_of(input_at), time.time())

    def from_(self, origin: Origin) -> CachedVersion:
        """The same version, if another store has it too."""
        payloads = {kind: replace(payload, origin=origin) for kind, payload in self.payloads.items()}
        return replace(self, origin=origin, payloads=payloads)

    def is_at(self, sighting: Sighting) -> bool:
        """Whether a store shows these very payloads."""
        return self.version == sighting.version and all(
            payload.etag == sighting.etag(kind) for kind, payload in self.payloads.items()
        )


def load_payload(kind: str, etag: str, origin: Origin, data: bytes) -> Payload:
    """Inflate and decode a payload; raises one of `UNREADABLE` if that fails."""
    plain = gzip.decompress(data)
    return Payload(etag, origin, data, plain, _DECODERS[kind](plain))


def load_payloads(sighting: Sighting, data: Mapping[str, bytes]) -> dict[str, Payload]:
    """The payloads from Redis that can be read."""
    payloads = {}
    for kind, gz in data.items():
        etag = hashlib.sha256(gz).hexdigest()
        try:
            if etag == sighting.etag(kind):
                payloads[kind] = load_payload(kind, etag, "redis", gz)
        except UNREADABLE:  # the caller takes it from the files, and the answer says so
            continue
    return payloads
