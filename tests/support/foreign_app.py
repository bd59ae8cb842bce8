"""A Celery app of another team, `proj`, with a task of its own: real workers and beats, started as its users do."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.compose import ROOT
from tests.support.redis_servers import wait_until

__all__ = ["ForeignApp"]

MODULE = """
from celery import Celery
from optimizer.celery import register

class Config:
    broker_connection_retry_on_startup = True
    worker_cancel_long_running_tasks_on_connection_loss = True
{config}

app = Celery("proj")
app.config_from_object(Config)
register(app{arguments})

@app.task
def add(a, b):
    with open("added", "a") as file:
        print(a + b, file=file)
"""


class ForeignApp:
    """The app in a directory of its own; its processes end with the `with` block.

    Args:
        directory: Where `proj.py` is written, and the working directory of its processes.
        config: The members of its configuration.
        arguments: What is passed to `register` after the app, with a comma before it.
        variables: Environment variables.
    """

    def __init__(self, directory: Path, config: str, arguments: str = "", **variables: str) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        lines = "\n".join(f"    {line.strip()}" for line in config.strip().splitlines())
        (directory / "proj.py").write_text(MODULE.format(config=lines, arguments=arguments))
        self.environ = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | variables
        self._started: list[tuple[subprocess.Popen[bytes], Path]] = []

    def __enter__(self) -> ForeignApp:
        return self

    def __exit__(self, *_: object) -> None:
        for process, _log in reversed(self._started):
            process.terminate()
        for process, _log in self._started:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    @property
    def text(self) -> str:
        """All that its processes have printed."""
        return "".join(log.read_text() for _, log in self._started)

    def start(self, *arguments: str, module: str = "proj") -> None:
        """Start `celery -A` with these arguments."""
        log = self.directory / f"log-{len(self._started)}"
        with log.open("wb") as lines:
            process = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", module, *arguments],
                cwd=self.directory,
                env=self.environ,
                stdout=lines,
                stderr=lines,
            )
        self._started.append((process, log))

    def start_worker(self, *options: str) -> None:
        """Start a worker and wait until it takes tasks."""
        self.start("worker", "--loglevel", "INFO", "-c", "1", *options)
        self.wait_for(r" ready\.")

    def wait_for(self, pattern: str, *, limit_s: float = 30.0) -> str:
        """Wait until a process has printed a line, and return it."""

        def line() -> str:
            for process, log in self._started:
                assert process.poll() is None, log.read_text()
            match = re.search(f".*{pattern}.*", self.text)
            return match.group() if match else ""

        wait_until(line, limit_s=limit_s, what=f"{pattern} in {self.text}")
        return line()

    def python(self, code: str) -> str:
        """Run code in which `proj` can be imported; return what it prints."""
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=self.directory,
            env=self.environ | {"PYTHONPATH": f"{self.directory}:{ROOT}"},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def send(self, *, timeout_s: float = 30.0, **order: Any) -> str:
        """Send a run by `CelerySender`, wait until it has ended, and return its state as text."""
        order = {"force": False, "accept": False, "source": "rolling_brain", **order}
        code = f"""
import time
from optimizer.celery import CelerySender
from proj import app
sender = CelerySender(app)
run = sender.send(**{order!r})
ends = time.monotonic() + {timeout_s}
while (state := sender.state(run)).state in ("pending", "running") and time.monotonic() < ends:
    time.sleep(0.05)
print(state)
"""
        return self.python(code)

    def add(self, one: int, other: int) -> None:
        """Send the task of its own, and wait until a worker has made it."""
        self.python(f"from proj import add; add.delay({one}, {other})")
        added = self.directory / "added"
        wait_until(lambda: added.exists() and str(one + other) in added.read_text().split(), what="their task")
