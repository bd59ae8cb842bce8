"""The routes for operators and probes.

GET /status  /runs  /healthz  /readyz  /metrics
POST /runs  GET /runs/{id}                           if there is a trigger, see `trigger.py`
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Annotated, Any, Final, Literal, TypeVar

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import PlainTextResponse

from optimizer.errors import CacheUnavailable, SnapshotMissing
from optimizer.models import Pin, Process, Rejected, Report, Value
from optimizer.reader.diagnosis import Diagnosis, Facts, diagnose
from optimizer.reader.lookups import Lookups, ScanStatus
from optimizer.reader.reports import describe_rejected, most_bots_lack_fields, published_after_s
from optimizer.reader.stores import CacheStore
from optimizer.web import describe, metrics
from optimizer.web.exposition import MEDIA_TYPE
from optimizer.web.problems import compressed_response, json_response, problem, unavailable
from optimizer.web.service import Service
from optimizer.web.trigger import Trigger, add_trigger_routes

__all__ = ["add_operations"]

# How long /status waits for reports: the rest of its data is in memory.
REPORTS_S: Final = 0.2

T = TypeVar("T")


class SnapshotStatus(Value, frozen=True):
    """The age of the current version, and the store that it is read from.

    `bots_lack_fields` says that most bots have no value in any field that is read: the engine may use other names.
    `updates` is the number of records and removals in force that were published without a scan.
    `input_at` is the last write to the input of the version, null if its storage does not tell; `input_stale` says that
    it is older than `ROLLING_MAX_INPUT_AGE_S`. `published_after_s` is null if no report has it, and while Redis is
    away. `diagnosis` says what is wrong, if anything; `processes` are workers and beats.
    """

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
    bots_lack_fields: bool
    pinned: Pin | None
    restored_from: int | None
    updates: int
    input_at: str | None
    input_age_s: float | None
    input_stale: bool
    published_after_s: float | None
    diagnosis: Diagnosis
    processes: list[Process]


class RunReports(Value, frozen=True):
    """The newest reports, newest first."""

    runs: list[Report]


class ProbeStatus(Value, frozen=True, omit_defaults=True):
    """The process is alive, or ready; `pinned` says that no run replaces the version that it shows."""

    status: str
    pinned: Pin | None = None


def add_operations(
    router: APIRouter,
    service: Service,
    trigger: Trigger | None = None,
    sources: Sequence[str] = (),
    services: Sequence[Service] = (),
) -> None:
    """Add the routes for operators and probes; those that start runs only if there are a trigger and a token.

    Args:
        router: The router to which they are added.
        service: The source.
        trigger: Sends runs.
        sources: The names of all sources that the app serves.
        services: The sources in `/metrics`; by default only this one.
    """
    may_trigger = trigger is not None and bool(service.settings.trigger_token)
    reported = _Reported(service)

    @router.get(
        "/status",
        summary="Version, age and origin",
        responses=describe.responses(SnapshotStatus, describe.STATUS_EXAMPLE, 503),
    )
    async def status(request: Request) -> Response:
        """Without a snapshot, the problem has the members that need none, so that a client can still start a run."""
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
        facts, latency_s = await reported.facts()
        diagnosis = diagnose(facts)
        always |= {"diagnosis": diagnosis, "processes": facts.processes}
        try:
            state = await reader.manifest()
        except SnapshotMissing as error:
            return unavailable(error, always, detail=diagnosis.sentence)
        return compressed_response(
            SnapshotStatus(
                version=state.version,
                generated_at=state.generated_at,
                age_s=round(state.age_s, 3),
                stale=state.stale,
                origin=state.origin,
                last_success=state.checked_at,
                rejected=state.rejected,
                notes=describe_rejected(state.rejected),
                bots_lack_fields=state.rejected is not None and most_bots_lack_fields(state.rejected),
                pinned=state.pinned,
                restored_from=state.restored_from,
                updates=state.updates,
                input_at=state.input_at,
                input_age_s=state.input_age_s,
                input_stale=state.input_stale,
                published_after_s=latency_s,
                **always,
            ),
            request,
        )

    @router.get(
        "/runs",
        summary="The last runs, newest first; none while Redis is away",
        responses=describe.responses(RunReports, describe.RUNS_EXAMPLE, 304, 422),
    )
    async def runs(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=1_000, examples=[20]), describe.DIGITS] = 20,
        status: Annotated[
            ScanStatus | None,
            Query(description="Only scans that were published, of which 100 are kept.", examples=["success"]),
        ] = None,
        after: Annotated[
            str | None,
            Query(
                max_length=64,
                description="Only reports after the one with this `timestamp`; all reports if none has it.",
                examples=["2026-11-01T10:00:00.000Z"],
            ),
        ] = None,
    ) -> Response:
        reports = await (await service.reader()).runs(limit, status=status)
        return compressed_response(RunReports(_newer(reports, after)), request, revalidated=True)

    @router.get("/healthz", summary="The process lives", responses=describe.responses(ProbeStatus, {"status": "alive"}))
    async def healthz() -> Response:
        return json_response(ProbeStatus("alive"))

    @router.get(
        "/readyz",
        summary="There is a snapshot that can be read, and it is not stale",
        responses=describe.responses(ProbeStatus, {"status": "ready"}, 503),
    )
    async def readyz() -> Response:
        reader = await service.reader()
        try:
            state = await reader.manifest()
        except SnapshotMissing as error:
            return unavailable(error, detail=diagnose((await reported.facts())[0]).sentence)
        if not reader.follower.current().is_whole:
            detail = f"a part of version {state.version} cannot be read; the next publish mends it"
            return problem(503, detail, {"Retry-After": "5"})
        if state.stale or state.input_stale:
            return problem(503, diagnose((await reported.facts())[0]).sentence, {"Retry-After": "5"})
        return json_response(ProbeStatus("ready", state.pinned))

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
        """Metrics of all sources that the app serves, at the route of each source."""
        observed = await asyncio.gather(*map(_observe, services or [service]))
        return Response(metrics.render(observed), headers={"Cache-Control": "no-store"}, media_type=MEDIA_TYPE)

    if trigger is not None and may_trigger:
        add_trigger_routes(router, trigger, service.settings.trigger_token, service.settings.source)


async def _observe(service: Service) -> metrics.Observed:
    """Collect the data about a source for Prometheus; each request to Redis has the time limit of a reader."""
    reader = await service.reader()
    redis = reader.follower.redis
    facts, scans = await reader.facts(), await reader.runs(1, status="success")
    await asyncio.to_thread(service.read_counters.share, reader.follower)
    return metrics.Observed(
        facts=facts,
        scans=scans,
        outcomes=await asyncio.to_thread(_if_known, redis, redis.outcomes),
        memory=await asyncio.to_thread(_if_known, redis, redis.memory),
        reads=service.read_counters.totals(),
        listeners=len(service.hub),
    )


def _if_known(redis: CacheStore, ask: Callable[[], T]) -> T | None:
    """Return the result of a request to Redis; `None` while it is away, or if this user may not send it."""
    with suppress(CacheUnavailable):
        return ask() if redis.up else None
    return None


def _newer(reports: list[Report], after: str | None) -> list[Report]:
    """Return the reports before the last one with this timestamp, by position, since clocks of workers may differ.

    Two reports may have the same timestamp; a client that has one of them gets the other.
    """
    held = [index for index, report in enumerate(reports) if report.timestamp == after]
    return reports[: held[-1]] if held else reports


class _Reported:
    """The facts about a source for the routes that do not wait for a slow Redis: the rest of them is in memory.

    Runs and processes are those of its last reply while a newer one is late, so that what it has said, such as why runs
    fail, does not come and go with its speed.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._known: Facts | None = None

    async def facts(self) -> tuple[Facts, float | None]:
        """Return the facts, and how soon the last input was published: `None` if unknown, and if Redis is slow."""
        reader = await self._service.reader()
        asking = asyncio.get_running_loop().run_in_executor(None, self._ask, reader.lookups)
        done, _ = await asyncio.wait([asking], timeout=REPORTS_S)
        if done:
            return await asking
        follower, known = reader.follower, self._known
        up = follower.redis.up
        if known is None or not up or time.time() - known.now_s > follower.stale_after_s:
            facts = Facts.of(follower, redis_up=up, redis_is_slow=True)
        else:
            facts = Facts.of(follower, redis_up=up, runs=known.runs, processes=known.processes)
        asking.add_done_callback(partial(self._compare, facts))
        return facts, None

    def _compare(self, before: Facts, asking: asyncio.Future[tuple[Facts, float | None]]) -> None:
        """Notify the listeners if a reply that was late for a request changes the diagnosis in its response."""
        if asking.cancelled() or asking.exception():  # the reader was closed meanwhile
            return
        if diagnose(asking.result()[0]).code != diagnose(before).code:
            self._service.hub.send_status()

    def _ask(self, lookups: Lookups) -> tuple[Facts, float | None]:
        """Read the reports in a thread; not through the reader, which would start again if it is closed meanwhile."""
        facts, scans = lookups.facts(), lookups.runs(1, "success")
        if facts.redis_up and (self._known is None or facts.now_s > self._known.now_s):
            self._known = facts
        return facts, published_after_s(facts.runs, scans)
