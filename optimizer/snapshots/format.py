"""The format of a snapshot set: the names of its files, its manifest, its payloads as gzipped JSON. No I/O.

In: the selected records, bots and holdings. Out: a `SnapshotSet`, the bytes that a store writes. A store reads back a
`SnapshotSet` again, and `is_whole` says whether its bytes are those that its manifest lists.

Errors: `PublishRefused` if a version may not replace the current one.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NotRequired, TypedDict, Unpack

import msgspec
from msgspec import UNSET

from optimizer.errors import PublishRefused
from optimizer.models import (
    UNDECODABLE,
    BotsSnapshot,
    BotSummary,
    FileEntry,
    HeldUpdate,
    Holding,
    Index,
    Manifest,
    PortfolioSnapshot,
    PredictionsSnapshot,
    Record,
    Rejected,
    VersionContent,
    check_times,
)
from optimizer.snapshots.compression import QUICK_GZIP_LEVEL, compress_gzip
from optimizer.storage.location import Location

__all__ = [
    "CONTENT_KINDS",
    "FILE_NAMES",
    "KEPT_SETS",
    "KINDS",
    "MANIFEST_NAME",
    "READ_ATTEMPTS",
    "SET_FILES",
    "VERSIONS_NAME",
    "CurrentManifest",
    "KeptVersion",
    "SetValues",
    "SnapshotSet",
    "check_newer",
    "check_same_set",
    "decode_manifest",
    "encode_index",
    "encode_manifest",
    "encode_payload",
    "encode_set",
    "entry_of",
    "index_of",
    "whole_payloads",
]

CONTENT_KINDS: Final = ("predictions", "bots", "portfolio")
KINDS: Final = (*CONTENT_KINDS, "index")
FILE_NAMES: Final = {
    "predictions": "rolling_optimized.json.gz",
    "bots": "bots_snapshot.json.gz",
    "portfolio": "portfolio_snapshot.json.gz",
    "index": "symbols_index.json.gz",
}
MANIFEST_NAME: Final = "manifest.json"
SET_FILES: Final = frozenset({MANIFEST_NAME, *FILE_NAMES.values()})
VERSIONS_NAME: Final = "versions"
# The fewest sets that are kept: the current one, and the one before it, for readers that resolved it just before it was
# replaced.
KEPT_SETS: Final = 2
# How often a reader starts again after a set was removed between two of its reads.
READ_ATTEMPTS: Final = 3

_MANIFEST = msgspec.json.Decoder(Manifest)
_INDEX = msgspec.json.Decoder(Index)
_PREDICTIONS = msgspec.json.Decoder(PredictionsSnapshot)
_BOTS = msgspec.json.Decoder(BotsSnapshot)
_PORTFOLIO = msgspec.json.Decoder(PortfolioSnapshot)


@dataclass(frozen=True)
class SnapshotSet:
    """One version: its manifest, and the gz bytes of each kind."""

    manifest: Manifest
    payloads: dict[str, bytes]

    @property
    def is_whole(self) -> bool:
        """Whether the payloads have the digests that the manifest lists."""
        entries = self.manifest.snapshots
        return all(hashlib.sha256(data).hexdigest() == entries[kind].sha256 for kind, data in self.payloads.items())

    def content(self) -> VersionContent:
        """Decode predictions, bots and holdings; raises the errors of gzip, or one of `UNDECODABLE`."""
        return VersionContent(
            version=self.manifest.version,
            generated_at=self.manifest.generated_at,
            predictions=_PREDICTIONS.decode(gzip.decompress(self.payloads["predictions"])),
            bots=_BOTS.decode(gzip.decompress(self.payloads["bots"])),
            portfolio=_PORTFOLIO.decode(gzip.decompress(self.payloads["portfolio"])),
            rejected=self.manifest.rejected,
        )

    def decode_index(self) -> Index:
        """Decode the index."""
        return _INDEX.decode(gzip.decompress(self.payloads["index"]))

    def index(self) -> list[Record]:
        """The records of the index, best first."""
        return self.decode_index().symbols

    def with_index(self, index: Index) -> SnapshotSet:
        """Return the set with this index; the same set if the index is equal."""
        if "index" in self.payloads and msgspec.json.encode(self.decode_index()) == msgspec.json.encode(index):
            return self
        data = encode_index(index)
        manifest = msgspec.structs.replace(
            self.manifest,
            snapshots=self.manifest.snapshots | {"index": entry_of("index", data, len(index.symbols))},
            updates=len(index.updates or ()),
        )
        return SnapshotSet(manifest, self.payloads | {"index": data})


def whole_payloads(
    manifest: Manifest, kinds: Sequence[str], replies: Sequence[bytes | None]
) -> dict[str, bytes] | None:
    """Return the payloads of these kinds, as MGET has returned them; `None` unless all are there as the manifest says.

    MGET returns `None` for a key of another type too.
    """
    payloads = {kind: data for kind, data in zip(kinds, replies, strict=True) if data is not None}
    is_whole = len(payloads) == len(kinds) and SnapshotSet(manifest, payloads).is_whole
    return payloads if is_whole else None


@dataclass(frozen=True)
class CurrentManifest:
    """The manifest of the current set, and when a run last made or confirmed that set.

    `checked_s` is in seconds since the epoch, by the clock of the file system or the object store. `validator` changes
    with the file, on systems where a change can be noticed without reading the file.
    """

    manifest: Manifest
    checked_s: float
    validator: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class KeptVersion:
    """A kept set, as described by its manifest and the sizes of its files, without reading them.

    `manifest` is `None` if it is missing or damaged. `problem` describes a defect of the set; empty for none.
    """

    version: int
    manifest: Manifest | None
    problem: str = ""

    @classmethod
    def of(cls, version: int, manifest: Manifest | None, sizes: Mapping[str, int]) -> KeptVersion:
        """Return the set of this manifest, given the sizes in bytes of the existing files, by name."""
        if manifest is None or manifest.version != version:
            return cls(version, None, f"{MANIFEST_NAME} is missing or damaged")
        for kind in KINDS:
            entry = manifest.snapshots.get(kind)
            if entry is None:
                return cls(version, manifest, f"the manifest lacks {FILE_NAMES[kind]}")
            if sizes.get(entry.file) != entry.bytes:
                found = f"has {sizes[entry.file]:,} of {entry.bytes:,} bytes" if entry.file in sizes else "is missing"
                return cls(version, manifest, f"{entry.file} {found}")
        return cls(version, manifest)


class SetValues(TypedDict):
    """The values from which a version is made."""

    source: str
    version: int
    generated_at: str
    fingerprint: str
    ranked: Sequence[Record]
    predictions: list[Record]
    bots: Mapping[str, BotSummary]
    holdings: list[Holding]
    gzip_level: int
    rejected: NotRequired[Rejected | None]
    updates: NotRequired[Mapping[str, HeldUpdate]]
    made_by: NotRequired[str | None]
    input_at: NotRequired[str | None]


def encode_set(*, kept: SnapshotSet | None = None, **values: Unpack[SetValues]) -> SnapshotSet:
    """Encode the snapshots of a version. Equal content gives equal bytes: the time in the gzip header is 0.

    Args:
        kept: The kinds that are unchanged since an earlier version, with their files.
        values: The values of the new version, including the unchanged kinds.
    """
    generated_at, bots = values["generated_at"], dict(values["bots"])
    predictions, holdings = values["predictions"], values["holdings"]
    index = index_of(values["ranked"], generated_at, values.get("updates", {}))
    contents: dict[str, tuple[msgspec.Struct, int]] = {
        "predictions": (PredictionsSnapshot(predictions, generated_at, len(predictions)), len(predictions)),
        "bots": (BotsSnapshot(bots, generated_at), len(bots)),
        "portfolio": (PortfolioSnapshot(holdings, generated_at), len(holdings)),
        "index": (index, len(index.symbols)),
    }
    payloads, entries = {}, {}
    for kind, (content, count) in contents.items():
        if kept is not None and kind in kept.payloads:
            payloads[kind], entries[kind] = kept.payloads[kind], kept.manifest.snapshots[kind]
        else:
            payloads[kind] = encode_index(index) if kind == "index" else encode_payload(content, values["gzip_level"])
            entries[kind] = entry_of(kind, payloads[kind], count)
    manifest = Manifest(
        source=values["source"],
        version=values["version"],
        generated_at=generated_at,
        fingerprint=values["fingerprint"],
        snapshots=entries,
        rejected=values.get("rejected"),
        made_by=values.get("made_by"),
        updates=len(index.updates or ()),
        input_at=values.get("input_at"),
    )
    return SnapshotSet(manifest, payloads)


def index_of(ranked: Sequence[Record], timestamp: str, updates: Mapping[str, HeldUpdate]) -> Index:
    """Return the index of a version: its records, best first, and the updates in force."""
    return Index(list(ranked), timestamp, dict(sorted(updates.items())) or UNSET)


def encode_payload(content: msgspec.Struct, gzip_level: int) -> bytes:
    """Encode a snapshot. Equal content gives equal bytes: the time in the gzip header is 0."""
    return compress_gzip(msgspec.json.encode(content), gzip_level)


def encode_index(index: Index) -> bytes:
    """Encode an index at a fast level, whatever `ROLLING_GZIP_LEVEL`, since no client downloads it."""
    return encode_payload(index, QUICK_GZIP_LEVEL)


def entry_of(kind: str, data: bytes, count: int) -> FileEntry:
    """The entry of a payload in the manifest."""
    return FileEntry(FILE_NAMES[kind], hashlib.sha256(data).hexdigest(), len(data), count)


def encode_manifest(manifest: Manifest) -> bytes:
    """Encode a manifest as the content of its file."""
    return msgspec.json.format(msgspec.json.encode(manifest))


def decode_manifest(data: bytes) -> Manifest | None:
    """Decode the content of a manifest's file; `None` if it is damaged."""
    try:
        manifest = _MANIFEST.decode(data)
        check_times(**manifest.times)
    except (ValueError, *UNDECODABLE):
        return None
    return manifest


