"""The router in an app that has a reader, a login, probes and routes of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import anyio.from_thread
import pytest
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from pydantic import BaseModel
from starlette.routing import Mount
from starlette.testclient import TestClient

import optimizer.testing
import optimizer.web
from optimizer import AsyncSnapshotReader, Settings, SnapshotReader, optimize
from optimizer.errors import SettingsInvalid
from optimizer.web import RunState
from optimizer.web.routes import router_of
from optimizer.web.service import Service
from tests.support.published_state import NEW, OLD, run_next, run_old, version_of
from tests.support.redis_servers import wait_until
from tests.support.rolling_files import a_record, write_json

pytestmark = pytest.mark.slow  # seconds of waiting for threads, Redis and event loops

OPERATIONS = ("/status", "/runs", "/healthz", "/readyz", "/metrics")
SNAPSHOTS = (
    *("/predictions", "/bots", "/portfolio", "/page", "/snapshot", "/predictions/AAPL", "/predictions?limit=1"),
    *("/changes?since=999999999999999", "/history", "/predictions/AAPL/history"),
)


@pytest.fixture
def reader(settings: Settings) -> Iterator[SnapshotReader]:
    """The reader of an app, already started."""
    run_old(settings)
    with closing(SnapshotReader.from_settings(settings)) as reader:
        reader.predictions()
        yield reader


def app_of(*routers: APIRouter, prefix: str = "") -> FastAPI:
    """Make an app that includes these routers."""
    app = FastAPI()
    for router in routers:
        app.include_router(router, prefix=prefix)
    return app


def refreshers() -> int:
    """The number of refresher threads in this process."""
    return sum(thread.name == "rolling-reader" for thread in threading.enumerate())


# ---- the app's own reader


def test_the_router_uses_the_reader_and_leaves_it_open(settings: Settings, reader: SnapshotReader) -> None:
    """A router of an app's reader starts no thread, shows the reader's version, and follows new ones.

    The reader stays open and continues to follow after the router has ended.
    """
    before, version = refreshers(), reader.manifest().version
    with TestClient(app_of(optimizer.web.make_router(reader=reader), prefix="/api")) as client:
        for path in SNAPSHOTS:
            response = client.get(f"/api{path}")
            assert (response.status_code, response.headers["X-Snapshot-Version"]) == (200, str(version)), path
        status = client.get("/api/status").json()
        assert (status["source"], status["interval_s"], status["version"]) == (settings.source, 30.0, version)
        assert status["flower_url"] is None
        write_json(settings.input, NEW)
        new = version_of(optimize(settings))
        wait_until(lambda: client.get("/api/page").json()["version"] == new, limit_s=5, what="the new version")
        assert refreshers() == before

    assert refreshers() == before
    assert reader.predictions().version == new
    newest = version_of(run_next(settings))
    wait_until(lambda: reader.manifest().version == newest, limit_s=5, what="the reader to follow still")


def test_a_reader_for_asyncio_does_as_well(settings: Settings) -> None:
    """A router takes an `AsyncSnapshotReader` too, whose own callback is still called.

    The reader stays open after the app has ended.
    """
    run_old(settings)
    called = threading.Event()
    reader = AsyncSnapshotReader.from_settings(settings, on_refresh=called.set)
    with anyio.from_thread.start_blocking_portal() as portal:
        with TestClient(app_of(optimizer.web.make_router(reader=reader))) as client:
            assert portal.call(reader.predictions).value.count == client.get("/predictions").json()["count"] == 2
            version = version_of(run_next(settings))
            wait_until(lambda: client.get("/page").json()["version"] == version, limit_s=5, what="the new version")
        called.clear()
        wait_until(called.is_set, limit_s=5, what="a refresh after the app has ended")
        portal.call(reader.close)


def test_events_of_a_reader_that_has_started_begin_with_its_version(reader: SnapshotReader) -> None:
    """A listener gets the version of a reader that has already started without waiting for the next refresh."""
    service = Service.of(None, source=None, reader=reader)
    with TestClient(app_of(router_of(service))) as client:
        client.get("/predictions")
        queue = service.hub.join(None)
        messages = [queue.get_nowait() for _ in range(queue.qsize())]
    assert any(b"id: %d\n" % reader.manifest().version in message for message in messages if message)


def _reads(client: TestClient) -> float:
    """The number of reads so far, summed over all origins."""
    return sum(
        float(line.rpartition(" ")[2])
        for line in client.get("/metrics").text.splitlines()
        if line.startswith("rolling_reads_total{")
    )


def test_a_version_that_comes_while_the_event_loop_ends_is_no_error() -> None:
    """A version that is published when the event loop has shut down its threads causes no error.

    The app's reader continues after the loop.
    """
    errors: list[dict[str, Any]] = []

    async def end(reader: SnapshotReader, publish: Callable[[], object]) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: errors.append(context))
        service = Service(reader=reader)
        await service.reader()
        service.read_counters.count("redis")  # so that there is something to share
        await loop.shutdown_default_executor()
        publish()
        await asyncio.sleep(0)  # by now the loop has handled the new version

    with closing(optimizer.testing.reader()) as reader:
        asyncio.run(end(reader, reader.publish))
    assert not errors


def test_apps_may_share_a_reader(settings: Settings, reader: SnapshotReader) -> None:
    """Apps may share a reader one after another, as in an app's tests, and at the same time.

    They show the same content and count their reads together.
    """
    for _ in range(2):
        with TestClient(app_of(optimizer.web.make_router(reader=reader))) as client:
            assert client.get("/predictions").status_code == 200
    first, second = (app_of(optimizer.web.make_router(reader=reader)) for _ in range(2))
    with TestClient(first) as one:
        with TestClient(second) as other:
            before = _reads(one)
            assert one.get("/predictions").content == other.get("/predictions").content
            assert _reads(one) == _reads(other) == before + 2
        version = version_of(run_next(settings))
        wait_until(lambda: one.get("/page").json()["version"] == version, limit_s=5, what="the new version")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda of: {"settings": replace(of, source="other")}, "source='other'.*has 'rolling_brain'"),
        (
            lambda of: {"settings": replace(of, redis_url="redis://:secret@127.0.0.1:1/0")},
            r"redis_url=redis://:\*\*\*@",
        ),
        (lambda of: {"settings": replace(of, interval_s=5.0)}, "interval_s=5, .*has 30"),
        (lambda _: {"source": "other"}, "source='other', but the reader follows 'rolling_brain'"),
        (lambda _: {"reader": "redis://"}, "pass a SnapshotReader"),
        (lambda _: {"trigger": NoFleet(), "operations": False}, "operations=False leaves out"),
    ],
)
def test_arguments_that_contradict_each_other_are_refused(
    settings: Settings, reader: SnapshotReader, arguments: Callable[[Settings], dict[str, Any]], message: str
) -> None:
    """Arguments that contradict each other are refused at once, by name and with both values, but no password."""
    with pytest.raises(SettingsInvalid, match=message):
        optimizer.web.make_router(**{"reader": reader, **arguments(settings)})


def test_settings_that_are_the_readers_may_be_passed_too(settings: Settings, reader: SnapshotReader) -> None:
    """Settings equal to the reader's may be passed too, for what it does not know: trigger token, Flower's address."""
    full = replace(settings, flower_url="http://127.0.0.1:5555", trigger_token="made-up")
    router = optimizer.web.make_router(full, reader=reader, trigger=NoFleet())
    with TestClient(app_of(router)) as client:
        status = client.get("/status").json()
        assert (status["flower_url"], status["trigger"]) == ("http://127.0.0.1:5555", True)
        assert client.post("/runs").status_code == 401


def test_the_environment_of_a_trigger_must_be_the_readers(
    settings: Settings, reader: SnapshotReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trigger's token is read from the environment, which is refused if it names another Redis than the reader."""
    monkeypatch.setenv("ROLLING_REDIS_URL", "redis://127.0.0.1:1/0")
    with pytest.raises(SettingsInvalid, match="redis_url"):
        optimizer.web.make_router(reader=reader, trigger=NoFleet())
    monkeypatch.setenv("ROLLING_REDIS_URL", settings.redis_url)
    monkeypatch.setenv("ROLLING_TRIGGER_TOKEN", "made-up")
    with TestClient(app_of(optimizer.web.make_router(reader=reader, trigger=NoFleet()))) as client:
        assert client.post("/runs").status_code == 401


