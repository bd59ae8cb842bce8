"""`follow.js` against a real server: a page always has the content of one whole version, whatever faults occur.

It runs in a real Chromium, with a stream, and in Node, without one, behind a proxy that refuses, drops, cuts, holds and
repeats responses.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from playwright.sync_api import Browser, Page, expect

from optimizer import Settings, optimize
from tests.support.following import Followed, InNode, InPage
from tests.support.http_proxy import HttpProxy
from tests.support.pages import ROOT, blocks
from tests.support.redis_servers import RedisServer, wait_until
from tests.support.rolling_files import a_record, write_json
from tests.support.web_apps import WebServer

pytestmark = pytest.mark.slow

# Names that JavaScript would sort differently, or that its objects already have.
NAMES: Final = ["AAPL", "10", "9", "\ufffd", "\U0001f600", "\ud7ff", "__proto__", "constructor", "", "aapl", "é"]
KINDS: Final = ("predictions", "bots", "holdings")
PATHS: Final = ("/snapshot", "/changes", "/events")
# How many times faster waits pass than they do for users.
FACTOR: Final = 25


class Source:
    """A source with its server and a proxy in front of it; it remembers the content of each version."""

    def __init__(self, directory: Path, settings: Settings) -> None:
        self.settings = settings
        self.contents: dict[int, dict[str, Any]] = {}
        self._directory = directory
        self._stack = ExitStack()

    def __enter__(self) -> Source:
        self.web = self._stack.enter_context(WebServer(self._directory, self.settings))
        self.proxy = self._stack.enter_context(HttpProxy(self.web.port).open())
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def web_url(self) -> str:
        """The address of the server, by the name `localhost`."""
        return f"http://localhost:{self.web.port}/"

    def kill(self) -> None:
        """Kill the server."""
        self.web.process.send_signal(signal.SIGKILL)
        self.web.process.wait(20)

    def restart(self) -> None:
        """Start another server in its place."""
        self.web = self._stack.enter_context(WebServer(self._directory, self.settings))
        self.proxy.port = self.web.port

    def publish(self, records: dict[str, Any], bots: dict[str, Any]) -> int:
        """Publish a version, and wait until the server shows it."""
        write_json(self.settings.input, {"predictions": records, "bots": bots})
        version = optimize(self.settings).version
        assert version is not None
        wait_until(lambda: self.whole().get("version") == version, what=f"the server to show {version}")
        return version

    def whole(self) -> dict[str, Any]:
        """Return the whole current version as the server has it, or a problem if it has none."""
        status, _, body = self.web.get("/snapshot")
        whole: dict[str, Any] = json.loads(body)
        if status != 200:
            return whole
        expected = {"bots": list(map(list, whole["bots"].items())), "timestamp": whole["timestamp"]}
        self.contents[whole["version"]] = {kind: whole[kind] for kind in KINDS} | expected
        return whole


@pytest.fixture(scope="module")
def page(browser: Browser) -> Page:
    """A page of one browser for the module."""
    context = browser.new_context()
    context.set_default_timeout(15_000)
    return context.new_page()


@pytest.fixture
def source(settings: Settings, tmp_path: Path) -> Iterator[Source]:
    """A source with a server that has shown nothing yet."""
    with Source(tmp_path, replace(settings, min_confidence=0.0, top_symbols_limit=20)) as source:
        yield source


def records_of(numbers: dict[str, int]) -> dict[str, Any]:
    """Return records by name, several of which have the same confidence."""
    return {name: a_record(confidence=number % 3 / 4 + 0.25, last_price=number + 1) for name, number in numbers.items()}


def bots_of(numbers: dict[str, int]) -> dict[str, Any]:
    """Return a bot for each name, with one position in a symbol of that name, and always the bot `b`."""
    return {"b": {"enabled": True}} | {
        name: {"enabled": number % 2 == 0, "equity": number, "positions": [{"symbol": name, "qty": number + 1}]}
        for name, number in numbers.items()
    }


def assert_told(log: dict[str, Any], source: Source) -> None:
    """Check that each callback had the content of its version, and that versions rose.

    The changes alone must give the rows that the follower holds.
    """
    versions = [told["version"] for told in log["versions"]]
    assert versions == sorted(set(versions))
    for told in log["versions"]:
        wrong = [name for name in told["touched"] if name.startswith(("same ", "no ", "wrong "))]
        assert not wrong, (told["version"], told["touched"])
        expected = source.contents[told["version"]]
        assert {kind: json.loads(told[kind]) for kind in KINDS} == {kind: expected[kind] for kind in KINDS}
        assert told["timestamp"] == expected["timestamp"]


def wait_for(followed: Followed, version: int) -> dict[str, Any]:
    """Wait until the follower holds a version; return its log."""
    wait_until(lambda: followed.log()["version"] == version, limit_s=30, what=f"version {version}")
    return followed.log()


# ---- any history

numbers = st.dictionaries(st.sampled_from([name for name in NAMES if name]), st.integers(0, 7), max_size=6)
publishes = st.tuples(st.just("publish"), numbers, numbers)
faults = st.tuples(st.sampled_from(["refuse", "drop", "repeat"]), st.sampled_from(PATHS))
others = st.tuples(st.sampled_from(["cut", "hold", "mend", "mend", "close", "open", "check"]))
histories = st.lists(st.one_of(publishes, publishes, faults, others), min_size=1, max_size=12)


def act(step: tuple[Any, ...], source: Source, followed: Followed) -> None:
    """Take one step of a history."""
    proxy = source.proxy
    match step:
        case ("publish", records, bots):
            source.publish(records_of({"A": 1, **records}), bots_of(bots))
        case ("refuse", path):
            proxy.refuses.add(path)
        case ("drop", path):
            proxy.drops.add(path)
        case ("repeat", path) if path != "/events":
            proxy.repeats.add(path)
        case ("cut",):
            proxy.cut_streams()
        case ("hold",):
            proxy.passes.clear()
        case ("mend",):
            proxy.mend()
        case ("close" | "open" | "check" as method,):
            followed.call(method)


def run_history(history: list[tuple[Any, ...]], source: Source, followed: Followed) -> None:
    """Take all steps, end all faults, and compare the callbacks with what the server had."""
    for step in history:
        act(step, source, followed)
    source.proxy.mend()
    followed.call("open")
    assert_told(wait_for(followed, source.whole()["version"]), source)


@pytest.mark.parametrize("where", ["page", "node"])
def test_whatever_happens_between_a_page_ends_with_what_the_server_has(where: str, source: Source, page: Page) -> None:
    """After any history of versions and faults the follower has the server's content, with and without a stream."""
    source.publish(records_of({"A": 1}), bots_of({}))
    at_work = {"page": _in_page, "node": _in_node}[where]

    @example([("publish", {name: 3 for name in NAMES if name}, {name: 2 for name in NAMES if name}), ("cut",)])
    @example([("hold",), ("publish", {"9": 1}, {}), ("publish", {"10": 1}, {}), ("mend",), ("publish", {}, {})])
    @given(histories)
    @hypothesis_settings(max_examples=25, suppress_health_check=list(HealthCheck))
    def check(history: list[tuple[Any, ...]]) -> None:
        source.proxy.mend()
        at_work(history, source, page)

    check()


