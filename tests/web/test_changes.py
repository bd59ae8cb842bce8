"""What changed between versions, and the whole snapshot of one version, over HTTP."""

from __future__ import annotations

import gzip
import json
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from fastapi import Depends, FastAPI, HTTPException
from starlette.testclient import TestClient

import optimizer.testing
import optimizer.web
from optimizer import Change, Settings, apply_change, optimize
from optimizer.models import VersionContent
from optimizer.testing import MemoryReader
from optimizer.web.app import create_app_of_many
from tests.support.published_state import NEW, run_old, version_of
from tests.support.redis_servers import RedisServer, wait_until
from tests.support.rolling_files import a_record, local, write_json
from tests.support.web_apps import WebServer, asking

AAPL: Final = {"symbol": "AAPL", "prediction": 101.5, "confidence": 0.75, "last_price": 100.0}
MANY: Final = [AAPL | {"symbol": f"S{number:04}"} for number in range(3_000)]


@pytest.fixture
def reader() -> Iterator[MemoryReader]:
    """A reader that shows version 1."""
    with closing(optimizer.testing.reader(predictions=[AAPL])) as reader:
        yield reader


@pytest.fixture
def client(reader: MemoryReader) -> Iterator[TestClient]:
    """A client of an app that includes the router of this reader."""
    app = FastAPI()
    app.include_router(optimizer.web.make_router(reader=reader, operations=False), prefix="/api")
    with TestClient(app, headers={"Accept-Encoding": "gzip"}) as client:
        client.get("/api/page")
        yield client


def test_changes_lead_from_one_snapshot_to_the_next(settings: Settings) -> None:
    """A snapshot of a client, with each later change applied, equals the newest snapshot.

    The snapshot has the same values as the routes for predictions, bots and portfolio.
    """
    first = version_of(run_old(settings))
    with asking(settings) as client:
        whole = client.get("/snapshot").json()
        assert list(whole) == [
            *("version", "generated_at", "predictions", "bots", "holdings", "rejected", "timestamp"),
        ]
        assert whole["version"] == first
        assert whole["rejected"] == {"records": {"seen": 2, "rejected": 0}, "bots": {"seen": 1, "rejected": 0}}
        for name in ("predictions", "bots"):
            assert whole[name] == client.get(f"/{name}").json()[name]
        assert whole["holdings"] == client.get("/portfolio").json()["holdings"]
        write_json(settings.input, NEW)
        version = version_of(optimize(settings))
        wait_until(lambda: client.get("/page").json()["version"] == version, limit_s=5, what="the new version")
        changed = client.get(f"/changes?since={first}")
        newest = client.get("/snapshot").json()

    assert (changed.status_code, changed.json()["version"]) == (200, version)
    content = _content(whole)
    for change in msgspec.convert(changed.json()["changes"], list[Change]):
        content = apply_change(content, change)
    assert _rows(content) == _rows(_content(newest))
    assert newest["version"] == version


def _content(whole: dict[str, Any]) -> VersionContent:
    time = whole["timestamp"]
    return msgspec.convert(
        {
            "version": whole["version"],
            "generated_at": whole["generated_at"],
            "predictions": {"predictions": whole["predictions"], "timestamp": time, "count": 0},
            "bots": {"bots": whole["bots"], "timestamp": time},
            "portfolio": {"holdings": whole["holdings"], "timestamp": time},
        },
        VersionContent,
    )


def _rows(content: VersionContent) -> object:
    return content.predictions.predictions, list(content.bots.bots.items()), content.portfolio.holdings


def test_a_response_is_of_the_versions_that_are_asked_about(reader: MemoryReader, client: TestClient) -> None:
    """`/changes` returns the changes since a version, oldest first.

    There are none since the current version, nor since one that this process does not show yet.
    """
    for price in (101.0, 102.0):
        reader.publish(predictions=[AAPL | {"last_price": price}])
    for since, versions in ((1, [2, 3]), (2, [3]), (3, []), (4, []), (999_999_999_999_999, [])):
        response = client.get(f"/api/changes?since={since}")
        assert response.status_code == 200
        assert response.json()["version"] == 3
        assert [change["version"] for change in response.json()["changes"]] == versions
        assert response.headers["X-Snapshot-Version"] == "3"
        assert response.headers["Content-Type"] == "application/json"
    change = client.get("/api/changes?since=2").json()["changes"][0]
    assert (change["before"], change["since"]) == (2, 2)
    assert change["predictions"]["removed"] == []
    assert change["predictions"]["changed"][0]["last_price"] == 102.0
    assert "bots" not in change
    reader.publish(bots={"alpha": {}})
    assert [change["version"] for change in client.get("/api/changes?since=2").json()["changes"]] == [3, 4]


