"""The program of another team, which uses the installed package: its directory, its files and its real processes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

from optimizer.config.settings import Settings
from optimizer.models import Report
from optimizer.reader.reader import SnapshotReader
from optimizer.storage.location import spelled
from tests.support.fleet import stop_at_once
from tests.support.fork_server import ForkingStack, run
from tests.support.redis_servers import wait_until

__all__ = ["FOLLOW", "QUEUE", "Team", "celery_project"]

QUEUE: Final = "proj-queue"
LINES_SHOWN: Final = 60

APP: Final = """
from celery import Celery
from optimizer.celery import register

app = Celery("proj")
app.config_from_object("proj.conf:Config")
{register}
app.autodiscover_tasks(["proj"])
"""
TASKS: Final = """
from celery import shared_task


@shared_task(bind=True)
def note(self):
    print(f"their task, by {self.app.main} in {self.request.delivery_info['routing_key']}")
"""
# Code of their backend: it sends a run, and requests its state until it has ended.
FOLLOW: Final = """
import json, sys, time
import msgspec
from proj.celery import app
from optimizer.celery import CelerySender

sender = CelerySender(app)
run = sender.send(force=True, accept=False, source="rolling_brain")
deadline = time.monotonic() + 30
while (state := sender.state(run)).state in ("pending", "running") and time.monotonic() < deadline:
    time.sleep(0.05)
print(json.dumps(msgspec.to_builtins(state)))
"""


def celery_project(register: str = "register(app)", **conf: Any) -> dict[str, str]:
    """The files of a package `proj` with a Celery app, a task, and a schedule for it.

    Args:
        register: The statement that registers our tasks.
        conf: Celery's settings, besides the default queue and the schedule.
    """
    theirs = {"task_default_queue": QUEUE, "beat_schedule": {"theirs": {"task": "proj.tasks.note", "schedule": 0.5}}}
    settings = "".join(f"    {name} = {value!r}\n" for name, value in (theirs | conf).items())
    return {
        "proj/__init__.py": "",
        "proj/celery.py": APP.format(register=register),
        "proj/conf.py": f"class Config:\n{settings}",
        "proj/tasks.py": TASKS,
    }


class Team:
    """A team's directory with its files; its processes see nothing of this repository, and end with the `with` block.

    Attributes:
        environ: The environment of the processes: the settings, and what the test adds.
        python: The Python that runs them.
        lines: The lines that the started processes have printed, each after the name of its process.
    """

    def __init__(self, directory: Path, settings: Settings, **variables: str) -> None:
        self.directory = directory
        self.settings = settings
        self.python = sys.executable
        self.lines: list[str] = []
        self.reader = SnapshotReader.from_settings(settings)
        self._stack = ForkingStack(lambda name, line: self.lines.append(f"{name}| {line}"), directory)
        self.environ = self._stack.environ
        self.environ.pop("PYTHONPATH", None)
        self.environ |= {
            "ROLLING_INPUT": spelled(settings.input),
            "ROLLING_OUTPUT_DIR": str(settings.output_dir),
            "ROLLING_REDIS_URL": settings.redis_url,
            "ROLLING_INTERVAL_S": "1",
            **variables,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        stop_at_once(self._stack)
        self.reader.close()

    def write(self, files: Mapping[str, str]) -> None:
        """Write files into the team's directory."""
        for name, text in files.items():
            path = self.directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")

    def start(self, name: str, *command: str, **variables: str) -> None:
        """Start a process in the team's directory."""
        self._stack.start(name, ["env", "-C", str(self.directory), *command], variables)

    def start_beat(self, *options: str, app: str = "proj") -> None:
        """Start `celery -A proj beat`."""
        self.start("beat", self.python, "-m", "celery", "-A", app, "beat", "-l", "INFO", *options)

    def start_worker(self, *options: str, app: str = "proj", name: str = "worker", **variables: str) -> None:
        """Start `celery -A proj worker`, and wait until it takes tasks."""
        command = ("-A", app, "worker", "-l", "INFO", "--without-mingle", "--without-gossip", *options)
        self.start(name, self.python, "-m", "celery", *command, **variables)
        self.wait_for_line(rf"{name}\| .* ready\.")

    def wait_for_line(self, pattern: str, *, after: int = 0, limit_s: float = 30.0) -> str:
        """Wait until a process prints a matching line after the first `after` lines; return it."""
        matching: list[str] = []

        def is_there() -> bool:
            matching.extend(line for line in self.lines[after:] if re.search(pattern, line))
            if not matching:
                self.check()
            return bool(matching)

        try:
            wait_until(is_there, limit_s=limit_s, what=pattern)
        except Exception as error:
            raise AssertionError("\n".join([f"{pattern}: {error}", *self.lines[-LINES_SHOWN:]])) from error
        return matching[0]

    def wait_for_run(self, status: str = "success", *, limit_s: float = 30.0) -> Report:
        """Wait for the report of a run with this status; return the report."""
        reports: list[Report] = []

        def is_there() -> bool:
            self.check()
            reports.extend(report for report in self.reader.runs(100) if report.status == status)
            return bool(reports)

        try:
            wait_until(is_there, limit_s=limit_s, what=f"a run {status}")
        except Exception as error:
            raise AssertionError("\n".join([f"no run {status}: {error}", *self.lines[-LINES_SHOWN:]])) from error
        return reports[0]

    def check(self) -> None:
        """Check that every process runs."""
        self._stack.check()

    def run(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the team's directory to its end."""
        return run(command, self.environ | variables, self.directory)

    def program(self, code: str, **variables: str) -> Any:
        """Run a program from a file in the team's directory; return what it prints, decoded from JSON."""
        self.write({"program.py": code})
        done = self.run(self.python, "program.py", **variables)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout)
