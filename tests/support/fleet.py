"""Real workers, beats and Flowers for tests, as their users start them."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

from optimizer.cli.dev.stack import Stack
from optimizer.config.settings import Settings
from optimizer.models import Report
from optimizer.reader.reader import SnapshotReader
from optimizer.storage.location import spelled
from tests.support.fork_server import ForkingStack, run
from tests.support.ports import free_port
from tests.support.redis_servers import wait_until

__all__ = ["FLOWER_LOGIN", "Fleet", "processes_with", "stop_at_once"]

FLOWER_LOGIN = "ops:flowers-own-word"


def stop_at_once(stack: Stack) -> None:
    """Kill all processes, to save the seconds that a worker or a web process with followers waits on SIGTERM.

    The processes have nothing to finish.
    """
    for process in stack._processes.values():
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    stack.stop()


class Fleet:
    """A stack without its Redis that keeps all printed lines; its processes end with the `with` block."""

    def __init__(self, directory: Path, settings: Settings, **variables: str) -> None:
        self.settings = settings
        self.worker_variables: dict[str, str] = {}  # for workers only
        self.lines: list[str] = []
        self.reader = SnapshotReader.from_settings(settings)
        self._stack = ForkingStack(lambda name, line: self.lines.append(f"{name}| {line}"), directory)
        self._stack.environ |= {
            "ROLLING_INPUT": spelled(settings.input),
            "ROLLING_OUTPUT_DIR": str(settings.output_dir),
            "ROLLING_REDIS_URL": settings.redis_url,
            **variables,
        }
        self._flower_port = free_port()

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        stop_at_once(self._stack)
        self.reader.close()

    def start_worker(self, *options: str, name: str = "worker", **variables: str) -> None:
        """Start a worker, for the first time or again, and wait until it takes tasks."""
        before = len(self.lines)
        command = ("worker", "--loglevel", "DEBUG", "--without-mingle", *options)
        self._stack.start_celery(name, *command, environ={**self.worker_variables, **variables})

        def is_ready() -> bool:
            self.check()
            return any(re.search(rf"{name}\| .* ready\.", line) for line in self.lines[before:])

        wait_until(is_ready, what=f"{name} to be ready")

    def start_beat(self, name: str = "beat", **variables: str) -> None:
        """Start a beat."""
        self._stack.start_celery(name, "beat", "--loglevel", "INFO", environ=variables)

    def start_watch(self, *options: str, name: str = "watch", **variables: str) -> None:
        """Start a watch, for the first time or again, and wait until it watches the input."""
        before = len(self.lines)
        self._stack.start(name, [sys.executable, "-m", "optimizer.cli", "watch", *options], variables)
        self.wait_for_line(rf"{name}\| .* watching ", since=before)

    def start_flower(self, **variables: str) -> None:
        """Start Flower and wait until it sees the worker, without which it does not show tasks."""
        flower = {"FLOWER_BASIC_AUTH": FLOWER_LOGIN, "FLOWER_PORT": str(self._flower_port)}
        self._stack.start_celery("flower", "flower", environ=flower | variables)
        wait_until(lambda: self.flower("GET", "/api/workers?refresh=1")[0] == 200, limit_s=60, what="Flower")

    def start_web(self) -> str:
        """Start the web process, wait until it listens, and return its address."""
        port = free_port()
        self._stack.start("web", [sys.executable, "-m", "optimizer.cli", "web", "--port", str(port)])
        self.wait_for_line(r"web\| .*(running on|http://)")
        return f"http://127.0.0.1:{port}"

    def stop(self) -> None:
        """Stop all processes as a supervisor does, so that the test sees all that they print and send."""
        self._stack.stop()

    def check(self) -> None:
        """Check that every process runs."""
        self._stack.check()

    def celery(self, *arguments: str) -> str:
        """Run `celery -A tasks` with these arguments; return what it prints."""
        command = [sys.executable, "-m", "celery", "-A", "tasks", *arguments]
        done = run(command, self._stack.environ, Path.cwd(), 60.0)
        done.check_returncode()
        return done.stdout

    def pid(self, name: str) -> int:
        """The process id of a process."""
        return self._stack.pid(name)

    def children(self, name: str = "worker") -> list[int]:
        """The process ids of a process's children, which execute the tasks of a worker."""
        pid = self.pid(name)
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def end(self, name: str, *signals: int, limit_s: float = 40.0) -> int:
        """Send a process these signals, half a second apart, wait for its end, and return its exit status."""
        process = self._stack._processes.pop(name)
        for number in signals:
            process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.5)
        return process.wait(limit_s)

    def flower(
        self, method: str, path: str, body: Any = None, *, login: str | None = FLOWER_LOGIN
    ) -> tuple[int, dict[str, Any]]:
        """Send a request to Flower's API; return the status (0 while it does not listen) and the decoded response."""
        status, page = self.flower_page(method, path, body, login=login)
        return status, json.loads(page) if status == 200 else {}

    def flower_page(
        self, method: str, path: str, body: Any = None, *, login: str | None = FLOWER_LOGIN
    ) -> tuple[int, bytes]:
        """Send a request to Flower; return the status (0 while it does not listen) and the body."""
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
        """The reports so far, newest first; only those with `status`, if it is given."""
        return [report for report in self.reader.runs(100) if status in (None, report.status)]

    def wait_for_runs(self, count: int, status: str | None = None, *, limit_s: float = 20.0) -> list[Report]:
        """Wait until there are `count` reports, with `status` if it is given; return them."""
        wait_until(lambda: len(self.runs(status)) >= count, limit_s=limit_s, what=f"{count} runs {status}")
        return self.runs(status)

    def wait_for_line(self, pattern: str, *, limit_s: float = 20.0, since: int = 0) -> str:
        """Wait until a process prints a matching line after the first `since` lines; return it."""
        matching: list[str] = []

        def is_there() -> bool:
            matching.extend(line for line in self.lines[since:] if re.search(pattern, line))
            return bool(matching)

        wait_until(is_there, limit_s=limit_s, what=pattern)
        return matching[0]


def processes_with(variable: str) -> list[int]:
    """The processes whose environment contains this text, without this process."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if variable.encode() in path.read_bytes() and int(path.parent.name) != os.getpid():
                pids.append(int(path.parent.name))
        except OSError:
            continue
    return pids
