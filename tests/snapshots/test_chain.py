"""The changes that lead from a version to the current one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.errors import ChangesMissing
from optimizer.snapshots.chain import chain, oldest_start
from optimizer.snapshots.delta import Change

NOW = "2026-11-01T10:00:00.000Z"


def a_change(version: int, before: int, since: int | None = None) -> Change:
    """Return a change of which only the versions matter."""
    return Change(version=version, before=before, since=before if since is None else since, timestamp=NOW)


# Versions 2 and 3 have the same content, and so have 5 and 6. The current version is 9: a slower process does not know
# versions 10 and 11 yet.
HELD = [a_change(2, 1), a_change(5, 3, since=2), a_change(9, 6, since=5), a_change(10, 9), a_change(11, 10)]


@pytest.mark.parametrize(
    ("since", "versions"), [(1, [2, 5, 9]), (2, [5, 9]), (3, [5, 9]), (5, [9]), (6, [9]), (9, []), (12, [])]
)
def test_a_chain_leads_from_a_version_to_the_current_one(since: int, versions: list[int]) -> None:
    """`chain` selects the changes after a version that lead to the current one.

    A version that changed nothing starts where its predecessor does; a version that is newer needs no change.
    """
    assert [change.version for change in chain(HELD, since, 9, 9)] == versions


@pytest.mark.parametrize("content_since", [7, None])
@pytest.mark.parametrize("since", [0, 4])
def test_a_version_that_is_in_no_change_is_too_old_or_unknown(since: int, content_since: int | None) -> None:
    """For a version that no change starts from, the error names the versions and the whole snapshot to take."""
    with pytest.raises(ChangesMissing, match=f"from version {since} to 9 are not held any more; .* of version 9"):
        chain(HELD, since, 9, content_since)


@pytest.mark.parametrize(
    ("content_since", "since", "versions"), [(5, 5, []), (5, 6, []), (5, 7, []), (5, 3, [5]), (5, 2, [5])]
)
def test_the_content_may_be_older_than_the_version(content_since: int, since: int, versions: list[int]) -> None:
    """Versions from `content_since` on have the current content and need no change, also if the stream lacks them."""
    assert [change.version for change in chain(HELD[:2], since, 8, content_since)] == versions


@pytest.mark.parametrize("gap", [0, 1, 2])
def test_a_gap_is_noticed_wherever_it_is(gap: int) -> None:
    """A missing change is an error at the start of a chain, between two changes, and at its end.

    At the end there is no later change that would not fit.
    """
    held = [change for place, change in enumerate(HELD) if place != gap]
    with pytest.raises(ChangesMissing):
        chain(held, 1, 9, 9)


def test_without_changes_only_the_current_content_is_reached() -> None:
    """If Redis has lost its stream of changes, `chain` leads only from versions with the current content."""
    assert chain([], 9, 9, None) == []
    assert chain([], 7, 9, 7) == []
    with pytest.raises(ChangesMissing):
        chain([], 6, 9, 7)


@st.composite
def chains(draw: st.DrawFn) -> tuple[list[Change], int, int]:
    """Generate changes that fit or do not, the current version, and the version since which its content is there."""
    versions = sorted(draw(st.sets(st.integers(2, 14), max_size=6)))
    changes = [
        a_change(version, before, draw(st.integers(0, before)))
        for version in versions
        for before in [draw(st.integers(1, version - 1))]
    ]
    current = draw(st.integers(1, 15))
    newest = max((version for version in versions if version <= current), default=1)
    return changes, current, draw(st.integers(newest, current))


@given(drawn=chains())
def test_the_oldest_start_is_the_oldest_version_that_a_change_leads_from(
    drawn: tuple[list[Change], int, int],
) -> None:
    """`oldest_start` gives the oldest version from which a change leads to the current one, as trying each finds."""
    changes, current, content_since = drawn

    def leads(since: int) -> bool:
        try:
            return bool(chain(changes, since, current, content_since))
        except ChangesMissing:
            return False

    assert oldest_start(changes, current, content_since) == next(filter(leads, range(current)), None)