def _in_page(history: list[tuple[Any, ...]], source: Source, page: Page) -> None:
    run_history(history, source, InPage(page, source.proxy.url, factor=FACTOR))


def _in_node(history: list[tuple[Any, ...]], source: Source, _page: Page) -> None:
    with InNode(source.proxy.url, factor=FACTOR, pollMs=500) as followed:
        run_history(history, source, followed)


# ---- what is transferred


def test_a_page_takes_the_whole_once_and_then_what_has_changed(source: Source, page: Page) -> None:
    """A page requests the whole snapshot once and then gets changes by one stream, with no request per version.

    That holds also for a version with the same content. A page that starts again requests the snapshot with
    `If-None-Match`, so it costs a 304 if there is no newer version than when a page has last requested it.
    """
    records = {f"S{number}": number for number in range(20)}
    source.publish(records_of(records), bots_of({}))
    followed = InPage(page, source.proxy.url)
    wait_until(lambda: followed.log()["state"] == "live", what="the stream")
    for number in range(3):
        source.publish(records_of(records | {"S7": number + 3}), bots_of({"a": number}))
    beyond_the_limit = a_record(confidence=0.0)
    last = source.publish(records_of(records | {"S7": 5}) | {"T": beyond_the_limit}, bots_of({"a": 2}))

    log = wait_for(followed, last)

    assert_told(log, source)
    touched = [told["touched"] for told in log["versions"]]
    assert touched[1:] == [["S7", "a", "a"], ["S7", "a", "a"], ["S7", "a", "a"], []]
    assert log["problems"] == []
    for path, count in (("/snapshot", 1), ("/events", 1), ("/changes", 0)):
        assert len(source.proxy.requests_to(path)) == count, source.proxy.asked

    for _ in range(2):
        again = InPage(page, source.proxy.url)
        assert wait_for(again, last)["versions"][0]["touched"] != []
    asked = [head.lower() for head in source.proxy.heads if head.startswith(b"GET /snapshot ")]
    assert [b"if-none-match" in head for head in asked] == [False, True, True]
    assert [status for path, status in source.proxy.answered if path == "/snapshot"] == [200, 200, 304]


