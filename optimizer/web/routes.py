"""The routes: each takes checked parameters, and sends what is prepared or the result of one lookup in Redis.

GET /predictions  /predictions/{symbol}  /bots  /portfolio  /page      of the current version; 503 without one
GET /status  /runs  /events  /healthz  /readyz  /metrics
POST /runs  GET /runs/{id}                                            if there is a trigger, see `trigger.py`
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec
from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.responses import PlainTextResponse

from optimizer.config.settings import Settings
from optimizer.errors import SettingsInvalid, SnapshotMissing
from optimizer.models import BotsSnapshot, PortfolioSnapshot, PredictionsSnapshot, Record, Rejected, Report, Value
from optimizer.reader.async_reader import AsyncSnapshotReader
from optimizer.reader.lookups import ScanStatus
from optimizer.reader.reader import SnapshotReader
from optimizer.reader.results import describe_rejected
from optimizer.web import describe, metrics
from optimizer.web.events import TOO_MANY_LISTENERS, EventStream
from optimizer.web.pages import PredictionQuery, SnapshotPage
from optimizer.web.prepared import Sending
from optimizer.web.problems import PartMissing, ProblemRoute, SymbolRoute, problem, unavailable
from optimizer.web.service import Service
from optimizer.web.trigger import Trigger, add_trigger_routes

__all__ = ["Routers", "make_router", "make_routers", "router_of"]

TAG: Final = "rolling optimizer"


class SnapshotStatus(Value, frozen=True):
    """How fresh the current version is, and where it is read from."""

    source: str
    sources: list[str]
    version: int
    generated_at: str
    age_s: float
    stale: bool
    origin: Literal["redis", "files"]
    interval_s: float
    cache_up: bool
    trigger: bool
    flower_url: str | None
    last_success: str | None
    rejected: Rejected | None
    notes: list[str]


class RunReports(Value, frozen=True):
    """The newest reports, newest first."""

    runs: list[Report]


class ProbeStatus(Value, frozen=True):
    """The process lives, or is ready."""

    status: str


class Routers(NamedTuple):
    """Two routers of one reader: what pages show, and what operators and probes need."""

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
    """A router for `app.include_router(...)`.

    Args:
        settings: Where things are; by default `ROLLING_*` of the environment, read when the app starts, or here where
            there is a trigger. With a reader they are needed only for a trigger.
        source: Which of several sources (`ROLLING_SOURCES`), where the settings come from the environment.
        trigger: What sends runs to the fleet; used only where the settings have a `trigger_token`.
        reader: A reader that the app has already. Its lifetime is the app's: the router starts it if need be, and never
            closes it. By default the router has one of its own.
        operations: Whether it has the routes for operators and probes too: `/status`, `/runs`, `/healthz`, `/readyz`,
            `/metrics`. `make_routers` gives them as a router of their own.

    Raises:
        SettingsInvalid: The settings, or the source, are not those of the reader; or a trigger is given without
            operations, which its routes belong to.
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
    """The same as two routers that share one reader, for an app that includes them in different places.

    A login before the snapshots then leaves probes and Prometheus alone. The arguments are those of `make_router`.
    """
    service = Service.of(settings, source=source, reader=reader)
    return Routers(_snapshots_router(service), _operations_router(service, trigger))


def router_of(service: Service, trigger: Trigger | None = None, sources: Sequence[str] = ()) -> APIRouter:
    """All routes of a service, in one router; `sources` are all that the app serves."""
    router = _router(service)
    _add_snapshots(router, service)
    _add_operations(router, service, trigger, sources)
    return router


def _snapshots_router(service: Service) -> APIRouter:
    router = _router(service)
    _add_snapshots(router, service)
    return router


def _operations_router(service: Service, trigger: Trigger | None) -> APIRouter:
    router = _router(service)
    _add_operations(router, service, trigger)
    return router


def _router(service: Service) -> APIRouter:
    return APIRouter(route_class=ProblemRoute, lifespan=service.lifespan, tags=[TAG])


def _add_snapshots(router: APIRouter, service: Service) -> None:
    """Add the routes whose responses are prepared."""

    async def whole(kind: str) -> Response:
        pages = await service.current()
        response = pages.whole(kind)
        if response is None:
            raise PartMissing(f"version {pages.version} has no readable {kind}; the next publish mends it")
        return Sending(response)

    @router.get(
        "/predictions",
        summary="The top predictions, best first: all, or those that fit",
        responses=describe.responses(PredictionsSnapshot, describe.PREDICTIONS_EXAMPLE, 304, 422, 503, snapshot=True),
    )
    async def predictions(
        limit: Annotated[
            int | None, Query(ge=0, le=1_000_000, description="As many at the most.", examples=[50])
        ] = None,
        offset: Annotated[int, Query(ge=0, le=1_000_000, description="Without the first so many.", examples=[0])] = 0,
        min_confidence: Annotated[float, Query(ge=0, le=1, allow_inf_nan=False, examples=[0.8])] = 0.0,
        sentiment: Annotated[
            str | None, Query(max_length=1_024, description="In upper or lower case.", examples=["bullish"])
        ] = None,
    ) -> Response:
        """`count` is the number in the answer; of how many that fit, says the header `X-Total-Count`."""
        query = PredictionQuery(limit, offset, min_confidence, sentiment)
        if query == PredictionQuery(None, 0, 0.0, None):
            return await whole("predictions")
        pages = await service.current()
        if pages.whole("predictions") is None:
            return await whole("predictions")
        return Sending(pages.filtered(query))

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
        last_event_id: Annotated[
            str | None, Header(description="The id of the last message received.", examples=["1795000000000"])
        ] = None,
    ) -> Response:
        await service.reader()
        known = last_event_id is not None and last_event_id.isascii() and last_event_id.isdecimal()
        return EventStream(service.hub, int(last_event_id[:20]) if known and last_event_id else None)


