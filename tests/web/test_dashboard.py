"""The dashboard in a real Chromium, against a real API process, a real Redis and snapshots that a run published.

Tests assert what a person sees, hears or can press; every page must also have logged no error and no violation of its
content security policy.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from optimizer.cli.dev.sample import write_sample
from optimizer.config.settings import Settings
from optimizer.errors import NoBots, SourceMalformed, SourceMissing
from optimizer.pipeline.run import optimize
from tests.support.browser import TOKEN, Watched, Web
from tests.support.fleet import Fleet
from tests.support.published_state import report_unchanged
from tests.support.redis_servers import RedisServer, wait_until
from tests.support.rolling_files import a_record, local, write_json, write_raw

pytestmark = pytest.mark.slow

STATIC = Path(__file__).parents[2] / "optimizer" / "web" / "static"
PHONE: dict[str, Any] = {"viewport": {"width": 375, "height": 812}, "has_touch": True, "is_mobile": True}

BOTS = {
    "alpha": {
        "enabled": True,
        "equity": 1000.5,
        "pnl_today": 12.25,
        "positions": [{"symbol": "AAPL", "qty": 5, "avg": 100}],
    },
    "beta": {"enabled": False, "equity": 500, "pnl_today": -2.25, "positions": []},
}

Open = Callable[..., Page]


def publish(settings: Settings, records: dict[str, Any], bots: dict[str, Any] | None = None) -> None:
    """Write the records and bots as the input file, and publish it by a run."""
    write_json(settings.input, {"predictions": records, "bots": BOTS if bots is None else bots})
    assert optimize(settings).status == "success"


def many_records(number: int, *, price: float = 100.0) -> dict[str, Any]:
    """Records whose confidence falls from the first to the last; every third record is bearish."""
    return {
        f"S{index:03}": a_record(
            confidence=1 - index / 1000, last_price=price + index, sentiment="bearish" if index % 3 == 0 else "bullish"
        )
        for index in range(number)
    }


def column(page: Page, label: str, table: str = "#predictions") -> list[str]:
    """The texts of a column, from top to bottom."""
    expect(page.locator(f"{table} thead th").first).to_be_visible()  # until then its text is not laid out
    heads = page.locator(f"{table} thead th").all_inner_texts()
    nth = [head.strip() for head in heads].index(label) + 1
    return page.locator(f"{table} tbody tr > :nth-child({nth})").all_text_contents()


def rows(page: Page, table: str = "#predictions") -> Locator:
    """The rows of a table."""
    return page.locator(f"{table} tbody tr")


def expect_rows(page: Page, number: int) -> None:
    """Wait until the table of predictions states this number of rows, of which the document has only those in view."""
    expect(page.locator("#predictions")).to_have_attribute("aria-rowcount", str(number + 1))


def test_the_page_shows_what_is_published(settings: Settings, open_page: Open) -> None:
    """The page shows the sums, predictions, bots, holdings and freshness of the published version in their places."""
    publish(settings, {"AAPL": a_record(), "MSFT": a_record(confidence=0.9, last_price=250, prediction=200)})

    page = open_page()

    expect(page.get_by_role("heading", level=1)).to_have_text("rolling_brain")
    expect(page.locator("#tile-equity")).to_have_text("1,500.50")
    expect(page.locator("#tile-pnl")).to_have_text("+10.00")
    expect(page.locator("#tile-bots")).to_have_text("1")
    expect(page.locator("#tile-positions")).to_have_text("1")
    expect(rows(page)).to_have_count(2)
    expect(rows(page).first).to_contain_text("MSFT")
    assert column(page, "Confidence") == ["90.00%", "75.00%"]
    assert column(page, "Expected move") == ["-20.00%", "+1.50%"]
    assert column(page, "Sentiment") == ["▲bullish", "▲bullish"]
    assert column(page, "Bot", "#bots") == ["alpha", "beta"]
    assert column(page, "P&L today", "#bots") == ["+12.25", "-2.25"]
    assert column(page, "Quantity", "#holdings") == ["5"]
    expect(page.locator("#freshness-word")).to_have_text("Checked")
    expect(page.locator("#connection-text")).to_have_text("Connected")
    expect(page.get_by_role("meter")).to_have_attribute("aria-valuetext", re.compile(r"^checked \d+ s ago$"))


def test_the_page_shows_how_fresh_the_input_is(settings: Settings, open_page: Open) -> None:
    """The page shows the input's age, which ticks, and how long after its landing it was published.

    An unknown value is left out, and the head of the page keeps its height.
    """
    publish(settings, {"AAPL": a_record()})
    hours_ago = time.time() - 2 * 3_600 - 15 * 60
    write_json(settings.input, {"predictions": {"MSFT": a_record()}, "bots": BOTS})
    os.utime(local(settings.input), (hours_ago, hours_ago))
    assert optimize(settings).published_after_s is not None
    page = open_page()
    line = page.locator("#freshness-input")
    expect(line).to_have_text(re.compile(r"^Data from .+ \(2 h 15 min ago\), published 0[.,]\d+ s after landing$"))
    page.get_by_text("These runs as a table").click()
    expect(rows(page, "#runs")).to_have_count(2)
    assert column(page, "Input age", "#runs")[0] == "2 h 15 min"
    assert [text.endswith(" s") for text in column(page, "Published after", "#runs")] == [True, True]

    height = page.locator(".top").bounding_box()
    for age_s, shown in (
        (58.9, re.compile(r"^Data from .+ \(1 min 0 s ago\)$")),
        (None, ""),
    ):  # the age ticks before the status is requested again
        answer = partial(answer_with, input_age_s=age_s, published_after_s=None)
        page.route("**/status", answer)
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")  # like a page that comes into view
        expect(line).to_have_text(shown)
        assert page.locator(".top").bounding_box() == height


def answer_with(route: Route, **members: Any) -> None:
    """Respond to a request as the server does, but with these members replaced."""
    route.fulfill(json=route.fetch().json() | members)


def test_a_new_version_appears_by_itself_and_leaves_the_reader_where_they_are(
    settings: Settings, open_page: Open
) -> None:
    """A new version that changes 300 rows appears without a reload.

    Sort, search, filter, scroll position and focus stay.
    """
    publish(settings, many_records(300))
    page = open_page()
    expect_rows(page, 300)
    page.evaluate("window.loadedOnce = true")
    page.get_by_role("button", name="Last").click()
    page.get_by_role("button", name="Bullish").click()
    page.get_by_role("searchbox").fill("bullish")
    expect_rows(page, 200)
    scroller = page.locator("#predictions-scroller")
    scroller.evaluate("(box) => { box.scrollTop = 1500; }")
    page.get_by_role("searchbox").focus()
    row = rows(page).filter(has_text="S200").element_handle()
    page.route("**/status", lambda _: None)  # without a response: only the stream can report the version

    publish(settings, many_records(299, price=700.0))

    expect_rows(page, 199)
    expect(page.locator("#predictions [aria-rowindex='42']")).to_contain_text("938.00")
    prices = [float(text) for text in column(page, "Last")]
    assert prices == sorted(prices, reverse=True)
    assert scroller.evaluate("(box) => box.scrollTop") == 1500
    assert page.evaluate("document.activeElement.id") == "search"
    assert row.evaluate("(line) => line.isConnected")  # so that text selected in it stays selected
    assert page.evaluate("window.loadedOnce") is True
    expect(page.get_by_role("searchbox")).to_have_value("bullish")
    expect(page.locator("#predictions-count")).to_have_text("199 of 299")
    page.get_by_role("searchbox").fill("")
    expect_rows(page, 199)  # of the filter alone


def test_without_the_stream_the_page_is_slower_but_right(
    settings: Settings, web: Web, watch: Callable[..., Watched]
) -> None:
    """If a proxy blocks the event stream, the page shows `Reconnecting` and gets a new version some seconds later."""
    publish(settings, many_records(3))
    watched = watch(web.url)
    watched.page.route("**/events?*", lambda route: route.abort())
    page = watched.open()
    expect(rows(page)).to_have_count(3)
    expect(page.locator("#connection-text")).to_have_text("Reconnecting")

    publish(settings, many_records(4))

    expect(rows(page)).to_have_count(4)
    expect(page.locator("#notices")).to_be_empty()


def test_every_column_sorts_both_ways_and_says_so(settings: Settings, open_page: Open) -> None:
    """A press on a column's head sorts by it, a second one reverses the order, and `aria-sort` states the order.

    Missing values stay last.
    """
    publish(
        settings,
        {
            "B10": a_record(confidence=0.6, last_price=20, prediction=21, target_price=None, stop_loss=1),
            "B9": a_record(confidence=0.9, last_price=1000, prediction=900, target_price=9, stop_loss=None),
            "A": a_record(
                confidence=0.7, last_price=3, prediction=3, sentiment="bearish", target_price=80, stop_loss=7
            ),
        },
    )
    page = open_page()
    expect(rows(page)).to_have_count(3)
    orders = {
        "Symbol": "A B9 B10",
        "Confidence": "B9 A B10",
        "Last": "B9 B10 A",
        "Prediction": "B9 B10 A",
        "Expected move": "B10 A B9",
        "Target": "A B9 B10",
        "Stop loss": "A B10 B9",
    }
    for label, order in orders.items():
        head = page.locator("#predictions thead th").filter(has_text=re.compile(f"^{label}$"))
        if label == "Confidence":  # the page opens sorted by it, but an earlier press has changed that
            expect(head).not_to_have_attribute("aria-sort", re.compile("."))
        head.get_by_role("button").click()
        assert " ".join(column(page, "Symbol")) == order, label
        expect(head).to_have_attribute("aria-sort", "ascending" if label == "Symbol" else "descending")
        assert page.locator("#predictions [aria-sort]").count() == 1
        head.get_by_role("button").click()
        expect(head).to_have_attribute("aria-sort", "descending" if label == "Symbol" else "ascending")
        turned = " ".join(column(page, "Symbol"))
        missing_last = {"Target": "B9 A B10", "Stop loss": "B10 A B9"}
        assert turned == missing_last.get(label, " ".join(reversed(order.split()))), label
    page.get_by_role("button", name="Sentiment").click()
    assert column(page, "Symbol")[0] == "A"


def test_search_and_filter_narrow_the_table_from_the_keyboard(settings: Settings, open_page: Open) -> None:
    """`/` focuses the search, Escape empties it, and a filter by sentiment narrows the result further.

    The page shows the number of rows that are left, or that none matches.
    """
    publish(settings, many_records(9) | {"Größe": a_record(sentiment="mixed")})
    page = open_page()
    expect(rows(page)).to_have_count(10)

    page.keyboard.press("/")
    page.keyboard.type("grö")
    expect(rows(page)).to_have_count(1)
    expect(rows(page)).to_contain_text("Größe")
    expect(page.locator("#predictions-count")).to_have_text("1 of 10")
    page.keyboard.press("Escape")
    expect(rows(page)).to_have_count(10)
    bearish = page.get_by_role("button", name="Bearish")
    bearish.click()
    expect(rows(page)).to_have_count(3)
    expect(bearish).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("/")
    page.keyboard.type("nothing like it / at all")
    expect(rows(page)).to_have_count(0)
    expect(page.get_by_text("No prediction matches.")).to_be_visible()


def test_markup_in_the_data_is_text(settings: Settings, tmp_path: Path, watch: Callable[..., Watched]) -> None:
    """Markup in symbols, sentiments, times, bots and errors is shown as text: none of it becomes an element or runs."""
    evil = "<script>alert(1)</script>"
    image = "<img src=x onerror=alert(2)>"
    publish(
        settings,
        {evil: a_record(sentiment=image, timestamp=image), '"><b>x': a_record(confidence=0.8)},
        {image: {"enabled": True, "equity": 1, "positions": [{"symbol": evil, "qty": 1}]}},
    )
    write_raw(settings.input, b'{"A": {"confidence": 0.5, "<script>alert(3)</script>": tru}}')
    with pytest.raises(SourceMalformed):
        optimize(settings)
    with Web(tmp_path, settings) as web:
        watched = watch(web.url)
        page = watched.open()
        expect(rows(page)).to_have_count(2)
        expect(page.locator("#errors li")).to_contain_text("SourceMalformed")

        assert evil in column(page, "Symbol")
        assert column(page, "Sentiment") == ["▲bullish", image]
        assert column(page, "Time")[1] == image
        assert column(page, "Bot", "#bots") == [image]
        assert column(page, "Symbol", "#holdings") == [evil]
        assert page.locator("script").count() == 1
        assert page.locator("main img, main b").count() == 0
        assert watched.dialogs == []


def test_extra_fields_are_columns_that_sort_and_hold_text(settings: Settings, open_page: Open) -> None:
    """Extra fields are columns that sort numbers as numbers, text as text, and null last.

    A version with another set of extra fields has another set of columns.
    """
    mapped = replace(settings, fields="+volume; +sector; +halted; +note=deep.note")
    records = {
        "A": a_record(volume=9, sector="Energy", halted=True, deep={"note": "<b>bold</b>"}),
        "B": a_record(volume=1_000.5, sector="tech", halted=False, confidence=0.9),
        "C": a_record(volume=None, sector="Autos", confidence=0.8),
    }
    publish(mapped, records)
    page = open_page()
    expect(rows(page)).to_have_count(3)
    assert column(page, "volume") == ["1,000.5", "–", "9"]
    assert column(page, "halted") == ["false", "–", "true"]
    assert column(page, "note") == ["–", "–", "<b>bold</b>"]
    page.get_by_role("button", name="volume").click()
    assert column(page, "Symbol") == ["B", "A", "C"]
    expect(page.locator("th[data-column='extra.volume']")).to_have_class("number")
    page.get_by_role("button", name="sector").click()
    assert column(page, "sector") == ["Autos", "Energy", "tech"]
    expect(page.locator("th[data-column='extra.sector']")).to_have_attribute("aria-sort", "ascending")

    publish(replace(settings, fields="+volume"), records)
    expect(page.get_by_role("button", name="sector")).to_have_count(0)
    expect(rows(page)).to_have_count(3)
    assert column(page, "Symbol") == ["B", "C", "A"]
    assert column(page, "volume") == ["1,000.5", "–", "9"]


def test_a_sentiment_that_is_not_known_is_shown_as_it_is(settings: Settings, open_page: Open) -> None:
    """An unknown sentiment is shown as it is written, and is neither counted nor coloured as neutral.

    It has a filter of its own, `Other`, which is hidden when there are no unknown sentiments.
    """
    words = {"A": "neutral", "B": "Strong Buy", "C": "bearish", "D": "constructor", "E": "bullish"}
    publish(settings, {symbol: a_record(sentiment=word) for symbol, word in words.items()})
    page = open_page()
    expect(rows(page)).to_have_count(5)
    assert column(page, "Sentiment") == ["●neutral", "Strong Buy", "▼bearish", "constructor", "▲bullish"]
    expect(page.get_by_role("button", name="Neutral")).to_have_text("Neutral 1")
    neutral, other = (page.locator(f".badge[data-kind='{kind}']").first for kind in ("flat", "other"))
    background = "one => getComputedStyle(one).backgroundColor"
    assert other.evaluate(background) != neutral.evaluate(background)

    page.get_by_role("button", name="Other").click()
    expect(page.get_by_role("button", name="Other")).to_have_text("Other 2")
    expect(rows(page)).to_have_count(2)
    publish(settings, {"A": a_record(), "B": a_record()})
    expect(rows(page)).to_have_count(2)
    expect(page.get_by_role("button", name="Other")).to_be_hidden()
    expect(page.get_by_role("button", name="All")).to_have_attribute("aria-pressed", "true")


def test_bots_whose_fields_have_other_names_are_told(settings: Settings, open_page: Open) -> None:
    """If most bots have no field that is read, a notice names the setting and the command that help.

    Once the fields are mapped, the notice is gone.
    """
    foreign = {name: {"active": True, "balance": 10.5} for name in ("b1", "b2")}
    publish(settings, {"AAPL": a_record()}, {**foreign, **BOTS, "b3": {"x": 1}})
    page = open_page()
    notices = page.locator("#notices")
    expect(notices).to_contain_text("Most bots have no value in any field that is read. 3 of 5 bots have none.")
    expect(notices).to_contain_text("set ROLLING_BOT_FIELDS, which is suggested by: rolling-optimizer inspect")

    publish(replace(settings, bot_fields="enabled=active; equity=balance"), {"AAPL": a_record()}, foreign)
    expect(page.locator("#tile-equity")).to_have_text("21.00")
    page.reload()
    expect(page.locator("#tile-equity")).to_have_text("21.00")
    expect(notices).not_to_contain_text("ROLLING_BOT_FIELDS")


def test_data_that_no_run_confirms_turn_stale_on_the_page(
    settings: Settings, tmp_path: Path, watch: Callable[..., Watched]
) -> None:
    """If no run confirms the data for three intervals, the page says in words that they are stale, until a run does."""
    fast = replace(settings, interval_s=3.0)
    publish(fast, many_records(3))
    with Web(tmp_path, fast) as web:
        page = watch(web.url).open()
        expect(rows(page)).to_have_count(3)
        publish(fast, many_records(4))
        expect(page.locator("#freshness-word")).to_have_text("Checked")
        expect(page.locator("#notices")).to_be_empty()

        expect(page.locator("#freshness-word")).to_have_text("Stale")
        expect(page.locator("#notices")).to_contain_text("The data are stale.")
        expect(page.locator("#notices")).to_contain_text("No worker takes the queue rolling.rolling_brain.")
        expect(page.locator("#freshness-age")).to_have_text(re.compile(r"^checked \d+ s ago$"))
        expect(page).to_have_title(re.compile("^No worker takes the queue rolling.rolling_brain"))
        expect(rows(page)).to_have_count(4)

        assert optimize(fast).status == "unchanged"  # confirms the data without a new version
        expect(page.locator("#notices")).to_be_empty()
        expect(page.locator("#freshness-word")).to_have_text("Checked")


def test_stale_data_are_not_blamed_on_a_worker_that_runs(
    settings: Settings, tmp_path: Path, watch: Callable[..., Watched]
) -> None:
    """If data are stale because runs fail, the notice names the error and does not blame worker or beat.

    The runs show that both are alive.
    """
    fast = replace(settings, interval_s=3.0)
    publish(fast, many_records(3))
    with Web(tmp_path, fast) as web:
        page = watch(web.url).open()
        notices = page.locator("#notices")
        expect(notices).to_contain_text("No worker takes the queue")  # no run has been reported since the first

        Path(str(fast.input)).unlink()
        with pytest.raises(SourceMissing):
            optimize(fast)
        expect(notices).to_contain_text(re.compile("The run at .* has failed: SourceMissing, "))
        expect(notices).to_contain_text("The data are stale.")
        expect(notices).not_to_contain_text(re.compile("No worker|No beat|running"))


def test_a_restart_of_redis_is_told_and_survived(
    own_redis: RedisServer, settings_without_redis: Settings, tmp_path: Path, watch: Callable[..., Watched]
) -> None:
    """While Redis is down, the page keeps the last data and shows a notice.

    When Redis is back, so are live updates, without a reload.
    """
    settings = replace(settings_without_redis, redis_url=own_redis.url, broker_url=own_redis.url)
    own_redis.start()
    publish(settings, many_records(5))
    with Web(tmp_path, settings) as web:
        page = watch(web.url).open()
        expect(rows(page)).to_have_count(5)

        own_redis.kill()
        expect(page.locator("#notices")).to_contain_text("Redis is away.")
        expect(rows(page)).to_have_count(5)

        own_redis.start()
        expect(page.locator("#notices")).to_be_empty()
        publish(settings, many_records(6))
        expect(rows(page)).to_have_count(6)


def test_a_page_that_was_opened_while_redis_is_away_shows_the_files(
    own_redis: RedisServer, settings_without_redis: Settings, tmp_path: Path, watch: Callable[..., Watched]
) -> None:
    """A page that is opened while Redis is down shows the data of the snapshot files, and says so."""
    settings = replace(settings_without_redis, redis_url=own_redis.url, broker_url=own_redis.url)
    own_redis.start()
    publish(settings, many_records(4))
    own_redis.kill()
    with Web(tmp_path, settings) as web:
        page = watch(web.url).open()
        expect(rows(page)).to_have_count(4)
        expect(page.locator("#notices")).to_contain_text("Read from the snapshot files")


def test_before_the_first_run_the_page_says_so_and_then_fills(settings: Settings, open_page: Open) -> None:
    """Before the first run the page says that there are no data yet, which is no error.

    The first version appears by itself.
    """
    page = open_page()
    expect(page.get_by_role("heading", name="No data yet")).to_be_visible()
    expect(page.locator("#freshness-word")).to_have_text("No data")
    expect(page.locator("#predictions")).to_be_hidden()

    publish(settings, many_records(2))

    expect(rows(page)).to_have_count(2)
    expect(page.get_by_role("heading", name="No data yet")).to_be_hidden()
    expect(page.locator("#freshness-word")).to_have_text("Checked")


def test_before_the_first_run_one_can_be_started(
    settings: Settings, tmp_path: Path, watch: Callable[..., Watched]
) -> None:
    """A run can be started from the page while there is no snapshot yet."""
    with Web(tmp_path, settings, ROLLING_TRIGGER_TOKEN=TOKEN) as web:
        page = watch(web.url).open()
        expect(page.get_by_role("heading", level=1)).to_have_text("rolling_brain")
        page.get_by_role("button", name="Run now").click()
        page.get_by_label("Trigger token").fill(TOKEN)
        page.keyboard.press("Enter")
        expect(page.locator("#run-text")).to_have_text("Sent; waiting for a worker")
        write_json(settings.input, many_records(2))
        with Fleet(tmp_path, settings) as fleet:
            fleet.start_worker()
            expect(page.locator("#run-text")).to_have_text(re.compile("^Done in"))
            expect(rows(page)).to_have_count(2)


def test_until_the_first_answer_the_page_shows_that_it_waits(
    settings: Settings, web: Web, watch: Callable[..., Watched]
) -> None:
    """Until the first response the table is marked as busy, and no text says that there are no data or no matches."""
    publish(settings, many_records(3))
    watched = watch(web.url)
    held: list[Route] = []
    watched.page.route("**/snapshot", lambda route: held.append(route))  # noqa: PLW0108 - Playwright marks the function
    page = watched.open()
    expect(page.locator("#connection-text")).to_have_text("Connected")
    wait_until(lambda: page.title() and held, what="a request for the page's data")
    expect(page.locator("#predictions")).to_have_attribute("aria-busy", "true")
    expect(page.locator("body")).to_have_attribute("data-state", "loading")
    expect(page.get_by_text("No prediction matches.")).to_be_hidden()
    expect(page.get_by_role("heading", name="No data yet")).to_be_hidden()

    held[0].continue_()

    expect(rows(page)).to_have_count(3)
    expect(page.locator("#predictions")).to_have_attribute("aria-busy", "false")
    expect(page.locator("body")).to_have_attribute("data-state", "ready")


def test_search_and_sort_look_at_all_rows_of_a_long_table(settings: Settings, open_page: Open) -> None:
    """Search and sort use all 600 rows, though the document has only those in view, and no button loads more."""
    publish(replace(settings, top_symbols_limit=600, min_confidence=0.0), many_records(600))
    page = open_page()
    expect_rows(page, 600)
    assert rows(page).count() < 100
    page.get_by_role("searchbox").fill("S599")
    expect(rows(page)).to_have_count(1)
    page.get_by_role("searchbox").fill("")
    expect_rows(page, 600)
    page.get_by_role("button", name="Last").click()
    expect(rows(page).first).to_contain_text("S599")
    expect(page.get_by_role("button", name=re.compile("^Show all"))).to_have_count(0)


def test_an_api_that_goes_away_is_told_and_found_again(settings: Settings, web: Web, open_page: Open) -> None:
    """While the API is restarted, as by a deployment, an open page keeps its data and shows a notice.

    It reconnects by itself.
    """
    publish(settings, many_records(3))
    page = open_page()
    expect(page.locator("#connection-text")).to_have_text("Connected")

    web.stop()
    expect(page.locator("#connection-text")).to_have_text("Reconnecting")
    expect(page.locator("#notices")).to_contain_text("The API is away.")
    expect(rows(page)).to_have_count(3)

    publish(settings, many_records(4))
    web.start()
    expect(page.locator("#connection-text")).to_have_text("Connected", timeout=40_000)
    expect(rows(page)).to_have_count(4)
    expect(page.locator("#notices")).to_be_empty()


def test_runs_are_drawn_told_and_listed_and_failures_shown_in_full(settings: Settings, open_page: Open) -> None:
    """The titles of charts state their figures, a table lists the runs with them, and an error is never cut."""
    for number in (3, 4):
        publish(settings, many_records(number) | {"BAD": a_record(confidence=7)})
    optimize(settings)
    write_raw(settings.input, b'{"A": {"confidence": 0.5, "prediction": tru}}')
    with pytest.raises(SourceMalformed) as caught:
        optimize(settings)

    page = open_page()

    expect(page.locator("#errors li")).to_have_count(1)
    expect(page.locator("#errors pre")).to_have_text(str(caught.value))
    expect(page.locator("#notices")).to_contain_text("The last run failed.")
    expect(page.locator("#rejects")).to_contain_text("ConfidenceInvalid")
    expect(page.locator("#rejects pre")).to_contain_text("BAD at")
    expect(page.locator("#runs-strip svg > title")).to_have_text("Last 4 runs: 2 success, 1 unchanged, 1 failed")
    titles = page.locator("#charts svg > title").all_text_contents()
    assert [title.split(":")[0] for title in titles] == ["Input age", "Duration", "Records"]
    assert "records latest 5, lowest 4, highest 5, over 2 runs; rejected latest 1" in titles[2]
    page.get_by_text("These runs as a table").click()
    assert column(page, "Outcome", "#runs")[0] == "●failed"
    assert column(page, "Records", "#runs") == ["–", "–", "5", "4"]
    assert column(page, "Why", "#runs")[0] == "SourceMalformed"


def test_bots_that_were_left_out_are_told_beside_the_sums(settings: Settings, open_page: Open) -> None:
    """Bots that a version leaves out are reported beside the sums as long as it is shown, also after an unchanged run.

    A refused input changes no sum, and a new version without rejected bots removes the report.
    """
    unusable = {"equity": 1000, "positions": [{"symbol": "AAPL", "qty": "1"}]}
    publish(settings, {"AAPL": a_record()}, {**BOTS, "gamma": unusable})
    assert optimize(settings).status == "unchanged"
    page = open_page()
    notes = [page.locator(f"#{name}") for name in ("tile-equity-note", "tile-pnl-note", "holdings-count", "bots-count")]

    expect(page.locator("#tile-equity")).to_have_text("1,500.50")
    for note in notes:
        expect(note).to_contain_text("1 of 3 bots left out")
        expect(note).to_have_attribute("data-level", "warn")
    expect(page.locator("#rejects-count")).to_have_text("0 of 1 records, 1 of 3 bots in the last full run")
    expect(page.locator("#rejects pre")).to_contain_text("gamma at")

    write_json(settings.input, {"AAPL": a_record(), "bots": dict.fromkeys(BOTS, unusable)})
    with pytest.raises(NoBots) as refused:
        optimize(settings)
    page.reload()  # without a reload it requests reports twice an interval
    expect(page.locator("#errors pre")).to_have_text(str(refused.value))
    expect(page.locator("#notices")).to_contain_text(
        re.compile("The last run failed. The run at .* has failed: NoBots, ")
    )
    expect(page.locator("#tile-equity")).to_have_text("1,500.50")

    publish(settings, {"AAPL": a_record()})
    for note in notes:
        expect(note).not_to_contain_text("left out")
        expect(note).to_have_attribute("data-level", "good")


def test_scans_are_drawn_and_listed_after_a_night_without_a_new_file(settings: Settings, open_page: Open) -> None:
    """After 250 runs that found nothing new, the charts and the table still show the runs that read the file."""
    for number in (3, 4):
        publish(settings, many_records(number) | {"BAD": a_record(confidence=7)})
    report_unchanged(settings, 250)

    page = open_page()

    expect(page.locator("#runs-strip svg > title")).to_have_text("Last 90 runs: 90 unchanged")
    expect(page.locator("#charts svg > title").nth(2)).to_contain_text("lowest 4, highest 5, over 2 runs")
    expect(page.locator("#rejects")).to_contain_text("ConfidenceInvalid")
    page.get_by_text("These runs as a table").click()
    assert column(page, "Records", "#runs") == ["–"] * 200 + ["5", "4"]


def test_the_page_can_be_used_from_the_keyboard_alone(settings: Settings, open_page: Open) -> None:
    """The first Tab offers to skip the head of the page, the heads of columns are buttons, and focus is always visible.

    The table scrolls by keys.
    """
    publish(settings, many_records(100))
    page = open_page()
    expect_rows(page, 100)

    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the predictions")).to_be_focused()
    page.keyboard.press("Enter")
    seen = []
    for _ in range(20):
        page.keyboard.press("Tab")
        name, outline = page.evaluate(
            "[document.activeElement.textContent || document.activeElement.id,"
            " getComputedStyle(document.activeElement).outlineStyle]"
        )
        seen.append(name.strip())
        assert outline != "none", name
        if name.strip() == "Symbol":
            break
    assert seen[-1] == "Symbol"
    page.keyboard.press("Enter")
    expect(page.locator("#predictions thead th").first).to_have_attribute("aria-sort", "ascending")
    assert page.evaluate("document.activeElement.textContent") == "Symbol"
    page.locator("#predictions-scroller").focus()
    page.keyboard.press("End")
    # Playwright's own wait evaluates text in the page, which the page's policy forbids.
    wait_until(lambda: page.locator("#predictions-scroller").evaluate("(box) => box.scrollTop") > 1000)


def test_a_run_is_started_with_the_token_and_followed_to_its_end(
    settings: Settings, tmp_path: Path, watch: Callable[..., Watched]
) -> None:
    """A wrong token is refused with a message; the right one starts a run on a real worker, whose progress is shown."""
    publish(settings, many_records(3))
    write_sample(local(settings.input), symbols=1_000, points=4_000)
    # The slow engine, since the native one would finish before its progress is seen.
    fleet = Fleet(tmp_path, settings, ROLLING_ENGINE="ijson")
    with fleet, Web(tmp_path, settings, ROLLING_TRIGGER_TOKEN=TOKEN) as web:
        page = watch(web.url).open()
        expect(rows(page)).to_have_count(3)
        page.get_by_role("button", name="Run now").click()
        expect(page.get_by_label("Trigger token")).to_be_focused()
        page.keyboard.type("not it")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("no spaces")
        page.get_by_label("Trigger token").fill("not-it")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_have_text("This token is not the right one.")
        page.get_by_label("Trigger token").fill(TOKEN)
        page.get_by_role("button", name="Start the run").click()
        expect(page.get_by_role("dialog")).to_be_hidden()
        expect(page.locator("#run-text")).to_have_text("Sent; waiting for a worker")
        expect(page.get_by_role("button", name="Run now")).to_be_disabled()
        expect(page.locator("#run-progress")).to_be_focused()

        fleet.start_worker()

        expect(page.locator("#run-text")).to_have_text(re.compile(r"^Running: \d+ % of the file$"))
        expect(page.locator("#run-text")).to_have_text(
            re.compile(r"^Done in [\d.]+ s: 300 predictions of 1,000 records$"), timeout=60_000
        )
        expect_rows(page, 300)
        stored = page.evaluate("[Object.values(sessionStorage), Object.values(localStorage), document.cookie]")
        assert stored == [[TOKEN], [], ""]
        page.get_by_role("button", name="Dismiss").click()
        expect(page.locator("#run-progress")).to_be_hidden()
        expect(page.get_by_role("button", name="Run now")).to_be_focused()


def test_a_run_that_never_begins_is_not_awaited_for_ever(
    settings: Settings, tmp_path: Path, watch: Callable[..., Watched]
) -> None:
    """After a quarter of an hour the page says that it no longer waits for a run, and offers another.

    It then requests the state of that run no more.
    """
    publish(settings, many_records(1))
    with Web(tmp_path, settings, ROLLING_TRIGGER_TOKEN=TOKEN) as web:
        watched = watch(web.url)
        watched.page.clock.install()
        page = watched.open()
        page.get_by_role("button", name="Run now").click()
        page.get_by_label("Trigger token").fill(TOKEN)
        page.get_by_role("button", name="Start the run").click()
        expect(page.locator("#run-text")).to_have_text("Sent; waiting for a worker")
        page.clock.fast_forward("16:00")
        expect(page.locator("#run-text")).to_have_text("No longer waiting")
        expect(page.locator("#run-hint")).to_contain_text("is one running?")
        expect(page.get_by_role("button", name="Run now")).to_be_enabled()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        with page.expect_request("**/status"):
            page.clock.run_for(60_000)
        assert not [url for url in asked if "/runs/" in url]


def test_without_a_token_there_is_no_button_and_without_flower_no_link(
    settings: Settings, tmp_path: Path, web: Web, watch: Callable[..., Watched]
) -> None:
    """Without a trigger token there is no `Run now` button, and Flower is linked only if its address is set.

    On a phone the whole button is in view, and the table of processes is hidden if no process has sent a heartbeat.
    """
    publish(settings, many_records(1))
    page = watch(web.url).open()
    expect(rows(page)).to_have_count(1)
    expect(page.get_by_role("button", name="Run now")).to_be_hidden()
    expect(page.get_by_role("link", name="Flower")).to_be_hidden()

    with Web(tmp_path, settings, ROLLING_FLOWER_URL="http://127.0.0.1:5555/") as linked:
        page = watch(linked.url).open()
        expect(page.get_by_role("link", name="Flower")).to_have_attribute("href", "http://127.0.0.1:5555/")

    both = {"ROLLING_FLOWER_URL": "http://127.0.0.1:5555/", "ROLLING_TRIGGER_TOKEN": TOKEN}
    with Web(tmp_path, settings, **both) as offering:  # on a phone the whole button has to be in view, too
        page = watch(offering.url, **PHONE).open()
        button = page.get_by_role("button", name="Run now")
        expect(button).to_be_visible()
        box = button.bounding_box()
        assert box is not None
        assert box["x"] + box["width"] <= 375
        expect(page.locator("#processes-count")).to_have_text("none has told that it lives")
        expect(page.locator("#processes")).to_be_hidden()


def test_a_phone_needs_no_sideways_scrolling(settings: Settings, open_page: Open) -> None:
    """On a screen of 375 pixels the page does not scroll sideways, however long names and errors in the data are.

    Tables scroll within themselves, and their first column stays in view.
    """
    long = "W" * 200
    publish(
        settings,
        many_records(20) | {long: a_record(confidence=0.999, sentiment=long, timestamp=long)},
        {long: {"enabled": True, "equity": 1e15, "pnl_today": -1e15, "positions": [{"symbol": long, "qty": 1e9}]}},
    )
    write_raw(settings.input, f'{{"{long}": {{"confidence": 0.5, "prediction": tru}}}}'.encode())
    with pytest.raises(SourceMalformed):
        optimize(settings)

    page = open_page(**PHONE)

    expect(rows(page)).to_have_count(21)
    expect(page.locator("#errors li")).to_have_count(1)
    # It appears an interval later if a busy machine kept Redis from responding to the first request in time.
    expect(page.locator("#notices")).to_contain_text("has failed", timeout=60_000)
    page.keyboard.press("Shift")  # a notice that appears while the page is read covers the end of the window
    page.get_by_text("These runs as a table").click()
    assert page.evaluate("document.documentElement.scrollWidth") == 375
    assert page.evaluate("visualViewport.width") == 375
    scroller = page.locator("#predictions-scroller")
    assert scroller.evaluate("(box) => box.scrollWidth > box.clientWidth")
    # The cell that names the row stays in view.
    scroller.evaluate("(box) => { box.scrollLeft = 300; }")
    first = rows(page).nth(1).locator("th").bounding_box()
    assert first is not None
    assert 0 <= first["x"] < 40


def test_the_page_follows_the_readers_scheme_and_motion(settings: Settings, open_page: Open) -> None:
    """The background follows the system's colour scheme, and nothing moves if the system requests reduced motion."""
    publish(settings, many_records(3))
    grounds = {}
    for scheme in ("light", "dark"):
        page = open_page(color_scheme=scheme, reduced_motion="reduce")
        expect(page.locator("#connection-text")).to_have_text("Connected")
        grounds[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert page.evaluate("document.getAnimations().length") == 0
    assert grounds["light"] != grounds["dark"]


def test_text_has_the_contrast_that_wcag_asks_for() -> None:
    """In both schemes text has a contrast of 4.5 : 1 on each of its surfaces.

    Borders of inputs and the blocks of charts have 3 : 1.
    """
    css = (STATIC / "dashboard.css").read_text()
    schemes = [
        dict(re.findall(r"--([\w-]+): (#\w{6});", block)) for block in re.findall(r":root \{(.*?)\n\s*\}", css, re.S)
    ]
    assert len(schemes) == 2
    surfaces = {
        "text": ["page", "surface", "raised", "down-soft", "warn-soft"],
        "faint": ["page", "surface", "raised"],
        "accent": ["page", "surface", "raised", "accent-soft"],
        "on-accent": ["accent"],
        **{name: ["surface", "raised", f"{name}-soft"] for name in ("up", "down", "warn", "flat")},
    }
    for colors in schemes:
        for text, grounds in surfaces.items():
            for ground in grounds:
                assert contrast(colors[text], colors[ground]) >= 4.5, (text, ground, colors[text], colors[ground])
        for shape in ("line-strong", "accent", "block-good", "block-idle", "block-warn", "block-bad"):
            assert contrast(colors[shape], colors["surface"]) >= 3, (shape, colors[shape])


def test_nothing_in_the_static_files_comes_from_elsewhere_or_makes_markup_of_data() -> None:
    """The static files contain no address of another machine, no inline script or style, and no absolute link.

    None of them calls a function that turns text into markup or code.
    """
    for path in filter(Path.is_file, STATIC.rglob("*")):
        text = path.read_text()
        addresses = re.findall(r"""https?://[^\s"']+|["'(]//[^\s"']+""", text)
        assert set(addresses) <= {"http://www.w3.org/2000/svg"}, path  # a name, which is not fetched
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text), (
            path
        )
    page = (STATIC / "index.html").read_text()
    assert not re.search(r"\sstyle=|\son\w+=|<style|<script(?![^>]*\ssrc=)", page)
    assert not re.search(r"(?:href|src)=\"/", page)  # relative, since the page may be behind a prefix


