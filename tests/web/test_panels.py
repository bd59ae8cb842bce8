"""What people see of versions on the dashboard: what changed, a symbol's history, pins, guards, the export.

Tests run in a real Chromium, against a real API process, a real Redis, and snapshots that runs published.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from optimizer.config.settings import Settings
from optimizer.errors import GuardRefused, NoBots
from optimizer.pipeline.drain import apply_updates
from optimizer.pipeline.rollback import rollback, unpin
from optimizer.pipeline.run import optimize
from optimizer.pipeline.updates import enqueue
from tests.support.browser import TOKEN, Watched, Web
from tests.support.fleet import Fleet
from tests.support.published_state import version_of
from tests.support.redis_servers import wait_until
from tests.support.rolling_files import a_record, local, write_json

pytestmark = pytest.mark.slow

Open = Callable[..., Page]
BOTS = {"alpha": {"enabled": True, "equity": 10.5, "positions": [{"symbol": "AAPL", "qty": 5, "avg": 100}]}}


def publish(settings: Settings, records: dict[str, Any]) -> int:
    """Publish these records by a run; return the version."""
    write_json(settings.input, {"predictions": records, "bots": BOTS})
    report = optimize(settings)
    assert report.status == "success"
    return version_of(report)


def listed(page: Page, title: str) -> list[str]:
    """The lines of one list of the step that is shown."""
    lines = page.get_by_role("group", name=re.compile(f"^{title}")).get_by_role("listitem")
    return [" ".join(text.split()) for text in lines.all_inner_texts()]


def field(page: Page, label: str) -> Locator:
    """The value of a field of the symbol that is shown."""
    return page.locator("#symbol-fields > div").filter(has=page.get_by_text(label, exact=True)).locator("dd")


def test_what_each_version_changed_can_be_stepped_through(settings: Settings, open_page: Open) -> None:
    """The panel shows and follows the newest step, unless another one was chosen, which stays when new versions appear.

    The arrow keys do what the buttons do.
    """
    first = {"AAPL": a_record(confidence=0.9), "BABA": a_record(confidence=0.5), "CSCO": a_record(confidence=0.8)}
    publish(settings, first)
    page = open_page()
    panel = page.get_by_role("region", name="What changed")
    expect(panel).to_contain_text("Nothing has changed since the version of")
    expect(panel.get_by_role("button", name="Older")).to_be_hidden()
    height = panel.bounding_box()

    second = {"BABA": a_record(confidence=0.95), "CSCO": first["CSCO"], "<b>Ö/%": a_record(confidence=0.7)}
    publish(settings, second)
    expect(page.locator("#changes-position")).to_have_text("1 of 1")
    assert panel.bounding_box() == height  # nothing below has moved
    assert listed(page, "Entered") == ["<b>Ö/% at 3 70.00%"]
    assert listed(page, "Left") == ["AAPL was at 1 90.00%"]
    assert listed(page, "Moved") == ["BABA 3 → 1 ▲ 2"]
    assert listed(page, "Confidence") == ["BABA 50.00% → 95.00% +45.00 points"]
    expect(page.locator("#changes-counts")).to_have_text("Predictions 1 added, 1 changed, 1 removed")

    publish(settings, {**second, "DELL": a_record(confidence=0.6)})
    expect(page.locator("#changes-position")).to_have_text("1 of 2")
    assert listed(page, "Entered") == ["DELL at 4 60.00%"]
    assert listed(page, "Left") == ["None"]
    older = panel.get_by_role("button", name="Older")
    older.focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#changes-position")).to_have_text("2 of 2")
    assert listed(page, "Left") == ["AAPL was at 1 90.00%"]
    expect(older).to_have_attribute("aria-disabled", "true")
    expect(older).to_be_focused()
    older.press("Enter")
    expect(page.locator("#changes-said")).to_have_text(re.compile("^2 of 2, Version of "))
    expect(panel.get_by_role("button", name="Newest")).to_have_attribute("aria-pressed", "false")

    publish(settings, second)
    expect(page.locator("#changes-position")).to_have_text("3 of 3")
    assert listed(page, "Left") == ["AAPL was at 1 90.00%"]
    page.keyboard.press("ArrowRight")
    expect(page.locator("#changes-position")).to_have_text("2 of 3")
    assert listed(page, "Entered") == ["DELL at 4 60.00%"]
    panel.get_by_role("button", name="Newest").click()
    expect(page.locator("#changes-position")).to_have_text("1 of 3")
    assert listed(page, "Left") == ["DELL was at 4 60.00%"]
    publish(settings, first)
    expect(page.locator("#changes-position")).to_have_text("1 of 4")

    panel.get_by_role("link", name="<b>Ö/%").click()
    expect(page.get_by_role("heading", name="<b>Ö/%")).to_be_focused()


def test_only_the_newest_steps_and_runs_are_asked_for(settings: Settings, open_page: Open) -> None:
    """The page requests all steps and runs when it opens, and later only the newest few.

    It requests more only until they reach those that are shown.
    """
    numbers = iter(range(100))

    def publish_next() -> None:
        publish(settings, {"AAPL": a_record(confidence=0.5 + next(numbers) / 1000)})

    publish_next()
    publish_next()
    page = open_page()
    position, runs = page.locator("#changes-position"), page.locator("#runs-count")
    expect(position).to_have_text("1 of 1")
    expect(runs).to_have_text("last 2")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url.removeprefix(page.url)))

    publish_next()
    expect(position).to_have_text("1 of 2")
    expect(runs).to_have_text("last 3")
    assert {re.sub("after=.*Z$", "after=Z", url) for url in asked if "limit" in url} == {
        "history?limit=2",
        "runs?limit=200&after=Z",
    }

    for path in ("history", "runs"):
        page.route(f"**/{path}?*", lambda route: route.abort())
    for _ in range(4):
        publish_next()
    wait_until(lambda: page.locator("#predictions").get_by_text("50.60%").count() == 1)
    asked.clear()
    page.unroute_all()
    publish_next()
    expect(position).to_have_text("1 of 7")
    expect(runs).to_have_text("last 8")
    assert asked.index("history?limit=2") < asked.index("history?limit=16")
    assert not {"history?limit=50", "runs?limit=200", "runs?status=success&limit=60"} & set(asked)
    expect(page.locator("#charts svg > title").first).to_contain_text("over 8 runs")


def test_what_a_version_leaves_as_it_is_stays_in_place(settings: Settings, open_page: Open) -> None:
    """If one symbol falls to the end, its row alone moves and keeps the focus, and its changed price has a tint."""
    records = {f"S{number:02}": a_record(confidence=0.9 - number / 100) for number in range(40)}
    publish(settings, records)
    page = open_page()
    link = page.locator("#predictions").get_by_role("link", name="S03")
    link.focus()
    page.evaluate(
        """() => {
            window.moved = [];
            new MutationObserver((changes) => {
                for (const { addedNodes } of changes) for (const { textContent } of addedNodes) moved.push(textContent);
            }).observe(document.querySelector("#predictions tbody"), { childList: true });
        }"""
    )
    publish(settings, records | {"S03": a_record(confidence=0.505, last_price=101)})
    expect(page.locator("#predictions tbody tr").last).to_contain_text("S03")
    expect(link).to_be_focused()
    price = page.locator("#predictions tbody tr").last.get_by_role("cell", name="101.00")
    expect(price).to_have_attribute("data-moved", "up")
    assert page.evaluate("document.getAnimations().length") == 0
    assert [text[:3] for text in page.evaluate("moved")] == ["S03"]
    wait_until(lambda: price.get_attribute("data-moved") is None)


def test_a_symbol_has_a_page_of_its_own(settings: Settings, open_page: Open) -> None:
    """A symbol's page shows its fields, its rank, and its values over the versions, with a gap where it had left."""
    mapped = replace(settings, fields="+sector", min_confidence=0.1)
    others = {"MSFT": a_record(confidence=0.5), "NVDA": a_record(confidence=0.7)}
    publish(mapped, {**others, "AAPL": a_record(confidence=0.25, sector="<i>Tech", last_price=90)})
    publish(mapped, others)
    publish(mapped, {**others, "AAPL": a_record(confidence=0.31, sector="<i>Tech", last_price=95)})
    page = open_page()
    page.locator("#predictions").get_by_role("link", name="AAPL").click()
    expect(page.locator("#symbol-rank")).to_have_text("rank 3 of 3")
    expect(field(page, "Confidence")).to_have_text("31.00%")
    expect(field(page, "sector")).to_have_text("<i>Tech")
    expect(field(page, "Held")).to_have_text("5 at 100.00")
    expect(page.locator("#symbol-history-count")).to_have_text(re.compile("^2 changes since "))
    charts = page.locator("#symbol-charts svg > title")
    expect(charts).to_have_count(2)
    assert "confidence now 31.00%, lowest 25.00%, highest 31.00%" in (charts.first.text_content() or "")
    assert "last now 95.00, lowest 90.00, highest 95.00" in (charts.last.text_content() or "")
    path = page.locator("#symbol-charts [data-series=confidence] path").get_attribute("d") or ""
    assert re.findall("[MHVL]", path) == ["M", "H", "M", "H"]  # two steps, and a gap
    page.get_by_text("These changes as a table").click()
    told = page.locator("#symbol-versions tbody tr td:nth-child(2)")
    expect(told).to_have_text(["31.00%", "left", "25.00%"])

    publish(mapped, {**others, "AAPL": a_record(confidence=0.6, sector="Tech")})
    expect(page.locator("#symbol-rank")).to_have_text("rank 2 of 3")
    expect(field(page, "Confidence")).to_have_text("60.00%")
    expect(told.first).to_have_text("60.00%")


