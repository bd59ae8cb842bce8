"""Every route: what it responds, with which headers, from which origin, and with which problem when it cannot."""

from __future__ import annotations

import builtins
import gzip
import hashlib
import json
import os
import re
import socket
import threading
import time
from dataclasses import replace
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import pytest
from fastapi import Depends, FastAPI, HTTPException
from httpx2 import Response
from starlette.middleware.cors import CORSMiddleware
from starlette.testclient import TestClient

import optimizer.web
import optimizer.web.app
from optimizer import Settings, optimize
from optimizer.cache.keys import Keys
from optimizer.errors import SettingsInvalid, SourceMissing
from optimizer.pipeline.drain import apply_updates
from optimizer.pipeline.rollback import rollback, unpin
from optimizer.pipeline.updates import enqueue
from optimizer.reader.results import CachedVersion
from optimizer.snapshots.format import FILE_NAMES
from optimizer.web.pages import PAGE_SYMBOLS, Pages
from tests.support.published_state import NEW, OLD, report_unchanged, run_next, run_old, version_of
from tests.support.redis_proxy import LossyProxy
from tests.support.redis_servers import RedisServer, wait_until
from tests.support.rolling_files import a_record, local, write_json
from tests.support.web_apps import WebServer, asking

WHOLE = {"/predictions": "predictions", "/bots": "bots", "/portfolio": "portfolio"}
OF_A_VERSION = [*WHOLE, "/page", "/snapshot", "/predictions/AAPL", "/history", "/predictions/AAPL/history"]


def raw(client: TestClient, path: str, **headers: str) -> tuple[Response, bytes]:
    """Send a GET request; return the response and its body as it was sent."""
    with client.stream("GET", path, headers={name.replace("_", "-"): text for name, text in headers.items()}) as answer:
        return answer, b"".join(answer.iter_raw())


@pytest.mark.parametrize(("path", "kind"), WHOLE.items())
def test_whole_snapshots_are_the_stored_bytes(settings: Settings, path: str, kind: str) -> None:
    """A client that accepts gzip gets the bytes of the file, and any other client gets them inflated.

    The two have different ETags.
    """
    report = run_old(settings)
    stored = (local(settings.output_dir) / FILE_NAMES[kind]).read_bytes()

    with asking(settings) as client:
        packed, body = raw(client, path)
        plain, text = raw(client, path, Accept_Encoding="identity")

    assert body == stored
    assert packed.headers["Content-Encoding"] == "gzip"
    assert packed.headers["ETag"] == f'"{hashlib.sha256(stored).hexdigest()}"'
    assert text == gzip.decompress(stored)
    assert "Content-Encoding" not in plain.headers
    assert plain.headers["ETag"] != packed.headers["ETag"]
    for answer, size in ((packed, len(stored)), (plain, len(text))):
        assert answer.headers["Content-Type"] == "application/json"
        assert answer.headers["Content-Length"] == str(size)
        assert answer.headers["Vary"].lower() == "accept-encoding"
        assert answer.headers["X-Snapshot-Version"] == str(report.version)


def test_every_answer_says_which_version_it_is_and_how_fresh(settings: Settings) -> None:
    """Each response has its version, both ages, origin and staleness in headers.

    Caches may keep it, but must revalidate it.
    """
    report = run_old(settings)
    assert report.input_age_s is not None

    with asking(settings) as client:
        for path in OF_A_VERSION:
            headers = client.get(path).headers

            assert headers["X-Snapshot-Version"] == str(report.version), path
            assert 0 <= int(headers["Age"]) < 60, path
            assert 0 <= int(headers["X-Snapshot-Input-Age"]) - int(report.input_age_s) < 60, path
            assert (headers["X-Snapshot-Origin"], headers["X-Snapshot-Stale"]) == ("redis", "false"), path
            assert headers["Cache-Control"] == "no-cache", path
            assert headers["X-Content-Type-Options"] == "nosniff", path
            assert abs(parsedate_to_datetime(headers["Last-Modified"]).timestamp() - time.time()) < 60, path


@pytest.mark.parametrize("encoding", ["gzip", "identity"])
def test_who_has_it_is_told_so(settings: Settings, encoding: str) -> None:
    """A request with the current ETag in any valid form, or with no ETag but the current date, is a 304.

    If both are sent, the ETag decides.
    """
    run_old(settings)
    with asking(settings) as client:
        client.headers["Accept-Encoding"] = encoding
        for path in [*OF_A_VERSION, "/predictions?limit=1"]:
            first = client.get(path)
            etag, date = first.headers["ETag"], first.headers["Last-Modified"]
            has_it: list[dict[str, str]] = [
                {"If-None-Match": etag},
                {"If-None-Match": f'"other", W/{etag}'},
                {"If-None-Match": "*"},
                {"If-Modified-Since": date},
                {"If-None-Match": etag, "If-Modified-Since": "Sun, 06 Nov 1994 08:49:37 GMT"},
            ]
            has_not: list[dict[str, str]] = [
                {"If-None-Match": '"other"'},
                {"If-None-Match": '"other"', "If-Modified-Since": date},
                {"If-Modified-Since": "Sun, 06 Nov 1994 08:49:37 GMT"},
            ]
            for headers in has_it:
                answer = client.get(path, headers=headers)
                assert (answer.status_code, answer.content) == (304, b""), (path, headers)
                assert answer.headers["ETag"] == etag
                assert answer.headers["Vary"].lower() == "accept-encoding"
                assert {"Cache-Control", "Last-Modified", "Age"} <= {name.title() for name in answer.headers}
                assert "Content-Length" not in answer.headers
            for headers in has_not:
                assert client.get(path, headers=headers).status_code == 200, (path, headers)


