"""Ports for servers of tests."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from itertools import cycle
from typing import Final

__all__ = ["free_port"]

# Below the ephemeral ports of the kernel, which may be given to another process before the server binds them.
PORTS: Final = range(10_240, 32_768)

_start = random.SystemRandom().randrange(len(PORTS))
_ports: Iterator[int] = cycle([*PORTS[_start:], *PORTS[:_start]])


def free_port() -> int:
    """Return a loopback port on which no server listens; each process counts up from its own start."""
    return next(port for port in _ports if _is_free(port))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