@pytest.mark.parametrize("media_type", ["application/jsonl", "application/x-ndjson"])
def test_changes_come_a_line_each_if_so_asked_for(reader: MemoryReader, client: TestClient, media_type: str) -> None:
    """If JSON lines are accepted, each change is one line with the same values; a header has the current version."""
    for price in (101.0, 102.0):
        reader.publish(predictions=[AAPL | {"last_price": price}])
    response = client.get("/api/changes?since=1", headers={"Accept": f"text/plain;q=0.1, {media_type.upper()}"})
    assert response.headers["Content-Type"] == media_type
    assert response.headers["X-Snapshot-Version"] == "3"
    lines = [json.loads(line) for line in response.text.splitlines()]
    assert lines == client.get("/api/changes?since=1").json()["changes"]
    assert {"accept", "accept-encoding"} == set(response.headers["Vary"].split(", "))
    assert client.get("/api/changes?since=3", headers={"Accept": media_type}).content == b""


@pytest.mark.slow
def test_a_client_that_has_a_response_is_told_so(reader: MemoryReader, client: TestClient) -> None:
    """A request with the ETag of a response is a 304.

    Each form (JSON or lines, gzip or not) has its own ETag, and a new version has another one.
    """
    reader.publish(predictions=MANY)
    seen = set()
    for accept in ("application/json", "application/jsonl"):
        for encoding in ("gzip", "identity"):
            headers = {"Accept": accept, "Accept-Encoding": encoding}
            response = client.get("/api/changes?since=1", headers=headers)
            assert response.headers.get("Content-Encoding") == ("gzip" if encoding == "gzip" else None)
            assert {"Age", "X-Snapshot-Origin", "X-Snapshot-Stale"} <= {name.title() for name in response.headers}
            etag = response.headers["ETag"]
            seen.add(etag)
            again = client.get("/api/changes?since=1", headers=headers | {"If-None-Match": etag})
            assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", etag)
    assert len(seen) == 4
    reader.publish(bots={"alpha": {}})
    assert client.get("/api/changes?since=1", headers={"If-None-Match": ", ".join(seen)}).status_code == 200


def test_a_head_has_the_headers_alone(reader: MemoryReader, client: TestClient) -> None:
    """A HEAD request gets the status and the headers of a GET, and no body, also for an error."""
    reader.publish(predictions=[AAPL | {"last_price": 1.0}])
    for path in ("/api/changes?since=1", "/api/snapshot", "/api/changes?since=0"):
        got, head = client.get(path), client.head(path)
        assert (head.status_code, head.content) == (got.status_code, b"")
        assert head.headers == got.headers


def test_a_client_that_is_too_far_behind_is_told_where_to_begin(reader: MemoryReader, client: TestClient) -> None:
    """A client that is too far behind gets a 410, which names where to begin.

    It is a problem with the current version, the oldest version that changes lead from, and the path of the whole
    snapshot.
    """
    reader.publish(predictions=[AAPL | {"last_price": 1.0}], origin="files")
    gone = client.get("/api/changes?since=1")
    assert gone.json()["oldest"] is None
    reader.publish(predictions=[AAPL | {"last_price": 2.0}], origin="redis", version=7)
    reader.publish(predictions=[AAPL | {"last_price": 3.0}], version=9)

    gone = client.get("/api/changes?since=2")
    assert (gone.status_code, gone.headers["Content-Type"]) == (410, "application/problem+json")
    problem = gone.json()
    assert (problem["status"], problem["title"], problem["version"], problem["oldest"]) == (410, "Gone", 9, 1)
    assert "since version 2 is not held" in problem["detail"]
    assert "GET /snapshot" in problem["detail"]
    whole = client.get(str(gone.url.join(problem["snapshot"])))
    assert whole.json()["version"] == 9
    assert [change["version"] for change in client.get("/api/changes?since=1").json()["changes"]] == [7, 9]


@pytest.mark.parametrize("query", ["", "?since=", "?since=-1", "?since=x", "?since=1e3", "?since=9999999999999999"])
def test_a_version_that_is_none_is_refused(client: TestClient, query: str) -> None:
    """A `since` that is no version number is a 422 that names the parameter."""
    response = client.get(f"/api/changes{query}")
    assert response.status_code == 422
    assert "query.since" in response.json()["detail"]


def test_without_a_version_there_is_nothing_to_tell() -> None:
    """Without a version, `/changes` and `/snapshot` are a 503 with `Retry-After`, like the other routes."""
    app = FastAPI()
    with closing(optimizer.testing.reader(missing=True)) as reader:
        app.include_router(optimizer.web.make_router(reader=reader))
        with TestClient(app) as client:
            for path in ("/changes?since=1", "/snapshot"):
                response = client.get(path)
                assert (response.status_code, response.headers["Retry-After"]) == (503, "5")


def test_a_part_that_cannot_be_read_is_named() -> None:
    """The whole snapshot is a 503 that names a part that cannot be read, since it would lack that part."""
    with closing(optimizer.testing.reader(predictions=[AAPL], unreadable=["bots"])) as broken:
        app = FastAPI()
        app.include_router(optimizer.web.make_router(reader=broken))
        with TestClient(app) as asked:
            response = asked.get("/snapshot")
    assert response.status_code == 503
    assert "no readable bots" in response.json()["detail"]