def test_a_new_version_is_shown_by_itself_under_a_new_etag(settings: Settings) -> None:
    """Soon after a publish, each path has the new version under a new ETag, without a request that triggers it."""
    run_old(settings)
    with asking(settings) as client:
        before = {path: client.get(path).headers["ETag"] for path in [*WHOLE, "/page"]}
        write_json(settings.input, NEW)
        version = version_of(optimize(settings))
        wait_until(lambda: client.get("/page").json()["version"] == version, limit_s=5, what="the new version")

        for path, etag in before.items():
            assert client.get(path, headers={"If-None-Match": etag}).status_code == 200
        assert client.get("/predictions/NVDA").json()["confidence"] == 0.95
        assert client.get("/predictions/AAPL").status_code == 404


def test_the_page_is_one_answer_of_one_version(settings: Settings) -> None:
    """`/page` has the top fifty predictions, all bots and holdings of one version, and their sums.

    In the sums, a value that a bot lacks counts as 0.
    """
    bots = {
        "alpha": {"enabled": True, "equity": 100.5, "pnl_today": -1.5, "positions": {"AAPL": {"qty": 2, "avg": 99}}},
        "beta": {"enabled": False, "equity": 50, "positions": 3},
        "gamma": {"enabled": True, "pnl_today": 2},
    }
    records = {f"S{number:02}": a_record(confidence=0.5 + number / 200) for number in range(80)}
    write_json(settings.input, records | {"bots": bots})
    report = optimize(settings)

    with asking(settings) as client:
        page = client.get("/page").json()
        assert page["bots"] == client.get("/bots").json()["bots"]
        assert page["holdings"] == client.get("/portfolio").json()["holdings"]
        assert page["predictions"] == client.get("/predictions").json()["predictions"][:PAGE_SYMBOLS]

    assert len(page["predictions"]) == 50
    assert (page["version"], page["timestamp"]) == (report.version, report.timestamp)
    assert page["summary"] == {
        "total_equity": 150.5,
        "pnl_today": 0.5,
        "active_bots": 2,
        "open_positions": 4,
        "rejected": {"records": {"seen": 80, "rejected": 0}, "bots": {"seen": 3, "rejected": 0}},
        "notes": [],
    }


@pytest.mark.parametrize("origin", ["redis", "files"])
def test_what_a_version_leaves_out_is_told_with_it(settings: Settings, origin: str) -> None:
    """`/page` and `/status` state in words and numbers what a version leaves out, as does a header of each response."""
    bots = {name: {"equity": 1000} for name in "abcd"} | {"e": {"equity": "1000"}}
    write_json(settings.input, {"AAPL": a_record(), "MSFT": a_record(), "BAD": a_record(confidence=7), "bots": bots})
    optimize(settings)
    notes = ["1 of 5 bots rejected; sums leave it out", "1 of 3 records rejected"]
    rejected = {"records": {"seen": 3, "rejected": 1}, "bots": {"seen": 5, "rejected": 1}}
    if origin == "redis":
        asked = replace(settings, output_dir=local(settings.output_dir) / "nowhere")
    else:
        asked = replace(settings, redis_url="redis://127.0.0.1:1/0")

    for _ in range(2):
        with asking(asked) as client:
            summary, status = client.get("/page").json()["summary"], client.get("/status").json()
            headers = [client.get(path).headers["X-Snapshot-Rejected"] for path in OF_A_VERSION]
        assert (summary["total_equity"], summary["notes"], summary["rejected"]) == (4000, notes, rejected)
        assert (status["origin"], status["notes"], status["rejected"]) == (origin, notes, rejected)
        assert set(headers) == {"records=1/3, bots=1/5"}
        assert optimize(settings).status == "unchanged"


FILTERED: Final = [
    ("limit=2", ["A", "B"], 4),
    ("limit=0", [], 4),
    ("offset=3", ["D"], 4),
    ("offset=9", [], 4),
    ("limit=1&offset=1", ["B"], 4),
    ("min_confidence=0.8", ["A", "B"], 2),
    ("min_confidence=1", [], 0),
    ("sentiment=bearish", ["B", "D"], 2),
    ("sentiment=BEARISH&limit=1", ["B"], 2),
    ("sentiment=", [], 0),
    ("sentiment=unheard", [], 0),
    ("min_confidence=0.65&sentiment=bullish&offset=1&limit=5", ["C"], 2),
    ("unknown=1", ["A", "B", "C", "D"], 4),
]


