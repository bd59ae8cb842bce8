"""The table of predictions in a real Chromium: long tables, choices and pins that are kept, and notes on a row."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from optimizer.config.settings import Settings
from optimizer.errors import SourceMissing
from optimizer.pipeline.run import optimize
from tests.support.browser import Watched, Web
from tests.support.redis_servers import wait_until
from tests.support.rolling_files import a_record, local, write_json

pytestmark = pytest.mark.slow

Open = Callable[..., Page]
PHONE: dict[str, Any] = {"viewport": {"width": 375, "height": 812}, "has_touch": True, "is_mobile": True}
LONG = 2_000


def publish(settings: Settings, records: dict[str, Any]) -> None:
    """Publish all of these records by a run."""
    write_json(settings.input, {"predictions": records})
    assert optimize(replace(settings, top_symbols_limit=10_000, min_confidence=0.0)).status == "success"


def long_records(*, price: float = 100.0) -> dict[str, Any]:
    """Two thousand records by falling confidence, all with this price."""
    return {f"S{index:04}": a_record(confidence=1 - index / 10_000, last_price=price) for index in range(LONG)}


def few_records() -> dict[str, Any]:
    """Five records, with all sentiments that are known."""
    words = {"AAPL": "bullish", "BABA": "bearish", "CSCO": "neutral", "DELL": "bullish", "EBAY": "bearish"}
    return {
        symbol: a_record(confidence=0.9 - index / 10, sentiment=word)
        for index, (symbol, word) in enumerate(words.items())
    }


def symbols(page: Page) -> list[str]:
    """The symbols in the document, from top to bottom."""
    return page.locator("#predictions tbody th").all_text_contents()


def row(page: Page, symbol: str) -> Locator:
    """The row of a symbol."""
    return page.locator("#predictions tbody tr").filter(has=page.get_by_role("link", name=symbol, exact=True))


def address(page: Page) -> str:
    """The address that the browser shows."""
    return str(page.evaluate("location.href"))


def head(page: Page, label: str) -> Locator:
    """The button in the head of a column."""
    return page.locator("#predictions thead").get_by_role("button", name=label)


def test_of_a_long_table_only_the_rows_in_view_are_in_the_document(settings: Settings, open_page: Open) -> None:
    """The document has only the rows in view, under 100 of 2,000, wherever the table is scrolled to.

    `aria-rowcount` and `aria-rowindex` tell screen readers how many rows there are, and which ones these are.
    """
    publish(settings, long_records())
    page = open_page()
    table, scroller = page.locator("#predictions"), page.locator("#predictions-scroller")
    expect(table).to_have_attribute("aria-rowcount", str(LONG + 1))
    expect(table.locator("thead tr")).to_have_attribute("aria-rowindex", "1")
    expect(row(page, "S0000")).to_have_attribute("aria-rowindex", "2")
    for at in (20_000, 10**9, 0, 37_000):
        scroller.evaluate("(box, at) => { box.scrollTop = at; }", at)
        first = min(LONG - 20, at // 37)
        expect(row(page, f"S{first + 2:04}")).to_be_visible()
        expect(row(page, f"S{first + 2:04}")).to_have_attribute("aria-rowindex", str(first + 4))
        assert len(symbols(page)) < 100
    # The row at this place of the screen is the one that belongs there.
    place = scroller.bounding_box()
    assert place is not None
    shown = page.evaluate(
        "([x, y]) => document.elementFromPoint(x, y).closest('tr').ariaRowIndex", [place["x"] + 40, place["y"] + 400]
    )
    top = table.locator("thead").bounding_box()
    assert top is not None
    assert int(shown) == (37_000 + 400 - top["height"]) // 37 + 2

    publish(settings, long_records(price=101.0))
    expect(row(page, "S1002")).to_contain_text("101.00")
    assert scroller.evaluate("(box) => box.scrollTop") == 37_000
    assert page.locator("[data-moved]").count() <= len(symbols(page))  # rows that are not in the document have no tint


def test_a_field_without_a_column_of_its_own_gets_a_plain_one(
    settings: Settings, watch: Callable[..., Watched], web: Web
) -> None:
    """A new field of records, bots or holdings is shown in a plain column before a column is designed for it."""
    positions = [{"symbol": "AAPL", "quantity": 1, "avg_price": 2}]
    write_json(settings.input, {"predictions": few_records(), "bots": {"alpha": {"positions": positions}}})
    optimize(replace(settings, min_confidence=0.0))

    def answer(route: Route) -> None:
        content = route.fetch().json()
        for place, record in enumerate(content["predictions"]):
            record["horizon_days"] = place
        for one in (*content["bots"].values(), *content["holdings"]):
            one["note"] = "<b>new</b>"
        route.fulfill(json=content)

    watched = watch(web.url)
    watched.page.route("**/snapshot", answer)
    page = watched.open()
    expect(page.locator("#predictions th[data-column='horizon_days']")).to_have_class("number")
    head(page, "Horizon days").click()
    assert symbols(page) == ["EBAY", "DELL", "CSCO", "BABA", "AAPL"]
    for table in ("#bots", "#holdings"):
        expect(page.locator(table).get_by_role("button", name="Note")).to_have_count(1)
        expect(page.locator(f"{table} tbody tr").get_by_text("<b>new</b>", exact=True)).to_have_count(1)


def test_a_long_table_is_walked_through_by_keys(settings: Settings, open_page: Open) -> None:
    """Keys reach rows that are not in the document yet, and a row keeps the focus however far it is scrolled away."""
    publish(settings, long_records())
    page = open_page()
    page.get_by_role("link", name="S0000").focus()
    for key, symbol in (
        *(("ArrowDown", "S0001"), ("ArrowUp", "S0000"), ("ArrowUp", "S0000"), ("End", "S1999"), ("ArrowUp", "S1998")),
        *(("Home", "S0000"), ("ArrowDown", "S0001")),
    ):
        page.keyboard.press(key)
        expect(page.get_by_role("link", name=symbol)).to_be_focused()
        expect(row(page, symbol)).to_be_in_viewport()
    page.keyboard.press("PageDown")
    far = int(page.evaluate("document.activeElement.textContent.slice(1)"))
    assert 10 < far < 30

    page.locator("#predictions-scroller").evaluate("(box) => { box.scrollTop = 40000; }")
    expect(row(page, "S1090")).to_be_visible()
    focused = page.get_by_role("link", name=f"S{far:04}")
    expect(focused).to_be_focused()
    publish(settings, long_records(price=101.0))
    expect(row(page, "S1090")).to_contain_text("101.00")
    expect(focused).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name=f"Pin S{far:04}")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name=f"S{far + 1:04}")).to_be_focused()
    expect(row(page, f"S{far + 1:04}")).to_be_in_viewport()


def test_what_is_chosen_is_in_the_address(settings: Settings, open_page: Open, watch: Callable[..., Watched]) -> None:
    """Filters, sort and search are in the address, so that it can be sent to another person.

    They survive a reload and a visit to a symbol's page, and the browser's back button undoes them.
    """
    publish(settings, few_records())
    page = open_page()
    expect(page.locator("#predictions-count")).to_have_text("5")
    start = address(page)
    page.get_by_role("button", name="Bearish").click()
    head(page, "Symbol").click()
    head(page, "Symbol").click()
    page.get_by_label("Confidence in percent, at least").fill("45.5")
    expect(page.locator("#predictions-count")).to_have_text("2 of 5")
    wait_until(lambda: "min_confidence" in address(page))
    page.get_by_role("searchbox").fill("b")
    wait_until(lambda: "search" in address(page))
    chosen = "sentiment=bearish&sort=-symbol&min_confidence=0.455&search=b"
    assert address(page) == f"{start}?{chosen}"
    assert symbols(page) == ["EBAY", "BABA"]

    page.get_by_role("link", name="EBAY").click()
    assert address(page) == f"{start}?{chosen}#/symbol/EBAY"
    page.get_by_role("link", name="All predictions").click()
    for other in (page, watch(address(page)).open()):
        other.reload()
        expect(other.locator("#predictions-count")).to_have_text("2 of 5")
        assert symbols(other) == ["EBAY", "BABA"]
        expect(other.get_by_role("searchbox")).to_have_value("b")
        expect(other.get_by_label("Confidence in percent, at least")).to_have_value("45.5")
        expect(other.get_by_role("button", name="Bearish")).to_have_attribute("aria-pressed", "true")
        expect(other.locator("#predictions [aria-sort]")).to_have_attribute("aria-sort", "descending")

    page.get_by_role("button", name="All", exact=False).first.click()
    assert "sentiment" not in address(page)
    page.go_back()
    expect(page.get_by_role("button", name="Bearish")).to_have_attribute("aria-pressed", "true")
    assert symbols(page) == ["EBAY", "BABA"]


def test_each_choice_is_one_step_back(settings: Settings, open_page: Open) -> None:
    """Each choice is one step of the browser's back button; a typed word is one, however many keys it took."""
    publish(settings, few_records())
    page = open_page()
    expect(page.locator("#predictions-count")).to_have_text("5")
    page.get_by_role("button", name="Bullish").click()
    page.keyboard.press("/")
    for key in "del":
        page.keyboard.press(key)
        page.wait_for_timeout(400)  # a user who types slowly
    expect(page.locator("#predictions-count")).to_have_text("1 of 5")
    page.go_back()
    expect(page.get_by_role("searchbox")).to_have_value("")
    assert symbols(page) == ["AAPL", "DELL"]
    page.go_back()
    assert symbols(page) == list(few_records())
    page.go_forward()
    page.go_forward()
    assert symbols(page) == ["DELL"]


