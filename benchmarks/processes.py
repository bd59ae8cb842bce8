"""Processes that a benchmark starts and ends, such as its own Redis."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from optimizer import Settings
from optimizer.cache.client import ping
from optimizer.cli.dev.ports import free_port
from optimizer.cli.dev.redis_server import redis_command
from optimizer.errors import CacheUnavailable

__all__ = ["running", "throwaway_redis", "wait_until", "web_server"]


@contextmanager
def running(command: list[str], environ: Mapping[str, str] | None = None, *, silent: bool = False) -> Iterator[None]:
    """Run a process until the `with` block ends; its stderr is shown, unless it is `silent`."""
    stderr = subprocess.DEVNULL if silent else None
    process = subprocess.Popen(command, env=dict(environ or os.environ), stdout=subprocess.DEVNULL, stderr=stderr)
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


@contextmanager
def web_server(command: list[str], settings: Settings) -> Iterator[str]:
    """Serve the source by a command, to which a port is appended, until the `with` block ends; yield the URL."""
    port = free_port()
    environ = dict(os.environ) | {
        "ROLLING_INPUT": str(settings.input),
        "ROLLING_OUTPUT_DIR": str(settings.output_dir),
        "ROLLING_REDIS_URL": settings.redis_url,
    }
    url = f"http://127.0.0.1:{port}"
    with running([*command, str(port)], environ):
        wait_until(lambda: _listens(url))
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


def _listens(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=1).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True
