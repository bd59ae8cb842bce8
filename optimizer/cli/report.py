"""Format the report of a run as text."""

from __future__ import annotations

from typing import Final

import click

from optimizer.log import printable
from optimizer.models import Report
from optimizer.reader.reports import describe_bots_without_fields, describe_rejected
from optimizer.selection.acceptance import describe_tally

__all__ = ["describe", "describe_s", "paint"]

_COLOURS: Final = {"success": "green", "failed": "red", "skipped": "yellow", "unchanged": None}


def describe(report: Report) -> str:
    """Describe a report in a few lines."""
    lines = [f"{report.status}: " + (report.reason or f"version {report.version}, cache {report.cache}")]
    if report.status == "failed":
        lines = [f"failed: {report.error}: {report.details}"]
    elif report.details:
        lines.append(f"  {report.details}")
    stats = report.stats
    if stats:
        lines.append(
            f"  {stats.predictions_extracted:,} predictions of {stats.records_seen:,} records "
            f"({stats.records_rejected:,} rejected, {stats.duplicates:,} duplicates), {stats.bots_processed:,} bots"
            f"{f' ({stats.bots_rejected:,} rejected)' if stats.bots_rejected else ''}, "
            f"{stats.portfolio_holdings:,} holdings"
        )
        lines.append(
            f"  {stats.json_bytes / 1e6:,.1f} MB of JSON ({stats.input_bytes / 1e6:,.1f} MB compressed) in "
            f"{stats.seconds:.2f} s: {stats.json_mb_per_s:,.0f} MB/s, peak memory {stats.peak_rss_mb:.0f} MB, "
            f"engine {stats.engine}"
        )
        if stats.symbols_ignored:
            lines.append(f"  {stats.symbols_ignored:,} records name another symbol than the key under which they stand")
        if stats.extras_dropped:
            lines.append(f"  {stats.extras_dropped:,} values of extra fields are lists, objects or long text, so null")
        lines += [f"  {line}" for line in describe_bots_without_fields(report.rejected)]
    else:
        lines += [f"  {line}" for line in describe_rejected(report.rejected)]
    if report.published_after_s is not None:
        lines.append(f"  published {describe_s(report.published_after_s)} after the input landed")
    if report.warning:
        lines.append(f"  warning: {report.warning}")
    lines += [f"  rejected {describe_tally(tally)}" for tally in report.rejects]
    return "\n".join(map(printable, lines))


def paint(report: Report) -> str:
    """Describe a report with its status in colour, for `click.echo`, which omits colours without a terminal."""
    status, colon, rest = describe(report).partition(":")
    return click.style(status, fg=_COLOURS[report.status]) + colon + rest


def describe_s(seconds: float) -> str:
    """Describe a time: to a tenth of a second below a minute, else to a second."""
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds:,.0f} s"