def test_the_way_to_a_symbol_and_back_keeps_place_and_focus(settings: Settings, open_page: Open) -> None:
    """Links, the browser's buttons and keys lead to a symbol's page and back, and keep place and focus.

    The tab's title has the symbol's name, and a symbol of any name has an address.
    """
    few = replace(settings, min_confidence=0.1)
    others = {f"S{number:03}": a_record(confidence=0.5 - number / 1000) for number in range(60)}
    publish(few, {**others, "AAPL": a_record(confidence=0.25), "A/B %": a_record()})
    page = open_page()
    scroller = page.locator("#predictions-scroller")
    scroller.evaluate("(box) => { box.scrollTop = box.scrollHeight; }")
    link = page.locator("#predictions").get_by_role("link", name="AAPL")
    link.focus()
    page.keyboard.press("Enter")
    title = page.get_by_role("heading", name="AAPL")
    expect(title).to_be_focused()
    expect(page).to_have_title(re.compile("^AAPL – rolling_brain"))
    assert page.url.endswith("#/symbol/AAPL")
    expect(page.locator("#overview")).to_be_hidden()
    publish(few, {**others, "AAPL": a_record(confidence=0.26), "A/B %": a_record()})
    expect(field(page, "Confidence")).to_have_text("26.00%")
    expect(title).to_be_focused()

    page.go_back()
    expect(link).to_be_focused()
    expect(page.locator("#symbol-page")).to_be_hidden()
    expect(page).to_have_title(re.compile("^rolling_brain"))
    page.go_forward()
    expect(title).to_be_focused()
    page.get_by_role("link", name="All predictions").click()
    page.locator("#holdings").get_by_role("link", name="AAPL").click()
    expect(title).to_be_focused()
    page.go_back()
    scroller.evaluate("(box) => { box.scrollTop = 0; }")
    page.locator("#predictions").get_by_role("link", name="A/B %").click()
    expect(page.get_by_role("heading", name="A/B %")).to_be_focused()
    expect(page.locator("#symbol-history-count")).to_have_text(re.compile("^unchanged since "))
    page.keyboard.press("Shift+Tab")
    page.get_by_role("link", name="Skip to the symbol").press("Enter")
    assert page.url.endswith("#/symbol/A%2FB%20%25")
    expect(page.get_by_role("heading", name="A/B %")).to_be_focused()


