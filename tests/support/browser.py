"""A real browser and a real API process for tests of the dashboard, and for its screenshots."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Dialog, Page, expect, sync_playwright

from optimizer.config.settings import Settings
from tests.support.command import command_line
from tests.support.fork_server import Forked, spawn
from tests.support.ports import free_port
from tests.support.redis_servers import wait_until

__all__ = ["TOKEN", "BrowserMissing", "Watched", "Web", "chromium", "chromium_executable"]

STOP_S = 20.0
TOKEN = "made-up-token"

# No sandbox, since tests run as root in CI and in containers. The rest stops the browser's requests to its vendor.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


# A machine that is busy with another test must not fail this one.
expect.set_options(timeout=20_000)


class BrowserMissing(Exception):
    """There is no Chromium on this machine."""


def chromium_executable() -> str:
    """Return the path of the distribution's Chromium; none is ever downloaded.

    Raises:
        BrowserMissing: There is none.
    """
    for name in ("chromium", "chromium-browser", "google-chrome"):
        path = shutil.which(name)
        if path:
            return path
    raise BrowserMissing("no chromium on the PATH; on Debian: apt-get install --no-install-recommends chromium")


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start a Chromium, which ends with the `with` block."""
    executable = chromium_executable()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        yield browser
        browser.close()


class Watched:
    """A page in its own context, and all errors that it reported."""

    def __init__(self, browser: Browser, url: str, **options: Any) -> None:
        self.url = url
        self._context = browser.new_context(**{"viewport": {"width": 1440, "height": 900}, **options})
        self._context.set_default_timeout(15_000)
        self.page: Page = self._context.new_page()
        self.complaints: list[str] = []
        self.dialogs: list[str] = []
        self.page.on("console", self._listen)
        self.page.on("pageerror", lambda error: self.complaints.append(f"uncaught: {error}"))
        self.page.on("dialog", self._dismiss)
        self.page.add_init_script(
            "document.addEventListener('securitypolicyviolation',"
            " (event) => console.error(`policy: ${event.violatedDirective} ${event.blockedURI}`))"
        )

    def open(self) -> Page:
        """Load the dashboard, and wait until it shows its data; before that, its parts take neither focus nor keys."""
        self.page.goto(self.url)
        expect(self.page.locator("body[data-told]")).to_be_attached()
        return self.page

    def close(self) -> None:
        """Close the page with its context."""
        self._context.close()

    def _dismiss(self, dialog: Dialog) -> None:
        self.dialogs.append(dialog.message)
        dialog.dismiss()

    def _listen(self, message: ConsoleMessage) -> None:
        # The browser itself logs every 4xx and 5xx response, and every refused connection, as an error.
        if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
            self.complaints.append(f"{message.type}: {message.text}")


class Web:
    """`rolling-optimizer web` as its users start it; the port stays the same over restarts."""

    def __init__(self, directory: Path, settings: Settings, **variables: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/"
        self._log = directory / "web.log"
        self._process: Forked | subprocess.Popen[bytes] | None = None
        self._environ = os.environ | {
            "ROLLING_INPUT": str(settings.input),
            "ROLLING_OUTPUT_DIR": str(settings.output_dir),
            "ROLLING_REDIS_URL": settings.redis_url,
            "ROLLING_INTERVAL_S": f"{settings.interval_s:g}",
            **variables,
        }

    def __enter__(self) -> Web:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the process and wait until it listens."""
        with self._log.open("ab") as log:
            self._process = spawn(command_line("web", "--port", self.port), self._environ, ".", log)
        try:
            wait_until(self._listens, what="the API")
        except BaseException:
            self.stop()
            print(self._log.read_text())
            raise

    def stop(self) -> None:
        """Stop the process by SIGTERM, as a supervisor does, and kill it if it does not end."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_S)
            finally:
                self._process.kill()

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None
        try:
            with urllib.request.urlopen(f"{self.url}healthz", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False