def test_without_a_stream_only_what_has_changed_is_asked_for(source: Source) -> None:
    """Without `EventSource`, as in Node, only changes are requested after the first snapshot.

    Versions between two requests are one step, and nothing is requested after `close`.
    """
    source.publish(records_of({"A": 1}), bots_of({}))
    with InNode(source.proxy.url, pollMs=100) as followed:
        wait_until(lambda: followed.log()["version"] is not None, what="the first version")
        assert followed.log()["state"] == "polling"
        followed.call("close")
        for number in range(3):
            last = source.publish(records_of({"A": 1, "B": number}), bots_of({}))
        followed.call("open")
        log = wait_for(followed, last)
        followed.call("close")
        assert followed.log()["states"] == ["closed", "polling", "closed"]
        asked = len(source.proxy.asked)
        source.publish(records_of({"A": 1}), bots_of({}))
        assert len(source.proxy.asked) == asked
    assert_told(log, source)
    assert [told["touched"] for told in log["versions"][1:]] == [["B"]]
    assert len(source.proxy.requests_to("/snapshot")) == 1


_WATCH_LINES = """
() => {
  window.touched = new Set();
  const lineOf = (node) => (node.nodeType === Node.ELEMENT_NODE ? node : node.parentElement)?.closest("tbody > tr");
  new MutationObserver((records) => {
    for (const { target, addedNodes } of records) {
      for (const line of [lineOf(target), ...[...addedNodes].map(lineOf)]) if (line) window.touched.add(line);
    }
  }).observe(document.querySelector("main"), {
    subtree: true, childList: true, characterData: true, attributes: true,
  });
}
"""


def test_the_dashboard_has_its_data_from_it_and_touches_only_what_has_changed(source: Source, page: Page) -> None:
    """The dashboard gets its data from `follow.js`, and a new version writes only the rows that changed.

    Of twenty predictions and three bots these are the rows of two and of one; no other data are requested.
    """
    records, bots = {f"S{number}": number for number in range(20)}, {"a": 1, "c": 2}
    source.publish(records_of(records), bots_of(bots))
    page.goto(source.proxy.url)
    expect(page.locator("#connection-text")).to_have_text("Connected")
    expect(page.locator("#predictions tbody tr")).to_have_count(20)
    page.evaluate(_WATCH_LINES)

    source.publish(records_of(records | {"S4": 7, "S5": 8}), bots_of(bots | {"c": 4}))

    expect(page.locator("#tile-equity")).to_have_text("5.00")
    touched = "() => [...window.touched].filter((line) => !line.closest('#runs'))"
    wait_until(lambda: page.evaluate(f"() => ({touched})().length >= 4"), what="lines that are written")
    names = page.evaluate(f"() => ({touched})().map((line) => line.firstChild.textContent)")
    assert sorted(names) == ["S4", "S5", "c", "c"]  # the bot, and its holding
    paths = {address.partition("?")[0] for address in source.proxy.asked}
    assert paths & {"/page", "/predictions", "/bots", "/portfolio", "/changes"} == set()
    assert len(source.proxy.requests_to("/snapshot")) == 1
    page.goto("about:blank")


