"""The history over HTTP: of real publishes, through every route, and while Redis hangs, is down or lacks changes."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

import optimizer.testing
from optimizer import Record, Settings, optimize
from optimizer.cache.clocks import text_of
from optimizer.cache.keys import Keys
from optimizer.web import make_router
from tests.support.published_state import version_of
from tests.support.redis_servers import RedisServer, wait_until
from tests.support.rolling_files import a_record, write_json
from tests.support.web_apps import WebServer, asking

# Limit for four requests; one that waited for Redis would take a second until its timeout.
REQUESTS_S: Final = 1.0

HELD: Final = {"alpha": {"enabled": True, "positions": [{"symbol": "AAPL", "qty": 2, "avg": 99.5}]}}
# Each has new confidences, and the last one has another bot.
INPUTS: Final[list[dict[str, Any]]] = [
    {"AAPL": a_record(confidence=0.9), "A/B": a_record(confidence=0.8), "MSFT": a_record(confidence=0.7), "bots": HELD},
    {
        "AAPL": a_record(confidence=0.6),
        "A/B": a_record(confidence=0.8),
        "NVDA": a_record(confidence=0.95),
        "bots": HELD,
    },
    {"AAPL": a_record(confidence=0.6), "A/B": a_record(confidence=0.7), "bots": HELD | {"beta": {}}},
]


def publish_all(settings: Settings, inputs: list[dict[str, Any]] = INPUTS) -> list[int]:
    """Publish each input; return the versions."""
    versions = []
    for content in inputs:
        write_json(settings.input, content)
        versions.append(version_of(optimize(settings)))
    return versions


def test_steps_are_newest_first(settings: Settings) -> None:
    """`/history` lists steps from the newest on: what entered, left and moved, and counts of all changes.

    The first version has no step.
    """
    first, second, third = publish_all(settings)
    with asking(settings) as client:
        answer = client.get("/history")
        only = client.get("/history?limit=1").json()
    history = answer.json()
    assert answer.headers["X-Snapshot-Version"] == str(history["version"]) == str(third)
    newest, oldest = history["steps"]
    assert (oldest["version"], oldest["before"], newest["version"], newest["before"]) == (second, first, third, second)
    assert oldest["entered"] == [{"symbol": "NVDA", "rank": 1, "confidence": 0.95}]
    assert oldest["left"] == [{"symbol": "MSFT", "rank": 3, "confidence": 0.7}]
    assert oldest["moved"] == [{"symbol": "AAPL", "from": 1, "to": 3}]
    assert oldest["confidence"] == [{"symbol": "AAPL", "from": 0.9, "to": 0.6}]
    assert oldest["counts"]["predictions"] == {"added": 1, "changed": 1, "removed": 1}
    assert newest["counts"]["bots"]["removed"] == 0
    assert only == {"version": third, "steps": [newest]}


def test_a_symbol_has_a_point_for_each_version_that_changed_it(settings: Settings) -> None:
    """A symbol's history has a point for each version that changed it, oldest first, and null values where it left.

    A symbol that no version had is a 404.
    """
    first, second, third = publish_all(settings)
    with asking(settings) as client:
        apple = client.get("/predictions/AAPL/history").json()
        left = client.get("/predictions/MSFT/history").json()
        came = client.get("/predictions/NVDA/history").json()
        missing = client.get("/predictions/XYZ/history")
    assert (apple["symbol"], apple["version"], apple["since"]) == ("AAPL", third, first)
    assert [(point["version"], point["confidence"]) for point in apple["points"]] == [(first, 0.9), (second, 0.6)]
    assert (apple["points"][0]["prediction"], apple["points"][0]["last_price"]) == (101.5, 100.0)
    assert apple["points"][0]["timestamp"] == text_of(first / 1e3)
    empty = {"confidence": None, "prediction": None, "last_price": None}
    assert [point["version"] for point in left["points"]] == [first, second]
    assert left["points"][1].items() >= empty.items()
    assert [point["version"] for point in came["points"]] == [second, third]
    assert (missing.status_code, missing.headers["Content-Type"]) == (404, "application/problem+json")
    assert missing.json()["detail"] == f"'XYZ' is in the predictions of no version from {first} to {third}"


@pytest.mark.parametrize("query", ["limit=0", "limit=-1", "limit=1001", "limit=x"])
def test_limits_that_cannot_be_are_refused(settings: Settings, query: str) -> None:
    """A `limit` that is not an integer from 1 to 1000 is a 422 that names the parameter."""
    publish_all(settings, INPUTS[:1])
    with asking(settings) as client:
        answer = client.get(f"/history?{query}")
    assert (answer.status_code, answer.headers["Content-Type"]) == (422, "application/problem+json")
    assert "query.limit" in answer.json()["detail"]


@pytest.mark.parametrize("is_mounted", [False, True])
def test_a_slash_as_percent_2f_is_part_of_the_symbol(settings: Settings, is_mounted: bool) -> None:
    """In the command's front and in a router, a slash sent as `%2F` is part of the symbol.

    A last `/history` that is sent with a plain slash ends the symbol and requests its history.
    """
    symbols = ("AAPL", "AAPL/history", "A/B", "A/B/history", "history")
    write_json(settings.input, {symbol: a_record(confidence=0.9) for symbol in symbols})
    optimize(settings)
    app = FastAPI()
    app.include_router(make_router(settings))
    with asking(settings) if is_mounted else TestClient(app) as client:
        for path, symbol, is_history in (
            ("AAPL", "AAPL", False),
            ("AAPL/history", "AAPL", True),
            ("AAPL%2Fhistory", "AAPL/history", False),
            ("AAPL%2Fhistory/history", "AAPL/history", True),
            ("A%2FB", "A/B", False),
            ("A%2FB/history", "A/B", True),
            ("A%2FB%2Fhistory", "A/B/history", False),
            ("A%2FB%2fhistory/history", "A/B/history", True),
            ("A/B", "A/B", False),
            ("A/B/history", "A/B", True),
            ("history", "history", False),
            ("history/history", "history", True),
        ):
            found = client.get(f"/predictions/{path}").json()
            assert (found["symbol"], "points" in found) == (symbol, is_history), path
        for path in ("AAPL/history/", "/history"):
            assert client.get(f"/predictions/{path}").status_code == 404


@pytest.mark.parametrize("path", ["/history", "/predictions/AAPL/history"])
def test_a_new_version_is_in_the_history_when_it_shows(settings: Settings, path: str) -> None:
    """A new version soon shows in the history of a running process, which a newly started process has too."""
    publish_all(settings, INPUTS[:1])
    with asking(settings) as client:
        before = client.get(path)
        (version,) = publish_all(settings, INPUTS[1:2])
        wait_until(lambda: client.get("/page").json()["version"] == version, limit_s=5, what="the new version")
        wait_until(lambda: client.get(path).json()["version"] == version, limit_s=5, what="the new history")
        after = client.get(path, headers={"If-None-Match": before.headers["ETag"]})
    with asking(settings) as restarted:
        assert restarted.get(path).json() == after.json()
    listed = "steps" if path == "/history" else "points"
    assert len(after.json()[listed]) == len(before.json()[listed]) + 1


def test_the_history_begins_after_a_gap(settings: Settings, redis_server: RedisServer) -> None:
    """If a change is missing in the stream, the history begins after it, and no step is invented for it."""
    _, second, third = publish_all(settings)
    with redis_server.client as client:
        client.xdel(Keys(settings.source).deltas, f"{second}-0")
    with asking(settings) as client:
        assert [step["version"] for step in client.get("/history").json()["steps"]] == [third]
        assert client.get("/predictions/AAPL/history").json()["since"] == second
        assert client.get("/predictions/MSFT/history").status_code == 404


def test_redis_is_never_asked_by_a_request(tmp_path: Path, settings: Settings, redis_server: RedisServer) -> None:
    """Requests for the history never wait for Redis: while it hangs, four of them return the same in under 1 s."""
    publish_all(settings)
    paths = ("/history", "/history?limit=2", "/predictions/AAPL/history", "/predictions/XYZ/history")
    with WebServer(tmp_path, settings) as server:
        expected = [server.get(path)[2] for path in paths]
        redis_server.pause()
        try:
            for _ in range(3):
                started = time.monotonic()
                assert [server.get(path)[2] for path in paths] == expected
                assert time.monotonic() - started < REQUESTS_S
        finally:
            redis_server.resume()


def test_without_redis_the_files_version_has_a_history_of_its_own() -> None:
    """A version that only the files have begins a new history; a version from Redis has the earlier changes again."""
    with closing(optimizer.testing.reader(predictions=[record(0.5)])) as reader:
        app = FastAPI()
        app.include_router(make_router(reader=reader))
        first, second = reader.manifest().version, reader.publish(predictions=[record(0.6)])
        with TestClient(app) as client:
            assert shown(client) == ([second], [(first, 0.5), (second, 0.6)])
            third = reader.publish(predictions=[record(0.7)], origin="files")
            assert shown(client) == ([], [(third, 0.7)])
            assert client.get("/history").json()["version"] == third
            fourth = reader.publish(predictions=[record(0.8)], origin="redis")
            assert shown(client) == ([fourth, second], [(first, 0.5), (second, 0.6), (fourth, 0.8)])


def test_a_version_with_an_unreadable_part_has_no_history() -> None:
    """For a version with an unreadable part the history is a 503 that names the version.

    The next version has its history again.
    """
    with closing(optimizer.testing.reader(predictions=[record(0.5)], unreadable=["bots"])) as reader:
        app = FastAPI()
        app.include_router(make_router(reader=reader))
        with TestClient(app) as client:
            for path in ("/history", "/predictions/A/history"):
                answer = client.get(path)
                assert (answer.status_code, answer.headers["Content-Type"]) == (503, "application/problem+json")
                assert "version 1 has a part that cannot be read" in answer.json()["detail"]
            second = reader.publish(predictions=[record(0.6)], unreadable=[])
            assert shown(client) == ([second], [(1, 0.5), (second, 0.6)])


@pytest.mark.slow
def test_a_version_that_redis_has_a_moment_later_does_not_end_the_history(settings: Settings) -> None:
    """If the files have a version before Redis, the one before it and its history stay until Redis has the change.

    Each run writes the files first.
    """
    first, second, third = publish_all(settings)
    with asking(settings) as client:
        before = client.get("/history").json()
        write_json(settings.input, INPUTS[0])
        version = version_of(optimize(settings, use_cache=False))
        until_s = time.monotonic() + 1.5  # a refresh sees the files in this time
        while time.monotonic() < until_s:
            assert client.get("/page").json()["version"] == third
            assert client.get("/history").json() == before
        optimize(settings)
        wait_until(lambda: client.get("/history").json()["version"] == version, limit_s=4, what="its history")
        steps = client.get("/history").json()["steps"]
    assert [step["before"] for step in steps] == [third, second, first]
    assert steps[1:] == before["steps"]


def test_a_reader_that_holds_changes_already_has_its_history_at_once() -> None:
    """If the reader holds changes already, the first request has the history without waiting for a refresh."""
    with closing(optimizer.testing.reader(predictions=[record(0.5)])) as reader:
        first, second = reader.manifest().version, reader.publish(predictions=[record(0.6)])
        assert len(reader.changes(first).changes) == 1
        app = FastAPI()
        app.include_router(make_router(reader=reader))
        with TestClient(app) as client:
            assert shown(client) == ([second], [(first, 0.5), (second, 0.6)])


def shown(client: TestClient) -> tuple[list[int], list[tuple[int, float]]]:
    """The versions of all steps, newest first, and the points of the symbol A."""
    steps, points = client.get("/history").json()["steps"], client.get("/predictions/A/history").json()["points"]
    return [step["version"] for step in steps], [(point["version"], point["confidence"]) for point in points]


def record(confidence: float) -> Record:
    """A prediction for the symbol A."""
    return Record("A", 1.0, confidence, 10.0)
