"""The diagnosis on the dashboard: it shows the cause of a problem first.

The workers and beats that start and end are real.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, Response, expect

from optimizer.config.settings import Settings
from optimizer.errors import SourceMissing
from optimizer.pipeline.run import optimize
from tests.support.browser import Watched, Web
from tests.support.fleet import Fleet
from tests.support.redis_proxy import LossyProxy
from tests.support.redis_servers import RedisServer, wait_until
from tests.support.rolling_files import a_record, local, write_json

pytestmark = pytest.mark.slow

WIDE: dict[str, Any] = {"viewport": {"width": 1440, "height": 900}}
PHONE: dict[str, Any] = {"viewport": {"width": 375, "height": 812}, "has_touch": True, "is_mobile": True}
SUM_SHIFTS = """
    window.shifted = 0;
    new PerformanceObserver((list) => {
        for (const { value, hadRecentInput } of list.getEntries()) if (!hadRecentInput) window.shifted += value;
    }).observe({ type: "layout-shift", buffered: true });
"""
TICKS = 6
DAY_S = 86_400

MISSING = re.compile(
    r"(The run at|Every run since) .* UTC has failed: SourceMissing, .*rolling_brain\.json\.gz.* "
    r"Showing data from .* UTC\. What SourceMissing means"
)


def test_the_page_names_the_cause_of_what_is_wrong(
    settings: Settings, tmp_path: Path, watch: Callable[..., Watched]
) -> None:
    """The page names the cause of a problem: no worker, failing runs, a beat that was killed, a worker that has ended.

    The tab's title names a missing worker and failing runs too, and links lead to their entry on the help page.
    """
    fast = replace(settings, interval_s=2.0)
    with Fleet(tmp_path, fast, ROLLING_INTERVAL_S="2") as fleet, Web(tmp_path, fast) as web:
        page = watch(web.url).open()
        empty = page.locator("#no-data-text")
        expect(empty).to_contain_text("No worker takes the queue rolling.rolling_brain.")
        expect(page).to_have_title(re.compile(r"^No worker takes the queue rolling\.rolling_brain"))
        fleet.start_worker()
        fleet.start_beat()
        expect(empty).to_contain_text(re.compile("has failed: SourceMissing, .*rolling_brain.json.gz"))
        expect(page.locator("#processes tbody tr")).to_have_count(2)
        expect(page.locator("#processes")).to_contain_text("rolling.rolling_brain")

        write_json(settings.input, {"AAPL": a_record()})
        notices = page.locator("#notices")
        expect(page.locator("#predictions tbody tr")).to_have_count(1)
        expect(notices).to_be_empty()
        expect(page.locator("#freshness-word")).to_have_text("Checked")
        expect(page.locator("#freshness-input")).to_have_text(re.compile(r"^Data from .* \(\d+ s ago\)"))
        expect(page).to_have_title(re.compile("^rolling_brain"))

        local(settings.input).unlink()
        expect(notices).to_contain_text(MISSING)
        expect(notices).to_contain_text("The data are stale.")
        expect(page).to_have_title(re.compile("SourceMissing"))
        assert_the_link_leads_to_an_entry(page, "#notices", "SourceMissing")
        assert_the_link_leads_to_an_entry(page, "#errors", "SourceMissing")

        write_json(settings.input, {"AAPL": a_record(confidence=0.9)})
        expect(notices).to_be_empty()
        os.kill(fleet.pid("beat"), signal.SIGKILL)
        expect(notices).to_contain_text(re.compile(r"Beat has sent nothing since .* UTC\."))
        expect(page.locator("#processes tbody tr").filter(has_text="beat")).to_contain_text("missing")

        os.kill(fleet.pid("worker"), signal.SIGTERM)
        expect(notices).to_contain_text("No worker takes the queue rolling.rolling_brain.")


def test_the_empty_page_goes_on_saying_why_runs_fail(settings: Settings, open_page: Callable[..., Page]) -> None:
    """An empty page keeps naming the error of failing runs, also when a new request for the snapshot is only a 503."""
    for _ in range(2):
        with pytest.raises(SourceMissing):
            optimize(settings)
    page = open_page()
    expect(page.locator("#no-data-text")).to_contain_text("SourceMissing")
    page.evaluate(
        """() => {
            window.told = new Set();
            const note = () => told.add(document.getElementById("no-data-text").textContent).add(document.title);
            new MutationObserver(note).observe(document, { subtree: true, childList: true, characterData: true });
        }"""
    )
    with page.expect_response("**/snapshot", timeout=60_000) as answer:
        pass
    assert answer.value.status == 503
    with page.expect_response("**/status", timeout=60_000):
        pass
    assert [text for text in page.evaluate("[...told]") if "SourceMissing" not in text] == []


def test_a_page_shows_soon_what_a_slow_redis_says_late(
    tmp_path: Path, redis_server: RedisServer, settings: Settings, watch: Callable[..., Watched]
) -> None:
    """A page whose first status came without the reports, because Redis was slow, shows a failed run seconds later.

    It would request the status again only after an interval, since all seemed well.
    """
    write_json(settings.input, {"AAPL": a_record()})
    optimize(settings)
    local(settings.input).unlink()
    with pytest.raises(SourceMissing):
        optimize(settings)
    proxy = LossyProxy(redis_server)
    proxy.delay_s = 0.15  # three replies take longer than two requests wait, and none as long as a reader waits
    with proxy.open() as url, Web(tmp_path, replace(settings, redis_url=url)) as web:
        page = watch(web.url).open()
        expect(page.locator("#notices")).to_contain_text("SourceMissing")


def confirm(settings: Settings, page: Page) -> None:
    """Confirm the data by a run, and wait until the API reports it."""

    def last_success() -> str:
        return str(page.context.request.get(f"{page.url}status").json()["last_success"])

    before = last_success()
    assert optimize(settings).status == "unchanged"
    wait_until(lambda: last_success() != before, what="the confirmation")


def assert_the_link_leads_to_an_entry(page: Page, place: str, entry: str) -> None:
    """Check that a link of the page leads to an entry of the documentation, and that this entry exists."""
    address = page.locator(f"{place} a").first.evaluate("(link) => link.href")
    assert address.endswith(f"static/help.html#{entry}")
    opened = page.context.new_page()
    opened.goto(address)
    expect(opened.locator(f"#{entry}")).to_be_visible()
    assert opened.locator(f"#{entry}").evaluate("(one) => one === document.querySelector(':target')")
    opened.close()


def test_an_idle_page_moves_little(settings: Settings, web: Web, watch: Callable[..., Watched]) -> None:
    """While runs find nothing new, a page transfers under 5 MB a day: the status once a run, and only new reports."""
    write_json(settings.input, {f"S{number}": a_record() for number in range(300)})
    first = optimize(settings)
    watched = watch(web.url)
    watched.page.clock.install()
    page = watched.open()
    expect(page.locator("#runs-count")).to_have_text("last 1")
    answers: list[Response] = []
    page.on("response", lambda answer: answers.append(answer))  # noqa: PLW0108 - Playwright marks the function
    for _ in range(TICKS):
        confirm(settings, page)
        with page.expect_response("**/status"):
            page.clock.run_for(round(1000 * settings.interval_s * 1.2))
    expect(page.locator("#runs-count")).to_have_text(re.compile(r"last [4-7]"))
    reports = [answer.json()["runs"] for answer in answers if "/runs?" in answer.url]
    assert 1 <= len(reports) <= 2
    sent = [report["timestamp"] for each in reports for report in each]
    assert len({first.timestamp, *sent}) == 1 + len(sent)
    assert sum(answer.url.endswith("/status") for answer in answers) <= TICKS + 1
    moved = 0
    for answer in answers:
        sizes = answer.request.sizes()
        moved += sizes["responseHeadersSize"] + sizes["responseBodySize"]
    per_day = moved / TICKS * DAY_S / settings.interval_s
    assert per_day < 5e6, [answer.url for answer in answers]


@pytest.mark.parametrize("screen", [WIDE, PHONE], ids=["wide", "phone"])
def test_nothing_jumps_while_the_page_loads(
    settings: Settings, web: Web, watch: Callable[..., Watched], screen: dict[str, Any]
) -> None:
    """A page that loads has a cumulative layout shift under 0.05, without data, with data, and with a notice."""

    def assert_calm(seen: str) -> None:
        watched = watch(web.url, **screen)
        watched.page.add_init_script(SUM_SHIFTS)
        page = watched.open()
        expect(page.locator(seen)).to_be_visible()
        expect(page.locator("#runs-count")).not_to_be_empty()
        assert page.evaluate("new Promise((resolve) => setTimeout(() => resolve(shifted), 500))") < 0.05

    assert_calm("#no-data")
    write_json(settings.input, {f"S{number}": a_record() for number in range(300)})
    optimize(settings)
    assert_calm("#predictions")
    local(settings.input).unlink()
    with pytest.raises(SourceMissing):
        optimize(settings)
    assert_calm("#notices .notice")


@pytest.mark.parametrize("screen", [WIDE, PHONE], ids=["wide", "phone"])
def test_a_notice_that_comes_later_moves_nothing(
    settings: Settings, web: Web, watch: Callable[..., Watched], screen: dict[str, Any]
) -> None:
    """A later notice covers the end of the window until the user presses a key, then it is above all else.

    When it disappears, its place stays until the next key, so that nothing on the page jumps.
    """
    write_json(settings.input, {f"S{number}": a_record() for number in range(300)})
    optimize(settings)
    watched = watch(web.url, **screen)
    watched.page.add_init_script(SUM_SHIFTS)
    page = watched.open()
    notices, tiles = page.locator("#notices"), page.locator("#tiles")
    expect(page.locator("#runs-count")).not_to_be_empty()
    web.stop()
    expect(notices).to_contain_text("The API is away.")
    expect(notices).to_be_in_viewport(ratio=1)
    assert top(notices) > top(tiles)
    page.keyboard.press("Shift")
    assert top(notices) < top(tiles)
    web.start()
    expect(notices).to_be_empty()
    assert page.evaluate("shifted") < 0.05
    page.keyboard.press("Shift")
    assert page.locator("#notices-place").evaluate("(place) => place.offsetHeight") == 0


def top(place: Locator) -> float:
    """The upper edge of a part of the page, in pixels of the window."""
    return float(place.evaluate("(place) => place.getBoundingClientRect().top"))


def test_on_paper_there_is_all_and_no_button(settings: Settings, open_page: Callable[..., Page]) -> None:
    """A printed page is dark on white also in the dark scheme, with all rows of a table and no buttons or search.

    After printing, the document has only the rows in view again.
    """
    write_json(settings.input, {f"S{number}": a_record() for number in range(300)})
    optimize(settings)
    page = open_page(color_scheme="dark")
    rows = page.locator("#predictions tbody tr")
    expect(rows.first).to_be_visible()
    page.evaluate("addEventListener('beforeprint', () => { window.printed = predictions.tBodies[0].rows.length; })")
    page.pdf()
    assert page.evaluate("printed") == 300
    assert rows.count() < 100
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    colours = page.evaluate("[document.body, predictions.tBodies[0].rows[0]].map((one) => getComputedStyle(one).color)")
    assert all(max(map(int, re.findall(r"\d+", colour)[:3])) < 80 for colour in colours), colours
    scroller = page.locator("#predictions-scroller")
    assert scroller.evaluate("(box) => box.scrollHeight === box.clientHeight")
    expect(page.get_by_role("searchbox")).to_be_hidden()
    expect(rows.first.get_by_role("button")).to_be_hidden()
    expect(page.locator("#changes-steps")).to_be_hidden()


def test_without_bots_there_is_no_sum_of_0(settings: Settings, open_page: Callable[..., Page]) -> None:
    """If an input has no bots, the tiles of equity and P&L show a dash and `no bots` instead of a sum of 0."""
    write_json(settings.input, {"AAPL": a_record()})
    optimize(settings)
    page = open_page()
    expect(page.locator("#tile-equity")).to_have_text("–")
    expect(page.locator("#tile-equity-note")).to_have_text("no bots")
    expect(page.locator("#tile-pnl")).to_have_text("–")