def test_predictions_are_filtered_before_they_are_cut(settings: Settings) -> None:
    """A filtered list has the shape of the whole; `X-Total-Count` counts all matches, `count` those in the response."""
    sentiments = {"A": "bullish", "B": "bearish", "C": "bullish", "D": "Bearish"}
    write_json(
        settings.input,
        {
            symbol: a_record(confidence=0.9 - number / 10, sentiment=sentiment)
            for number, (symbol, sentiment) in enumerate(sentiments.items())
        },
    )
    optimize(settings)
    with asking(settings) as client:
        for query, symbols, total in FILTERED:
            answer = client.get(f"/predictions?{query}")
            again = client.get(f"/predictions?{query}")

            assert [record["symbol"] for record in answer.json()["predictions"]] == symbols, query
            assert answer.json()["count"] == len(symbols), query
            assert answer.headers.get("X-Total-Count", "4") == str(total), query
            assert answer.headers["ETag"] == again.headers["ETag"], query


REFUSED: Final = [
    *("limit=-1", "limit=x", "limit=1.5", "limit=", "offset=-1", "offset=99999999999999999999"),
    *(
        "min_confidence=2",
        "min_confidence=-0.1",
        "min_confidence=nan",
        "min_confidence=inf",
        "sentiment=" + 2000 * "x",
    ),
    *("limit=-1&limit=5", "limit=5&limit=5", "sentiment=bullish&limit=5&sentiment=bearish", "%6cimit=5&limit=5"),
]


def test_parameters_are_checked(settings: Settings) -> None:
    """An unusable value, or a parameter that is sent twice, is a 422 with problem details that name the parameter."""
    run_old(settings)
    with asking(settings) as client:
        for query in REFUSED:
            answer = client.get(f"/predictions?{query}")

            assert answer.status_code == 422, query
            assert answer.headers["Content-Type"] == "application/problem+json", query
            problem = answer.json()
            assert (problem["status"], problem["title"]) == (422, "Unprocessable Entity"), query
            assert unquote(query).split("=", maxsplit=1)[0] in problem["detail"], query


def test_any_symbol_of_the_index_is_found(tmp_path: Path, settings: Settings) -> None:
    """Each symbol of the index is found whatever its confidence and characters, in memory or in Redis.

    Any other symbol is a 404.
    """
    odd = ["a/b", "../x", "Ünï", "🚀", "a b", "<script>", "q?x", "%2F", "x" * 256]
    write_json(
        settings.input,
        [a_record(symbol=symbol, prediction=n, confidence=0.1 + 0.8 * (n % 2)) for n, symbol in enumerate(odd)],
    )
    optimize(settings)
    with WebServer(tmp_path, settings) as web:
        for number, symbol in enumerate(odd):
            status, headers, body = web.get(f"/predictions/{_quoted(symbol)}")
            assert status == 200, symbol
            assert (json.loads(body)["symbol"], json.loads(body)["prediction"]) == (symbol, number)
            assert headers["x-snapshot-origin"] == "redis"
        for missing in ("MISSING", "%FF", "%00", "%ED%A0%80"):
            status, headers, _ = web.get(f"/predictions/{missing}")
            assert (status, headers["content-type"]) == (404, "application/problem+json")


def _quoted(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode())


def test_head_is_get_without_its_body(settings: Settings) -> None:
    """HEAD has the status and the headers of GET on every path that GET has.

    For what belongs to a version, their values are the same, apart from ages.
    """
    run_old(settings)
    paths = [*OF_A_VERSION, "/predictions?limit=1", "/status", "/runs", "/healthz", "/readyz", "/metrics", "/"]
    with asking(settings) as client:
        for path in paths:
            got, head = client.get(path), client.head(path)
            assert (head.status_code, got.status_code) == (200, 200), path
            assert head.headers["Content-Type"] == got.headers["Content-Type"]
            assert head.headers.keys() == got.headers.keys(), path
            if path.partition("?")[0] in OF_A_VERSION:
                for name in got.headers.keys() - {"age", "x-snapshot-input-age"}:
                    assert head.headers[name] == got.headers[name], (path, name)
        assert client.head("/events").status_code == 200
        assert client.head("/predictions/MISSING").status_code == 404


# ---- status, probes and runs


def test_the_status_tells_version_age_and_origin(settings: Settings) -> None:
    """`/status` has version, ages and origin, and exactly the members of the contract with the dashboard."""
    report = run_old(settings)
    with asking(replace(settings, flower_url="http://127.0.0.1:5555")) as client:
        status = client.get("/status").json()

    assert status.pop("age_s") < 60
    assert report.timestamp <= status.pop("last_success") < "2099"
    assert report.input_age_s is not None
    assert report.input_age_s <= status.pop("input_age_s") < 60
    assert status.pop("input_at") <= report.timestamp
    assert status.pop("diagnosis")["code"] == "ok"
    assert status.pop("published_after_s") == report.published_after_s is not None
    assert status == {
        "input_stale": False,
        "processes": [],
        "source": "rolling_brain",
        "sources": ["rolling_brain"],
        "version": report.version,
        "generated_at": report.timestamp,
        "stale": False,
        "origin": "redis",
        "interval_s": 30.0,
        "cache_up": True,
        "trigger": False,
        "flower_url": "http://127.0.0.1:5555",
        "rejected": {"records": {"seen": 2, "rejected": 0}, "bots": {"seen": 1, "rejected": 0}},
        "notes": [],
        "bots_lack_fields": False,
        "pinned": None,
        "restored_from": None,
        "updates": 0,
    }