# ---- faults


@pytest.mark.parametrize("where", ["page", "node"])
def test_who_is_too_far_behind_takes_the_whole_again(
    where: str, source: Source, page: Page, redis_server: RedisServer
) -> None:
    """A follower that is too far behind gets a `reset` or a 410 from `/changes`, and requests the whole snapshot again.

    Its callback gets only the rows that differ from those that it held.
    """
    source.publish(records_of({"A": 1, "B": 1}), bots_of({}))
    with ExitStack() as stack:
        if where == "page":
            followed: Followed = InPage(page, source.proxy.url, factor=FACTOR)
        else:
            followed = stack.enter_context(InNode(source.proxy.url, factor=FACTOR))
        wait_until(lambda: followed.log()["version"] is not None, what="the first version")
        followed.call("close")
        last = source.publish(records_of({"A": 1, "C": 2}), bots_of({}))
        with redis_server.client as client:
            assert client.delete(f"rolling:{{{source.settings.source}}}:deltas") == 1
        source.restart()

        followed.call("open")
        log = wait_for(followed, last)

    assert_told(log, source)
    assert log["versions"][-1]["touched"] == ["B", "C"]
    assert log["problems"] == []
    assert len(source.proxy.requests_to("/snapshot")) == 2


def test_the_whole_is_not_taken_again_once_nothing_is_missing(source: Source, page: Page) -> None:
    """After a 410 from a process that lags, the snapshot is requested once, and is no newer than the stream's data.

    The next check requests changes only.
    """
    source.publish(records_of({"A": 1}), bots_of({}))
    followed = InPage(page, source.proxy.url)
    wait_until(lambda: followed.log()["state"] == "live", what="the stream")
    source.proxy.forgets.add("/changes")
    followed.call("check")
    wait_until(lambda: len(source.proxy.requests_to("/snapshot")) == 2, what="the whole after the 410")
    source.proxy.mend()
    wait_for(followed, source.publish(records_of({"A": 2}), bots_of({})))
    asked = len(source.proxy.requests_to("/changes"))

    followed.call("check")

    wait_until(lambda: len(source.proxy.requests_to("/changes")) > asked, what="a question for changes")
    assert len(source.proxy.requests_to("/snapshot")) == 2


def test_an_old_answer_at_the_start_is_caught_up_with(source: Source, page: Page) -> None:
    """If a cache returns an old snapshot and a server has no changes for it, no later change is applied to it.

    The page catches up when requests succeed again.
    """
    source.publish(records_of({"A": 1, "B": 1}), bots_of({}))
    old = wait_for(InPage(page, source.proxy.url, factor=FACTOR), source.whole()["version"])["version"]
    source.publish(records_of({"A": 2}), bots_of({}))
    source.proxy.repeats.add("/snapshot")
    source.proxy.refuses.add("/changes")
    followed = InPage(page, source.proxy.url, factor=FACTOR)
    wait_until(lambda: len(followed.log()["problems"]) > 1, what="requests that fail")
    last = source.publish(records_of({"A": 2, "C": 3}), bots_of({}))
    failed = len(followed.log()["problems"])
    wait_until(lambda: len(followed.log()["problems"]) > failed, what="another request that fails")
    log = followed.log()
    assert [told["version"] for told in log["versions"]] == [old]
    problem = log["problems"][0]
    assert (problem["name"], problem["status"], problem["body"]) == ("Problem", 502, {})

    source.proxy.mend()
    assert_told(wait_for(followed, last), source)


