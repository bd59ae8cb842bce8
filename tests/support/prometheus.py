"""Prometheus for tests: its tool, and a server with the shipped rules in which minutes are seconds."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.compose import ROOT
from tests.support.ports import free_port
from tests.support.redis_servers import wait_until

__all__ = ["RULES", "Prometheus", "promtool"]

PROMETHEUS_DIR: Final = ROOT / "deploy" / "prometheus"
RULES: Final = PROMETHEUS_DIR / "alerts.yml"


def promtool(*arguments: str, given: str = "") -> str:
    """Run Prometheus's tool; return what it prints, and fail if it finds something."""
    done = subprocess.run([_path("promtool"), *arguments], input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


class Prometheus:
    """A server that follows `deploy/prometheus`, but for the target and the times; until the `with` block ends.

    Args:
        directory: An empty one, for its data.
        target: The host and the port that it scrapes.
    """

    def __init__(self, directory: Path, target: str) -> None:
        self._url = f"http://127.0.0.1:{free_port()}"
        self._log = directory / "prometheus.log"
        config = (PROMETHEUS_DIR / "prometheus.yml").read_text()
        assert "web:8000" in config
        config = config.replace("web:8000", target).replace("_interval: 15s", "_interval: 200ms")
        (directory / "prometheus.yml").write_text(config)
        (directory / "alerts.yml").write_text(re.sub(r"for: \d+[mh]", "for: 400ms", RULES.read_text()))
        listens = self._url.removeprefix("http://")
        options = [f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/data"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [_path("prometheus"), *options, f"--web.listen-address={listens}"], stdout=log, stderr=log
            )

    def __enter__(self) -> Prometheus:
        wait_until(self._is_ready, what="Prometheus")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def firing(self) -> dict[str, dict[str, str]]:
        """The alerts that fire by name, each with its labels and annotations."""
        alerts = self._get("alerts")["alerts"]
        return {
            alert["labels"]["alertname"]: alert["labels"] | alert["annotations"]
            for alert in alerts
            if alert["state"] == "firing"
        }

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples of an expression at this moment."""
        result: list[dict[str, Any]] = self._get("query", query=expression)["result"]
        return result

    def _get(self, path: str, **parameters: str) -> Any:
        url = f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        try:
            return bool(self.query("vector(1)"))
        except OSError:
            return False


def _path(name: str) -> str:
    """Where the program is; skip on a laptop without it, and fail in CI, where it has to be."""
    found = shutil.which(name)
    if found is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no {name} on the PATH: apt-get install prometheus")
    return found