def test_the_age_of_the_input_goes_on_from_the_last_run_that_could_use_it(settings: Settings) -> None:
    """The input's age continues from the last run that could use it, also after a failed run and 150 later reports."""
    run_old(settings)
    an_hour_ago = time.time() - 3_600
    os.utime(local(settings.input), (an_hour_ago, an_hour_ago))
    report = optimize(settings)
    local(settings.input).unlink()
    with pytest.raises(SourceMissing):
        optimize(settings)
    report_unchanged(settings, 150)  # as workers of an older release do
    with asking(settings) as client:
        status = client.get("/status").json()
    assert 3_600 <= status["input_age_s"] < 3_660
    assert report.published_after_s is not None
    assert status["published_after_s"] == report.published_after_s


def test_the_status_does_not_wait_for_a_redis_that_hangs(
    own_redis: RedisServer, settings_without_redis: Settings, patience: pytest.MonkeyPatch
) -> None:
    """While Redis hangs, `/status` takes under 0.45 s: version and age are in memory, and what only Redis has is null.

    The diagnosis is `redis_away` once the reader has noticed it.
    """
    patience.undo()
    own_redis.start()
    settings = replace(settings_without_redis, redis_url=own_redis.url)
    report = run_old(settings)
    with asking(settings) as client:
        wait_until(lambda: client.get("/status").json()["published_after_s"] is not None, what="the first reply")
        own_redis.pause()
        try:
            began = time.monotonic()
            status = client.get("/status").json()
            took_s = time.monotonic() - began
            wait_until(
                lambda: client.get("/status").json()["cache_up"] is False, limit_s=5, what="the reader to see it"
            )
            away = client.get("/status").json()
        finally:
            own_redis.resume()
    assert (status["version"], status["published_after_s"]) == (report.version, None)
    assert (status["cache_up"], status["diagnosis"]["code"]) == (True, "ok")
    assert away["diagnosis"]["code"] == "redis_away"
    assert took_s < 0.45  # two tries of a read take 0.5 s


def test_a_slow_redis_hides_nothing_that_it_has_said(
    redis_server: RedisServer, settings: Settings, patience: pytest.MonkeyPatch
) -> None:
    """While Redis is slow, `/status` still says why runs fail and which processes run, as last read.

    A reply that is too late for one request is used by the next.
    """
    patience.undo()
    for _ in range(2):
        with pytest.raises(SourceMissing):
            optimize(settings)
    proxy = LossyProxy(redis_server)
    with proxy.open() as url, asking(replace(settings, redis_url=url)) as client:
        wait_until(lambda: client.get("/status").json()["diagnosis"]["code"] == "runs_fail", what="the cause")
        before = client.get("/status").json()
        proxy.delay_s = 0.08  # three replies take longer than /status waits, and none as long as a reader waits
        late = client.get("/status")
        assert (late.status_code, late.json()["diagnosis"]) == (503, before["diagnosis"])
        assert (late.json()["cache_up"], late.json()["processes"]) == (True, before["processes"])
        assert before["diagnosis"]["text"] in client.get("/readyz").json()["detail"]
        report = run_old(settings)
        wait_until(lambda: client.get("/status").json().get("version") == report.version, what="the version")
        wait_until(lambda: client.get("/status").json()["diagnosis"]["code"] == "ok", what="the report of its run")
        client.get("/status")  # its reading is not over when the app ends


def test_the_last_runs_are_shown_newest_first(settings: Settings) -> None:
    """`/runs` has the reports of Redis unchanged, newest first, up to `limit`; a wrong parameter is a 422."""
    run_old(settings)
    optimize(settings)
    with asking(settings) as client:
        runs = client.get("/runs").json()["runs"]
        assert [run["status"] for run in runs] == ["unchanged", "success"]
        assert runs[1]["stats"]["predictions_extracted"] == 2
        assert client.get("/runs?limit=1").json()["runs"] == runs[:1]
        assert client.get("/runs?status=success").json()["runs"] == runs[1:]
        for wrong in ("limit=0", "limit=1001", "limit=x", "status=failed", "status="):
            assert client.get(f"/runs?{wrong}").status_code == 422


def test_of_runs_only_what_is_new_is_sent(settings: Settings) -> None:
    """With `after`, `/runs` has only what was reported after the report with that timestamp, in the order of arrival.

    With a current ETag it is a 304 until there is another report.
    """
    run_old(settings)
    for at in ("2099-11-01T10:00:02.000Z", "2099-11-01T10:00:01.000Z", "2099-11-01T10:00:01.000Z"):
        report_unchanged(settings, 1, at=at)
    with asking(settings) as client:
        runs = client.get("/runs").json()["runs"]
        assert client.get("/runs", params={"after": runs[3]["timestamp"]}).json()["runs"] == runs[:3]
        assert client.get("/runs", params={"after": runs[2]["timestamp"]}).json()["runs"] == runs[:2]
        # Two reports have this timestamp, and a client may have only one of them.
        assert client.get("/runs", params={"after": runs[0]["timestamp"]}).json()["runs"] == runs[:1]
        assert client.get("/runs?after=unknown").json()["runs"] == runs
        assert client.get("/runs", params={"after": "x" * 65}).status_code == 422

        for encoding in ("gzip", "zstd", "identity"):
            first, body = raw(client, "/runs", Accept_Encoding=encoding)
            has = {"Accept_Encoding": encoding, "If_None_Match": first.headers["ETag"]}
            again, nothing = raw(client, "/runs", **has)
            assert (again.status_code, nothing, again.headers["ETag"]) == (304, b"", first.headers["ETag"])
            assert first.headers["Cache-Control"] == again.headers["Cache-Control"] == "no-cache"
        report_unchanged(settings, 1, at="2099-11-01T10:00:03.000Z")
        assert raw(client, "/runs", **has)[0].status_code == 200
        assert body != raw(client, "/runs", **has)[1]