@pytest.mark.slow
def test_the_whole_is_made_once_a_version(
    reader: MemoryReader, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole snapshot is made once a version, at the first request, in a thread other than the event loop's.

    If no request comes, it is not made at all.
    """
    threads: list[str] = []
    compress = gzip.compress

    def note(*arguments: Any, **options: Any) -> bytes:
        threads.append(threading.current_thread().name)
        return compress(*arguments, **options)

    monkeypatch.setattr(gzip, "compress", note)
    reader.publish(predictions=MANY)
    client.get("/api/page")
    assert set(threads) == {"MainThread", "rolling-reader"}  # the test publishes, the reader prepares
    threads.clear()
    for _ in range(3):
        assert len(client.get("/api/snapshot").json()["predictions"]) == len(MANY)
    assert len(threads) == 1
    assert threads[0].startswith("asyncio_")  # a thread of the event loop's pool
    reader.publish(bots={"alpha": {}})
    response = client.get("/api/snapshot", headers={"Accept-Encoding": "identity"})
    assert response.json()["bots"].keys() == {"alpha"}
    assert "Content-Encoding" not in response.headers


def test_a_login_stands_before_both(reader: MemoryReader) -> None:
    """A login for the routes of snapshots is required for `/changes`, `/snapshot` and `/events?data=changes` too.

    They belong to what pages show; the routes of operations, such as `/status`, stay open.
    """

    def refuse() -> None:
        raise HTTPException(401, "log in first")

    routers = optimizer.web.make_routers(reader=reader)
    app = FastAPI()
    app.include_router(routers.snapshots, dependencies=[Depends(refuse)])
    app.include_router(routers.operations)
    with TestClient(app) as client:
        client.get("/status")
        for path in ("/changes?since=1", "/snapshot", "/events?data=changes"):
            assert client.get(path).status_code == 401
        assert client.get("/status").status_code == 200


@pytest.mark.slow
def test_what_is_held_of_responses_is_bounded(reader: MemoryReader) -> None:
    """The memory for responses of `/changes` is bounded, however many versions clients request.

    After responses of more than 8 MB in all, less than 7 MB is held.
    """
    for price in range(1, 9):
        reader.publish(predictions=[record | {"last_price": float(price)} for record in MANY])
    app = FastAPI()
    app.include_router(optimizer.web.make_router(reader=reader, operations=False))
    with TestClient(app, headers={"Accept-Encoding": "gzip"}) as client:
        sizes = [len(client.get("/changes?since=8").content)]
        tracemalloc.start()
        sizes.extend(len(client.get(f"/changes?since={since}").content) for since in range(2, 9))
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
    assert sum(sizes) > 8_000_000
    assert held < 7_000_000


@pytest.mark.slow
def test_each_source_has_changes_of_its_own(settings: Settings) -> None:
    """Each source has its own changes at its own path, and the first source has them at the root too."""
    where = local(settings.output_dir)
    every = [replace(settings, source=name, output_dir=where.with_name(name)) for name in ("one", "two")]
    versions = []
    for number, each in enumerate(every):
        for price in (1.0, 2.0):
            write_json(settings.input, {f"OF{number}": a_record(last_price=price)})
            versions.append(version_of(optimize(each)))
    with TestClient(create_app_of_many(every)) as client:
        for path, number in (("", 0), ("/sources/one", 0), ("/sources/two", 1)):
            since, version = versions[2 * number : 2 * number + 2]
            response = client.get(f"{path}/changes?since={since}").json()
            assert [change["version"] for change in response["changes"]] == [version]
            assert response["changes"][0]["predictions"]["changed"][0]["symbol"] == f"OF{number}"
            assert client.get(f"{path}/snapshot").json()["version"] == version


@pytest.mark.slow
@pytest.mark.alone
def test_no_request_waits_for_redis(tmp_path: Path, settings_without_redis: Settings, own_redis: RedisServer) -> None:
    """While Redis hangs, `/changes` and `/snapshot` respond from memory, together in less than 0.2 s, each time."""
    own_redis.start()
    settings = replace(settings_without_redis, redis_url=own_redis.url)
    first = version_of(run_old(settings))
    write_json(settings.input, NEW)
    second = version_of(optimize(settings))
    with WebServer(tmp_path, settings) as web:
        own_redis.pause()
        try:
            for _ in range(20):
                started = time.monotonic()
                status, _, body = web.get(f"/changes?since={first}")
                assert web.get("/snapshot")[0] == 200
                assert time.monotonic() - started < 0.2  # a request to a Redis that hangs takes 0.25 s at least
                assert (status, json.loads(body)["version"], len(json.loads(body)["changes"])) == (200, second, 1)
        finally:
            own_redis.resume()