def test_a_page_outlives_its_server(source: Source, page: Page) -> None:
    """A page retries while its server is killed, and gets new versions from the next server."""
    source.publish(records_of({"A": 1}), bots_of({}))
    followed = InPage(page, source.proxy.url, factor=FACTOR)
    wait_until(lambda: followed.log()["state"] == "live", what="the stream")
    source.kill()
    wait_until(lambda: len(followed.log()["problems"]) > 2, what="requests that fail")
    assert followed.log()["state"] == "polling"
    assert {problem["status"] for problem in followed.log()["problems"]} == {0}

    source.restart()
    last = source.publish(records_of({"A": 1, "B": 2}), bots_of({}))
    wait_until(lambda: followed.log()["state"] == "live", limit_s=30, what="another stream")
    log = wait_for(followed, last)
    assert_told(log, source)
    assert log["states"] == ["live", "polling", "live"]
    assert log["versions"][-1]["touched"] == ["B"]


def test_a_stream_that_is_refused_or_silent_is_made_up_for(source: Source, page: Page) -> None:
    """If the stream is refused, the page requests changes about every five seconds.

    If the stream is open but delivers nothing, it requests them about once a minute.
    """
    source.publish(records_of({"A": 1}), bots_of({}))
    source.proxy.refuses.add("/events")
    followed = InPage(page, source.proxy.url, factor=FACTOR)
    page.evaluate("Math.random = () => 0.5")  # the middle of each wait
    wait_until(lambda: followed.log()["state"] == "polling", what="a stream that is refused")
    last = source.publish(records_of({"A": 1, "B": 2}), bots_of({}))
    wait_for(followed, last)
    wait_until(lambda: 5_000 in followed.log()["waits"], what="a wait of five seconds")
    assert followed.log()["state"] == "polling"
    assert 60_000 not in followed.log()["waits"]

    source.proxy.mend()
    wait_until(lambda: followed.log()["state"] == "live", limit_s=30, what="a stream")
    source.proxy.mutes = True
    last = source.publish(records_of({"A": 1, "C": 2}), bots_of({}))
    log = wait_for(followed, last)
    assert log["state"] == "live"
    assert 60_000 in log["waits"]
    assert_told(log, source)


def test_before_the_first_version_the_stream_tells_of_it(source: Source, page: Page) -> None:
    """Before the first version `onError` reports a 503 with the reason, and the stream then announces the version."""
    followed = InPage(page, source.proxy.url)
    wait_until(lambda: followed.log()["problems"] and followed.log()["state"] == "live", what="a problem")
    assert followed.log()["problems"][0]["status"] == 503
    assert "/status says what is wrong" in followed.log()["problems"][0]["message"]
    version = source.publish(records_of({"A": 1}), bots_of({}))
    assert_told(wait_for(followed, version), source)


def test_requests_that_fail_are_asked_again_later_and_later_and_not_all_at_once(source: Source) -> None:
    """Failed requests are retried after waits that grow from about 1 s to about 30 s.

    Each wait is multiplied by a random factor from 0.5 to 1.5, so that clients do not all retry at once.
    """
    source.proxy.drops.add("/snapshot")
    with InNode(source.proxy.url, factor=1_000) as followed:
        wait_until(lambda: len(followed.log()["problems"]) > 12, what="requests that fail")
        waits = [ms for ms in followed.log()["waits"] if ms % 1]  # waits of whole milliseconds have other purposes
    for failures, ms in enumerate(waits[:12]):
        middle = min(1_000 * 2**failures, 30_000)
        assert middle / 2 <= ms <= middle * 1.5
    assert len({ms / min(1_000 * 2**failures, 30_000) for failures, ms in enumerate(waits[:12])}) == 12


# ---- pages that use it


