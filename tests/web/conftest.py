"""Fixtures of the tests of pages: a browser, pages that are watched, an API that runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from optimizer.config.settings import Settings
from tests.support.browser import BrowserMissing, Watched, Web, chromium, chromium_executable


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for the module; Playwright's loop may not outlive it, for others start loops of their own."""
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
    """Make pages; at the end none of them may have complained."""
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
    """An API that runs."""
    with Web(tmp_path, settings) as running:
        yield running


@pytest.fixture
def open_page(web: Web, watch: Callable[..., Watched]) -> Callable[..., Page]:
    """Open the dashboard of that API."""
    return lambda **options: watch(web.url, **options).open()
