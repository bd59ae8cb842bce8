"""Runs on demand: which clients may send one, what the trigger gets, and how a run proceeds on a real fleet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from optimizer import Settings
from optimizer.errors import CacheUnavailable
from optimizer.web import RunState, make_router
from tests.support.fleet import Fleet
from tests.support.published_state import run_old
from tests.support.redis_servers import wait_until
from tests.support.rolling_files import a_record, local, write_json
from tests.support.web_apps import WebServer, asking

TOKEN: Final = "a-made-up-token"
RIGHT: Final = {"Authorization": f"Bearer {TOKEN}"}
ID: Final = "7e1f0a52-3f0e-4a35-9d0c-5b8f3c6a9e11"


class Noted:
    """A trigger that records the runs that it should send."""

    def __init__(self) -> None:
        self.sent: list[tuple[bool, bool, str]] = []

    def send(self, *, force: bool, accept: bool, source: str) -> str:
        """Record the run."""
        self.sent.append((force, accept, source))
        return ID

    def state(self, run_id: str) -> RunState:
        """Report the run as running, at 12.5 %."""
        return RunState(run_id, "running", 12.5)


class Away:
    """A trigger whose broker cannot be reached."""

    def send(self, *, force: bool, accept: bool, source: str) -> str:
        """Raise an error that has the broker's address."""
        raise CacheUnavailable(f"the broker redis://redis.internal/0 cannot be reached, {force}, {accept}, {source}")

    def state(self, run_id: str) -> RunState:
        """Raise an error that has the broker's address."""
        raise CacheUnavailable(f"the broker redis://redis.internal/0 cannot be reached, {run_id}")


def test_who_has_the_token_sends_a_run(settings: Settings) -> None:
    """A request with the token sends a run, which by default does nothing if nothing has changed."""
    noted = Noted()
    with asking(replace(settings, trigger_token=TOKEN), noted) as client:
        for body in (None, b"", b"{}", b'{"force": false}', b'{"force": true}', b'{"accept": true}'):
            answer = client.post("/runs", content=body, headers=RIGHT)
            assert (answer.status_code, answer.json()) == (202, {"id": ID})
        assert client.get(f"/runs/{ID}", headers=RIGHT).json() == {
            "id": ID,
            "state": "running",
            "percent": 12.5,
            "report": None,
            "error": None,
        }
        run_old(settings)
        wait_until(lambda: client.get("/status").status_code == 200, limit_s=5, what="a snapshot")
        assert client.get("/status").json()["trigger"] is True
    assert noted.sent == [
        *((force, False, "rolling_brain") for force in (False, False, False, False, True)),
        (False, True, "rolling_brain"),
    ]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": f"Bearer {TOKEN[:-1]}"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": TOKEN},
        {"Authorization": "Bearer \u00e9".encode("latin-1")},
    ],
)
def test_who_has_it_not_sends_none(settings: Settings, headers: dict[str, Any]) -> None:
    """Without the right token a request is a 401 that names the header, does not show the token, and sends no run.

    Its body is not read.
    """
    noted, read = Noted(), list[str]()

    def body() -> Iterator[bytes]:
        read.append("the body")
        yield b"x" * 100_000

    with asking(replace(settings, trigger_token=TOKEN), noted) as client:
        for answer in (
            client.post("/runs", content=body(), headers=headers),
            client.get(f"/runs/{ID}", headers=headers),
        ):
            assert (answer.status_code, answer.headers["Content-Type"]) == (401, "application/problem+json")
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert "needs the header 'Authorization: Bearer TOKEN'" in answer.json()["detail"]
            assert TOKEN not in answer.text
    assert (noted.sent, read) == ([], [])


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b'{"force": 1}',
        b'{"forse": true}',
        b'{"accept": "yes"}',
        b"\xff",
        b'{"force":' + b" " * 2000 + b"true}",
    ],
)
def test_an_order_that_cannot_be_read_is_refused(settings: Settings, body: bytes) -> None:
    """A body that cannot be used is a 400 with problem details, and no run is sent."""
    noted = Noted()
    with asking(replace(settings, trigger_token=TOKEN), noted) as client:
        answer = client.post("/runs", content=body, headers=RIGHT)
        assert (answer.status_code, answer.headers["Content-Type"]) == (400, "application/problem+json")
        assert client.get("/runs/nonsense", headers=RIGHT).status_code == 422
    assert noted.sent == []