def test_symbols_without_a_history_and_unknown_ones_say_why(settings: Settings, open_page: Open) -> None:
    """A symbol outside of the predictions shows its fields, one that has left its history, and an unknown one neither.

    The page says why something is missing.
    """
    few = replace(settings, top_symbols_limit=2, min_confidence=0.1)
    publish(few, {"AAPL": a_record(confidence=0.9), "GONE": a_record(confidence=0.8), "LOW": a_record(confidence=0.2)})
    publish(few, {"AAPL": a_record(confidence=0.9), "BABA": a_record(confidence=0.8), "LOW": a_record(confidence=0.2)})
    page = open_page()
    expect(page.locator("#predictions tbody tr")).to_have_count(2)

    page.evaluate("location.hash = '#/symbol/LOW'")
    expect(page.locator("#symbol-rank")).to_have_text("outside of the 2 predictions")
    expect(field(page, "Confidence")).to_have_text("20.00%")
    expect(page.locator("#symbol-history-note")).to_contain_text("No history: it was not among the predictions")
    expect(page.locator("#symbol-table")).to_be_hidden()

    page.evaluate("location.hash = '#/symbol/GONE'")
    expect(page.locator("#symbol-note")).to_contain_text("The current version has no record of it any more.")
    expect(page.locator("#symbol-charts svg > title").first).to_contain_text("confidence now –, lowest 80.00%")

    page.evaluate("location.hash = '#/symbol/aapl'")
    expect(page.locator("#symbol-note")).to_contain_text("No such symbol")
    expect(page.locator("#symbol-history-note")).to_have_text("No history.")
    page.get_by_role("link", name="AAPL", exact=True).click()
    expect(page.locator("#symbol-rank")).to_have_text("rank 1 of 2")
    page.evaluate("location.hash = '#/symbol/%'")  # as typed by hand
    expect(page.get_by_role("heading", name="%")).to_be_focused()
    expect(page.locator("#symbol-note")).to_contain_text("No such symbol")


