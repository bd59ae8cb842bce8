"""follow.js against a real server: a page has the content of one version at a time, whatever lies between the two.

It runs in a real Chromium, with a stream, and in Node, without one, behind a proxy that refuses, drops, cuts, holds and
repeats answers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from playwright.sync_api import Browser, Page

from optimizer import Settings, optimize
from tests.support.browser import BrowserMissing, chromium, chromium_executable
from tests.support.following import Followed, InNode, InPage, requests_to
from tests.support.http_proxy import HttpProxy
from tests.support.redis_servers import wait_until
from tests.support.rolling_files import a_record, write_json
from tests.support.web_apps import WebServer

pytestmark = pytest.mark.slow

# Names that JavaScript would order otherwise, or that its objects have already.
NAMES: Final = ["AAPL", "10", "9", "\ufffd", "\U0001f600", "\ud7ff", "__proto__", "constructor", "", "aapl", "é"]
KINDS: Final = ("predictions", "bots", "holdings")
PATHS: Final = ("/snapshot", "/changes", "/events")
# Waits of seconds pass in hundredths.
FACTOR: Final = 25


class Source:
    """A source, its server and a proxy before it; remembers the content of each version."""

    def __init__(self, settings: Settings, web: WebServer, proxy: HttpProxy) -> None:
        self.settings = settings
        self.web = web
        self.proxy = proxy
        self.contents: dict[int, dict[str, Any]] = {}

    def publish(self, records: dict[str, Any], bots: dict[str, Any]) -> int:
        """Publish a version, and wait until the server shows it."""
        write_json(self.settings.input, {"predictions": records, "bots": bots})
        version = optimize(self.settings).version
        assert version is not None
        wait_until(lambda: self.whole().get("version") == version, what=f"the server to show {version}")
        return version

    def whole(self) -> dict[str, Any]:
        """All of the current version, as the server has it; a problem if it has none."""
        status, _, body = self.web.get("/snapshot")
        whole: dict[str, Any] = json.loads(body)
        if status != 200:
            return whole
        expected = {"bots": list(map(list, whole["bots"].items())), "timestamp": whole["timestamp"]}
        self.contents[whole["version"]] = {kind: whole[kind] for kind in KINDS} | expected
        return whole


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """A page of one browser for the module."""
    try:
        chromium_executable()
    except BrowserMissing as error:
        pytest.fail(str(error)) if "CI" in __import__("os").environ else pytest.skip(str(error))
    with chromium() as browser:
        yield _page_of(browser)


def _page_of(browser: Browser) -> Page:
    context = browser.new_context()
    context.set_default_timeout(15_000)
    return context.new_page()


@pytest.fixture
def source(settings: Settings, tmp_path: Path) -> Iterator[Source]:
    """A source with a server that has shown nothing yet."""
    settings = replace(settings, min_confidence=0.0)
    with WebServer(tmp_path, settings) as web, HttpProxy(web.port).open() as proxy:
        yield Source(settings, web, proxy)


def records_of(numbers: dict[str, int]) -> dict[str, Any]:
    """Records, several with the same confidence."""
    return {name: a_record(confidence=number % 3 / 4 + 0.25, last_price=number + 1) for name, number in numbers.items()}


def bots_of(numbers: dict[str, int]) -> dict[str, Any]:
    """Bots, each of which holds what the next one has the name of; never none."""
    return {"b": {"enabled": True}} | {
        name: {"enabled": number % 2 == 0, "equity": number, "positions": [{"symbol": name, "qty": number + 1}]}
        for name, number in numbers.items()
    }


def assert_told(log: dict[str, Any], source: Source) -> None:
    """Each call had the content of its version, versions rose, and changes alone gave the rows that are held."""
    versions = [told["version"] for told in log["versions"]]
    assert versions == sorted(set(versions))
    for told in log["versions"]:
        wrong = [name for name in told["touched"] if name.startswith(("same ", "no ", "wrong "))]
        assert not wrong, (told["version"], told["touched"])
        expected = source.contents[told["version"]]
        assert {kind: json.loads(told[kind]) for kind in KINDS} == {kind: expected[kind] for kind in KINDS}
        assert told["timestamp"] == expected["timestamp"]


def wait_for(followed: Followed, version: int) -> dict[str, Any]:
    """Wait until a version is held; return the log."""
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
    """Take all steps, end all faults, and hold what was told against what the server had."""
    for step in history:
        act(step, source, followed)
    source.proxy.mend()
    followed.call("open")
    assert_told(wait_for(followed, source.whole()["version"]), source)


@pytest.mark.parametrize("where", ["page", "node"])
def test_whatever_happens_between_a_page_ends_with_what_the_server_has(where: str, source: Source, page: Page) -> None:
    """Any history of versions and of faults, with a stream and without one."""
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