class NoFleet:
    """A trigger whose runs never begin."""

    def send(self, *, force: bool, accept: bool, source: str) -> str:
        """Return an id that shows the arguments."""
        return f"{source}-{force}-{accept}"

    def state(self, run_id: str) -> RunState:
        """Report the run as pending."""
        return RunState(run_id, "pending")


# ---- operations in a router of their own


def test_without_operations_an_apps_own_routes_are_not_shadowed(reader: SnapshotReader) -> None:
    """With `operations=False` the router has only what pages show.

    An app's own `/status` or `/metrics` is then found, even if it was added after our router.
    """
    app = app_of(optimizer.web.make_router(reader=reader, operations=False), prefix="/api")
    for path in OPERATIONS:
        app.get(f"/api{path}")(lambda: {"from": "the app"})
    with TestClient(app) as client:
        for path in OPERATIONS:
            assert client.get(f"/api{path}").json() == {"from": "the app"}, path
        for path in SNAPSHOTS:
            assert client.get(f"/api{path}").status_code == 200, path
        shown = {path.removeprefix("/api") for path in client.get("/openapi.json").json()["paths"]}
    assert shown == {
        *OPERATIONS,
        *("/predictions", "/predictions/{symbol}", "/bots", "/portfolio", "/page", "/snapshot", "/changes", "/events"),
        *("/history", "/predictions/{symbol}/history", "/predictions.csv"),
    }