def test_without_a_token_there_is_no_such_route(settings: Settings) -> None:
    """Without a token or without a trigger no route sends runs, and the description lists none."""
    for given, trigger in ((settings, Noted()), (replace(settings, trigger_token=TOKEN), None)):
        with asking(given, trigger) as client:
            assert client.post("/runs", headers=RIGHT).status_code == 405
            assert client.get(f"/runs/{ID}", headers=RIGHT).status_code == 404
            assert "post" not in client.get("/openapi.json").json()["paths"]["/runs"]


def test_the_token_may_be_in_the_environment(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A router without settings of its own takes the token from the environment, and has the routes for runs."""
    monkeypatch.setenv("ROLLING_TRIGGER_TOKEN", TOKEN)
    monkeypatch.setenv("ROLLING_REDIS_URL", settings.redis_url)
    monkeypatch.setenv("ROLLING_OUTPUT_DIR", str(settings.output_dir))
    noted = Noted()
    app = FastAPI()
    app.include_router(make_router(trigger=noted), prefix="/api")
    with TestClient(app) as client:
        assert client.post("/api/runs").status_code == 401
        assert client.post("/api/runs", headers=RIGHT).status_code == 202
    assert noted.sent == [(False, False, "rolling_brain")]


def test_a_broker_that_is_away_is_a_problem(settings: Settings) -> None:
    """If the broker cannot be reached, a request is a 503 with `Retry-After` that hides the broker's address."""
    with asking(replace(settings, trigger_token=TOKEN), Away()) as client:
        for answer in (client.post("/runs", headers=RIGHT), client.get(f"/runs/{ID}", headers=RIGHT)):
            assert answer.status_code == 503
            assert "Retry-After" in answer.headers
            assert "redis.internal" not in answer.text


@pytest.mark.slow
def test_a_run_is_sent_to_the_fleet_and_followed_to_its_end(tmp_path: Path, settings: Settings) -> None:
    """A run is pending until a real worker takes it, then done with its report, or failed with the error's name."""
    write_json(settings.input, {"AAPL": a_record()})
    with (
        Fleet(tmp_path, settings) as fleet,
        WebServer(tmp_path, settings, ROLLING_TRIGGER_TOKEN=TOKEN, ROLLING_BROKER_URL=settings.redis_url) as web,
    ):

        def ask(path: str, method: str = "GET", body: bytes | None = None) -> dict[str, Any]:
            url = f"http://127.0.0.1:{web.port}{path}"
            request = urllib.request.Request(url, body, RIGHT, method=method)
            with urllib.request.urlopen(request, timeout=10) as answer:
                value: dict[str, Any] = json.loads(answer.read())
                return value

        first = ask("/runs", "POST", b'{"force": true}')["id"]
        assert ask(f"/runs/{first}")["state"] == "pending"
        fleet.start_worker()
        wait_until(lambda: ask(f"/runs/{first}")["state"] == "done", what="the run")
        done = ask(f"/runs/{first}")
        assert done["report"]["status"] == "success"
        assert done["percent"] == 100.0
        wait_until(lambda: ask("/status")["version"] == done["report"]["version"], limit_s=5, what="the version")

        local(settings.input).unlink()
        second = ask("/runs", "POST")["id"]
        wait_until(lambda: ask(f"/runs/{second}")["state"] == "failed", what="the second run")
        assert ask(f"/runs/{second}")["error"]["error"] == "SourceMissing"
        assert "not found" in ask(f"/runs/{second}")["error"]["details"]


def test_the_web_imports_no_celery() -> None:
    """The web app can be made where Celery is not installed."""
    program = "import sys; sys.modules['celery'] = None; import optimizer.web; optimizer.web.create_app()"
    subprocess.run([sys.executable, "-c", program], env=os.environ, check=True)
