"""The names of the queues: a light one for each source, and one for all scans, which are heavy.

A worker takes all of them; a fleet gives the scans workers of their own (`-Q rolling.scan`), and then nothing light
ever waits behind a scan.
"""

from __future__ import annotations

from typing import Final

__all__ = ["SCAN_QUEUE", "source_queue"]

SCAN_QUEUE: Final = "rolling.scan"


def source_queue(source: str) -> str:
    """The queue of a source's runs."""
    return f"rolling.{source}"
