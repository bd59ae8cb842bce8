"""The key card: every key of a source in Redis, and the pointer that says which version is current.

`{S}` is the source's name in braces: a hash tag, so that all keys of a source are in one slot of a Redis Cluster.
`V` is a version, strictly rising: milliseconds since the epoch, or one more than the last where the clock went back.

| key                       | type    | meaning, and who writes it                          | expiry             |
|---------------------------|---------|-----------------------------------------------------|--------------------|
| rolling:{S}:current       | HASH    | the pointer: version, generated_at, checked_at,     | never              |
|                           |         | fingerprint, KIND_etag, KIND_bytes, KIND_count;     |                    |
|                           |         | flipped by a publish, checked_at set by each tick   |                    |
| rolling:{S}:V:predictions | STRING  | the gz bytes of the file; immutable once published  | 120 s after the    |
| rolling:{S}:V:bots        | STRING  | the same                                            | next version; the  |
| rolling:{S}:V:portfolio   | STRING  | the same                                            | current one never  |
| rolling:{S}:V:symbols     | HASH    | symbol -> JSON record, the whole index              |                    |
| rolling:{S}:V:ranking     | ZSET    | symbol by confidence, the same symbols              |                    |
| rolling:{S}:staged:T:*    |         | the five above before the flip; T is a run's token  | 180 s              |
| rolling:{S}:deltas        | STREAM  | id V-0: what a publish changed in the predictions   | the newest 120     |
| rolling:{S}:runs          | STREAM  | one report (JSON, in the field `report`) a run      | about a day        |
| rolling:{S}:scans         | STREAM  | the same for each run that has published a scan     | the newest 100     |
| rolling:{S}:reads         | HASH    | origin -> answers over HTTP, of all processes that  | never              |
|                           |         | serve; each adds to it, if it may                   |                    |
| rolling:{S}:lock          | STRING  | the token of the run that may publish               | 10 s, extended     |
| rolling:{S}:handed        | HASH    | a run whose scans the fleet has not given back yet: | ten intervals,     |
|                           |         | token, assignment (JSON); deleted at its end        | renewed by scans   |
| rolling:{S}:revoked:M     | STRING  | a run was revoked; M is what its tokens begin with  | ten intervals      |
| rolling:{S}:part:D        | STRING  | what a scan found in one part (gz JSON); D is a     | an hour, renewed   |
|                           |         | digest of the part as it was; immutable; deleted    | by each tick       |
|                           |         | when the part is seen as it is now                  |                    |
| rolling:{S}:parts         | SET     | the digests of all that are kept                    | never              |
| rolling:{S}:tick:N        | STRING  | tick N (time / interval) is taken by a run          | two intervals      |
| rolling:{S}:published     | channel | the new version, nothing more; sent by the flip     |                    |
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

import msgspec

from optimizer.errors import CacheUnavailable

__all__ = ["PAYLOAD_KINDS", "VERSION_KINDS", "Keys", "Pointer"]

PAYLOAD_KINDS: Final = ("predictions", "bots", "portfolio")
VERSION_KINDS: Final = (*PAYLOAD_KINDS, "symbols", "ranking")


@dataclass(frozen=True)
class Keys:
    """The names of a source's keys; `version` may be any text that stands in its place."""

    source: str

    def _name(self, *parts: str) -> str:
        return ":".join(("rolling", f"{{{self.source}}}", *parts))

    @property
    def current(self) -> str:
        """The pointer."""
        return self._name("current")

    @property
    def lock(self) -> str:
        """The lock of the run that may publish."""
        return self._name("lock")

    @property
    def handed(self) -> str:
        """The run whose scans have been handed out."""
        return self._name("handed")

    def revoked(self, mark: str) -> str:
        """There once a run was revoked."""
        return self._name("revoked", mark)

    @property
    def parts(self) -> str:
        """The digests of all parts whose findings are kept."""
        return self._name("parts")

    def part(self, digest: str) -> str:
        """What was found in a part."""
        return self._name("part", digest)

    @property
    def runs(self) -> str:
        """The stream of reports."""
        return self._name("runs")

    @property
    def scans(self) -> str:
        """The stream of reports with the status `success`."""
        return self._name("scans")

    @property
    def reads(self) -> str:
        """The sums of answers by origin."""
        return self._name("reads")

    @property
    def deltas(self) -> str:
        """The stream of changes."""
        return self._name("deltas")

    @property
    def published(self) -> str:
        """The channel of new versions."""
        return self._name("published")

    @property
    def every(self) -> str:
        """A pattern, as `SCAN` takes it, for all keys of the source."""
        return self._name("*").replace("[", "\\[")

    def tick(self, number: int) -> str:
        """The mark that a tick is taken."""
        return self._name("tick", str(number))

    def payload(self, version: int, kind: str) -> str:
        """One value of a version: a payload kind, `symbols` or `ranking`."""
        return self._name(str(version), kind)

    def staged(self, token: str, kind: str) -> str:
        """The same before it is published."""
        return self._name("staged", token, kind)


class Pointer(msgspec.Struct, frozen=True):
    """The pointer as read: which version is current, and what it holds."""

    version: int
    generated_at: str
    checked_at: str
    fingerprint: str
    etags: dict[str, str]
    counts: dict[str, int]

    @classmethod
    def from_hash(cls, values: dict[bytes, bytes]) -> Pointer | None:
        """From the fields of the HASH; `None` where it is empty.

        Raises:
            CacheUnavailable: The fields are not those of a pointer.
        """
        if not values:
            return None
        texts = {name.decode("utf-8", "replace"): value.decode("utf-8", "replace") for name, value in values.items()}
        try:
            for name in ("generated_at", "checked_at"):
                if datetime.fromisoformat(texts[name]).tzinfo is None:
                    raise ValueError(f"{name} has no time zone")
            return cls(
                int(texts["version"]),
                texts["generated_at"],
                texts["checked_at"],
                texts["fingerprint"],
                {kind: texts[f"{kind}_etag"] for kind in PAYLOAD_KINDS},
                {kind: int(texts[f"{kind}_count"]) for kind in PAYLOAD_KINDS},
            )
        except (KeyError, ValueError) as error:
            raise CacheUnavailable(
                f"the pointer is damaged ({error!r}): delete the key that ends in :current"
            ) from None
