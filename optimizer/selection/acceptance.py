"""Decide whether the result of a scan, and the version made of it, may replace what is published. Pure.

Two rules for the input as a whole, however many parts it has:

- An empty result never replaces a full one: an input without a usable record, an input whose bots are all unusable, and
  a bots directory whose files are all unusable are refused, whatever the limit.
- Of the records, and of the bots, no more than a share may be rejected.

A record below `min_confidence`, and a duplicate, is not rejected.

Two guards for the version, both off unless the user sets them:

- `ROLLING_MIN_RECORDS`: the fewest usable records: records seen minus records rejected, duplicates and low confidences
  included.
- `ROLLING_MAX_DROP_PERCENT`: by how much usable records, bots, and holdings may each be fewer than in the version that
  is shown. Without such a version nothing is refused. A version of an older release does not state how many records
  were usable, so only its bots and holdings are compared.

A drop of exactly the limit passes, by exact arithmetic: with floats, 323 of 1,000 would be more than 32.3 %.

Errors: `NoRecords`, `NoBots`, `TooManyRejected`, with the counts, the reasons with an example each, and what to do;
`GuardRefused`, with the variable, the number and its limit, and what to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Final

from optimizer.errors import GuardRefused, NoBots, NoRecords, TooManyRejected
from optimizer.models import Manifest, Reject, RejectReason, RejectTally, Units
from optimizer.selection.result import ScanResult

__all__ = ["advise", "check_counts", "check_plausible", "check_removed", "describe_tally"]

_ENGINE: Final = "Look at what the engine writes now"
_INSPECT: Final = "What it holds, and what to set so that it is read, is shown by: rolling-optimizer inspect"


def check_plausible(
    result: ScanResult, *, input_name: str, bots_dir: str | None, max_rejected_percent: float, accept: bool
) -> None:
    """Check that a result may be published.

    Args:
        result: The result of scanning the whole input.
        input_name: Where the input is, for messages.
        bots_dir: Where the bots directory is, if there is one.
        max_rejected_percent: The largest share of rejected records, and of rejected bots.
        accept: The user accepts this input: it is refused only if it has no usable record at all.

    Raises:
        NoRecords: No record can be used.
        NoBots: The input, or the bots directory, has bots, and none of them can be used.
        TooManyRejected: More than `max_rejected_percent` of the records, or of the bots, were rejected.
    """
    if not result.records_used:
        raise NoRecords(f"{input_name} holds no usable record, the old snapshots stay: {result.summary()}. {_INSPECT}")
    if not accept:
        _check_bots(result, input_name, bots_dir)
        for kind, units in (("records", result.rejected.records), ("bots", result.rejected.bots)):
            if 100 * units.rejected > max_rejected_percent * units.seen:
                raise TooManyRejected(_too_many(result, input_name, kind, units, max_rejected_percent))


def check_counts(
    new: Manifest, current: Manifest | None, *, input_name: str, min_records: int, max_drop_percent: float
) -> None:
    """Check that a version has enough records, and not many fewer than the version before it.

    Args:
        new: The version that may be published.
        current: The version that is shown, if there is one.
        input_name: Where the input is, for messages.
        min_records: The fewest usable records; 0 allows any number.
        max_drop_percent: By how much each number may fall, in percent of the current one; 100 allows any.

    Raises:
        GuardRefused: It has too few.
    """
    records = _usable_records(new)
    if records is not None and records < min_records:
        raise GuardRefused(
            f"{input_name}: {records:,} usable records, fewer than ROLLING_MIN_RECORDS={min_records} asks for; the old "
            f"snapshots stay. {advise(f'{_ENGINE}, or lower ROLLING_MIN_RECORDS')}"
        )
    if current is None:
        return
    limit = Fraction(str(max_drop_percent))  # exactly as the user wrote it: the float nearest to 0.1 is not 0.1
    fallen = [
        f"{now:,} {kind} are {100 * (before - now) / before:.4g} % fewer than the {before:,}"
        for kind, now, before in _compared(new, current)
        if 100 * (before - now) > limit * before
    ]
    if fallen:
        raise GuardRefused(
            f"{input_name}: {', '.join(fallen)} of version {current.version}, and "
            f"ROLLING_MAX_DROP_PERCENT={max_drop_percent:g} allows no more; the old snapshots stay. "
            f"{advise(f'{_ENGINE}, or raise ROLLING_MAX_DROP_PERCENT')}"
        )


def check_removed(now: int, before: int, *, max_drop_percent: float) -> None:
    """Check that updates do not remove too many symbols of the index.

    Args:
        now: The number of symbols with the updates applied.
        before: The number of symbols without them.
        max_drop_percent: As in `check_counts`.

    Raises:
        GuardRefused: They remove too many.
    """
    if 100 * (before - now) > Fraction(str(max_drop_percent)) * before:
        raise GuardRefused(
            f"updates would leave {now:,} symbols, {100 * (before - now) / before:.4g} % fewer than the {before:,} of "
            f"the current version, and ROLLING_MAX_DROP_PERCENT={max_drop_percent:g} allows no more. "
            "Remove fewer at a time, or raise ROLLING_MAX_DROP_PERCENT"
        )


def _check_bots(result: ScanResult, input_name: str, bots_dir: str | None) -> None:
    """Check input and directory separately: good bots in one must not hide that all bots of the other are unusable."""
    of_files = Units(result.bot_files_seen, result.bot_files_rejected)
    of_input = Units(result.bots_seen - of_files.seen, result.bots_rejected - of_files.rejected)
    for place, bots in ((input_name, of_input), (bots_dir, of_files)):
        if not bots.seen or bots.rejected < bots.seen:
            continue
        named = [reject for tally in _tallies(result, "bots") for reject in tally.first]
        # Rejects of the input come first, and may be the only ones that have examples.
        first = next((reject for reject in named if reject.where.startswith(str(place))), named[0])
        raise NoBots(
            f"{place}: no bot there can be used ({bots.seen:,} rejected), the old snapshots stay: the first "
            f"is{_describe(first)}. {advise('Mend them')}"
        )


def _too_many(result: ScanResult, input_name: str, kind: str, units: Units, limit: float) -> str:
    variable = "ROLLING_MAX_REJECTED_PERCENT"
    reasons = "; ".join(map(describe_tally, _tallies(result, kind)))
    percent = 100 * units.rejected / units.seen
    return (
        f"{input_name}: {units.rejected:,} of {units.seen:,} {kind} ({percent:.1f} %) cannot be used, more than "
        f"{variable}={limit:g} allows; the old snapshots stay: {reasons}. "
        f"{_INSPECT}. {advise(f'{_ENGINE}, or raise {variable}')}"
    )


def _tallies(result: ScanResult, kind: str) -> list[RejectTally]:
    return [tally for tally in result.tallies() if (tally.reason is RejectReason.BOT) == (kind == "bots")]


def advise(first: str) -> str:
    """Return the advice about a refused input: what to do first, and how to accept the input anyway."""
    return f"{first}; --accept of run or trigger lets this input through once: rolling-optimizer run --accept"


def describe_tally(tally: RejectTally) -> str:
    """Describe the rejects with one reason: their number and the first of them."""
    return f"{tally.count:,} x {tally.reason}, first{_describe(tally.first[0])}"


def _describe(reject: Reject) -> str:
    name = "" if reject.name is None else f" {reject.name!r}"
    return f"{name} ({reject.where}): {reject.details}"


def _compared(new: Manifest, current: Manifest) -> Iterator[tuple[str, int, int]]:
    """Yield each number that both versions state: its name, the new value, and the current value."""
    now, before = _usable_records(new), _usable_records(current)
    if now is not None and before is not None:
        yield "usable records", now, before
    for kind, name in (("bots", "bots"), ("portfolio", "holdings")):
        yield name, new.snapshots[kind].count, current.snapshots[kind].count


def _usable_records(manifest: Manifest) -> int | None:
    """Return how many records of a version's input were usable; `None` for a version of an older release."""
    rejected = manifest.rejected
    return None if rejected is None else rejected.records.seen - rejected.records.rejected
