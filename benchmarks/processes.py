"""Processes that a benchmark starts and ends, such as a Redis of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from optimizer.cache.client import ping
from optimizer.cli.dev.redis_server import free_port, redis_command
from optimizer.errors import CacheUnavailable

__all__ = ["running", "throwaway_redis", "wait_until"]


@contextmanager
def running(command: list[str], environ: Mapping[str, str] | None = None) -> Iterator[None]:
    """Run a process until the `with` block ends."""
    process = subprocess.Popen(command, env=dict(environ or os.environ), stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


@contextmanager
def throwaway_redis(directory: Path) -> Iterator[str]:
    """Run a Redis until the `with` block ends; yield its URL."""
    port = free_port()
    url = f"redis://127.0.0.1:{port}/0"
    with running(redis_command(port, directory / "redis")):
        wait_until(lambda: _answers(url))
        yield url


def wait_until(condition: Callable[[], bool], limit_s: float = 20.0) -> None:
    """Wait for a server to come up."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError("the server did not come up")
        time.sleep(0.1)


def _answers(url: str) -> bool:
    try:
        ping(url)
    except CacheUnavailable:
        return False
    return True
