"""The user, the host and the peak memory of this process, which a run records."""

from __future__ import annotations

import getpass
import os
import resource
import socket
import sys
from pathlib import Path
from typing import Final

__all__ = ["peak_rss_mb", "user_at_host"]

_STATUS: Final = Path("/proc/self/status")


def peak_rss_mb() -> float:
    """Peak resident memory in MB (10^6 bytes).

    Linux records it per address space. `ru_maxrss` survives `exec`, so it would begin at the peak of the process that
    started this one; it is the fallback for other systems.
    """
    try:
        text = _STATUS.read_text()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
    return next(int(line.split()[1]) * 1024 / 1e6 for line in text.splitlines() if line.startswith("VmHWM"))


def user_at_host() -> str:
    """Return `user@host`; a user without a name, as in a container, is shown by number."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # KeyError until Python 3.13
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
