"""The static files of the dashboard, and follow.js for any app that has the routes."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

import optimizer.testing
import optimizer.web
from optimizer import Settings
from tests.support.web_apps import asking

pytestmark = pytest.mark.slow  # seconds of waiting for threads and event loops

FOLLOW = Path(optimizer.web.__file__).parent / "static" / "follow.js"


def test_follow_js_comes_with_the_routes_wherever_they_are(settings: Settings) -> None:
    """The stand-alone app and a router under a prefix send the same `follow.js`.

    Browsers keep it and check each time whether it has changed, by its ETag.
    """
    with closing(optimizer.testing.reader()) as reader:
        app = FastAPI()
        app.include_router(optimizer.web.make_router(reader=reader, operations=False), prefix="/api")
        with asking(settings) as alone, TestClient(app, headers={"Accept-Encoding": "gzip"}) as included:
            answers = [alone.get("/static/follow.js"), alone.get("/static/follow.js?v=1")]
            answers += [included.get("/api/static/follow.js"), included.head("/api/static/follow.js")]
            etag = answers[0].headers["ETag"]
            asked = {"If-None-Match": etag}
            assert included.get("/api/static/follow.js", headers=asked).status_code == 304
            assert included.get("/api/static/follow.js", headers=asked | {"Accept-Encoding": ""}).status_code == 200
            assert "/api/static/follow.js" not in included.get("/openapi.json").json()["paths"]
            assert alone.get("/static/follow.d.ts").headers["Content-Type"] == "text/plain; charset=utf-8"
    for answer in answers:
        assert answer.status_code == 200
        assert answer.headers["Content-Type"] == "text/javascript; charset=utf-8"
        assert (answer.headers["Cache-Control"], answer.headers["ETag"]) == ("no-cache", etag)
        assert answer.headers["Content-Encoding"] == "gzip"
    assert [answer.content == FOLLOW.read_bytes() for answer in answers] == [True, True, True, False]
    assert answers[-1].content == b""


def test_the_page_is_sent_whatever_its_query_says(settings: Settings) -> None:
    """The page is the same with every query: its script reads the choices there, so a link with a query leads to it."""
    with asking(settings) as client:
        page = client.get("/")
        chosen = client.get("/?search=AA&sort=-confidence")
        asked = client.get("/?search=AA", headers={"If-None-Match": page.headers["ETag"]})
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert (chosen.status_code, chosen.content) == (200, page.content)
    assert asked.status_code == 304