def check_newer(version: int, replaced: int | None, current: Manifest | None, where: Location) -> None:
    """Check, before a version becomes current, that it is newer than the current one and that none came in between.

    Args:
        version: The version.
        replaced: The newest version when the input was opened; `None` if that does not matter. A version newer than
            that may have been made from a newer input, whatever the number of this one.
        current: The current manifest.
        where: The location, for the message.

    Raises:
        PublishRefused: Another run has written a version meanwhile.
    """
    newest = version - 1 if replaced is None else min(replaced, version - 1)
    if current is not None and current.version > newest:
        raise PublishRefused(
            f"version {version} was not published: {where} holds version {current.version} by now, written while this "
            "run was on; the next tick starts anew"
        )


def check_same_set(manifest: Manifest, current: Manifest | None, where: Location) -> None:
    """Check, before a manifest replaces the current one, that both are of the same set.

    Args:
        manifest: The new manifest.
        current: The current manifest.
        where: The location, for the message.

    Raises:
        PublishRefused: Another set is the current one by now.
    """
    if current is None or not current.is_same_set(manifest):
        now = "no usable set" if current is None else f"version {current.version}"
        raise PublishRefused(
            f"the manifest of version {manifest.version} was not replaced: {where} holds {now} by now; the next tick "
            "starts anew"
        )
