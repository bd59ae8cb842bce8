"""The user and the host of this process, recorded in the versions that it makes."""

from __future__ import annotations

import getpass
import os
import socket

__all__ = ["user_at_host"]


def user_at_host() -> str:
    """Return `user@host`; a user without a name, as in a container, is shown by number."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # KeyError until Python 3.13
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
