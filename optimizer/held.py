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
from typing import Any, Final

import msgspec

from optimizer.answers import Origin
from optimizer.connection import UNREADABLE
from optimizer.keys import PAYLOAD_KINDS
from optimizer.records import BotsSnapshot, Index, Manifest, PortfolioSnapshot, PredictionsSnapshot, Record, Rejected

__all__ = ["Held", "Stored", "hold", "store", "store_each"]

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
class Held:
    """One version, whole; never changed, only replaced. `checked_s` is in seconds since the epoch."""

    version: int
    generated_at: str
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
        return max(0.0, time.time() - self.checked_s)

    def payloads_from(self, origin: Origin) -> dict[str, Stored]:
        """The same payloads, where another place is found to hold them too."""
        return {kind: replace(stored, origin=origin) for kind, stored in self.payloads.items()}

    def is_set_of(self, manifest: Manifest) -> bool:
        """Whether a manifest lists these very payloads."""
        return self.version == manifest.version and all(
            stored.etag == manifest.snapshots[kind].sha256 for kind, stored in self.payloads.items()
        )


def hold(
    version: int,
    generated_at: str,
    checked_s: float,
    origin: Origin,
    payloads: Mapping[str, Stored],
    *,
    rejected: Rejected | None = None,
) -> Held:
    """A version of these payloads."""
    best = payloads.get("predictions")
    records = {} if best is None else {record.symbol: record for record in best.value.predictions}
    return Held(version, generated_at, checked_s, origin, payloads, records, rejected)


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