def contrast(one: str, other: str) -> float:
    """The contrast of two colours as WCAG 2.2 defines it."""
    darker, lighter = sorted(map(luminance, (one, other)))
    return (lighter + 0.05) / (darker + 0.05)


def luminance(color: str) -> float:
    """The relative luminance of `#rrggbb`."""
    channels = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_pages_of_several_sources_lead_to_each_other(
    settings: Settings, tmp_path: Path, watch: Callable[..., Watched]
) -> None:
    """The page of each source shows its own data and name and links to the others; a list shows the state of all.

    A link keeps the focus while the status is requested again.
    """
    sources = {"brain": {"AAPL": a_record()}, "intraday": {"MSFT": a_record()}}
    for name, records in sources.items():
        one = replace(settings, source=name, input=tmp_path / f"{name}.json", output_dir=settings.output_dir / name)
        write_json(one.input, records)
        optimize(one)
    variables = {
        "ROLLING_INPUT": "",
        "ROLLING_SOURCES": "; ".join(f"{name}={tmp_path}/{name}.json" for name in sources),
    }
    with Web(tmp_path, settings, **variables) as web:
        page = watch(web.url).open()
        links = page.get_by_role("navigation", name="Sources").get_by_role("link")
        expect(links).to_have_text(["brain", "intraday"])
        expect(links.first).to_have_attribute("aria-current", "page")
        for source, symbol in (("intraday", "MSFT"), ("brain", "AAPL"), ("intraday", "MSFT")):
            links.filter(has_text=source).click()
            expect(page.locator("#source")).to_have_text(source)
            expect(links.filter(has_text=source)).to_have_attribute("aria-current", "page")
            assert column(page, "Symbol") == [symbol]
        assert page.url == f"{web.url}sources/intraday/"
        page.get_by_role("link", name="All sources").click()
        assert page.url == f"{web.url}static/sources.html"
        states = page.locator("#sources tbody tr")
        expect(states).to_have_text([re.compile("^brainWell–"), re.compile("^intradayWell–")])
        (tmp_path / "intraday.json").unlink()
        with pytest.raises(SourceMissing):
            optimize(one)
        page.reload()
        expect(states.last).to_have_text(re.compile("^intradayWarningThe run at .* has failed: SourceMissing, "))
        expect(states.first).to_have_text(re.compile("^brainWell"))
        expect(page).to_have_title(re.compile("^1 of 2 sources: The run at "))
        states.last.get_by_role("link", name="intraday").click()
        expect(page.locator("#notices")).to_contain_text("SourceMissing")
        links.first.focus()
        page.wait_for_timeout(6_000)  # the status is requested again every five seconds
        expect(links.first).to_be_focused()
