"""The report of a run as text."""

from __future__ import annotations

from optimizer.cli.report import describe
from optimizer.models import Report


def test_a_report_commands_no_terminal() -> None:
    """The details of a report are printed in one line, with control characters escaped.

    They may name files, and are taken from Redis as they are there.
    """
    report = Report("failed", "brain", "2026-11-01T10:00:00.000Z", error="SourceTorn", details="a\n\x1b[2Jb")

    assert describe(report) == r"failed: SourceTorn: a\n\x1b[2Jb"
