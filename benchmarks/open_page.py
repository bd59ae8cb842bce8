"""The dashboard in a real Chromium: its traffic and CPU time while versions come."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import Final, Literal

from playwright.sync_api import CDPSession

from benchmarks.changing_source import ChangingSource
from benchmarks.counting_proxy import counting_proxy
from tests.support.browser import chromium

__all__ = ["PageCost", "PageCpu", "open_page_cost"]

VERSIONS: Final = 11
# By then all effects of a version on the page have ended, also the highlight of changed cells.
WINDOW_S: Final = 3.0
# An interval, in which the page requests some things twice.
IDLE_S: Final = 30.0
LIMIT_MS: Final = 20_000
# The requests for predictions, bots and holdings; the rest is for the page's state.
DATA: Final = frozenset(("/events", "/changes", "/snapshot", "/page", "/predictions", "/bots", "/portfolio"))


@dataclass(frozen=True)
class PageCost:
    """Of each version: bytes of data, bytes of what else the page asked for by path, ms of CPU by thread or process.

    `idle_bytes` are those of 30 s without a version; `idle_cpu_ms` of a second, which is taken off the ms of versions.
    """

    data: list[int]
    beside: dict[str, list[int]]
    cpu_ms: dict[str, list[float]]
    idle_bytes: int
    idle_cpu_ms: dict[str, float]


def open_page_cost(source: ChangingSource, port: int, motion: Literal["no-preference", "reduce"]) -> PageCost:
    """Open the dashboard, publish versions, and return their costs; `motion` is the user's preference."""
    with counting_proxy(port) as proxy, chromium() as browser:
        context = browser.new_context(viewport={"width": 1440, "height": 900}, reduced_motion=motion)
        page = context.new_page()
        cpu = PageCpu(context.new_cdp_session(page), browser.new_browser_cdp_session())
        page.goto(proxy.url)

        def wait_for(version: int) -> None:
            page.wait_for_function(
                "(version) => document.getElementById('version').textContent.includes(version)",
                arg=str(version),
                timeout=LIMIT_MS,
            )

        def wait(seconds: float) -> None:
            page.wait_for_timeout(1_000 * max(0, seconds))

        for _ in range(3):  # until the JavaScript engine has compiled the hot code
            wait_for(source.publish())
            wait(WINDOW_S)
        proxy.take()
        before, started = cpu.read_ms(), time.monotonic()
        wait(IDLE_S)
        idle_s = time.monotonic() - started
        idle_rate = {name: (now - before[name]) / idle_s for name, now in cpu.read_ms().items()}
        idle_bytes = sum(proxy.take().values())
        cpu_ms: dict[str, list[float]] = {name: [] for name in idle_rate}
        moved: list[Counter[str]] = []
        for _ in range(VERSIONS):
            before, started = cpu.read_ms(), time.monotonic()
            wait_for(source.publish())
            wait(started + WINDOW_S - time.monotonic())
            took_s = time.monotonic() - started
            for name, now in cpu.read_ms().items():
                cpu_ms[name].append(now - before[name] - idle_rate[name] * took_s)
            moved.append(proxy.take())
        context.close()
    paths = sorted({path for counts in moved for path in counts} - DATA)
    return PageCost(
        data=[sum(counts[path] for path in DATA) for counts in moved],
        beside={path: [counts[path] for counts in moved] for path in paths},
        cpu_ms=cpu_ms,
        idle_bytes=idle_bytes,
        idle_cpu_ms=idle_rate,
    )


class PageCpu:
    """CPU time of a page: of its main thread by Chromium's count, and of its whole process by the system's."""

    def __init__(self, page: CDPSession, browser: CDPSession) -> None:
        self._page, self._browser = page, browser
        # Ticks of the thread, not of the clock, so that other load on the machine does not count.
        page.send("Performance.enable", {"timeDomain": "threadTicks"})

    def read_ms(self) -> dict[str, float]:
        """Return the ms so far, by thread or process."""
        metrics = {metric["name"]: metric["value"] for metric in self._page.send("Performance.getMetrics")["metrics"]}
        processes = self._browser.send("SystemInfo.getProcessInfo")["processInfo"]
        return {
            "main thread": 1e3 * metrics["TaskDuration"],
            "whole process": 1e3 * sum(each["cpuTime"] for each in processes if each["type"] == "renderer"),
        }