def test_a_mistake_of_the_page_ends_nothing_and_its_signal_does(source: Source) -> None:
    """An error that a page's callback throws is reported as the page's own, and later versions are still delivered.

    The page's abort signal closes the follower for good.
    """
    source.publish(records_of({"A": 1}), bots_of({}))
    with InNode(source.proxy.url, pollMs=50, failsAt=1) as followed:
        wait_until(lambda: followed.log()["version"] is not None, what="the first version")
        last = source.publish(records_of({"A": 1, "B": 1}), bots_of({}))
        log = wait_for(followed, last)
        assert log["problems"] == []
        followed.call("end")
        followed.call("open")
        assert followed.log()["state"] == "closed"
        assert "a mistake of the page" in followed.end()
    assert_told(log, source)


OTHER_ORIGIN = """
import optimizer.web
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.middleware.cors import CORSMiddleware

def log_in(request: Request) -> None:
    if "session" not in request.cookies:
        raise HTTPException(401, "log in first")

app = FastAPI()
app.get("/healthz")(lambda: {})
app.include_router(optimizer.web.make_router(), prefix="/api", dependencies=[Depends(log_in)])
app.add_middleware(CORSMiddleware, allow_origins=["{origin}"], allow_credentials=True)
"""


def test_an_api_of_another_origin_is_followed_with_its_cookies(source: Source, page: Page, tmp_path: Path) -> None:
    """An API of another origin behind a login is followed with its cookies; without credentials its 401 is reported."""
    source.publish(records_of({"A": 1}), bots_of({}))
    url = source.web_url
    (tmp_path / "other.py").write_text(OTHER_ORIGIN.replace("{origin}", url.rstrip("/")))
    command = ["-m", "uvicorn", "--app-dir", str(tmp_path), "other:app"]
    variables = {"ROLLING_MIN_CONFIDENCE": "0"}
    with WebServer(tmp_path, source.settings, command, **variables) as other:
        base = f"http://localhost:{other.port}/api"
        page.context.add_cookies([{"name": "session", "value": "1", "url": base}])
        refused = InPage(page, url, base)
        wait_until(lambda: refused.log()["problems"], what="a problem")
        assert refused.log()["problems"][0]["status"] == 401
        followed = InPage(page, url, base, credentials="include")
        wait_until(lambda: followed.log()["state"] == "live", what="the stream")
        last = source.publish(records_of({"A": 1, "B": 1}), bots_of({}))
        assert_told(wait_for(followed, last), source)


WITH_A_PAGE = """
from pathlib import Path

import optimizer.web
from fastapi import FastAPI
from fastapi.responses import HTMLResponse

app = FastAPI()
app.get("/healthz")(lambda: {})
app.include_router(optimizer.web.make_router(), prefix="/api")
app.get("/", response_class=HTMLResponse)(lambda: Path(__file__).with_name("page.html").read_text())
"""


def test_the_page_of_the_documentation_shows_each_version(source: Source, page: Page, tmp_path: Path) -> None:
    """The page in `docs/http.md` shows each version as it is written there: rows change, move, appear and disappear."""
    [block] = [block for block in blocks(ROOT / "docs" / "http.md") if block.language == "html"]
    (tmp_path / "page.html").write_text(block.text)
    (tmp_path / "with_a_page.py").write_text(WITH_A_PAGE)
    mistakes: list[str] = []
    page.on("pageerror", lambda error: mistakes.append(str(error)))
    command = ["-m", "uvicorn", "--app-dir", str(tmp_path), "with_a_page:app"]
    with WebServer(tmp_path, source.settings, command) as web:
        page.goto(f"http://127.0.0.1:{web.port}/")
        for numbers in ({"A": 0, "B": 1}, {"B": 1, "A": 2, "C": 0}, {"C": 0}):
            version = source.publish(records_of(numbers), bots_of({}))
            expect(page).to_have_title(f"Version {version}")
            best = sorted(numbers, key=lambda name: -numbers[name])
            expected = [f"{name} {numbers[name] / 4 + 0.25:g}" for name in best]
            expect(page.locator("li")).to_have_text(expected)
        page.goto("about:blank")
    assert mistakes == []