def test_an_address_that_cannot_be_used_shows_everything(
    settings: Settings, web: Web, watch: Callable[..., Watched]
) -> None:
    """Unknown words, columns and numbers in the address are ignored; parameters of other programs stay in it."""
    publish(settings, few_records())
    page = watch(f"{web.url}?sentiment=constructor&sort=-nothing&min_confidence=7&token=x").open()
    expect(page.locator("#predictions-count")).to_have_text("5")
    assert symbols(page) == list(few_records())
    expect(page.get_by_role("button", name="All")).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="Bearish").click()
    assert "token=x" in address(page)


def test_a_symbol_of_the_index_is_found_beyond_the_predictions(settings: Settings, open_page: Open) -> None:
    """The search finds a symbol of the index beyond the predictions by its name as typed or in capitals.

    A symbol that is among the predictions is not looked up.
    """
    records = {
        "MSFT": a_record(confidence=0.9),
        "AAA": a_record(confidence=0.12, sentiment="bearish"),
        "b/c": a_record(),
    }
    write_json(settings.input, {"predictions": records})
    assert optimize(replace(settings, top_symbols_limit=1, min_confidence=0.0)).status == "success"
    page = open_page()
    expect(page.locator("#predictions-count")).to_have_text("1")
    beyond = page.locator("#predictions-beyond")
    for typed, told in (
        ("aaa", "Beyond the top 1, the index has AAA confidence 12.00%, bearish"),
        ("MSFT", ""),
        ("b/c", "Beyond the top 1, the index has b/c confidence 75.00%, bullish"),
        ("nothing", ""),
        ("AAA", "Beyond the top 1, the index has AAA confidence 12.00%, bearish"),
    ):
        page.get_by_role("searchbox").fill(typed)
        expect(beyond).to_have_text(told)
    beyond.get_by_role("link", name="AAA").click()
    expect(page.get_by_role("heading", name="AAA")).to_be_focused()


