"""The diagnosis of a source: the one cause that explains most of the facts about it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.cache.clocks import FUTURE_TOLERANCE_S, seconds_of, text_of
from optimizer.models import Process, Report
from optimizer.reader.diagnosis import UNSEEN, Facts, describe_age, diagnose
from optimizer.reader.results import State

NOW: Final = "2026-11-27T20:59:21.000Z"
NOW_S: Final = seconds_of(NOW)


def ago(seconds: float) -> str:
    """The time so many seconds before now."""
    return text_of(NOW_S - seconds)


def a_state(age_s: float = 5.0, input_age_s: float | None = 6.0, **members: Any) -> State:
    """The state of a version that was confirmed, and whose input was written, so many seconds ago."""
    values: dict[str, Any] = {
        "version": 7,
        "generated_at": ago(age_s),
        "checked_at": ago(age_s),
        "origin": "redis",
        "age_s": age_s,
        "stale": age_s > 90,
        "input_at": None if input_age_s is None else ago(input_age_s),
        "input_age_s": input_age_s,
    }
    return State(**(values | members))


def failed(seconds: float, details: str = "brain.json.gz not found", *, error: str = "SourceMissing") -> Report:
    """The report of a run that failed so many seconds ago."""
    return Report("failed", "brain", ago(seconds), error=error, details=details)


def done(seconds: float) -> Report:
    """The report of a run that found no change so many seconds ago."""
    return Report("unchanged", "brain", ago(seconds), version=7)


def skipped(seconds: float) -> Report:
    """The report of a run that was skipped so many seconds ago."""
    return Report("skipped", "brain", ago(seconds), reason="already_running")


def a_worker(seconds: float = 1.0, *queues: str, is_alive: bool = True) -> Process:
    """A worker whose last heartbeat was so many seconds ago."""
    return Process("worker", "celery@host", ago(seconds), is_alive, list(queues) or ["rolling.brain"])


def a_beat(seconds: float = 1.0, *, is_alive: bool = True) -> Process:
    """A beat whose last heartbeat was so many seconds ago."""
    return Process("beat", "host 1", ago(seconds), is_alive, ["rolling.brain"])


FINE: Final = Facts(
    source="brain",
    interval_s=30.0,
    stale_after_s=90.0,
    redis_up=True,
    state=a_state(),
    runs=[done(5)],
    processes=[a_worker(), a_beat()],
    now_s=NOW_S,
)
STALE: Final = a_state(1_200, 1_201)
OLD_RUNS: Final = [done(1_200)]
FRESH: Final = "Checked 5 s ago; data from 20:59:15 UTC (6 s ago)."
DATA: Final = "Showing data from 20:39:20 UTC."

CASES: Final[dict[str, tuple[dict[str, Any], str, str, str]]] = {
    "nothing is wrong": ({}, "ok", "ok", FRESH),
    "the input's place says no time": ({"state": a_state(5, None)}, "ok", "ok", "Checked 5 s ago."),
    "Redis is away": (
        {"redis_up": False, "runs": [], "processes": []},
        "redis_away",
        "warning",
        (
            "Redis does not answer this process, whose log says why. Showing data from 20:59:15 UTC. "
            "Start Redis, or correct ROLLING_REDIS_URL."
        ),
    ),
    "Redis is away, of which runs that are remembered say nothing": (
        {"state": STALE, "redis_up": False, "runs": [failed(5)], "processes": []},
        "redis_away",
        "bad",
        (f"Redis does not answer this process, whose log says why. {DATA} Start Redis, or correct ROLLING_REDIS_URL."),
    ),
    "Redis was slow once": ({"redis_is_slow": True, "runs": [], "processes": []}, "ok", "ok", FRESH),
    "Redis is slow while nothing new is shown": (
        {"state": STALE, "redis_is_slow": True, "runs": [], "processes": []},
        "redis_away",
        "bad",
        (
            f"Redis has not answered in time, so why nothing new is shown is not known. {DATA} "
            "Ask again; if it stays so, see what keeps Redis or this host busy."
        ),
    ),
    "one run has failed": (
        {"runs": [failed(3), done(33)]},
        "runs_fail",
        "warning",
        (
            "The run at 20:59:18 UTC has failed: SourceMissing, brain.json.gz not found. "
            "Showing data from 20:59:15 UTC. What SourceMissing means, and what to do, is in the documentation."
        ),
    ),
    "a run has succeeded that has not reported yet": (
        {"runs": [failed(6), failed(36)]},
        "ok",
        "ok",
        "Checked 5 s ago; data from 20:59:15 UTC (6 s ago).",
    ),
    "every run fails": (
        {"state": STALE, "runs": [failed(3), skipped(4), failed(33), failed(63), done(93)]},
        "runs_fail",
        "bad",
        (
            f"Every run since 20:58:18 UTC has failed: SourceMissing, brain.json.gz not found. {DATA} "
            "What SourceMissing means, and what to do, is in the documentation."
        ),
    ),
    "every run fails from the first on": (
        {"state": None, "runs": [failed(3), failed(33)]},
        "runs_fail",
        "bad",
        (
            "Every run since 20:58:48 UTC has failed: SourceMissing, brain.json.gz not found. "
            "There is no version to show. What SourceMissing means, and what to do, is in the documentation."
        ),
    ),
    "every run that is in the list fails, and the first ones are not": (
        {"state": STALE, "runs": [failed(3), failed(33)]},
        "runs_fail",
        "bad",
        (
            f"Every run since 20:39:21 UTC has failed: SourceMissing, brain.json.gz not found. {DATA} "
            "What SourceMissing means, and what to do, is in the documentation."
        ),
    ),
    "runs fail by several errors": (
        {"state": STALE, "runs": [failed(3), failed(33, error="SourceTorn"), done(63)]},
        "runs_fail",
        "bad",
        (
            f"Every run since 20:58:48 UTC has failed, the last one by SourceMissing, brain.json.gz not found. {DATA} "
            "What SourceMissing means, and what to do, is in the documentation."
        ),
    ),
    "the error asks": (
        {"runs": [failed(3, "it ends early; is it still being written?"), done(33)]},
        "runs_fail",
        "warning",
        (
            "The run at 20:59:18 UTC has failed: SourceMissing, it ends early; is it still being written? "
            "Showing data from 20:59:15 UTC. What SourceMissing means, and what to do, is in the documentation."
        ),
    ),
    "the last run failed, and then the worker died": (
        {"state": STALE, "runs": [failed(1_100)], "processes": [a_beat(), a_worker(1_050, is_alive=False)]},
        "no_worker",
        "bad",
        (
            f"No worker has taken the queue rolling.brain since 20:41:51 UTC. {DATA} Start one, and see the log of the "
            "last."
        ),
    ),
    "no worker was ever there": (
        {"state": None, "runs": [], "processes": [a_beat()]},
        "no_worker",
        "bad",
        f"No worker takes the queue rolling.brain. There is no version to show. Start one. {UNSEEN}",
    ),
    "neither was ever there, or both are of an older release": (
        {"state": STALE, "runs": OLD_RUNS, "processes": []},
        "no_worker",
        "bad",
        f"No worker takes the queue rolling.brain. No beat sends runs. {DATA} Start one. {UNSEEN}",
    ),
    "beat is gone, and the workers are of an older release": (
        {"state": STALE, "runs": OLD_RUNS, "processes": [a_beat(1_101, is_alive=False)]},
        "no_worker",
        "bad",
        (
            f"No worker takes the queue rolling.brain. Beat has sent nothing since 20:41:00 UTC. {DATA} "
            f"Start one. {UNSEEN}"
        ),
    ),
    "a run hangs, and the workers and the beat are of an older release": (
        {"state": STALE, "runs": [skipped(3), skipped(33), done(1_200)], "processes": []},
        "runs_skipped",
        "bad",
        (
            f"Every run since 20:58:48 UTC was skipped: already_running. {DATA} "
            "If one run hangs, end it in Flower, or restart its worker."
        ),
    ),
    "the worker takes other queues": (
        {"state": STALE, "runs": OLD_RUNS, "processes": [a_worker(1, "celery", "rolling.scan"), a_beat()]},
        "no_worker",
        "bad",
        (
            f"No worker takes the queue rolling.brain; those that run take celery, rolling.scan. {DATA} "
            "Start one, and see the log of the last."
        ),
    ),
    "beat is gone": (
        {"state": STALE, "runs": OLD_RUNS, "processes": [a_worker(), a_beat(1_101, is_alive=False)]},
        "no_beat",
        "bad",
        f"Beat has sent nothing since 20:41:00 UTC. {DATA} Start it, and see the log of the last.",
    ),
    "beat was never there": (
        {"state": STALE, "runs": OLD_RUNS, "processes": [a_worker()]},
        "no_beat",
        "bad",
        f"No beat sends runs. {DATA} Start one. {UNSEEN}",
    ),
    "one run hangs": (
        {"state": STALE, "runs": [skipped(3), skipped(33), skipped(63), done(1_200)]},
        "runs_skipped",
        "bad",
        (
            f"Every run since 20:58:18 UTC was skipped: already_running. {DATA} "
            "If one run hangs, end it in Flower, or restart its worker."
        ),
    ),
    "no run ends": (
        {"state": STALE, "runs": OLD_RUNS},
        "no_run",
        "bad",
        (
            f"Worker and beat run, but no run has ended since 20:39:21 UTC. {DATA} "
            "Are all slots of the worker busy, or does a run hang? See Flower."
        ),
    ),
    "runs were skipped, and then none ended": (
        {"state": STALE, "runs": [skipped(600), done(1_200)]},
        "no_run",
        "bad",
        (
            f"Worker and beat run, but no run has ended since 20:49:21 UTC. {DATA} "
            "Are all slots of the worker busy, or does a run hang? See Flower."
        ),
    ),
    "the first run is on": (
        {"state": None, "runs": []},
        "no_version",
        "bad",
        (
            "Worker and beat run, and no run has ended yet. There is no version to show. "
            "The first one ends within two intervals; else see the worker's log."
        ),
    ),
    "the clock of a worker is ahead": (
        {"state": a_state(1_200, 1_201, checked_at=ago(-3_600))},
        "clock_ahead",
        "bad",
        (
            f"The last check is said to have been at 21:59:21 UTC, in the future. {DATA} "
            "Set the clocks of the workers, and of this host, by NTP."
        ),
    ),
    "the engine is silent": (
        {"state": a_state(5, 900, input_stale=True), "max_input_age_s": 600.0},
        "input_old",
        "bad",
        (
            "The engine has been silent since 20:44:21 UTC: the input is 15 min old, more than "
            "ROLLING_MAX_INPUT_AGE_S=600. See why the engine no longer writes it."
        ),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_cause_that_explains_most(case: str) -> None:
    """Each case has the cause that explains most of its facts, in the words that page, probes and command show."""
    changes, code, level, sentence = CASES[case]
    diagnosis = diagnose(replace(FINE, **changes))

    assert (diagnosis.code, diagnosis.level) == (code, level)
    assert diagnosis.sentence == sentence
    assert bool(diagnosis.docs) == (code != "ok")


def test_the_queue_is_the_one_that_beat_sends_to() -> None:
    """A worker has to take the queue that beat sends to, since another team's app may route runs elsewhere."""
    beat = Process("beat", "host 1", ago(1), is_alive=True, queues=["dashboards"])
    stale = replace(FINE, state=STALE, runs=OLD_RUNS)

    assert diagnose(replace(stale, processes=[a_worker(1, "dashboards"), beat])).code == "no_run"
    assert "the queue dashboards;" in diagnose(replace(stale, processes=[a_worker(), beat])).text


