"""Who made a version: the user and the host of this process."""

from __future__ import annotations

import getpass
import os
import socket

__all__ = ["user_at_host"]


def user_at_host() -> str:
    """Return `user@host`; the number of a user who has no name, as in a container."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # KeyError until Python 3.13
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
