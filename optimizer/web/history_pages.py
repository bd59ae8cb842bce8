"""The responses of the history of one version. Values in, bytes out; no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from optimizer.cache.keys import PAYLOAD_KINDS
from optimizer.models import Value, VersionContent
from optimizer.reader.changes import HeldChange
from optimizer.reader.results import CachedVersion
from optimizer.web.history import History, HistoryPoint, follow
from optimizer.web.history_steps import HistoryStep
from optimizer.web.pages import CACHED_RESPONSE_BYTES, Pages
from optimizer.web.prepared import Prepared, ResponseCache

__all__ = ["SHOWN_STEPS", "HistoryPages", "HistorySteps", "SymbolHistory"]

SHOWN_STEPS: Final = 50
# The number of symbols whose responses are kept per version.
CACHED_RESPONSES: Final = 64

_encode: Final = msgspec.json.Encoder().encode


class HistorySteps(Value, frozen=True):
    """The changes of the last versions, newest first; a version without a change of predictions has no step."""

    version: int
    steps: list[HistoryStep]


class SymbolHistory(Value, frozen=True):
    """A symbol at `since`, the oldest known version, and at each version that changed its record; oldest first.

    A symbol that appeared later has no point at `since`. The time of version `since` is taken from its number.
    """

    symbol: str
    version: int
    since: int
    points: list[HistoryPoint]


class HistoryPages:
    """The responses of the history of one version.

    Args:
        history: The history.
        pages: The responses of its last version.
    """

    def __init__(self, history: History, pages: Pages) -> None:
        self.history = history
        self.version = pages.version
        self._pages = pages
        self.shown = self.latest(SHOWN_STEPS)
        self._responses = ResponseCache(CACHED_RESPONSES)

    @classmethod
    def after(
        cls, before: HistoryPages | None, cached: CachedVersion, pages: Pages, held: Sequence[HeldChange]
    ) -> HistoryPages:
        """Make the responses for a whole version from those of the version before, if any, and the changes."""
        predictions, bots, portfolio = (cached.payloads[kind].value for kind in PAYLOAD_KINDS)
        content = VersionContent(
            version=cached.version,
            generated_at=cached.manifest.generated_at,
            predictions=predictions,
            bots=bots,
            portfolio=portfolio,
        )
        history = None if before is None else before.history
        return cls(follow(history, content, cached.manifest.content_since, held), pages)

    def latest(self, limit: int) -> Prepared:
        """Make the response with the last steps, each time, which takes milliseconds."""
        # Like `HistorySteps`, but with steps that are already JSON.
        return self._pages.respond(_encode({"version": self.version, "steps": self.history.latest(limit)}))

    def of_symbol(self, symbol: str) -> Prepared | None:
        """Return the response with the history of a symbol; `None` if no known version has it."""
        response = self._responses.get(symbol)
        if response is None:
            points = self.history.of_symbol(symbol)
            if points is None:
                return None
            body = _encode(SymbolHistory(symbol, self.version, self.history.since, points))
            response = self._pages.respond(body)
            if len(body) <= CACHED_RESPONSE_BYTES:
                self._responses.store(symbol, response)
        return response
