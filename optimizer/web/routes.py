"""The routers, and the routes of snapshots: each sends a prepared response, or the result of one lookup in Redis.

GET /predictions  /predictions/{symbol}  /bots  /portfolio  /page    of the current version; 503 without one
GET /predictions.csv                                                 the same as a table, see `csv.py`
GET /events                                                          new versions; with `?data=changes`: their changes
GET /changes  /snapshot                                              see `changes.py`
GET /history  /predictions/{symbol}/history                          see `history_routes.py`
GET /static/follow.js                                                the module by which a page follows these routes
GET /status  /runs  /healthz  /readyz  /metrics                      see `operations.py`
POST /runs  GET /runs/{id}                                           if there is a trigger, see `trigger.py`
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Final, Literal, NamedTuple

from fastapi import APIRouter, Header, Path, Query, Response

from optimizer.config.settings import Settings
from optimizer.errors import SettingsInvalid
from optimizer.models import BotsSnapshot, PortfolioSnapshot, PredictionsSnapshot, Record
from optimizer.reader.async_reader import AsyncSnapshotReader
from optimizer.reader.reader import SnapshotReader
from optimizer.web import describe
from optimizer.web.assets import FOLLOW_PATH, load_asset
from optimizer.web.changes import LONGEST_VERSION, add_changes
from optimizer.web.csv import add_csv
from optimizer.web.events import TOO_MANY_LISTENERS, ChangeStream, EventStream
from optimizer.web.history_routes import add_history
from optimizer.web.operations import add_operations
from optimizer.web.pages import SnapshotPage
from optimizer.web.prediction_query import ALL, PredictionQuery
from optimizer.web.prepared import Sending
from optimizer.web.problems import ProblemRoute, SymbolRoute, problem
from optimizer.web.service import Service
from optimizer.web.trigger import Trigger

__all__ = ["Routers", "make_router", "make_routers", "router_of"]

TAG: Final = "rolling optimizer"


class Routers(NamedTuple):
    """Two routers of one reader: the data of pages, and the routes for operators and probes."""

    snapshots: APIRouter
    operations: APIRouter


def make_router(
    settings: Settings | None = None,
    *,
    source: str | None = None,
    trigger: Trigger | None = None,
    reader: SnapshotReader | AsyncSnapshotReader | None = None,
    operations: bool = True,
) -> APIRouter:
    """Make a router for `app.include_router(...)`.

    Args:
        settings: The settings; by default `ROLLING_*` of the environment, read when the app starts, or in this call if
            there is a trigger. With a reader they are needed only for a trigger.
        source: Selects one of several sources (`ROLLING_SOURCES`), if the settings come from the environment.
        trigger: Sends runs to the fleet; used only if the settings have a `trigger_token`.
        reader: An existing reader of the app, which manages its lifetime: the router starts it if need be, and never
            closes it. By default the router makes a reader.
        operations: Whether to include the routes for operators and probes: `/status`, `/runs`, `/healthz`, `/readyz`,
            `/metrics`. `make_routers` returns them as a separate router.

    Raises:
        SettingsInvalid: The settings, or the source, are not those of the reader; or a trigger is given without
            operations, to which its routes belong.
    """
    if trigger is not None and not operations:
        raise SettingsInvalid("trigger=... needs the routes under /runs, which operations=False leaves out: drop one")
    service = Service.of(settings, source=source, reader=reader)
    return router_of(service, trigger) if operations else _snapshots_router(service)


def make_routers(
    settings: Settings | None = None,
    *,
    source: str | None = None,
    trigger: Trigger | None = None,
    reader: SnapshotReader | AsyncSnapshotReader | None = None,
) -> Routers:
    """Make two routers that share one reader, for an app that includes them in different places.

    So a login can protect the snapshots without affecting probes and Prometheus. The arguments are those of
    `make_router`.
    """
    service = Service.of(settings, source=source, reader=reader)
    return Routers(_snapshots_router(service), _operations_router(service, trigger))


def router_of(
    service: Service,
    trigger: Trigger | None = None,
    sources: Sequence[str] = (),
    services: Sequence[Service] = (),
) -> APIRouter:
    """Return all routes of a service in one router; `sources` and `services` are all that the app serves."""
    router = _router(service)
    _add_snapshots(router, service)
    add_operations(router, service, trigger, sources, services)
    return router


def _snapshots_router(service: Service) -> APIRouter:
    router = _router(service)
    _add_snapshots(router, service)
    return router


def _operations_router(service: Service, trigger: Trigger | None) -> APIRouter:
    router = _router(service)
    add_operations(router, service, trigger)
    return router


def _router(service: Service) -> APIRouter:
    return APIRouter(route_class=ProblemRoute, lifespan=service.lifespan, tags=[TAG])


def _add_snapshots(router: APIRouter, service: Service) -> None:
    """Add the routes whose responses are prepared."""

    async def whole(kind: str) -> Response:
        return Sending((await service.current()).readable(kind))

    # Not in the schema: it is not an operation of the API, but the module that calls them.
    @router.get(FOLLOW_PATH, response_class=Response, include_in_schema=False)
    async def follow() -> Response:
        return Sending(load_asset(FOLLOW_PATH))

    @router.get(
        "/predictions",
        summary="The top predictions, best first: all, or those that fit",
        responses=describe.responses(PredictionsSnapshot, describe.PREDICTIONS_EXAMPLE, 304, 422, 503, snapshot=True),
    )
    async def predictions(
        limit: describe.Limit = None,
        offset: describe.Offset = 0,
        min_confidence: describe.MinConfidence = 0.0,
        sentiment: describe.Sentiment = None,
    ) -> Response:
        """`count` is the number of records in the response; the header `X-Total-Count` counts all matches."""
        query = PredictionQuery(limit, offset, min_confidence, sentiment)
        if query == ALL:
            return await whole("predictions")
        pages = await service.current()
        pages.readable("predictions")
        return Sending(pages.filtered(query))

    add_csv(router, service)

    @router.get(
        "/bots",
        summary="Every bot by name",
        responses=describe.responses(BotsSnapshot, describe.BOTS_EXAMPLE, 304, 503, snapshot=True),
    )
    async def bots() -> Response:
        return await whole("bots")

    @router.get(
        "/portfolio",
        summary="Holdings by symbol, summed over all bots",
        responses=describe.responses(PortfolioSnapshot, describe.PORTFOLIO_EXAMPLE, 304, 503, snapshot=True),
    )
    async def portfolio() -> Response:
        return await whole("portfolio")

    @router.get(
        "/page",
        summary="All that a page shows, in one answer of one version",
        responses=describe.responses(SnapshotPage, describe.PAGE_EXAMPLE, 304, 503, snapshot=True),
    )
    async def page() -> Response:
        return Sending((await service.current()).page())

    add_history(router, service)  # before the symbols: a path that ends in /history and could match both is a history

    async def prediction(
        symbol: Annotated[str, Path(description="Any text; a slash is written as %2F.", examples=["AAPL"])],
    ) -> Response:
        pages = await service.current()
        response = pages.symbol(symbol)
        if response is not None:
            return Sending(response)
        answer = await (await service.reader()).symbol(symbol)
        response = pages.looked_up(answer, partial(service.lookup_headers, answer))
        if response is None:
            return problem(404, f"no prediction for {symbol!r} in version {answer.version}")
        return Sending(response)

    router.add_api_route(
        "/predictions/{symbol:path}",
        prediction,
        summary="One symbol of the index, whatever its confidence",
        responses=describe.responses(Record, describe.RECORD_EXAMPLE, 304, 404, 422, 503, snapshot=True),
        route_class_override=SymbolRoute,
    )

    @router.get(
        "/events",
        response_class=EventStream,
        status_code=200,
        summary="Server-sent events: a message a version, and when Redis goes away or comes back",
        responses=describe.text_response(
            "text/event-stream",
            "The current version first; a client that names its last one gets what it has missed.",
            'event: version\nid: 1795000000000\ndata: {"version":1795000000000,"generated_at":"..."}\n\n',
            full=TOO_MANY_LISTENERS.format(704),
        ),
    )
    async def events(
        data: Annotated[
            Literal["changes"] | None,
            Query(
                description="`changes`: messages have the changes, or `reset`: take the snapshot.",
                examples=["changes"],
            ),
        ] = None,
        since: Annotated[
            int | None,
            Query(
                ge=0,
                le=LONGEST_VERSION,
                description="With `data=changes`: the version that the client has. Last-Event-ID takes precedence.",
                examples=[1795000000000],
            ),
            describe.DIGITS,
        ] = None,
        last_event_id: Annotated[
            str | None, Header(description="The id of the last message received.", examples=["1795000000000"])
        ] = None,
    ) -> Response:
        messages = await service.messages()
        known = last_event_id is not None and last_event_id.isascii() and last_event_id.isdecimal()
        version = int(last_event_id[:20]) if known and last_event_id else None
        if data is None:
            return EventStream(service.hub, version)
        version = since if version is None else version
        cached = (await service.reader()).follower.cached
        if cached is not None and version is not None:
            await asyncio.to_thread(messages.since, version, cached)  # made in a thread; the stream finds them
        return ChangeStream(service.hub, version)

    add_changes(router, service)
