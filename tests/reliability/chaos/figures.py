"""The measurements of the tests: faults by kind, reads by way, and the long tests.

`make chaos` writes them to `docs/reliability.md`.
"""

from __future__ import annotations

import platform
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

__all__ = ["Figures", "machine"]

PAGE: Final = Path(__file__).parents[3] / "docs" / "reliability.md"
HEADING: Final = "## Figures\n"


@dataclass
class Figures:
    """The measurements of a session, to which its tests add."""

    faults: Counter[str] = field(default_factory=Counter)
    gaps_s: dict[str, float] = field(default_factory=dict)
    recoveries_s: dict[str, float] = field(default_factory=dict)
    reads: Counter[str] = field(default_factory=Counter)
    unanswered: Counter[str] = field(default_factory=Counter)
    complaints: int = 0
    lines: list[str] = field(default_factory=list)

    def add_fault(self, kind: str, times: int = 1, *, gap_s: float = 0.0, recovery_s: float = 0.0) -> None:
        """Add faults of one kind, how long readers saw nothing new, and how long the recovery took."""
        self.faults[kind] += times
        self.gaps_s[kind] = max(gap_s, self.gaps_s.get(kind, 0.0))
        self.recoveries_s[kind] = max(recovery_s, self.recoveries_s.get(kind, 0.0))

    def merge(self, other: Figures) -> None:
        """Add the measurements of another process."""
        for kind, times in other.faults.items():
            self.add_fault(kind, times, gap_s=other.gaps_s[kind], recovery_s=other.recoveries_s[kind])
        self.reads.update(other.reads)
        self.unanswered.update(other.unanswered)
        self.complaints += other.complaints
        self.lines += other.lines

    def table(self) -> str:
        """All measurements as text, indented as the page shows them."""
        rows = [f"{'fault':<58}{'times':>6}{'nothing new, s':>16}{'recovered, s':>14}"]
        rows += [
            f"{kind:<58}{times:>6,}{_seconds(self.gaps_s[kind]):>16}{_seconds(self.recoveries_s[kind]):>14}"
            for kind, times in sorted(self.faults.items())
        ]
        rows += ["", f"{'way of reading':<58}{'reads':>12}{'no answer':>12}"]
        rows += [f"{way:<58}{reads:>12,}{self.unanswered[way]:>12,}" for way, reads in self.reads.items()]
        rows += [f"{'torn, mixed, older, or an exception':<58}{self.complaints:>12,}", "", *self.lines]
        return "".join(f"    {row}".rstrip() + "\n" for row in rows)

    def write(self) -> None:
        """Replace the figures on the page with these."""
        text = PAGE.read_text()
        PAGE.write_text(f"{text.partition(HEADING)[0]}{HEADING}\n{machine()}\n\n{self.table()}")


def _seconds(value: float) -> str:
    return f"{value:.1f}" if value else ""


def machine() -> str:
    """Describe this machine in a sentence."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    cores = sum(line.startswith("processor") for line in lines)
    return f"{cores} cores of {model}, {platform.system()} {platform.release()}, Python {platform.python_version()}."
