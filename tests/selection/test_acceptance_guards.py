"""The guards by numbers: what they refuse follows from the counts of the new and the current version, exactly."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import event, example, given
from hypothesis import strategies as st

from optimizer.config.settings import Settings
from optimizer.errors import GuardRefused
from optimizer.models import FileEntry, Manifest, Rejected, Units
from optimizer.selection.acceptance import check_counts

Counts = tuple[int | None, int, int]  # usable records, bots, holdings
DEFAULTS = Settings()


def manifest(counts: Counts, *, version: int = 7, rejected: int = 3) -> Manifest:
    """Return the manifest of a version with these counts; without usable records it is one of an older release."""
    records, bots, holdings = counts
    known = None if records is None else Rejected(Units(records + rejected, rejected), Units(bots, 0))
    entries = {kind: FileEntry("", "", 0, count) for kind, count in (("bots", bots), ("portfolio", holdings))}
    return Manifest("brain", version, "", "", entries, known)


def check(new: Counts, current: Counts | None, *, least: int = 0, percent: float = 100.0) -> None:
    """Call the guards for a version with the counts `new`, after one with the counts `current`."""
    before = None if current is None else manifest(current, version=6, rejected=11)
    check_counts(manifest(new), before, input_name="a.json", min_records=least, max_drop_percent=percent)


counts = st.tuples(st.integers(0, 1_000), st.integers(0, 50), st.integers(0, 50))
hundredths = st.integers(0, 10_000)


@given(counts, st.none() | counts | counts.map(lambda some: (None, *some[1:])), st.integers(0, 1_000), hundredths)
@example((677, 0, 0), (1_000, 0, 0), 0, 3_230)
@example((4, 5, 3), (4, 5, 4), 4, 2_500)
def test_what_is_refused_follows_from_the_counts(
    new: tuple[int, int, int], current: Counts | None, least: int, percent: int
) -> None:
    """Too few records are refused, and so is too large a drop of any count that both versions have.

    A drop of exactly the limit passes.
    """
    expected = ""
    if new[0] < least:
        expected = "ROLLING_MIN_RECORDS"
    elif current is not None:
        known = [(now, before) for now, before in zip(new, current, strict=True) if before is not None]
        if any(before and Fraction(before - now, before) > Fraction(percent, 10_000) for now, before in known):
            expected = "ROLLING_MAX_DROP_PERCENT"
    event(expected or "published")
    if not expected:
        check(new, current, least=least, percent=percent / 100)
        return
    with pytest.raises(GuardRefused, match=rf"^a\.json: .*{expected}=.*the old snapshots stay.*run --accept"):
        check(new, current, least=least, percent=percent / 100)


@given(counts, st.none() | counts)
def test_both_are_off_by_default(new: tuple[int, int, int], current: Counts | None) -> None:
    """With the defaults of the settings, the guards refuse nothing, not even the loss of everything."""
    check(new, current, least=DEFAULTS.min_records, percent=DEFAULTS.max_drop_percent)


@pytest.mark.parametrize("percent", [32.3, 64.1, 0.57, 18.4])
def test_a_limit_is_the_number_that_was_written(percent: float) -> None:
    """A limit is the decimal number that was written, not the float next to it.

    Of 100,000 records, a drop of exactly that percentage passes, and one record more does not.
    """
    fallen = round(percent * 1_000)
    check((100_000 - fallen, 0, 0), (100_000, 0, 0), percent=percent)
    with pytest.raises(GuardRefused):
        check((100_000 - fallen - 1, 0, 0), (100_000, 0, 0), percent=percent)


def test_a_refusal_names_value_and_limit() -> None:
    """A refusal names both numbers of each kind that fell too far, the version before, and the limit that is set.

    For too few records, it names their number and the limit.
    """
    with pytest.raises(GuardRefused) as few:
        check((12_345, 0, 0), None, least=20_000)
    assert str(few.value) == (
        "a.json: 12,345 usable records, fewer than ROLLING_MIN_RECORDS=20000 asks for; the old snapshots stay. Look at "
        "what the engine writes now, or lower ROLLING_MIN_RECORDS; --accept of run or trigger lets this input through "
        "once: rolling-optimizer run --accept"
    )
    with pytest.raises(GuardRefused) as fallen:
        check((3_000, 5, 1), (8_000, 5, 3), percent=12.5)
    assert str(fallen.value) == (
        "a.json: 3,000 usable records are 62.5 % fewer than the 8,000, 1 holdings are 66.67 % fewer than the 3 of "
        "version 6, and ROLLING_MAX_DROP_PERCENT=12.5 allows no more; the old snapshots stay. Look at what the engine "
        "writes now, or raise ROLLING_MAX_DROP_PERCENT; --accept of run or trigger lets this input through once: "
        "rolling-optimizer run --accept"
    )
