"""The routes of the history, and their responses for one version; none asks Redis.

GET /history                         the last steps, newest first: what each version changed
GET /predictions/{symbol}/history    the values of a symbol over the versions that are known
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Annotated, Final

import msgspec
from fastapi import APIRouter, Path, Query, Response

from optimizer.models import Value
from optimizer.web import describe
from optimizer.web.history import History, HistoryPoint
from optimizer.web.history_steps import HistoryStep
from optimizer.web.pages import CACHED_RESPONSE_BYTES, Pages
from optimizer.web.prepared import Prepared, Sending
from optimizer.web.problems import SymbolRoute, problem

__all__ = ["HistoryPages", "HistorySteps", "SymbolHistory", "add_history"]

SHOWN_STEPS: Final = 50
# Short responses that are cached a version, which of symbols most are.
CACHED_RESPONSES: Final = 64

_encode: Final = msgspec.json.Encoder().encode


class HistorySteps(Value, frozen=True):
    """What the last versions changed, newest first; versions that changed nothing here have no step."""

    version: int
    steps: list[HistoryStep]


class SymbolHistory(Value, frozen=True):
    """A symbol at `since`, the oldest version that is known, and at each version that changed its record; oldest first.

    A symbol that came later has no point at `since`. The time of that version is the one in its number.
    """

    symbol: str
    version: int
    since: int
    points: list[HistoryPoint]


class HistoryPages:
    """The responses of the history of one version.

    Args:
        history: The history.
        pages: The responses of the version that it leads to.
    """

    def __init__(self, history: History, pages: Pages) -> None:
        self.history = history
        self._pages = pages
        self.shown = self.latest(SHOWN_STEPS)
        self._cached: OrderedDict[str, Prepared] = OrderedDict()

    def latest(self, limit: int) -> Prepared:
        """The last steps; made anew each time, which takes milliseconds."""
        # As `HistorySteps`, of steps that are JSON.
        return self._pages.prepare(_encode({"version": self._pages.version, "steps": self.history.latest(limit)}))

    def of_symbol(self, symbol: str) -> Prepared | None:
        """The history of a symbol; `None` if no version that is known has it."""
        response = self._cached.get(symbol)
        if response is None:
            points = self.history.of_symbol(symbol)
            if points is None:
                return None
            body = _encode(SymbolHistory(symbol, self._pages.version, self.history.since, points))
            response = self._pages.prepare(body)
            if len(body) <= CACHED_RESPONSE_BYTES:
                self._cached[symbol] = response
            if len(self._cached) > CACHED_RESPONSES:
                self._cached.popitem(last=False)
        return response
