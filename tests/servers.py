"""Real servers for tests: a throwaway Redis on a free port of the loopback, that can be killed, stopped and paused."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import redis

from optimizer.connection import connect
from optimizer.errors import CacheUnavailable
from tasks.devredis import free_port, redis_command

__all__ = ["RedisServer", "wait_until"]


def wait_until(condition: Callable[[], object], *, limit_s: float = 20.0, what: str = "the condition") -> None:
    """Wait for a condition to hold; fail after the limit."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true within {limit_s:g} s")
        time.sleep(0.02)


class RedisServer:
    """One server with its own port and directory; the port stays the same over restarts."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def client(self) -> redis.Redis:
        """A client for looking behind the scenes; close it, or use it as a context manager."""
        return connect(self.url, timeout_s=5.0)

    def start(self, *options: str) -> None:
        """Start the server, and wait until it answers."""
        self._process = subprocess.Popen(
            [*redis_command(self.port, self.directory), *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_until(self._answers, what="redis")

    def kill(self, *, lose_data: bool = False) -> None:
        """Kill the server, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if lose_data:
            shutil.rmtree(self.directory, ignore_errors=True)

    def pause(self) -> None:
        """Let the server hang: connections are taken, nothing is answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a hanging server go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _answers(self) -> bool:
        try:
            with self.client as client:
                return bool(client.ping())
        except (redis.RedisError, CacheUnavailable):
            return False
