"""Processes of the service on one machine, for `rolling-optimizer up`, `demo` and the tests.

Invariant: no process outlives this one. Children are stopped in reverse order of their start when the `with` block
ends; on Linux the kernel ends them when this process is killed (elsewhere they end because their Redis is gone). Each
child has its own session, so that Ctrl-C only reaches this process, which then stops them in order.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import click

from optimizer.cache.client import ping
from optimizer.cli.dev.failure import StackFailed, writing
from optimizer.cli.dev.ports import free_port
from optimizer.cli.dev.redis_server import DEFAULT_PORT, redis_command
from optimizer.config.environment import with_secrets
from optimizer.errors import CacheUnavailable

__all__ = ["POLL_S", "Stack", "say", "stopping_on_signals"]

STOP_S: Final = 20.0
START_S: Final = 20.0
# For processes that import Celery or FastAPI, several at the same time.
UP_S: Final = 60.0
POLL_S: Final = 0.1
PR_SET_PDEATHSIG: Final = 1
APP: Final = "optimizer.celery.standalone"

# Loaded in the parent, since a library must not be loaded between fork and exec.
_libc: Final = ctypes.CDLL(None) if sys.platform == "linux" else None

Sink = Callable[[str, str], None]


class Stack:
    """Processes that are stopped together at the end of the `with` block.

    Args:
        sink: Called with a process's name and each line that it prints.
        directory: Where Redis keeps its data.

    Attributes:
        environ: The environment of the processes; may be changed before they are started.
    """

    def __init__(self, sink: Sink, directory: Path) -> None:
        self._sink = sink
        self._directory = directory
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._printers: dict[str, threading.Thread] = {}
        self.environ: dict[str, str] = with_secrets(os.environ)

    def __enter__(self) -> Stack:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, name: str, command: list[str], environ: Mapping[str, str] | None = None) -> None:
        """Start a process; `environ` overrides the stack's environment."""
        process = self._spawn(command, {**self.environ, **(environ or {}), "PYTHONUNBUFFERED": "1"})
        self._processes[name] = process
        printer = threading.Thread(target=self._print_lines, args=(name, process), daemon=True)
        printer.start()
        self._printers[name] = printer

    def start_redis(self, port: int | None = None) -> str:
        """Use the Redis of `ROLLING_REDIS_URL`, or start one; return its URL once it answers.

        Args:
            port: The port of a started one; by default 6379, or a free port if that is taken.

        Raises:
            StackFailed: Its directory cannot be written.
            CacheUnavailable: It does not answer; a started one gets `START_S` seconds.
        """
        url = self.environ.get("ROLLING_REDIS_URL")
        if not url:
            port = free_port(DEFAULT_PORT) if port is None else port
            url = f"redis://127.0.0.1:{port}/0"
            with writing(self._directory):
                command = redis_command(port, self._directory / "redis")
            self.start("redis", command)
            self.environ["ROLLING_REDIS_URL"] = url
        deadline = time.monotonic() + START_S
        while True:
            try:
                ping(url)
            except CacheUnavailable:
                self.check()
                if time.monotonic() > deadline or "redis" not in self._processes:
                    raise
                time.sleep(POLL_S)
            else:
                return url

    def start_celery(self, name: str, *arguments: str, environ: Mapping[str, str] | None = None) -> None:
        """Start Celery with these arguments and the stand-alone app.

        Python's `-P` is set, since modules of other programs in the working directory may have the same names as ours.
        """
        self.start(name, [sys.executable, "-P", "-m", "celery", "-A", APP, *arguments], environ)

    def pid(self, name: str) -> int:
        """Return the id of a process."""
        return self._processes[name].pid

    def check(self) -> None:
        """Check that every process runs.

        Raises:
            StackFailed: One has ended; its last lines have been printed by then.
        """
        for name, process in self._processes.items():
            if process.poll() is not None:
                self._printers[name].join(STOP_S)
                raise StackFailed(
                    f"{name} {_ending(process.returncode)}; its lines above say why. Everything else is stopped"
                )

    def wait_for(self, name: str, is_up: Callable[[], bool]) -> None:
        """Wait until a process has started, that is until `is_up` returns true.

        Raises:
            StackFailed: A process has ended, or this one has not started within `UP_S` seconds.
        """
        deadline = time.monotonic() + UP_S
        while not is_up():
            self.check()
            if time.monotonic() > deadline:
                raise StackFailed(f"{name} has not started within {UP_S:.0f} s; its lines above may say why")
            time.sleep(POLL_S)

    def stop(self) -> None:
        """Stop all processes, the last started first, by SIGTERM; SIGKILL after `STOP_S` seconds."""
        for process in reversed(list(self._processes.values())):
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        for printer in self._printers.values():
            printer.join(STOP_S)
        self._processes.clear()

    def _spawn(self, command: list[str], environ: dict[str, str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_end_with_parent,  # noqa: PLW1509 - one system call, looked up before
        )

    def _print_lines(self, name: str, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        with process.stdout as lines:
            for line in lines:
                self._sink(name, line.decode("utf-8", "replace").rstrip("\n"))


@contextmanager
def stopping_on_signals() -> Iterator[None]:
    """Leave the block normally on Ctrl-C, SIGTERM and SIGHUP; then restore the earlier handlers."""

    def leave(number: int, _frame: object) -> None:
        raise SystemExit(0 if number == signal.SIGINT else 128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def say(line: str) -> None:
    """Print a line of this program, as opposed to one of a process."""
    click.echo(f"{click.style('[rolling-optimizer]', bold=True)} {line}")


def _end_with_parent() -> None:
    """Ask the kernel, in the child before exec, for SIGTERM when the parent dies, for whatever reason."""
    if _libc is not None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _ending(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended by itself with exit status {code}"