def test_pinned_symbols_come_first_and_are_kept(settings: Settings, open_page: Open) -> None:
    """Pinned symbols are first, in the order of the sorted column.

    The browser keeps them, also for its other pages, until they are unpinned.
    """
    publish(settings, few_records())
    page = open_page()
    for symbol in ("EBAY", "CSCO"):
        page.get_by_role("button", name=f"Pin {symbol}").click()
        expect(page.get_by_role("button", name=f"Pin {symbol}")).to_be_focused()
    other = page.context.new_page()
    other.goto(address(page))
    for one in (page, other):
        one.reload()
        expect(one.get_by_role("button", name="Pin CSCO")).to_have_attribute("aria-pressed", "true")
        assert symbols(one) == ["CSCO", "EBAY", "AAPL", "BABA", "DELL"]
    head(page, "Symbol").click()
    head(page, "Symbol").click()
    assert symbols(page) == ["EBAY", "CSCO", "DELL", "BABA", "AAPL"]

    page.get_by_role("button", name="Pin EBAY").click()
    expect(page.get_by_role("button", name="Pin EBAY")).to_have_attribute("aria-pressed", "false")
    assert symbols(page) == ["CSCO", "EBAY", "DELL", "BABA", "AAPL"]
    expect(other.get_by_role("button", name="Pin EBAY")).to_have_attribute("aria-pressed", "false")
    page.get_by_role("button", name="Pin CSCO").click()
    assert page.evaluate("localStorage.length") == 0

    page.evaluate("localStorage.setItem('rolling-optimizer.pins', '{not json')")
    page.reload()
    expect(page.locator("#predictions-count")).to_have_text("5")


