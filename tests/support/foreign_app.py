"""Another team's Celery app in one module, `proj`, with its own task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from optimizer.config.settings import Settings
from tests.support.ports import free_port
from tests.support.redis_servers import wait_until
from tests.support.team import Team

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


class ForeignApp(Team):
    """The app in a directory of its own; its processes end with the `with` block.

    Args:
        directory: Where `proj.py` is written, and the working directory of its processes.
        settings: The settings of its processes.
        config: The members of its configuration.
        arguments: What is passed to `register` after the app, with a comma before it.
        variables: More environment variables.
    """

    def __init__(self, directory: Path, settings: Settings, config: str, arguments: str = "", **variables: str) -> None:
        directory.mkdir()
        super().__init__(directory, settings, **{"ROLLING_INTERVAL_S": "30", **variables})
        lines = "\n".join(f"    {line.strip()}" for line in config.strip().splitlines())
        self.write({"proj.py": MODULE.format(config=lines, arguments=arguments)})

    @property
    def text(self) -> str:
        """All that its processes have printed."""
        return "\n".join(self.lines)

    def start_flower(self, *options: str, module: str = "proj") -> None:
        """Start `celery -A proj flower`."""
        command = ("-A", module, "flower", f"--port={free_port()}", *options)
        self.start("flower", self.python, "-m", "celery", *command)

    def printed(self, code: str) -> str:
        """Run code in which `proj` can be imported; return what it prints."""
        done = self.run(self.python, "-c", code)
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
        return self.printed(code)

    def add(self, one: int, other: int) -> None:
        """Send the app's own task, `add`, and wait until a worker has executed it.

        The task is sent again if it was lost: kombu's broker of files may read a message before it is written.
        """
        self.printed(f"from proj import add; add.delay({one}, {other})")
        try:
            self.wait_for_sum(one + other, limit_s=8)
        except AssertionError:
            self.printed(f"from proj import add; add.delay({one}, {other})")
            self.wait_for_sum(one + other)

    def wait_for_sum(self, total: int, *, limit_s: float = 20.0) -> None:
        """Wait until a worker has written this sum to the file `added`."""
        added = self.directory / "added"
        wait_until(
            lambda: added.exists() and str(total) in added.read_text().split(), limit_s=limit_s, what="their task"
        )