def _add_operations(
    router: APIRouter, service: Service, trigger: Trigger | None = None, sources: Sequence[str] = ()
) -> None:
    """Add the routes for operators and probes; those that start runs only where there are a trigger and a token."""
    may_trigger = trigger is not None and bool(service.settings.trigger_token)

    @router.get(
        "/status",
        summary="Version, age and origin",
        responses=describe.responses(SnapshotStatus, describe.STATUS_EXAMPLE, 503),
    )
    async def status() -> Response:
        """Without a snapshot the problem has the members that do not need one: a run may be wanted just then."""
        reader = await service.reader()
        follower = reader.follower
        always: dict[str, Any] = {
            "source": follower.source,
            "sources": list(sources) or [follower.source],
            "interval_s": follower.interval_s,
            "cache_up": follower.redis.up,
            "trigger": may_trigger,
            "flower_url": service.flower_url,
        }
        try:
            state = await reader.manifest()
        except SnapshotMissing as error:
            return unavailable(error, always)
        return _json(
            SnapshotStatus(
                version=state.version,
                generated_at=state.generated_at,
                age_s=round(state.age_s, 3),
                stale=state.stale,
                origin=state.origin,
                last_success=state.checked_at,
                rejected=state.rejected,
                notes=describe_rejected(state.rejected),
                **always,
            )
        )

    @router.get(
        "/runs",
        summary="The last runs, newest first; none while Redis is away",
        responses=describe.responses(RunReports, describe.RUNS_EXAMPLE, 422),
    )
    async def runs(
        limit: Annotated[int, Query(ge=1, le=1_000, examples=[20])] = 20,
        status: Annotated[
            ScanStatus | None,
            Query(description="Only scans that were published, of which 100 are kept.", examples=["success"]),
        ] = None,
    ) -> Response:
        return _json(RunReports(await (await service.reader()).runs(limit, status=status)))

    @router.get("/healthz", summary="The process lives", responses=describe.responses(ProbeStatus, {"status": "alive"}))
    async def healthz() -> Response:
        return _json(ProbeStatus("alive"))

    @router.get(
        "/readyz",
        summary="There is a snapshot that can be read, and it is not stale",
        responses=describe.responses(ProbeStatus, {"status": "ready"}, 503),
    )
    async def readyz() -> Response:
        reader = await service.reader()
        state = await reader.manifest()
        if not reader.follower.current().is_whole:
            detail = f"a part of version {state.version} cannot be read; the next publish mends it"
            return problem(503, detail, {"Retry-After": "5"})
        if state.stale:
            detail = (
                f"no run has made or confirmed version {state.version} for {state.age_s:.0f} s: "
                f"{await _why_stale(reader)}"
            )
            return problem(503, detail, {"Retry-After": "5"})
        return _json(ProbeStatus("ready"))

    @router.get(
        "/metrics",
        name="metrics",
        response_class=PlainTextResponse,
        summary="For Prometheus",
        responses=describe.text_response(
            "text/plain", "Prometheus's text format.", "# TYPE rolling_cache_up gauge\nrolling_cache_up 1\n"
        ),
    )
    async def prometheus(_request: Request) -> Response:
        reader = await service.reader()
        runs, scans = await reader.runs(1), await reader.runs(1, status="success")
        await asyncio.to_thread(service.read_counters.share, reader.follower)
        text = metrics.render(reader.follower, runs, scans, service.read_counters.totals(), len(service.hub))
        return Response(text, headers={"Cache-Control": "no-store"}, media_type=metrics.MEDIA_TYPE)

    if trigger is not None and may_trigger:
        add_trigger_routes(router, trigger, service.settings.trigger_token, service.settings.source)


async def _why_stale(reader: AsyncSnapshotReader) -> str:
    """What to check first: Redis, the last run, or the worker."""
    if not reader.follower.redis.up:
        return "Redis does not answer this server, whose log says why"
    for run in await reader.runs(1):
        if run.status == "failed":
            return f"the last run failed at {run.timestamp} ({run.error}), and its report in /runs says why"
    return "are the worker and beat running?"


def _json(value: msgspec.Struct) -> Response:
    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    return Response(msgspec.json.encode(value), headers=headers, media_type="application/json")