def test_a_pinned_symbol_that_leaves_the_predictions_is_still_shown(settings: Settings, open_page: Open) -> None:
    """A pinned symbol outside of the predictions is shown with its values in the index, and a button to unpin it."""
    publish(settings, few_records())
    page = open_page()
    page.get_by_role("button", name="Pin EBAY").click()
    beyond = page.locator("#predictions-beyond")
    expect(beyond).to_be_empty()
    write_json(settings.input, {"predictions": few_records()})
    optimize(replace(settings, top_symbols_limit=4, min_confidence=0.0), force=True)
    expect(beyond).to_have_text("Beyond the top 4, pinned: EBAY confidence 50.00%, bearish")
    without = {symbol: record for symbol, record in few_records().items() if symbol != "EBAY"}
    publish(settings, without | {"FORD": a_record(confidence=0.1)})
    expect(beyond).to_have_text("Beyond the top 5, pinned: EBAY no record now")
    beyond.get_by_role("button", name="Pin EBAY").click()
    expect(beyond).to_be_empty()
    expect(page.get_by_role("searchbox")).to_be_focused()


def test_times_are_local_or_in_utc(settings: Settings, open_page: Open) -> None:
    """One switch shows all times in local time or in UTC; the browser keeps it, and the page says which it is."""
    publish(settings, {"AAPL": a_record(timestamp="2026-02-03T23:30:00Z")})
    page = open_page(timezone_id="Asia/Tokyo", locale="en-US")
    cell = page.locator("#predictions tbody td").last
    expect(cell).to_have_text("Feb 4, 08:30")
    expect(page.get_by_role("contentinfo")).to_contain_text("Times are local.")
    page.get_by_role("button", name="UTC").click()
    for _ in range(2):
        expect(cell).to_have_text("Feb 3, 23:30")
        expect(cell).to_have_attribute("title", re.compile("UTC$"))
        expect(page.get_by_role("columnheader", name="Time (UTC)")).to_be_visible()
        expect(page.get_by_role("contentinfo")).to_contain_text("Times are in UTC.")
        expect(page.get_by_role("button", name="UTC", exact=True)).to_have_attribute("aria-pressed", "true")
        page.reload()
    page.get_by_role("button", name="UTC", exact=True).click()
    expect(cell).to_have_text("Feb 4, 08:30")


