"""Peak memory of this process."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Final

__all__ = ["peak_rss_mb"]

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