def test_a_pinned_version_is_shown_to_be_until_it_is_unpinned(settings: Settings) -> None:
    """Until a version is unpinned, `/status` has its pin with the author; it also has the version that was restored.

    `/readyz` stays ready, and has the pin too. A run over a newer input changes none of this.
    """
    old = run_old(settings)
    report = rollback(settings, version_of(old))
    assert report.pinned is not None
    pin = report.pinned.to_dict()
    with asking(settings) as client:
        shown = client.get("/status").json()
        assert (shown["version"], shown["pinned"], shown["restored_from"]) == (report.version, pin, old.version)
        assert run_next(settings).reason == "pinned"
        before = shown["last_success"]
        wait_until(lambda: client.get("/status").json()["last_success"] > before, limit_s=5, what="the run")
        status = client.get("/status").json()
        assert (status["version"], status["pinned"], status["restored_from"]) == (report.version, pin, old.version)
        assert client.get("/readyz").json() == {"status": "ready", "pinned": pin}
        unpin(settings)
        wait_until(lambda: client.get("/status").json()["pinned"] is None, what="the reader to see it", limit_s=5)
        status = client.get("/status").json()
        assert (status["version"], status["restored_from"]) == (report.version, old.version)
        assert client.get("/readyz").json() == {"status": "ready"}


def test_updates_that_hold_are_counted(settings: Settings) -> None:
    """`/status` and `/metrics` count the updates that are in force: until a newer input is scanned.

    A run that finds no newer input leaves them.
    """
    run_old(settings)
    enqueue(settings, [], ["NONE"])
    apply_updates(settings)
    optimize(settings)
    with asking(settings) as client:
        assert client.get("/status").json()["updates"] == 1
        assert 'rolling_updates_held{source="rolling_brain"} 1\n' in client.get("/metrics").text
        run_next(settings)
        wait_until(lambda: client.get("/status").json()["updates"] == 0, limit_s=5, what="the scan")
        assert 'rolling_updates_held{source="rolling_brain"} 0\n' in client.get("/metrics").text


def test_it_is_ready_while_the_snapshot_is_fresh(settings: Settings) -> None:
    """A snapshot that no run has confirmed for three intervals is still sent, and marked as stale.

    `/readyz` is then a 503 with the cause.
    """
    run_old(settings)
    with asking(settings) as client:
        assert client.get("/healthz").json() == {"status": "alive"}
        assert client.get("/readyz").json() == {"status": "ready"}
    with asking(replace(settings, interval_s=0.1)) as client:
        wait_until(lambda: client.get("/readyz").status_code == 503, limit_s=5, what="staleness")
        answer = client.get("/readyz")
        assert answer.json()["detail"].startswith(
            "No worker takes the queue rolling.rolling_brain. No beat sends runs. Showing data from "
        )
        assert client.get("/status").json()["diagnosis"]["code"] == "no_worker"
        assert "Retry-After" in answer.headers
        assert client.get("/status").json()["stale"] is True
        assert client.get("/predictions").headers["X-Snapshot-Stale"] == "true"
        assert client.get("/healthz").status_code == 200


def test_a_stale_snapshot_is_explained_by_the_run_that_failed(settings: Settings) -> None:
    """If runs are made but fail, `/readyz` of a stale snapshot names the error and does not mention the worker."""
    run_old(settings)
    brief = replace(settings, interval_s=0.1)
    Path(str(settings.input)).unlink()
    with pytest.raises(SourceMissing):
        optimize(brief)
    with asking(brief) as client:
        wait_until(lambda: client.get("/readyz").status_code == 503, limit_s=5, what="staleness")
        detail = client.get("/readyz").json()["detail"]
    assert re.match(r"The run at \S+ UTC has failed: SourceMissing, ", detail)
    assert "worker" not in detail


def is_found(client: TestClient, path: str) -> bool:
    """Whether the response is a 200."""
    return client.get(path).status_code == 200


def test_without_any_snapshot_it_says_when_to_come_back(settings: Settings) -> None:
    """Until the first run, each path of a version is a 503 with `Retry-After` and with what to do."""
    paths = [*OF_A_VERSION, "/predictions?limit=1", "/status", "/readyz"]
    with asking(settings) as client:
        for path in paths:
            answer = client.get(path)
            assert answer.status_code == 503, path
            assert answer.headers["Content-Type"] == "application/problem+json", path
            assert int(answer.headers["Retry-After"]) > 0, path
            diagnosis = client.get("/status").json()["diagnosis"]
            is_told = path in {"/status", "/readyz"}
            sentence = f"{diagnosis['text']} {diagnosis['advice']}" if is_told else "no snapshot can be read"
            assert sentence in answer.json()["detail"], path
            assert "queue rolling.rolling_brain. " in diagnosis["text"]
        assert client.get("/healthz").status_code == 200
        assert client.get("/runs").json() == {"runs": []}
        assert client.get("/metrics").status_code == 200

        run_old(settings)
        for path in paths:
            wait_until(partial(is_found, client, path), limit_s=5, what=f"{path} of a snapshot")