def test_the_zone_can_be_chosen_where_the_browser_keeps_nothing(
    settings: Settings, web: Web, watch: Callable[..., Watched]
) -> None:
    """If the browser stores nothing, the chosen time zone is in the page's address, beside the other choices."""
    publish(settings, {"AAPL": a_record(timestamp="2026-02-03T23:30:00Z")})
    watched = watch(f"{web.url}?search=A", timezone_id="Asia/Tokyo", locale="en-US")
    watched.page.add_init_script(
        "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('', 'SecurityError'); } })"
    )
    page = watched.open()
    cell = page.locator("#predictions tbody td").last
    for shown, query in (("Feb 4, 08:30", "A"), ("Feb 3, 23:30", "A&zone=UTC"), ("Feb 4, 08:30", "A")):
        expect(cell).to_have_text(shown)
        assert address(page) == f"{web.url}?search={query}"
        page.get_by_role("button", name="UTC", exact=True).click()


def test_a_notice_names_its_times_in_the_zone_of_the_page(settings: Settings, open_page: Open) -> None:
    """A notice has its times in the time zone of the page, local or UTC; the server sends them in UTC."""
    publish(settings, {"AAPL": a_record()})
    local(settings.input).unlink()
    with pytest.raises(SourceMissing):
        optimize(settings)
    page = open_page(timezone_id="Asia/Tokyo", locale="en-US")
    notices = page.locator("#notices")
    expect(notices).to_contain_text(re.compile(r"The run at .*\d\d:\d\d:\d\d GMT\+9 has failed"))
    expect(notices).not_to_contain_text("UTC")
    expect(page).to_have_title(re.compile(r"GMT\+9 has failed"))
    page.get_by_role("button", name="UTC", exact=True).click()
    expect(notices).to_contain_text(re.compile(r"The run at .*\d\d:\d\d:\d\d UTC has failed"))
    expect(notices).not_to_contain_text("GMT")


def test_a_prediction_against_its_sentiment_is_explained(settings: Settings, open_page: Open) -> None:
    """A bearish record predicted above its last price, or a bullish one below, is marked and explained; no other is."""
    publish(
        settings,
        {
            "UP": a_record(sentiment="bearish", last_price=100, prediction=110),
            "DOWN": a_record(sentiment="bullish", last_price=100, prediction=90),
            "FIT": a_record(sentiment="bearish", last_price=100, prediction=90),
            "FLAT": a_record(sentiment="bullish", last_price=100, prediction=100),
            "WORD": a_record(sentiment="Strong Buy", last_price=100, prediction=90),
        },
    )
    page = open_page()
    expect(page.locator("#predictions-note")).to_contain_text("≠ marks 2 predictions where the engine's sentiment")
    marked = page.locator("#predictions tbody tr").filter(has=page.locator("[data-against]"))
    expect(marked).to_have_count(2)
    cell = row(page, "UP").locator("[data-against]")
    expect(cell).to_have_attribute("title", "bearish, but predicted above the last price")
    assert "≠" in cell.evaluate("(one) => getComputedStyle(one, '::before').content")
    row(page, "DOWN").get_by_role("link").click()
    expect(page.locator("#symbol-note")).to_have_text(
        "≠ The engine says bullish, but predicted below the last price: its two values disagree."
    )
    page.evaluate("location.hash = '#/symbol/FIT'")
    expect(page.locator("#symbol-note")).to_have_text("")


