"""Prometheus for tests: `promtool`, and a server with the shipped rules, with minutes cut to fractions of a second."""

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
import yaml

from tests.support.compose import COMPOSE_FILE
from tests.support.ports import free_port
from tests.support.processes import ROOT, replaced
from tests.support.redis_servers import wait_until

__all__ = ["RULES", "Prometheus", "promtool"]

PROMETHEUS_DIR: Final = ROOT / "deploy" / "prometheus"
RULES: Final = PROMETHEUS_DIR / "alerts.yml"


def promtool(*arguments: str, given: str = "") -> str:
    """Run `promtool`; return what it prints, and fail if it reports a problem."""
    done = subprocess.run([_path("promtool"), *arguments], input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


class Prometheus:
    """The Prometheus of docker-compose.yml, started with its command and files; it runs until the `with` block ends.

    Besides paths and the port, the target differs, and minutes in `deploy/prometheus` are fractions of a second.

    Args:
        directory: An empty directory for its data.
        target: The host and the port that it scrapes.
    """

    def __init__(self, directory: Path, target: str) -> None:
        port = free_port()
        self._url = f"http://127.0.0.1:{port}"
        self._log = directory / "prometheus.log"
        config = (PROMETHEUS_DIR / "prometheus.yml").read_text()
        assert "web:8000" in config
        config = config.replace("web:8000", target).replace("_interval: 15s", "_interval: 200ms")
        (directory / "prometheus.yml").write_text(config)
        (directory / "alerts.yml").write_text(re.sub(r"for: \d+[mh]", "for: 400ms", RULES.read_text()))
        service = yaml.safe_load(COMPOSE_FILE.read_text())["services"]["prometheus"]
        places = {
            "/etc/prometheus/": f"{directory}/",
            "path=/prometheus": f"path={directory}/data",
            ":9090": f":{port}",
        }
        command = [_path("prometheus"), *(replaced(word, places) for word in service["command"])]
        command.append(f"--web.listen-address=127.0.0.1:{port}")
        self._health_url = replaced(service["healthcheck"]["test"][-1], places)  # requested by the image's wget
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    def __enter__(self) -> Prometheus:
        try:
            wait_until(self._is_well, what="Prometheus")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def firing(self) -> dict[str, dict[str, str]]:
        """Return the firing alerts by name, each with its labels and annotations."""
        alerts = self._get("alerts")["alerts"]
        return {
            alert["labels"]["alertname"]: alert["labels"] | alert["annotations"]
            for alert in alerts
            if alert["state"] == "firing"
        }

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the samples of an expression at this moment."""
        result: list[dict[str, Any]] = self._get("query", query=expression)["result"]
        return result

    def _get(self, path: str, **parameters: str) -> Any:
        url = f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def _is_well(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        try:
            with urllib.request.urlopen(self._health_url, timeout=10) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


def _path(name: str) -> str:
    """Return the path of a program; if it is missing, skip the test, or fail it in CI, where it has to be installed."""
    found = shutil.which(name)
    if found is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no {name} on the PATH: apt-get install prometheus")
    return found
