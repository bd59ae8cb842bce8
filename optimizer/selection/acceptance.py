"""Decide whether what a scan found may replace what is published. Pure.

Two rules, for the input as a whole, however many parts it has:

- Nothing never replaces something: an input without a usable record, an input whose bots are all unusable, and a bots
  directory whose files are all unusable are refused, whatever the limit.
- Of the records, and of the bots, no more than a share may be rejected.

A record below `min_confidence`, and one whose symbol came before, is not rejected.

Errors: `NoRecords`, `NoBots`, `TooManyRejected`, with the counts, the reasons with an example each, and what to do.
"""

from __future__ import annotations

from optimizer.config.settings import Settings, variable_name
from optimizer.errors import NoBots, NoRecords, TooManyRejected
from optimizer.models import Reject, RejectReason, RejectTally, Units
from optimizer.selection.result import Found

__all__ = ["check_plausible", "describe_tally"]


def check_plausible(settings: Settings, found: Found, *, accept: bool) -> None:
    """Check that what was found may be published.

    Args:
        settings: Where the input and the bots directory are, and `max_rejected_percent`.
        found: All that the scan of the whole input has found.
        accept: The user lets this input through: only one without any usable record is refused.

    Raises:
        NoRecords: Not one record can be used.
        NoBots: The input, or the bots directory, has bots, and not one of them can be used.
        TooManyRejected: More than `max_rejected_percent` of the records, or of the bots, were rejected.
    """
    if not found.records_used:
        raise NoRecords(f"{settings.input} holds no usable record, the old snapshots stay: {found.summary()}")
    if not accept:
        _check_bots(settings, found)
        _check_share(settings, found, "records", found.rejected.records)
        _check_share(settings, found, "bots", found.rejected.bots)


def _check_bots(settings: Settings, found: Found) -> None:
    """Each place for itself: good bots in one must not hide that all of the other are gone."""
    of_files = Units(found.bot_files_seen, found.bot_files_rejected)
    of_input = Units(found.bots_seen - of_files.seen, found.bots_rejected - of_files.rejected)
    for place, bots in ((settings.input, of_input), (settings.bots_dir, of_files)):
        if not bots.seen or bots.rejected < bots.seen:
            continue
        named = [reject for tally in _tallies(found, "bots") for reject in tally.first]
        # Those of the input come first, and may be all that are named.
        first = next((reject for reject in named if reject.where.startswith(str(place))), named[0])
        raise NoBots(
            f"{place}: no bot there can be used ({bots.seen:,} rejected), the old snapshots stay: the first "
            f"is{_describe(first)}. {_advice('Mend them')}"
        )


def _check_share(settings: Settings, found: Found, kind: str, units: Units) -> None:
    limit, variable = settings.max_rejected_percent, variable_name("max_rejected_percent")
    if 100 * units.rejected > limit * units.seen:
        reasons = "; ".join(map(describe_tally, _tallies(found, kind)))
        raise TooManyRejected(
            f"{settings.input}: {units.rejected:,} of {units.seen:,} {kind} "
            f"({100 * units.rejected / units.seen:.1f} %) cannot be used, more than {variable}={limit:g} allows; the "
            f"old snapshots stay: {reasons}. {_advice(f'Look at what the engine writes now, or raise {variable}')}"
        )


def _tallies(found: Found, kind: str) -> list[RejectTally]:
    return [tally for tally in found.tallies() if (tally.reason is RejectReason.BOT) == (kind == "bots")]


def _advice(first: str) -> str:
    return f"{first}; --accept of run or trigger lets this input through once: rolling-optimizer run --accept"


def describe_tally(tally: RejectTally) -> str:
    """How many were rejected for a reason, and the first of them."""
    return f"{tally.count:,} x {tally.reason}, first{_describe(tally.first[0])}"


def _describe(reject: Reject) -> str:
    name = "" if reject.name is None else f" {reject.name!r}"
    return f"{name} ({reject.where}): {reject.details}"
