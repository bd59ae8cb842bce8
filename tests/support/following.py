"""follow.js for tests: in a page of a real Chromium, or in Node; each records the callbacks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final, Protocol

import pytest
from playwright.sync_api import Page

__all__ = ["Followed", "InNode", "InPage", "node_executable"]

RECORDER: Final = Path(__file__).parents[1] / "web" / "follow" / "recorder.js"
DRIVER: Final = RECORDER.with_name("node.mjs")

_START: Final = """
async ({ recorder, base, options, factor }) => {
  const url = URL.createObjectURL(new Blob([recorder], { type: "text/javascript" }));
  const { record, hasten } = await import(url);
  if (!window.isHastened) hasten(factor);
  window.isHastened = true;
  window.recorded?.following.close();
  const { follow } = await import(new URL("static/follow.js", location.href));
  window.recorded = record(follow, base, options);
}
"""


class Followed(Protocol):
    """A follower of a source, and its recorded callbacks."""

    def call(self, method: str) -> None:
        """Call a method of the object that `follow` returned."""

    def log(self) -> dict[str, Any]:
        """Return the recorded callbacks, the state, and the present version."""


class InPage:
    """A follower in a page of a browser; its waits pass `factor` times faster."""

    def __init__(self, page: Page, url: str, base: str = "", factor: float = 1, **options: Any) -> None:
        self._page = page
        if page.url != f"{url}healthz":
            page.goto(f"{url}healthz")
        asked = {"recorder": RECORDER.read_text(), "base": base, "options": options, "factor": factor}
        page.evaluate(_START, asked)

    def call(self, method: str) -> None:
        """Call a method of the object that `follow` returned."""
        self._page.evaluate("method => window.recorded.following[method]()", method)

    def log(self) -> dict[str, Any]:
        """Return the recorded callbacks, the state, and the present version."""
        log: dict[str, Any] = self._page.evaluate(
            "() => ({ ...window.recorded.log, state: window.recorded.following.state,"
            " version: window.recorded.following.content?.version ?? null })"
        )
        return log


def node_executable() -> str:
    """Return the path of Node; without Node, skip the test, or fail it in CI."""
    node = shutil.which("node")
    if node is None:
        if os.environ.get("CI"):
            pytest.fail("node is missing: apt-get install npm")
        pytest.skip("node is missing: apt-get install npm")
    return node


class InNode:
    """A follower in Node, which has no EventSource, so it polls; a context manager."""

    def __init__(self, base: str, factor: float = 1, **options: Any) -> None:
        command = [node_executable(), str(DRIVER), base, json.dumps(options), str(factor)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def __enter__(self) -> InNode:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> str:
        """Close the process's input, at which it ends by itself; return what it printed on stderr."""
        _, errors = self._process.communicate(timeout=20)
        assert self._process.returncode == 0, errors
        return errors

    def call(self, method: str) -> None:
        """Call a method of the object that `follow` returned; `end` aborts the signal that was passed to `follow`."""
        self._ask(method)

    def log(self) -> dict[str, Any]:
        """Return the recorded callbacks, the state, and the present version."""
        return self._ask("")

    def _ask(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, self._process.communicate()[1]
        log: dict[str, Any] = json.loads(answer)
        return log
