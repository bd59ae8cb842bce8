"""The version in memory, and the results that a reader returns from it. No I/O.

A version is kept as stored, inflated and decoded. A payload that cannot be inflated or decoded, or does not match its
digest, is left out here; the caller takes it from the other store.

In a result, `origin` is `redis` or `files`. `age_s` is the time since a run last made or confirmed the version, at the
moment of the call; `stale` says that this is longer than three intervals, so no worker keeps the snapshot fresh any
more. `rejected` counts the records and bots that the version leaves out; `None` for a version of an older release.
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
    """The state of the current version. `generated_at` is when it was made, `checked_at` when a run last confirmed it.

    `pinned` says since when, and by whom, the version is pinned, so that no run replaces it; `None` if it is not.
    `restored_from` is the old version that a rollback published again as this one. `updates` is the number of updates
    in force in it, published without a scan.

    `input_at` is the time of the last write to the input that it was made from, and `input_age_s` its age; both are
    `None` if the input's storage does not tell the time, or for a version of an older release. `input_stale` says that
    the input is older than `max_input_age_s`: the engine is silent, though runs confirm its last file. It is false for
    a pinned version, since runs do not look at the input then.
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
    """All snapshots of one version, each as the `value` of its `Snapshot`; shared as well, and may not be changed."""

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
    """The changes from one version to the current one, which is `version`, to be applied in their order.

    There are none if the content is the same, or if the requested version is newer than the current one here.
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
    """The state of a store, Redis or the files, at one moment: the manifest, and when a run last confirmed it.

    `checked_at` is by the store's clock; `checked_s` is the same on this process's monotonic clock, from which the age
    is computed.
    """

    manifest: Manifest
    checked_at: str
    checked_s: float

    @property
    def version(self) -> int:
        """The current version of the store."""
        return self.manifest.version

    def etag(self, kind: str) -> str | None:
        """Return the digest of a payload; `None` if the manifest does not have it."""
        entry = self.manifest.snapshots.get(kind)
        return None if entry is None else entry.sha256

    def confirmed_by(self, held: Sighting | None, *shown: Sighting | None) -> Sighting:
        """Return the same version with its newest confirmation, and with the manifest that a store has for it now.

        The manifest of a version may be replaced by one for the same set: of another input with the same content, or
        without a pin. If two stores have different ones, the one that was confirmed last is used. A confirmation of an
        older version of the same input confirms this one too: the input has not changed.

        Args:
            held: The sighting of the version in memory.
            shown: The sightings of the stores.
        """
        newest, manifest = self, self.manifest
        for each in (held, *shown):
            if each is None:
                continue
            if each.manifest.is_same_set(manifest) or each.manifest.fingerprint == manifest.fingerprint:
                newest = max(newest, each, key=_checked_s)
        # Not the pointer of an older release, which has fewer fields.
        whole = [
            each for each in shown if each is not None and each.manifest.snapshots.keys() >= manifest.snapshots.keys()
        ]
        same = [each for each in whole if each.manifest.is_same_set(manifest)]
        if same:
            manifest = max(reversed(same), key=_checked_s).manifest
        if manifest.rejected is None:  # from a pointer of an older release; the files may have it
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
    prepared: Any = None  # the result of `Follower.prepare`

    @classmethod
    def load(cls, sighting: Sighting, origin: Origin, payloads: Mapping[str, Payload]) -> Self:
        """Make the version of a store's sighting with these payloads."""
        best = payloads.get("predictions")
        records = {} if best is None else {record.symbol: record for record in best.value.predictions}
        return cls(sighting, origin, payloads, records)

    @property
    def manifest(self) -> Manifest:
        """The manifest of the version."""
        return self.sighting.manifest

    @property
    def version(self) -> int:
        """The number of the version."""
        return self.sighting.manifest.version

    @property
    def is_whole(self) -> bool:
        """Whether every payload could be read."""
        return len(self.payloads) == len(PAYLOAD_KINDS)

    def age_s(self) -> float:
        """Return the seconds since a run last made or confirmed this version."""
        return max(0.0, time.monotonic() - self.sighting.checked_s)

    def input_age_s(self) -> float | None:
        """Return the seconds since the last write to the input of this version; `None` if that time is unknown."""
        input_at = self.manifest.input_at
        return None if input_at is None else elapsed_s(seconds_of(input_at), time.time())

    def from_(self, origin: Origin) -> CachedVersion:
        """Return the same version with another store as its origin."""
        payloads = {kind: replace(payload, origin=origin) for kind, payload in self.payloads.items()}
        return replace(self, origin=origin, payloads=payloads)

    def is_at(self, sighting: Sighting) -> bool:
        """Whether a store has exactly these payloads."""
        return self.version == sighting.version and all(
            payload.etag == sighting.etag(kind) for kind, payload in self.payloads.items()
        )


def load_payload(kind: str, etag: str, origin: Origin, data: bytes) -> Payload:
    """Inflate and decode a payload; raises one of `UNREADABLE` if that fails."""
    plain = gzip.decompress(data)
    return Payload(etag, origin, data, plain, _DECODERS[kind](plain))


def load_payloads(sighting: Sighting, data: Mapping[str, bytes]) -> dict[str, Payload]:
    """Return the payloads from Redis that can be read."""
    payloads = {}
    for kind, gz in data.items():
        etag = hashlib.sha256(gz).hexdigest()
        try:
            if etag == sighting.etag(kind):
                payloads[kind] = load_payload(kind, etag, "redis", gz)
        except UNREADABLE:  # the caller takes it from the files, and the result says so
            continue
    return payloads
