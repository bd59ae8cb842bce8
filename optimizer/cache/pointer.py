"""The pointer in Redis: the current version, when a run last confirmed it, and its manifest.

Fields of the HASH `current`: `version`, which the scripts compare; `checked_at`, by Redis' clock; `manifest`, the bytes
of `manifest.json` in the files. The format of earlier releases, one field per value, is read as well, since routers are
upgraded before workers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec

from optimizer.cache.keys import PAYLOAD_KINDS, VERSION
from optimizer.errors import CacheUnavailable
from optimizer.models import UNDECODABLE, Manifest, check_times

__all__ = ["Pointer", "pointer_fields"]

_MANIFEST: Final = msgspec.json.Decoder(Manifest)


@dataclass(frozen=True)
class Pointer:
    """The pointer as read."""

    checked_at: str
    manifest: Manifest

    @property
    def version(self) -> int:
        """The current version."""
        return self.manifest.version

    @classmethod
    def from_hash(cls, values: dict[bytes, bytes]) -> Pointer | None:
        """Decode the fields of the HASH; `None` if it is empty.

        Raises:
            CacheUnavailable: The fields are not those of a pointer.
        """
        if not values:
            return None
        try:
            is_old = b"fingerprint" in values
            manifest = _manifest_of_fields(values) if is_old else _MANIFEST.decode(values[b"manifest"])
            pointer = cls(values[b"checked_at"].decode(), manifest)
            check_times(checked_at=pointer.checked_at, **manifest.times)
            version = values[b"version"].decode()
            if not VERSION.fullmatch(version) or int(version) != manifest.version:
                raise ValueError(f"{version[:40]!r} is not the manifest's version, of at most 15 digits")
            missing = [kind for kind in PAYLOAD_KINDS if kind not in manifest.snapshots]
            if missing:
                raise ValueError(f"the manifest lacks {', '.join(missing)}")
        except (KeyError, ValueError, *UNDECODABLE) as error:
            raise CacheUnavailable(f"the pointer is damaged ({error!r}); the next run publishes anew") from None
        return pointer


def pointer_fields(manifest: Manifest, checked_at: str) -> dict[bytes, bytes]:
    """Encode a pointer as the fields of the HASH."""
    from optimizer.snapshots.format import encode_manifest  # noqa: PLC0415 - readers do without

    return {
        b"version": str(manifest.version).encode(),
        b"checked_at": checked_at.encode(),
        b"manifest": encode_manifest(manifest),
    }


def _manifest_of_fields(values: dict[bytes, bytes]) -> Manifest:
    """Make the manifest from an earlier release's pointer, which has no index, and from some no counts of rejects."""
    from optimizer.snapshots.format import FILE_NAMES  # noqa: PLC0415 - readers do without, once workers are upgraded

    fields = {name.decode("utf-8", "replace"): value.decode() for name, value in values.items()}
    snapshots = {
        kind: {
            "file": FILE_NAMES[kind],
            "sha256": fields[f"{kind}_etag"],
            "bytes": fields[f"{kind}_bytes"],
            "count": fields[f"{kind}_count"],
        }
        for kind in PAYLOAD_KINDS
    }
    rejected = None
    if "records_seen" in fields:
        rejected = {
            kind: {"seen": fields[f"{kind}_seen"], "rejected": fields[f"{kind}_rejected"]}
            for kind in ("records", "bots")
        }
    common = {name: fields[name] for name in ("version", "generated_at", "fingerprint")}
    return msgspec.convert(
        {**common, "source": "", "snapshots": snapshots, "rejected": rejected}, Manifest, strict=False
    )
