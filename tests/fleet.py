"""Real workers, beats and Flowers for tests, as their users start them."""

from __future__ import annotations

import base64
import json
import os
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from optimizer.reader import SnapshotReader
from optimizer.records import Report
from optimizer.settings import Settings
from tasks.devredis import free_port
from tasks.stack import Stack
from tests.servers import wait_until

__all__ = ["FLOWER_LOGIN", "Fleet", "processes_with"]

FLOWER_LOGIN = "ops:flowers-own-word"


class Fleet:
    """A stack without its Redis, whose lines are kept; leave its `with` block and nothing is left."""

    def __init__(self, directory: Path, settings: Settings, **variables: str) -> None:
        self.settings = settings
        self.lines: list[str] = []
        self.reader = SnapshotReader.from_settings(settings)
        self._stack = Stack(lambda name, line: self.lines.append(f"{name}| {line}"), directory)
        self._stack.environ |= {
            "ROLLING_INPUT": str(settings.input),
            "ROLLING_OUTPUT_DIR": str(settings.output_dir),
            "ROLLING_REDIS_URL": settings.redis_url,
            **variables,
        }
        self._flower_port = free_port()

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.stop()
        self.reader.close()

    def start_worker(self, *options: str, name: str = "worker", **variables: str) -> None:
        """Start a worker and wait until it takes tasks."""
        command = ("worker", "--loglevel", "INFO", "--without-mingle", *options)
        self._stack.start_celery(name, *command, environ=variables)
        self.wait_for_line(rf"{name}\| .* ready\.")

    def start_beat(self, name: str = "beat", **variables: str) -> None:
        """Start a beat."""
        self._stack.start_celery(name, "beat", "--loglevel", "INFO", environ=variables)

    def start_flower(self, **variables: str) -> None:
        """Start Flower and wait until it sees the worker, without which it does not show tasks."""
        flower = {"FLOWER_BASIC_AUTH": FLOWER_LOGIN, "FLOWER_PORT": str(self._flower_port)}
        self._stack.start_celery("flower", "flower", environ=flower | variables)
        wait_until(lambda: self.flower("GET", "/api/workers?refresh=1")[0] == 200, what="Flower")

    def pid(self, name: str) -> int:
        """The process id of a process."""
        return self._stack.pid(name)

    def flower(
        self, method: str, path: str, body: Any = None, *, login: str | None = FLOWER_LOGIN
    ) -> tuple[int, dict[str, Any]]:
        """Ask Flower's API; return the status and what it says, 0 where it does not listen yet."""
        status, page = self.flower_page(method, path, body, login=login)
        return status, json.loads(page) if status == 200 else {}

    def flower_page(
        self, method: str, path: str, body: Any = None, *, login: str | None = FLOWER_LOGIN
    ) -> tuple[int, bytes]:
        """Ask Flower; return the status and the bytes."""
        request = urllib.request.Request(f"http://127.0.0.1:{self._flower_port}{path}", method=method)
        if login:
            request.add_header("Authorization", "Basic " + base64.b64encode(login.encode()).decode())
        data = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(request, data, timeout=20) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()
        except OSError:
            return 0, b""

    def runs(self, status: str | None = None) -> list[Report]:
        """The reports so far, newest first."""
        return [report for report in self.reader.runs(100) if status in (None, report.status)]

    def wait_for_runs(self, count: int, status: str | None = None, *, limit_s: float = 20.0) -> list[Report]:
        """Wait for so many reports."""
        wait_until(lambda: len(self.runs(status)) >= count, limit_s=limit_s, what=f"{count} runs {status}")
        return self.runs(status)

    def wait_for_line(self, pattern: str, *, limit_s: float = 20.0) -> str:
        """Wait for a process to print a line."""
        wait_until(lambda: any(re.search(pattern, line) for line in self.lines), limit_s=limit_s, what=pattern)
        return next(line for line in self.lines if re.search(pattern, line))


def processes_with(variable: str) -> list[int]:
    """The processes whose environment holds this text, other than ours."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if variable.encode() in path.read_bytes() and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found
