"""The processes that a deployment's files describe, started by the commands there, with their output in log files."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

__all__ = ["ROOT", "Processes", "replaced"]

ROOT: Final = Path(__file__).parents[2]
STOP_S: Final = 20.0


class Processes:
    """Named processes in a directory of the test, which are stopped when the `with` block ends.

    Attributes:
        app: The directory in which `celery -A tasks` works, with the files that the wheel does not contain.
        input: The rolling file.
        output: The directory for snapshots.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.app = directory / "app"
        self.input = directory / "input" / "rolling_brain.json.gz"
        self.output = directory / "output"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        for path in (self.input.parent, self.output, self.app):
            path.mkdir()
        shutil.copy(ROOT / "celeryconfig.py", self.app)
        shutil.copytree(ROOT / "tasks", self.app / "tasks")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Stop every process as a supervisor does, the last one first: by SIGTERM, then by SIGKILL to its group."""
        for process in reversed(self.processes.values()):
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def spawn(
        self, name: str, command: Sequence[str], environ: Mapping[str, str], before: Callable[[], None] | None = None
    ) -> None:
        """Start a process; it calls `before` first, then runs the command."""
        with self._log(name).open("wb") as log:
            self.processes[name] = subprocess.Popen(
                command,
                cwd=self.app,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=before,  # noqa: PLW1509 - no thread of the test holds a lock that it takes
            )

    def succeeds(self, command: Sequence[str], environ: Mapping[str, str], timeout_s: float) -> bool:
        """Return whether a command exits with 0 within its time limit."""
        try:
            done = subprocess.run(
                command, cwd=self.app, env=environ, capture_output=True, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0

    def lines(self, name: str) -> str:
        """Return what a process has printed."""
        return self._log(name).read_text(errors="replace")

    def check(self) -> bool:
        """Fail if a process has ended; return true, for use in a condition."""
        for name, process in self.processes.items():
            assert process.poll() is None, f"{name} ended with {process.returncode}: {self.lines(name)[-3000:]}"
        return True

    def _log(self, name: str) -> Path:
        return self.directory / f"{name}.log"


def replaced(text: str, places: Mapping[str, str]) -> str:
    """Return the text of a deployment's file, with each key of `places` replaced by its value on this machine."""
    return re.sub("|".join(map(re.escape, places)), lambda match: places[match[0]], text)
