"""Ports of the loopback interface for the servers of the stack.

Errors: `PortTaken`.
"""

from __future__ import annotations

import errno
import socket
from contextlib import suppress

from optimizer.errors import RollingError

__all__ = ["PortTaken", "choose_port", "free_port", "is_listening"]


class PortTaken(RollingError):
    """The port that a server should use is not available."""


def choose_port(option: str, asked: int | None, default: int) -> int:
    """Return the requested port; without a request the default port, or a free one if that is taken.

    Args:
        option: The option or variable that names the port.
        asked: Its value, if it is given.
        default: The default port.

    Raises:
        PortTaken: The requested port is taken, or may not be used.
    """
    if asked is None:
        return free_port(default)
    try:
        return _bind(asked)
    except OSError as error:
        why = "another program listens on it" if error.errno == errno.EADDRINUSE else error.strerror
        raise PortTaken(f"{option} {asked}: port {asked} of 127.0.0.1 cannot be used: {why}; choose another") from None


def free_port(preferred: int = 0) -> int:
    """Find a free port of the loopback interface: the preferred one, if nothing listens on it.

    Raises:
        PortTaken: None is free.
    """
    for port in (preferred, 0):
        with suppress(OSError):
            return _bind(port)
    raise PortTaken("no port of 127.0.0.1 is free")


def is_listening(port: int) -> bool:
    """Whether a server on the loopback interface accepts connections on a port."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except OSError:
        return False
    return True


def _bind(port: int) -> int:
    """Bind a socket to a port, or to a free one for 0, and close it; return the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
        return int(probe.getsockname()[1])