def test_clocks_may_differ_a_little() -> None:
    """A check that seems to be `FUTURE_TOLERANCE_S` in the future is no reason to set clocks."""
    state = a_state(1_200, checked_at=ago(-FUTURE_TOLERANCE_S))
    assert diagnose(replace(FINE, state=state)).code == "no_run"


def test_a_time_of_another_day_has_its_date() -> None:
    """A time of another day is shown with its date: at three in the morning "20:41" may be of any day."""
    dead = a_beat(86_400 + 1_101, is_alive=False)
    diagnosis = diagnose(replace(FINE, state=STALE, runs=[], processes=[a_worker(), dead]))
    assert diagnosis.text.startswith("Beat has sent nothing since 2026-11-26 20:41:00 UTC. ")


REPORTS = st.lists(st.builds(lambda make, s: make(s), st.sampled_from([failed, done, skipped]), st.floats(0, 5_000)))
PROCESSES = st.lists(
    st.builds(
        Process,
        st.sampled_from(["worker", "beat"]),
        st.sampled_from(["a", "b"]),
        st.floats(0, 5_000).map(ago),
        st.booleans(),
        st.lists(st.sampled_from(["rolling.brain", "celery"])),
    )
)


@given(
    age_s=st.none() | st.floats(0, 10_000),
    input_age_s=st.none() | st.floats(0, 10_000),
    max_input_age_s=st.sampled_from([0.0, 600.0]),
    redis_up=st.booleans(),
    runs=REPORTS,
    processes=PROCESSES,
)
def test_laws(
    *,
    age_s: float | None,
    input_age_s: float | None,
    max_input_age_s: float,
    redis_up: bool,
    runs: list[Report],
    processes: list[Process],
) -> None:
    """The level is `bad` if and only if the version is stale or missing, or the input is too old.

    Each cause says what to do and where it is explained.
    """
    is_old = input_age_s is not None and 0 < max_input_age_s < input_age_s
    state = None if age_s is None else a_state(age_s, input_age_s, input_stale=is_old)
    runs = sorted(runs, key=lambda run: run.timestamp, reverse=True)
    diagnosis = diagnose(
        replace(FINE, state=state, redis_up=redis_up, runs=runs, processes=processes, max_input_age_s=max_input_age_s)
    )
    is_stale = state is None or state.stale
    assert (diagnosis.level == "bad") == (is_stale or (diagnosis.code == "input_old"))
    if is_stale:
        assert diagnosis.code != "ok"
    if diagnosis.code != "ok":
        assert diagnosis.advice
        assert diagnosis.docs.endswith(diagnosis.code.replace("_", "-"))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (119, "119 s"), (900, "15 min"), (7_199, "120 min"), (10_800, "3 h"), (864_000, "10 days")],
)
def test_an_age_has_one_unit(seconds: float, text: str) -> None:
    """An age is written with one unit, so that people can read it at a glance."""
    assert describe_age(seconds) == text
