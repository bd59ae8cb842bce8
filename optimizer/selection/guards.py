"""Decide by the numbers of a version whether it may follow the current one. Pure.

Two guards, both off unless the user sets them:

- `ROLLING_MIN_RECORDS`: the fewest usable records, counted as in `acceptance`: records seen minus records rejected,
  duplicates and low confidences included.
- `ROLLING_MAX_DROP_PERCENT`: by how much usable records, bots, and holdings may each be fewer than in the version that
  is shown. Without such a version nothing is refused. A version of an older release does not state how many records
  were usable, so only its bots and holdings are compared.

A drop of exactly the limit passes, by exact arithmetic: with floats, 323 of 1,000 would be more than 32.3 %.

Errors: `GuardRefused`, with the variable, the number and its limit, and what to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Final

from optimizer.errors import GuardRefused
from optimizer.models import Manifest
from optimizer.selection.acceptance import advise

__all__ = ["check_counts", "check_removed"]

ENGINE: Final = "Look at what the engine writes now"


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
            f"snapshots stay. {advise(f'{ENGINE}, or lower ROLLING_MIN_RECORDS')}"
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
            f"{advise(f'{ENGINE}, or raise ROLLING_MAX_DROP_PERCENT')}"
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
