"""Main-thread time of the dashboard for a long table of predictions: to show, sort, search and update it.

    python -m benchmarks.long_table

In a real Chromium, on records of the sample engine, 1 % of which change with each version. CPU time, so that a
neighbour on the machine does not count; the least of some times. Throwaway Redis, ports and directories. Exit status 1
where a goal is missed.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from playwright.sync_api import CDPSession, Page

from benchmarks.changing_source import ChangingSource, changing_source
from benchmarks.open_page import PageCpu
from benchmarks.processes import web_server
from tests.support.browser import BrowserMissing, chromium, chromium_executable

__all__ = ["main"]

# Goals in ms of main thread, by the number of records: of show, sort and search, and of an update; then in MB.
GOALS: Final = {300: (100.0, 50.0), 10_000: (100.0, 100.0)}
HEAP_GOAL_MB: Final = 40.0
TIMES: Final = 5
# By then all effects of a version have ended: the tint of changed prices, the report of the run, the history.
WINDOW_MS: Final = 3_000
LIMIT_MS: Final = 20_000

# The page's policy forbids evaluating text as code, so these are functions. Each returns when its frame is painted.
TYPE: Final = """(text) => new Promise((done) => {
    const search = document.getElementById("search");
    search.value = text;
    search.dispatchEvent(new Event("input"));
    requestAnimationFrame(() => setTimeout(done));
})"""
SORT: Final = """(column) => new Promise((done) => {
    document.querySelector(`#predictions [data-column="${column}"] button`).click();
    requestAnimationFrame(() => setTimeout(done));
})"""
COLUMNS: Final = '() => [...document.querySelectorAll("#predictions thead th")].map((head) => head.dataset.column)'


def main() -> int:
    """Measure, print, and return the exit status."""
    try:
        chromium_executable()
    except BrowserMissing as error:
        print(error)
        return 1
    missed = 0
    for records, (act_goal, update_goal) in GOALS.items():
        with ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            source = stack.enter_context(changing_source(directory, records))
            command = [sys.executable, "-m", "optimizer.cli", "web", "--port"]
            url = stack.enter_context(web_server(command, source.settings))
            browser = stack.enter_context(chromium())
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            session = page.context.new_cdp_session(page)
            cpu = PageCpu(session, browser.new_browser_cdp_session())
            page.goto(url)
            _wait_for(page, source.publish())
            page.wait_for_timeout(WINDOW_MS)
            print(f"{f'{records:,} records':<40}{'ms':>8}{'goal':>8}")
            show, search = _searching_ms(page, cpu)
            sorts = {column: _least_ms(page, cpu, SORT, column) for column in page.evaluate(COLUMNS)}
            slowest = max(sorts, key=lambda column: sorts[column])
            missed += _tell("show all rows", show, act_goal)
            missed += _tell("search", search, act_goal)
            missed += _tell(f"sort (the slowest, by {slowest})", sorts[slowest], act_goal)
            missed += _tell("an update", _update_ms(page, cpu, source), update_goal)
            missed += _tell("heap, MB", _heap_mb(session), HEAP_GOAL_MB)
            print()
    return 1 if missed else 0


def _tell(name: str, value: float, goal: float) -> int:
    missed = value >= goal
    print(f"{'  ' + name:<40}{value:>8.1f}{goal:>8g}{'   MISSED' if missed else ''}", flush=True)
    return missed


def _searching_ms(page: Page, cpu: PageCpu) -> tuple[float, float]:
    """Return the least times to show all rows, starting from none, and to narrow them."""
    shows, searches = [], []
    for _ in range(TIMES):
        searches.append(_took_ms(cpu, lambda: page.evaluate(TYPE, "A")))
        page.evaluate(TYPE, "no such symbol")
        shows.append(_took_ms(cpu, lambda: page.evaluate(TYPE, "")))
    return min(shows), min(searches)


def _least_ms(page: Page, cpu: PageCpu, script: str, argument: str) -> float:
    return min(_took_ms(cpu, lambda: page.evaluate(script, argument)) for _ in range(TIMES))


def _took_ms(cpu: PageCpu, act: Callable[[], object]) -> float:
    before = cpu.read_ms()["main thread"]
    act()
    return cpu.read_ms()["main thread"] - before


def _update_ms(page: Page, cpu: PageCpu, source: ChangingSource) -> float:
    """Return the least time of a version, minus the page's idle time over the same period."""

    def idle() -> float:
        return _took_ms(cpu, lambda: page.wait_for_timeout(WINDOW_MS))

    def update() -> float:
        started = time.monotonic()

        def act() -> None:
            _wait_for(page, source.publish())
            page.wait_for_timeout(max(0.0, WINDOW_MS - 1_000 * (time.monotonic() - started)))

        return _took_ms(cpu, act)

    quiet = min(idle() for _ in range(TIMES))
    return min(update() for _ in range(TIMES)) - quiet


def _wait_for(page: Page, version: int) -> None:
    shown = "(version) => document.getElementById('version').textContent.includes(version)"
    page.wait_for_function(shown, arg=str(version), timeout=LIMIT_MS)


def _heap_mb(session: CDPSession) -> float:
    session.send("HeapProfiler.collectGarbage")
    metrics = {metric["name"]: metric["value"] for metric in session.send("Performance.getMetrics")["metrics"]}
    return float(metrics["JSHeapUsedSize"]) / 1e6


if __name__ == "__main__":
    sys.exit(main())