def test_a_symbols_page_can_be_opened_before_the_first_version(
    settings: Settings, web: Web, watch: Callable[..., Watched]
) -> None:
    """A symbol's page that is opened from a bookmark says that there are no data, and fills with the first version."""
    page = watch(f"{web.url}#/symbol/AAPL").open()
    expect(page.get_by_role("heading", name="No data yet")).to_be_visible()
    expect(page.locator("#symbol-page")).to_be_hidden()

    publish(settings, {"AAPL": a_record()})

    expect(field(page, "Confidence")).to_have_text("75.00%")
    expect(page.get_by_role("heading", name="No data yet")).to_be_hidden()
    expect(page.locator("#symbol-history-count")).to_have_text(re.compile("^unchanged since "))


def test_a_pin_is_told_and_what_runs_changed_is_listed(settings: Settings, open_page: Open) -> None:
    """A notice states since when, by whom and to which version the source is pinned, and how to unpin it.

    The table of runs lists what each of them changed.
    """
    old = publish(settings, {"AAPL": a_record()})
    publish(settings, {"AAPL": a_record(confidence=0.9), "MSFT": a_record()})
    restored = version_of(rollback(settings, old))
    rollback(settings, restored)
    assert optimize(settings).reason == "pinned"
    page = open_page()

    notices = page.locator("#notices")
    expect(notices).to_contain_text("The version is pinned. Since ")
    expect(notices).to_contain_text(re.compile(rf" by \S+@\S+: .* version {restored} .*rolling-optimizer unpin"))
    page.get_by_text("These runs as a table").click()
    runs = page.locator("#runs tbody tr")
    expect(runs.first).to_contain_text("pinned")
    expect(runs.nth(1)).to_contain_text("content as before")
    expect(runs.nth(1)).to_contain_text(f"version {restored} again")
    expect(runs.nth(2)).to_contain_text("Predictions 1 changed, 1 removed")

    unpin(settings)
    expect(notices).to_be_empty()