def test_one_sentiment_that_is_not_known_is_a_button_by_its_text(settings: Settings, open_page: Open) -> None:
    """One unknown sentiment has a filter button with its text; several share one, whose tooltip lists their words.

    A long text is not cut off by the panel.
    """
    publish(settings, {"A": a_record(sentiment="Strong Buy"), "B": a_record()})
    page = open_page()
    page.get_by_role("button", name="Strong Buy 1").click()
    assert symbols(page) == ["A"]
    publish(settings, {"A": a_record(sentiment="Strong Buy"), "B": a_record(), "C": a_record(sentiment="Hold")})
    expect(page.get_by_role("button", name="Other 2")).to_have_attribute("title", "Strong Buy, Hold")
    long = " ".join(["hopeful"] * 9)
    publish(settings, {"A": a_record(sentiment=long), "B": a_record()})
    page.set_viewport_size({"width": 720, "height": 900})
    button = page.get_by_role("button", name=f"{long} 1")
    assert button.evaluate("(one) => one.getBoundingClientRect().right < one.closest('.panel').clientWidth")


@pytest.mark.parametrize("screen", [{}, PHONE], ids=["wide", "phone"])
def test_no_value_pushes_other_columns_out(settings: Settings, open_page: Open, screen: dict[str, Any]) -> None:
    """Columns keep their widths however long a value is.

    A huge number is shown as a power of ten, with all digits in its tooltip. Text is cut, and numbers never are.
    """
    publish(settings, few_records())
    page = open_page(**screen)
    expect(page.locator("#predictions-count")).to_have_text("5")
    widths = "() => [...document.querySelectorAll('#predictions thead th')].map((one) => one.offsetWidth)"
    before = page.evaluate(widths)
    long = "W" * 200
    huge = a_record(confidence=0.99, last_price=1e22, prediction=2.5e22, sentiment=long, timestamp=long)
    publish(settings, {**few_records(), long: huge})
    expect(row(page, long)).to_contain_text("1E22")
    assert page.evaluate(widths) == before
    expect(row(page, long).get_by_text("2.5E22")).to_have_attribute("title", "25,000,000,000,000,000,000,000")

    exact = a_record(last_price=123_456_789.25, prediction=100_000_000.5, target_price=0.000012345, stop_loss=999_999)
    publish(settings, {**few_records(), "BTC": exact})
    expect(row(page, "BTC")).to_contain_text("123,456,789.25")
    cut = "(line) => [...line.querySelectorAll('td.number')].filter((one) => one.scrollWidth > one.clientWidth).length"
    assert row(page, "BTC").evaluate(cut) == 0


def test_columns_that_are_out_of_view_are_counted(settings: Settings, open_page: Open) -> None:
    """A line above the table counts the columns out of view, with the direction in which they are.

    If all are in view, it is hidden.
    """
    publish(settings, few_records())
    page = open_page(viewport={"width": 1440, "height": 900})
    expect(page.locator("#predictions-count")).to_have_text("5")
    expect(page.locator(".predictions .cue")).to_be_hidden()

    page = open_page(**PHONE)
    cue = page.locator(".predictions .cue")
    expect(cue).to_have_text("6 more columns →")
    page.locator("#predictions-scroller").evaluate("(box) => { box.scrollLeft = 10000; }")
    expect(cue).to_have_text("← 6 more columns")


def test_on_a_phone_the_sources_can_be_read(settings: Settings, open_page: Open, web: Web) -> None:
    """On a phone the list of sources shows a problem in a few lines and counts the columns out of view.

    Times are in the zone that the page names.
    """
    publish(settings, few_records())
    page = open_page(**PHONE, timezone_id="Asia/Tokyo", locale="en-US")
    page.goto(f"{web.url}static/sources.html")
    line = page.locator("#sources tbody tr")
    expect(line).to_contain_text("rolling_brain")
    expect(page.locator(".cue")).to_have_text(re.compile(r"^\d more columns? →$"))
    local(settings.input).unlink()
    with pytest.raises(SourceMissing):
        optimize(settings)
    page.reload()
    expect(line).to_contain_text(re.compile(r"GMT\+9 has failed: SourceMissing"))
    assert line.evaluate("(line) => line.offsetHeight") < 400
    page.get_by_role("button", name="UTC").click()
    expect(line).to_contain_text(re.compile("UTC has failed"))
    expect(page.get_by_role("contentinfo")).to_contain_text("Times are in UTC.")
