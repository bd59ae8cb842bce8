"""The age of a confirmation when the clocks of hosts differ."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import optimizer.cache.clocks
from optimizer.cache.clocks import FUTURE_TOLERANCE_S, Sightings, elapsed_s, seconds_of, text_of

STALE_AFTER_S = 90.0
EPOCH_S = 1_795_000_000.0

SKEWS = st.one_of(st.sampled_from([0.0, 4.0, 6.0, 120.0, -120.0, 86_400.0, -86_400.0]), st.floats(-1e6, 1e6))
# Each event: seconds pass, and then a run confirms the version, or the reader reads it.
EVENTS = st.lists(st.tuples(st.floats(0.1, 60.0), st.sampled_from(["confirm", "look"])), min_size=1, max_size=20)


class Place:
    """A pointer or files that runs confirm, and a reader of them; each of the two has a clock of its own."""

    def __init__(self, skew_s: float, *, same_clock: bool) -> None:
        self._skew_s = skew_s  # how far the clock of the runs that confirm is ahead of the reader's
        self._same_clock = same_clock
        self._sightings = Sightings(STALE_AFTER_S)
        self.now_s = 1_000.0  # the true time
        self.confirmed_s = self.now_s

    def confirm(self) -> None:
        """Confirm the version, as a run does."""
        self.confirmed_s = self.now_s

    def look(self) -> float:
        """Return the age of the confirmation as the reader computes it."""
        ahead_s = 0.0 if self._same_clock else self._skew_s
        shown_s, now_s = EPOCH_S + self.confirmed_s + ahead_s, EPOCH_S + self.now_s
        clock = SimpleNamespace(monotonic=lambda: self.now_s)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(optimizer.cache.clocks, "time", clock)
            return self.now_s - self._sightings.since_s(1, shown_s, now_s, same_clock=self._same_clock)


@given(skew_s=SKEWS, events=EVENTS)
def test_an_age_is_right_to_a_look_once_a_confirmation_was_seen_to_come(
    skew_s: float, events: list[tuple[float, str]]
) -> None:
    """Once the reader has seen a new confirmation appear, an age is wrong by at most the time between two of its looks.

    This holds whatever the clocks say: otherwise fresh data could look stale for ever, or a dead fleet alive.
    """
    place = Place(skew_s, same_clock=False)
    place.look()
    looked_s, error_s, before_s = place.now_s, None, place.confirmed_s
    for seconds, event in events:
        place.now_s += seconds
        if event == "confirm":
            place.confirm()
            continue
        age_s = place.look()
        if place.confirmed_s != before_s:
            before_s, error_s = place.confirmed_s, place.now_s - looked_s
        looked_s = place.now_s
        assert age_s >= 0
        if error_s is not None:
            assert abs(age_s - (place.now_s - place.confirmed_s)) <= error_s + 1e-3


@given(skew_s=SKEWS, events=EVENTS)
def test_an_age_by_one_clock_is_right(skew_s: float, events: list[tuple[float, str]]) -> None:
    """If reader and confirmation use the same clock, each age is right from the first look on."""
    place = Place(skew_s, same_clock=True)
    for seconds, event in events:
        place.now_s += seconds
        if event == "confirm":
            place.confirm()
        else:
            assert abs(place.look() - (place.now_s - place.confirmed_s)) < 1e-3


@given(skew_s=SKEWS, seconds=st.floats(0, 1e5))
def test_at_first_sight_the_clocks_have_to_be_believed(skew_s: float, seconds: float) -> None:
    """The first age trusts both clocks, but a confirmation in the future is stale until the next confirmation.

    If it were trusted, the data would look fresh until that future time.
    """
    place = Place(skew_s, same_clock=False)
    place.now_s += seconds
    age_s = place.look()
    if skew_s - seconds > FUTURE_TOLERANCE_S + 1e-3:
        assert age_s > STALE_AFTER_S
    elif skew_s - seconds < FUTURE_TOLERANCE_S - 1e-3:
        assert age_s == pytest.approx(max(0.0, seconds - skew_s), abs=1e-3)
    place.now_s += 7
    assert place.look() == pytest.approx(age_s + 7)
    place.confirm()
    place.now_s += 1
    assert place.look() <= 1.001


def test_a_time_as_text_is_that_time() -> None:
    """A time as text is in UTC, exact to the millisecond, and in the years 1 to 9999; any UTC offset is read."""
    now_s = time.time()
    assert seconds_of(text_of(now_s)) == pytest.approx(now_s, abs=1e-3)
    assert text_of(0) == "1970-01-01T00:00:00.000Z"
    assert seconds_of("1970-01-01T01:00:00+01:00") == 0
    assert text_of(-1e15) == "0001-01-01T00:00:00.000Z"
    assert text_of(1e15) == "9999-12-31T23:59:59.000Z"


@given(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9))
def test_a_time_between_two_clocks_is_never_negative(since_s: float, until_s: float) -> None:
    """The time between two clocks is right to a millisecond, 0 if it would be negative, and `None` without a start."""
    elapsed = elapsed_s(since_s, until_s)
    assert elapsed is not None
    assert elapsed == pytest.approx(max(0.0, until_s - since_s), abs=0.0006)
    assert elapsed == round(elapsed, 3)
    assert elapsed_s(None, until_s) is None
