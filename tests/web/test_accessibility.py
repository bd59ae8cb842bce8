"""The dashboard under axe-core, which knows the rules of WCAG that a program can check: each view, in both schemes.

axe-core (MPL-2.0, from npm) is what Lighthouse and Playwright check pages with; nothing of it is shipped.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from optimizer.config.settings import Settings
from optimizer.pipeline.rollback import rollback
from optimizer.pipeline.run import optimize
from tests.support.browser import TOKEN, Watched, Web
from tests.support.npm_projects import install_project
from tests.support.published_state import version_of
from tests.support.rolling_files import a_record, write_json

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parent / "axe"
WIDE: dict[str, Any] = {"viewport": {"width": 1440, "height": 900}}
PHONE: dict[str, Any] = {"viewport": {"width": 375, "height": 812}, "has_touch": True, "is_mobile": True}


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The source of axe-core in the version of the lock file."""
    directory = install_project(PROJECT, tmp_path_factory.mktemp("axe"))
    return (directory / "node_modules" / "axe-core" / "axe.min.js").read_text()


def violations(page: Page, axe: str) -> list[str]:
    """Return what axe-core finds wrong with the page in its present state: rule, element and explanation."""
    page.evaluate(axe)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    return [f"{one['id']} {node['target']}: {node['failureSummary']}" for one in found for node in one["nodes"]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", [WIDE, PHONE], ids=["wide", "phone"])
def test_no_view_breaks_a_rule_of_accessibility(
    settings: Settings,
    tmp_path: Path,
    watch: Callable[..., Watched],
    *,
    axe: str,
    screen: dict[str, Any],
    scheme: str,
) -> None:
    """axe-core finds nothing wrong with any view of the dashboard, in both schemes, on a wide and a phone screen.

    The views are: without data, the overview with notices, a symbol with its table open, an unknown symbol, the dialog,
    the sources and the help page. The overview, the symbol, the sources and the help page are no wider than the screen.
    """
    # The page's policy forbids running text as a program, which is how the check runs.
    options = {**screen, "color_scheme": scheme, "reduced_motion": "reduce", "bypass_csp": True}
    with Web(tmp_path, settings, ROLLING_TRIGGER_TOKEN=TOKEN) as web:
        page = watch(web.url, **options).open()
        expect(page.get_by_role("heading", name="No data yet")).to_be_visible()
        assert violations(page, axe) == []

        long = "W" * 200
        records = {"AAPL": a_record(), "MSFT": a_record(confidence=0.9, sentiment="bearish"), long: a_record()}
        for confidence in (0.6, 0.8, 0.7):
            write_json(settings.input, {**records, f"S{confidence}": a_record(confidence=confidence)})
            report = optimize(settings)
        rollback(settings, version_of(report))
        expect(page.locator("#changes-position")).to_have_text("1 of 2")
        page.reload()
        expect(page.locator("#notices")).to_contain_text("The version is pinned.")
        page.get_by_text("These runs as a table").click()
        assert violations(page, axe) == []
        assert page.evaluate("document.documentElement.scrollWidth") == screen["viewport"]["width"]

        page.locator("#predictions").get_by_role("link", name=long).click()
        expect(page.locator("#symbol-charts svg").first).to_be_visible()
        page.get_by_text("These changes as a table").click()
        assert violations(page, axe) == []
        assert page.evaluate("document.documentElement.scrollWidth") == screen["viewport"]["width"]
        page.evaluate("location.hash = '#/symbol/unknown'")
        expect(page.locator("#symbol-note")).to_contain_text("No such symbol")
        assert violations(page, axe) == []

        page.get_by_role("button", name="Run now").click()
        assert violations(page, axe) == []
        for name, seen in (("sources.html", "#sources tbody tr"), ("help.html#runs-fail", "#runs-fail")):
            page.goto(f"{web.url}static/{name}")
            expect(page.locator(seen)).to_be_visible()
            assert violations(page, axe) == []
            assert page.evaluate("document.documentElement.scrollWidth") == screen["viewport"]["width"]