def test_an_input_that_was_refused_can_be_accepted(
    settings: Settings, tmp_path: Path, watch: Callable[..., Watched]
) -> None:
    """With a trigger token, the notice and the run's own message offer a run that accepts a refused input, once."""
    publish(settings, {"AAPL": a_record()})
    write_json(settings.input, {"AAPL": a_record(confidence=0.9), "bots": {name: {"equity": "x"} for name in "ab"}})
    with pytest.raises(NoBots):
        optimize(settings)
    with Web(tmp_path, settings, ROLLING_TRIGGER_TOKEN=TOKEN) as web, Fleet(tmp_path, settings) as fleet:
        fleet.start_worker()
        page = watch(web.url).open()
        accept = page.get_by_role("checkbox", name="Accept this input")
        page.get_by_role("button", name="Run now").click()
        expect(accept).not_to_be_checked()
        page.get_by_label("Trigger token").fill(TOKEN)
        page.keyboard.press("Enter")
        expect(page.locator("#run-text")).to_have_text("Failed: NoBots")
        again = page.get_by_role("button", name="Run again and accept")
        again.click()
        expect(accept).to_be_checked()
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Accept this input").click()
        expect(accept).to_be_checked()
        page.get_by_role("button", name="Start the run").click()
        expect(again).to_be_hidden()
        expect(page.locator("#run-text")).to_have_text(re.compile("^Done in"))
        expect(page.locator("#predictions tbody")).to_contain_text("90.00%")
        wait_until(lambda: page.locator("#notices").inner_text() == "", what="a page without notices")


def test_what_a_guard_said_is_told(settings: Settings, open_page: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """The notice has a guard's message unchanged, also the upper and lower case of a relative path at its start.

    Without a token there is no button to accept the input.
    """
    publish(settings, {"AAPL": a_record(), "MSFT": a_record()})
    write_json(settings.input, {"AAPL": a_record()})
    monkeypatch.chdir(local(settings.input).parent)
    relative = Path(local(settings.input).name)
    with pytest.raises(GuardRefused, match=f"^{relative}: ") as refused:
        optimize(replace(settings, min_records=2, input=relative))
    page = open_page()
    notices = page.locator("#notices")
    expect(notices).to_contain_text("A guard refused the last run.")
    expect(notices).to_contain_text(str(refused.value))
    expect(page.get_by_role("button", name="Accept this input")).to_have_count(0)
    expect(page.locator("#predictions tbody tr")).to_have_count(2)


def test_an_update_that_was_dropped_is_no_input_to_accept(
    settings: Settings, tmp_path: Path, watch: Callable[..., Watched]
) -> None:
    """A dropped update is reported in a notice, but no button offers to accept it, even with a token."""
    publish(settings, {"AAPL": a_record(), "MSFT": a_record()})
    enqueue(settings, [], ["AAPL", "MSFT"])
    apply_updates(settings)
    with Web(tmp_path, settings, ROLLING_TRIGGER_TOKEN=TOKEN) as web:
        page = watch(web.url).open()
        notices = page.locator("#notices")
        expect(notices).to_contain_text("An update was dropped.")
        expect(notices).to_contain_text("the update of AAPL, MSFT was dropped: updates would remove the last record")
        expect(page.get_by_role("button", name="Run now")).to_be_visible()
        expect(page.get_by_role("button", name="Accept this input")).to_have_count(0)


def test_the_predictions_can_be_exported_as_they_are_filtered(settings: Settings, open_page: Open) -> None:
    """The CSV link exports what the filter shows if the API can filter so, else everything; its name says which."""
    words = {"A": "bullish", "B": "positive", "C": "Bearish", "D": "neutral"}
    publish(settings, {symbol: a_record(sentiment=word) for symbol, word in words.items()})
    page = open_page()
    expect(page.locator("#predictions tbody tr")).to_have_count(4)
    for button, name, href in (
        ("Bearish", "CSV of predictions that are bearish", "predictions.csv?sentiment=bearish"),
        ("Bullish", "CSV of all predictions", "predictions.csv"),  # two words: the API filters by one
        ("All", "CSV of all predictions", "predictions.csv"),
    ):
        page.get_by_role("button", name=button).click()
        expect(page.get_by_role("link", name=name)).to_have_attribute("href", href)
    page.get_by_role("button", name="Bearish").click()
    with page.expect_download() as download:
        page.get_by_role("link", name="CSV").click()
    saved = download.value.path().read_text().splitlines()
    assert [line.split(",")[0].strip('"') for line in saved] == ["symbol", "C"]
