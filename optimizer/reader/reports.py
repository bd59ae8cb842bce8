"""Summaries of the last runs, and of what a version leaves out, for pages, metrics and commands. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from optimizer.models import Rejected, Report

__all__ = [
    "describe_bots_without_fields",
    "describe_rejected",
    "last_decided",
    "most_bots_lack_fields",
    "published_after_s",
]


def last_decided(runs: Iterable[Report]) -> Report | None:
    """Return the first of these reports that is not of a skipped run: it shows the state of the source."""
    return next((run for run in runs if run.status != "skipped"), None)


def published_after_s(runs: Iterable[Report], scans: Iterable[Report]) -> float | None:
    """Return how long the last new input took from its landing until its version could be read; `None` if unknown.

    Args:
        runs: The last reports, newest first.
        scans: The last reports of published scans, which are kept for longer.
    """
    return next((each.published_after_s for each in (*runs, *scans) if each.published_after_s is not None), None)


def describe_rejected(rejected: Rejected | None) -> list[str]:
    """Describe what a version leaves out, one sentence per kind; empty if nothing is left out or it is unknown."""
    if rejected is None:
        return []
    notes = []
    if rejected.bots.rejected:
        them = "it" if rejected.bots.rejected == 1 else "them"
        notes.append(f"{rejected.bots.rejected:,} of {rejected.bots.seen:,} bots rejected; sums leave {them} out")
    if rejected.records.rejected:
        notes.append(f"{rejected.records.rejected:,} of {rejected.records.seen:,} records rejected")
    return notes + describe_bots_without_fields(rejected)


def most_bots_lack_fields(rejected: Rejected) -> bool:
    """Whether more than half of the accepted bots have no value in any field that is read."""
    bots = rejected.bots
    return bots.without_fields is not msgspec.UNSET and 2 * bots.without_fields > bots.seen - bots.rejected


def describe_bots_without_fields(rejected: Rejected | None) -> list[str]:
    """Return one sentence saying that most bots have none of the fields that are read; empty if that is not so."""
    if rejected is None or not most_bots_lack_fields(rejected):
        return []
    counts = f"{rejected.bots.without_fields:,} of {rejected.bots.seen:,} bots"
    remedy = "set ROLLING_BOT_FIELDS, which is suggested by: rolling-optimizer inspect"
    return [f"{counts} have no value in any field that is read; if theirs have other names, {remedy}"]
