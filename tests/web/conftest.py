"""Fixtures for tests of pages: a browser, watched pages, and a running API."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

import optimizer.web.operations
from optimizer.config.settings import Settings
from tests.support.browser import BrowserMissing, Watched, Web, chromium, chromium_executable


@pytest.fixture(autouse=True)
def patience() -> Iterator[pytest.MonkeyPatch]:
    """Let `/status` wait for Redis for longer than a busy machine needs; tests of a slow Redis undo this."""
    with pytest.MonkeyPatch.context() as longer:
        longer.setattr(optimizer.web.operations, "REPORTS_S", 5.0)
        yield longer


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for the module; Playwright's loop must end with it, since other tests start loops of their own."""
    try:
        chromium_executable()
    except BrowserMissing as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    with chromium() as running:
        yield running


@pytest.fixture
def watch(browser: Browser) -> Iterator[Callable[..., Watched]]:
    """Yield a function that opens watched pages; fail at the end if one of them has complained."""
    opened: list[Watched] = []

    def make(url: str, **options: Any) -> Watched:
        opened.append(Watched(browser, url, **options))
        return opened[-1]

    yield make
    for page in opened:
        page.close()
    assert [page.complaints for page in opened] == [[] for _ in opened]


@pytest.fixture
def web(tmp_path: Path, settings: Settings) -> Iterator[Web]:
    """A running API."""
    with Web(tmp_path, settings) as running:
        yield running


@pytest.fixture
def open_page(web: Web, watch: Callable[..., Watched]) -> Callable[..., Page]:
    """Return a function that opens the dashboard of that API."""
    return lambda **options: watch(web.url, **options).open()