@pytest.mark.parametrize("has_reader", [False, True])
def test_probes_need_no_login_that_pages_need(settings: Settings, has_reader: bool) -> None:
    """Of two routers with one reader, the operations need no login though the snapshots do.

    The two share one thread, and the metrics of one count the reads of the other.
    """

    def log_in(request: Request) -> None:
        if "Cookie" not in request.headers:
            raise HTTPException(401, "log in first")

    run_old(settings)
    with closing(SnapshotReader.from_settings(settings)) as reader:
        routers = optimizer.web.make_routers(settings, reader=reader if has_reader else None)
        app = FastAPI()
        app.include_router(routers.snapshots, prefix="/api", dependencies=[Depends(log_in)])
        app.include_router(routers.operations)
        before = refreshers()
        with TestClient(app) as client:
            for path in OPERATIONS:
                assert client.get(path).status_code == 200, path
            for path in SNAPSHOTS:
                assert client.get(f"/api{path}").status_code == 401, path
                assert client.get(f"/api{path}", headers={"Cookie": "a=b"}).status_code == 200, path
            counted = f'rolling_reads_total{{source="rolling_brain",origin="redis"}} {len(SNAPSHOTS)}\n'
            assert counted in client.get("/metrics").text
            assert refreshers() == before + 1
        assert refreshers() == before + has_reader


def test_each_router_starts_and_stops_without_the_other(settings: Settings) -> None:
    """An app that includes only one of the two routers has a reader from the app's start to its end."""
    run_old(settings)
    before = refreshers()
    for router, path in zip(optimizer.web.make_routers(settings), ("/predictions", "/readyz"), strict=True):
        with TestClient(app_of(router)) as client:
            assert refreshers() == before + 1
            assert client.get(path).status_code == 200
        assert refreshers() == before


# ---- the app's routes beside ours

Add = Callable[[FastAPI], None]


def a_route(app: FastAPI) -> None:
    """Add a route of the app below one of ours."""
    app.get("/api/predictions/history/{symbol}")(lambda symbol: {"history": symbol})


def a_router(app: FastAPI) -> None:
    """Add the same route by a router."""
    router = APIRouter(prefix="/predictions")
    router.get("/history/{symbol}")(lambda symbol: {"history": symbol})
    app.include_router(router, prefix="/api")


def a_mounted_app(app: FastAPI) -> None:
    """Add the same route by a mounted app."""
    mounted = FastAPI()
    mounted.get("/{symbol}")(lambda symbol: {"history": symbol})
    app.router.routes.append(Mount("/api/predictions/history", mounted))


@pytest.mark.parametrize("is_first", [False, True])
@pytest.mark.parametrize("add", [a_route, a_router, a_mounted_app])
def test_a_route_of_the_app_below_predictions_is_its_own(
    settings: Settings, reader: SnapshotReader, add: Add, is_first: bool
) -> None:
    """A route of the app below `/predictions` is reached whether it was added before or after our router.

    Symbols with a slash are still found.
    """
    write_json(settings.input, OLD | {"a/b": a_record(), "history/x": a_record(), "LOW/1": a_record(confidence=0.1)})
    optimize(settings)
    reader.refresh()
    app = FastAPI()
    if is_first:
        add(app)
    app.include_router(optimizer.web.make_router(reader=reader, operations=False), prefix="/api")
    if not is_first:
        add(app)
        # The app's route for its own pages is added last, and gets what no other route takes.
        app.get("/{path:path}")(lambda path: {"page": path})
    with TestClient(app) as client:
        assert client.get("/api/predictions/history/AAPL").json() == {"history": "AAPL"}
        assert client.get("/api/predictions/AAPL").json()["symbol"] == "AAPL"
        for symbol in ("a/b", "history/x", "LOW/1"):
            found = client.get(f"/api/predictions/{symbol.replace('/', '%2F')}")
            expected = {"history": "x"} if is_first and symbol == "history/x" else symbol
            assert (found.json() if isinstance(expected, dict) else found.json()["symbol"]) == expected
        if is_first:
            assert client.get("/api/predictions/a/b").json()["symbol"] == "a/b"
            assert client.get("/api/predictions/LOW/1").json()["symbol"] == "LOW/1"
            assert client.get("/api/predictions/").status_code == 404
        else:
            assert client.get("/api/predictions/a/b").json() == {"page": "api/predictions/a/b"}
            assert client.get("/api/predictions/").json() == {"page": "api/predictions/"}


