"""The version that a process holds: its payloads as stored, inflated and decoded. Values only, no I/O.

A payload that cannot be inflated or decoded, or is not what its digest says, is left out here; the caller takes it from
elsewhere.
"""

from __future__ import annotations

import gzip
import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Self

import msgspec

from optimizer.cache.client import UNREADABLE
from optimizer.cache.keys import PAYLOAD_KINDS
from optimizer.models import (
    BotsSnapshot,
    Index,
    Manifest,
    Origin,
    PortfolioSnapshot,
    PredictionsSnapshot,
    Record,
    Rejected,
)

__all__ = ["Held", "Sight", "Stored", "hold", "store", "store_each"]

_DECODERS: Final[Mapping[str, Callable[[bytes], Any]]] = {
    "predictions": msgspec.json.Decoder(PredictionsSnapshot).decode,
    "bots": msgspec.json.Decoder(BotsSnapshot).decode,
    "portfolio": msgspec.json.Decoder(PortfolioSnapshot).decode,
    "index": msgspec.json.Decoder(Index).decode,
}


@dataclass(frozen=True, slots=True)
class Stored:
    """One payload in memory: as stored, inflated, and decoded. `etag` is the SHA-256 of `gz`."""

    etag: str
    origin: Origin
    gz: bytes
    plain: bytes
    value: Any


@dataclass(frozen=True, slots=True)
class Sight:
    """What a place, the pointer or the files, shows at a moment; `checked_s` as in `Held`."""

    version: int
    fingerprint: str
    generated_at: str
    checked_at: str
    checked_s: float
    etags: Mapping[str, str]
    rejected: Rejected | None = None

    @classmethod
    def of_manifest(cls, manifest: Manifest, checked_at: str, checked_s: float) -> Self:
        """What the pointer or the files show."""
        etags = {kind: entry.sha256 for kind, entry in manifest.snapshots.items()}
        told = (manifest.version, manifest.fingerprint, manifest.generated_at, checked_at)
        return cls(*told, checked_s, etags, manifest.rejected)


@dataclass(frozen=True, slots=True)
class Held:
    """One version, whole; never changed, only replaced.

    `checked_at` is when a run last made or confirmed it, by the clock of the place that told so; `checked_s` is the
    same on this process's monotonic clock, from which the age is computed.
    """

    version: int
    fingerprint: str
    generated_at: str
    checked_at: str
    checked_s: float
    origin: Origin
    payloads: Mapping[str, Stored]
    records: Mapping[str, Record]  # the predictions by symbol
    rejected: Rejected | None = None

    @property
    def is_whole(self) -> bool:
        """Whether every payload could be read."""
        return len(self.payloads) == len(PAYLOAD_KINDS)

    def age_s(self) -> float:
        """Seconds since a run last made or confirmed this version."""
        return max(0.0, time.monotonic() - self.checked_s)

    def confirmed_by(self, *seen: Held | Sight | None) -> Held:
        """The same version with its newest confirmation, and with what it leaves out, if another place says so.

        An older version of the same input that is confirmed says as much of this one: the input is still what it was.
        """
        newest: Held | Sight = self
        for one in seen:
            if one is not None and one.fingerprint == self.fingerprint and one.checked_s > newest.checked_s:
                newest = one
        confirmed = self if newest is self else replace(self, checked_at=newest.checked_at, checked_s=newest.checked_s)
        # A pointer of an older release, or a damaged one, does not say what is left out: another place may, or the
        # same one, once the next tick has mended it.
        told = [one.rejected for one in seen if one is not None and one.rejected and one.version == self.version]
        return replace(confirmed, rejected=told[0]) if told and self.rejected is None else confirmed

    def from_(self, origin: Origin) -> Held:
        """The same version, where another place is found to hold it too."""
        payloads = {kind: replace(stored, origin=origin) for kind, stored in self.payloads.items()}
        return replace(self, origin=origin, payloads=payloads)

    def is_at(self, sight: Sight) -> bool:
        """Whether a place shows these very payloads."""
        return self.version == sight.version and all(
            stored.etag == sight.etags.get(kind) for kind, stored in self.payloads.items()
        )


def hold(sight: Sight, origin: Origin, payloads: Mapping[str, Stored]) -> Held:
    """The version that a place shows, with these payloads."""
    best = payloads.get("predictions")
    records = {} if best is None else {record.symbol: record for record in best.value.predictions}
    told = (sight.version, sight.fingerprint, sight.generated_at, sight.checked_at, sight.checked_s)
    return Held(*told, origin, payloads, records, sight.rejected)


def store(kind: str, etag: str, origin: Origin, data: bytes) -> Stored:
    """A payload in memory; raises one of `UNREADABLE` where it cannot be."""
    plain = gzip.decompress(data)
    return Stored(etag, origin, data, plain, _DECODERS[kind](plain))


def store_each(etags: Mapping[str, str], data: Mapping[str, bytes]) -> dict[str, Stored]:
    """The payloads of Redis that can be read."""
    found = {}
    for kind, item in data.items():
        try:
            if hashlib.sha256(item).hexdigest() == etags[kind]:
                found[kind] = store(kind, etags[kind], "redis", item)
        except UNREADABLE:  # the caller takes it from the files, and the answer says so
            continue
    return found