def test_a_client_is_not_told_where_redis_and_the_files_are(
    settings_without_redis: Settings, own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A 503 says what to do, but not where Redis and the files are: addresses and paths are in the log, once."""
    settings = replace(settings_without_redis, redis_url=own_redis.url)
    with asking(settings) as client:
        for path in (*OF_A_VERSION, "/status", "/readyz") * 2:
            answer = client.get(path)
            assert answer.status_code == 503
            assert str(own_redis.port) not in answer.text
            assert str(settings.output_dir) not in answer.text
            is_told = path in {"/status", "/readyz"}
            sentence = "Redis does not answer this process" if is_told else "/status says what is wrong"
            assert sentence in answer.json()["detail"]
    messages = [record.message for record in caplog.records if "no snapshot of" in record.message]
    assert len(messages) == 1
    assert str(own_redis.port) in messages[0]
    assert str(settings.output_dir) in messages[0]


def test_files_answer_while_redis_is_away(own_redis: RedisServer, settings_without_redis: Settings) -> None:
    """While Redis is down, the files supply the same bytes, and a header says so.

    When Redis is back, it is used again.
    """
    own_redis.start()
    settings = replace(settings_without_redis, redis_url=own_redis.url)
    write_json(settings.input, {"AAPL": a_record(), "LOW": a_record(confidence=0.1)})
    optimize(settings)
    with asking(settings) as client:
        before = client.get("/predictions")
        own_redis.kill()
        wait_until(lambda: client.get("/predictions").headers["X-Snapshot-Origin"] == "files", limit_s=5)
        assert client.get("/predictions").content == before.content
        assert client.get("/predictions/LOW").json()["confidence"] == 0.1
        assert client.get("/status").json()["cache_up"] is False
        assert client.get("/readyz").status_code == 200

        own_redis.start()
        wait_until(lambda: client.get("/predictions").headers["X-Snapshot-Origin"] == "redis", limit_s=5, what="Redis")
        assert client.get("/status").json()["cache_up"] is True


def test_a_part_that_cannot_be_read_is_missing_alone(settings: Settings, redis_server: RedisServer) -> None:
    """If one part is damaged and there are no files either, the other parts are sent.

    The damaged part, `/page`, which needs all parts, and `/readyz` are a 503.
    """
    version = version_of(run_old(settings))
    with redis_server.client as client:
        client.set(Keys(settings.source).payload(version, "bots"), b"junk")
    nowhere = replace(settings, output_dir=settings.output_dir / "nowhere")
    with asking(nowhere) as asked:
        assert asked.get("/predictions").status_code == 200
        for path in ("/bots", "/page"):
            assert asked.get(path).status_code == 503
            assert "bots" in asked.get(path).json()["detail"]
        answer = asked.get("/readyz")
        assert answer.status_code == 503
        assert f"a part of version {version} cannot be read" in answer.json()["detail"]


def test_no_request_reads_a_file_or_inflates_while_redis_is_up(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While Redis is up, no request reads a file or inflates: responses are prepared before, or read from Redis."""
    write_json(settings.input, {"AAPL": a_record(), "LOW": a_record(confidence=0.1)})
    optimize(settings)
    with asking(settings) as client:
        client.get("/predictions")

        def refused(*_: Any, **__: Any) -> Any:
            raise AssertionError("a request has done what it must not")

        monkeypatch.setattr(gzip, "decompress", refused)
        monkeypatch.setattr(builtins, "open", refused)
        monkeypatch.setattr(Path, "open", refused)
        monkeypatch.setattr(Path, "read_bytes", refused)
        paths = [*OF_A_VERSION, "/predictions?limit=1", "/predictions/LOW", "/predictions/NO", "/status", "/runs", "/"]
        statuses = [client.send(client.build_request("GET", path), stream=True).status_code for path in paths]
        monkeypatch.undo()

    assert statuses == [200, 200, 200, 200, 200, 200, 200, 200, 200, 200, 404, 200, 200, 200]


# ---- in an app of another team


def test_a_backend_includes_the_router_in_one_line(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A router without arguments takes its settings from the environment and works below an app's prefix.

    Its errors are problem details, though the app is not ours.
    """
    run_old(settings)
    for name, value in (
        ("INPUT", settings.input),
        ("OUTPUT_DIR", settings.output_dir),
        ("REDIS_URL", settings.redis_url),
    ):
        monkeypatch.setenv(f"ROLLING_{name}", str(value))
    app = FastAPI()
    app.include_router(optimizer.web.make_router(), prefix="/api")

    with TestClient(app) as client:
        assert client.get("/api/predictions").json()["count"] == 2
        assert client.head("/api/predictions").status_code == 200
        assert client.get("/api/predictions/AAPL").json()["symbol"] == "AAPL"
        assert client.get("/api/predictions?limit=-1").headers["Content-Type"] == "application/problem+json"
        refused = client.post("/api/runs")
        assert (refused.status_code, refused.headers["Allow"]) == (405, "GET, HEAD")
        assert "/api/predictions/{symbol}" in client.get("/openapi.json").json()["paths"]
    assert optimizer.web.router.routes


def test_a_login_of_the_backend_is_not_passed_by(settings: Settings) -> None:
    """Dependencies that an app puts before the router, such as a login, apply to every route of it."""

    def refuse() -> None:
        raise HTTPException(401, "log in first")

    run_old(settings)
    app = FastAPI()
    app.include_router(optimizer.web.make_router(settings), dependencies=[Depends(refuse)])
    with TestClient(app) as client:
        for path in (*OF_A_VERSION, "/status", "/runs", "/events", "/metrics"):
            assert client.get(path).status_code == 401, path


def test_the_app_can_be_mounted_in_another(settings: Settings) -> None:
    """A mounted app has no lifespan of its own, so ours starts at the first request."""
    run_old(settings)
    app, ours = FastAPI(), optimizer.web.create_app(settings)
    app.mount("/rolling", ours)
    with TestClient(app) as client:
        assert client.get("/rolling/predictions").json()["count"] == 2
        assert client.get("/rolling/predictions").json()["count"] == 2
        assert client.get("/rolling/predictions/MSFT").json()["symbol"] == "MSFT"
        assert "default-src 'none'" in client.get("/rolling/").headers["Content-Security-Policy"]
    with TestClient(ours):  # the end of its lifespan ends its reader
        pass


SLASHES = (
    "/bots/",
    "/predictions/",
    "/bots//",
    "/runs/",
    "/healthz/",
    "/events/",
    "/openapi.json/",
    "/sources/rolling_brain",
)


@pytest.mark.parametrize("included", [False, True])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_a_slash_too_many_leads_to_no_other_host(settings: Settings, method: str, included: bool) -> None:
    """A path with a slash too many is a 404, so it never redirects to a host that the client named.

    That holds also in an app that redirects slashes of its own routes, which are still found.
    """
    run_old(settings)
    app: Any = FastAPI() if included else optimizer.web.app.create_app_of_many([settings])
    if included:
        app.include_router(optimizer.web.make_router(settings), prefix="/api")
        app.include_router(optimizer.web.make_router(settings))
        app.get("/status/")(lambda: {"from": "the app"})
        app.get("/theirs")(lambda: {"from": "the app"})
    with TestClient(app, follow_redirects=False) as client:
        paths = [path for path in SLASHES if not included or not path.startswith(("/openapi", "/sources"))]
        for path in (*paths, *(f"/api{path}" for path in paths if included)):
            answer = client.request(method, path, headers={"Host": "evil.example"})
            assert (answer.status_code, answer.headers["Content-Type"]) == (404, "application/problem+json"), path
            assert "evil" not in f"{answer.headers}{answer.text}"
        assert client.get("/bots").status_code == 200
        if included:
            assert client.get("/status/").json() == client.get("/theirs").json() == {"from": "the app"}
            assert client.get("/theirs/").status_code == 307  # the app's own redirect


# Headers that a browser shows to every page (the Fetch standard), and headers that a page does not need.
SHOWN_ANYWAY = {
    "cache-control",
    "content-language",
    "content-length",
    "content-type",
    "expires",
    "last-modified",
    "pragma",
}
NOT_FOR_PAGES = {"vary", "content-encoding", "x-content-type-options", "www-authenticate", "allow", "x-accel-buffering"}


def test_browsers_of_another_origin_see_all_that_they_need(settings: Settings) -> None:
    """With the CORS lines of the documentation, a page of another origin may read every header that it needs."""
    run_old(settings)
    app = FastAPI()
    app.include_router(optimizer.web.make_router(settings))
    app.add_middleware(
        CORSMiddleware,
        allow_origins=["https://shop.example"],
        allow_headers=["If-None-Match"],
        expose_headers=optimizer.web.EXPOSED_HEADERS,
    )
    origin = {"Origin": "https://shop.example"}
    with TestClient(app, headers=origin) as client:
        seen = set()
        for path in (
            *OF_A_VERSION,
            "/predictions?limit=1",
            "/predictions/NO",
            "/predictions?limit=x",
            "/status",
            "/runs",
        ):
            answer = client.get(path)
            exposed = {name.strip().lower() for name in answer.headers["Access-Control-Expose-Headers"].split(",")}
            names = {name for name in answer.headers if not name.startswith("access-control-")}
            assert names <= exposed | SHOWN_ANYWAY | NOT_FOR_PAGES
            seen |= names
        etag = client.get("/predictions").headers["ETag"]
        asked = origin | {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "if-none-match"}
        assert client.options("/predictions", headers=asked).status_code == 200
        again = client.get("/predictions", headers={"If-None-Match": etag})
        assert (again.status_code, again.headers["Access-Control-Allow-Origin"]) == (304, "https://shop.example")
    assert {"etag", "x-total-count"} <= seen
    nothing = replace(settings, source="nothing", output_dir=settings.output_dir / "nothing")
    with asking(nothing) as client:
        assert "Retry-After" in client.get("/predictions").headers
    assert {"ETag", "X-Snapshot-Rejected", "X-Total-Count", "Retry-After"} <= set(optimizer.web.EXPOSED_HEADERS)


# ---- the page's files


def test_the_page_comes_under_a_strict_policy(settings: Settings) -> None:
    """The page's policy allows nothing inline, nothing from elsewhere and no frames.

    Caches may keep the page, and a revalidation is a 304.
    """
    with asking(settings) as client:
        page = client.get("/")
        assert page.headers["Content-Type"] == "text/html; charset=utf-8"
        assert "script-src 'self'; style-src 'self'" in page.headers["Content-Security-Policy"]
        assert "unsafe" not in page.headers["Content-Security-Policy"]
        assert (page.headers["X-Frame-Options"], page.headers["X-Content-Type-Options"]) == ("DENY", "nosniff")
        assert client.get("/", headers={"If-None-Match": page.headers["ETag"]}).status_code == 304
        assert client.get("/static/index.html").content == page.content
        for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/static/", "/nowhere", "/docs"):
            answer = client.get(path)
            assert (answer.status_code, answer.headers["Content-Type"]) == (404, "application/problem+json")


def test_an_error_of_ours_is_a_problem_too(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unexpected error in our code is a 500 with problem details that show a client nothing about it."""
    run_old(settings)
    monkeypatch.setattr("optimizer.web.metrics.render", lambda *_: 1 / 0)
    with TestClient(optimizer.web.create_app(settings), raise_server_exceptions=False) as client:
        answer = client.get("/metrics")
    assert (answer.status_code, answer.headers["Content-Type"]) == (500, "application/problem+json")
    assert "division" not in answer.text
    assert json.loads(answer.text)["title"] == "Internal Server Error"


def test_each_of_several_sources_has_its_own_answers(tmp_path: Path, settings: Settings) -> None:
    """The first source is at the root, and each is under its name, with dashboard and events.

    The server exits with status 0 though a stream is open.
    """
    variables = {
        "ROLLING_INPUT": "",
        "ROLLING_SOURCES": f"brain={tmp_path}/brain.json; intraday={tmp_path}/parts/*.json",
    }
    every = Settings.every_from_env(
        {**variables, "ROLLING_OUTPUT_DIR": str(settings.output_dir), "ROLLING_REDIS_URL": settings.redis_url}
    )
    write_json(tmp_path / "brain.json", {"AAPL": a_record()})
    write_json(tmp_path / "parts" / "a.json", {"MSFT": a_record()})
    for one in every:
        optimize(one)

    with WebServer(tmp_path, settings, **variables) as web:
        symbols = {
            path: [record["symbol"] for record in json.loads(web.get(f"{path}/predictions")[2])["predictions"]]
            for path in ("", "/sources/brain", "/sources/intraday")
        }
        status = json.loads(web.get("/sources/intraday/status")[2])
        page = web.get("/sources/intraday/")[2]
        unknown = web.get("/sources/other/predictions")[0]
        with socket.create_connection(("127.0.0.1", web.port), timeout=10) as stream:
            stream.sendall(b"GET /sources/intraday/events HTTP/1.1\r\nHost: x\r\n\r\n")
            wait_until(lambda: b"event: version" in stream.recv(65_536), what="the version")
            assert web.stop() == 0

    assert symbols == {"": ["AAPL"], "/sources/brain": ["AAPL"], "/sources/intraday": ["MSFT"]}
    assert (status["source"], status["sources"]) == ("intraday", ["brain", "intraday"])
    assert b"<html" in page
    assert unknown == 404


def test_a_router_of_one_of_several_sources(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    """A router of one of several sources is made by name; without one the app's start fails and lists the sources."""
    run_old(settings)
    monkeypatch.setenv("ROLLING_SOURCES", f"rolling_brain={settings.input}; other=/nowhere.json")
    monkeypatch.setenv("ROLLING_REDIS_URL", settings.redis_url)
    app = FastAPI()
    app.include_router(optimizer.web.make_router(source="rolling_brain"), prefix="/brain")
    with TestClient(app) as client:
        assert client.get("/brain/predictions").status_code == 200
    app = FastAPI()
    app.include_router(optimizer.web.make_router())
    with pytest.raises(SettingsInvalid, match="rolling_brain, other"), TestClient(app):
        pass


def test_no_route_shows_a_version_before_the_others_do(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new version's responses are prepared beside the event loop; until then each route shows the one before it."""
    write_json(settings.input, OLD | {"LOW": a_record(confidence=0.1)})
    old = version_of(optimize(settings))
    prepares, goes_on = threading.Event(), threading.Event()

    class Slow(Pages):
        def __init__(self, cached: CachedVersion, per_request_headers: Any) -> None:
            if cached.version != old:
                prepares.set()
                assert goes_on.wait(20)
            super().__init__(cached, per_request_headers)

    monkeypatch.setattr("optimizer.web.service.Pages", Slow)
    with asking(settings) as client:

        def versions() -> set[int]:
            paths = ("/predictions", "/bots", "/page", "/predictions/AAPL", "/predictions/LOW")
            versions = {int(client.get(path).headers["X-Snapshot-Version"]) for path in paths}
            return versions | {client.get("/status").json()["version"]}

        try:
            assert versions() == {old}
            new = version_of(run_next(settings))
            assert prepares.wait(20)
            assert versions() == {old}
        finally:
            goes_on.set()
        wait_until(lambda: client.get("/status").json()["version"] == new, what="the new version")
        assert versions() == {new}
