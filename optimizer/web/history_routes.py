"""The routes of the history. They send data in memory, and ask neither Redis nor files.

GET /history                         the last steps, newest first: the changes of each version
GET /predictions/{symbol}/history    the values of a symbol over the known versions
"""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Path, Query, Response

from optimizer.web import describe
from optimizer.web.history_pages import SHOWN_STEPS, HistorySteps, SymbolHistory
from optimizer.web.prepared import Sending
from optimizer.web.problems import SymbolRoute, problem
from optimizer.web.service import Service

__all__ = ["add_history"]


def add_history(router: APIRouter, service: Service) -> None:
    """Add the routes of the history."""

    @router.get(
        "/history",
        summary="What the last versions changed, newest first",
        responses=describe.responses(HistorySteps, describe.HISTORY_EXAMPLE, 304, 422, 503, snapshot=True),
    )
    async def history(
        limit: Annotated[
            int,
            Query(ge=1, le=1_000, description="The largest number of steps; 120 are held.", examples=[50]),
            describe.DIGITS,
        ] = SHOWN_STEPS,
    ) -> Response:
        """Each list of a step has the 20 biggest; `counts` are of everything. Ranks begin at 1."""
        pages = await service.history()
        if limit == SHOWN_STEPS:
            return Sending(pages.shown)
        return Sending(await asyncio.to_thread(pages.latest, limit))

    async def prediction_history(
        symbol: Annotated[str, Path(description="Any text; a slash is written as %2F.", examples=["AAPL"])],
    ) -> Response:
        """The values are null at a version in which the symbol was no longer a prediction."""
        pages = await service.history()
        response = pages.of_symbol(symbol)
        if response is None:
            since, version = pages.history.since, pages.version
            return problem(404, f"{symbol!r} is in the predictions of no version from {since} to {version}")
        return Sending(response)

    router.add_api_route(
        "/predictions/{symbol:path}/history",
        prediction_history,
        summary="A symbol's confidence, prediction and price over the last versions",
        responses=describe.responses(SymbolHistory, describe.SYMBOL_HISTORY_EXAMPLE, 304, 404, 422, 503, snapshot=True),
        route_class_override=SymbolRoute,
    )
