"""The results of a source's parts from run to run: encoded in the part store, or none while Redis is away."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from typing import Final

import msgspec

from optimizer.cache.client import UNREADABLE
from optimizer.cache.parts import PartStore
from optimizer.models import PartResult
from optimizer.pipeline.session import Session

__all__ = ["PartResults"]

# A result is read once or twice, and soon: time counts more than bytes.
GZIP_LEVEL: Final = 1

_RESULT: Final = msgspec.json.Decoder(PartResult)


class PartResults:
    """The stored results, by the digests of the parts that they are of."""

    def __init__(self, session: Session) -> None:
        self._ask = session.ask
        self._store = PartStore(session.cache)

    def renew(self, digests: Sequence[str]) -> list[bool]:
        """Keep the results of these parts, delete those of others; return for each whether there is one."""
        return self._ask(lambda: self._store.renew(digests), absent=[False] * len(digests)) if digests else []

    def load(self, digest: str) -> PartResult | None:
        """Return a result; `None` if the part was never scanned, or its result is gone or damaged."""
        data = self._ask(lambda: self._store.read(digest), absent=None)
        try:
            return None if data is None else _RESULT.decode(gzip.decompress(data))
        except UNREADABLE:
            self._ask(lambda: self._store.drop(digest), absent=None)
            return None

    def save(self, digest: str, result: PartResult) -> None:
        """Store a result."""
        data = gzip.compress(msgspec.json.encode(result), GZIP_LEVEL)
        self._ask(lambda: self._store.store(digest, data), absent=None)