def test_a_server_may_leave_out_how_a_path_was_sent(settings: Settings, reader: SnapshotReader) -> None:
    """Without `raw_path`, which is optional in ASGI, a slash stands for itself, and a symbol with one is found."""
    write_json(settings.input, OLD | {"a/b": a_record()})
    optimize(settings)
    reader.refresh()
    app = app_of(optimizer.web.make_router(reader=reader))

    async def without_raw_path(scope: Any, receive: Any, send: Any) -> None:
        await app({name: value for name, value in scope.items() if name != "raw_path"}, receive, send)

    client = TestClient(without_raw_path)
    assert client.get("/predictions/a%2Fb").json()["symbol"] == "a/b"


# ---- the OpenAPI description


class Record(BaseModel):
    """A model of the app that has the name of one of ours."""

    id: int


class Problem(BaseModel):
    """Another model of the app with the name of one of ours."""

    code: str


def operation_ids(app: FastAPI) -> list[str]:
    """The ids of all operations."""
    return [operation["operationId"] for methods in app.openapi()["paths"].values() for operation in methods.values()]


def test_components_are_named_and_operation_ids_short(settings: Settings) -> None:
    """Models are named components, and an operation's id is the name of what it reads.

    With a prefix the id begins with the prefix, so that the ids of two routers differ.
    """
    one = app_of(optimizer.web.make_router(settings, operations=False))
    assert set(operation_ids(one)) == {
        *("predictions", "prediction", "bots", "portfolio", "page", "snapshot", "changes", "events"),
        *("history", "prediction_history", "predictions_csv"),
    }
    schemas = one.openapi()["components"]["schemas"]
    assert {"Record", "PredictionsSnapshot", "BotSummary", "BotsSnapshot", "Holding", "Problem"} <= set(schemas)
    assert schemas["PredictionsSnapshot"]["properties"]["predictions"]["items"] == {
        "$ref": "#/components/schemas/Record"
    }

    two = FastAPI()
    for name in ("brain", "intraday"):
        two.include_router(optimizer.web.make_router(replace(settings, source=name)), prefix=f"/api/{name}")
    ids = operation_ids(two)
    assert {"api_brain_predictions", "api_intraday_predictions", "api_intraday_metrics"} <= set(ids)
    assert len(set(ids)) == len(ids) == 32


def test_an_apps_own_operation_ids_hold(settings: Settings) -> None:
    """A `generate_unique_id_function` of the whole app, or of the included router alone, names our operations."""
    app = FastAPI(generate_unique_id_function=lambda route: f"app-{route.name}")
    app.include_router(optimizer.web.make_router(settings), prefix="/api")
    assert {"app-predictions", "app-prediction"} <= set(operation_ids(app))
    app = FastAPI()
    router = optimizer.web.make_router(settings)
    app.include_router(router, prefix="/api", generate_unique_id_function=lambda route: route.name)
    assert {"predictions", "prediction"} <= set(operation_ids(app))


def test_models_of_the_app_may_have_the_names_of_ours(settings: Settings) -> None:
    """If the app has models with our names, both get longer names, and every reference leads to the right one."""
    app = app_of(optimizer.web.make_router(settings))

    @app.get("/theirs", responses={400: {"model": Problem}})
    def theirs() -> list[Record]:
        return [Record(id=1)]

    description = app.openapi()
    schemas, paths = description["components"]["schemas"], description["paths"]
    assert "Record" not in schemas
    assert "id" in named(
        schemas, paths["/theirs"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]["items"]
    )
    missing = paths["/predictions/{symbol}"]["get"]["responses"]["404"]["content"]
    assert list(missing) == ["application/problem+json"]
    assert "detail" in named(schemas, missing["application/problem+json"]["schema"])
    found = paths["/predictions/{symbol}"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert "last_price" in named(schemas, found)
    with TestClient(app) as client:
        assert client.get("/theirs").json() == [{"id": 1}]


def named(schemas: dict[str, Any], reference: dict[str, str]) -> Any:
    """The properties of the component that a reference names."""
    return schemas[reference["$ref"].removeprefix("#/components/schemas/")]["properties"]
