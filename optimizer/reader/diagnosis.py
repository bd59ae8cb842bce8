"""One diagnosis of a source: what is wrong, since when, why, and what to do. Pure.

`diagnose` makes it from a reader's facts. The page, `/status`, `/readyz`, responses without a snapshot and
`rolling-optimizer status` all show it, so that an operator reads the same sentence everywhere.

The causes are checked in order of how much they explain. A Redis that is away hides all facts about the others; runs
that fail with a named error say more than an age; beats and workers are checked only if no run ends. A skipped run
proves that both exist, even if they are not listed: an older release sends no heartbeats.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import takewhile
from typing import TYPE_CHECKING, Final, Literal

from optimizer.cache.clocks import FUTURE_TOLERANCE_S, seconds_of
from optimizer.models import Process, Report, Value
from optimizer.reader.results import State

if TYPE_CHECKING:
    from optimizer.reader.follower import Follower

__all__ = ["UNSEEN", "Code", "Diagnosis", "Facts", "describe_age", "describe_time", "diagnose"]

Code = Literal[
    "ok",
    "redis_away",
    "runs_fail",
    "clock_ahead",
    "no_worker",
    "no_beat",
    "runs_skipped",
    "no_run",
    "no_version",
    "input_old",
]
PAGE: Final = "operations.md"
DAY_S: Final = 86_400
# How much longer a failure counts as the cause of a stale version, beyond the age at which runs are missed.
RECENT_S: Final = 60.0
UNSEEN: Final = (
    "One that runs but is not listed is of an older release, or its log says that it cannot tell that it lives."
)


class Diagnosis(Value, frozen=True):
    """What is wrong with a source, if anything is.

    `level` is `ok`; `warning` if something is wrong but the shown version is fresh; `bad` if it is stale or missing.
    `text` says what and why, `advice` what to do; both are whole sentences. `since` is the time at which it began, if
    that is known. `docs` is the entry in the documentation.
    """

    code: Code
    level: Literal["ok", "warning", "bad"]
    text: str
    advice: str = ""
    since: str | None = None
    docs: str = ""

    @property
    def sentence(self) -> str:
        """Text and advice."""
        return f"{self.text} {self.advice}".rstrip()


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """The facts that a reader has about a source.

    `state` is `None` without a version. `runs` and `processes` are sorted newest first, and empty while Redis is away,
    or if it has not answered in time (`redis_is_slow`). `max_input_age_name` is the setting by which the user set that
    limit.
    """

    source: str
    interval_s: float
    stale_after_s: float
    redis_up: bool
    redis_is_slow: bool = False
    max_input_age_s: float = 0.0
    max_input_age_name: str = "ROLLING_MAX_INPUT_AGE_S"
    state: State | None = None
    runs: Sequence[Report] = ()
    processes: Sequence[Process] = ()
    now_s: float = field(default_factory=time.time)

    @classmethod
    def of(
        cls,
        follower: Follower,
        *,
        redis_up: bool,
        redis_is_slow: bool = False,
        runs: Sequence[Report] = (),
        processes: Sequence[Process] = (),
    ) -> Facts:
        """Combine the state of a follower with the runs and processes from its Redis."""
        return cls(
            source=follower.source,
            interval_s=follower.interval_s,
            stale_after_s=follower.stale_after_s,
            redis_up=redis_up,
            redis_is_slow=redis_is_slow,
            max_input_age_s=follower.max_input_age_s,
            state=None if follower.cached is None else follower.state(),
            runs=runs,
            processes=processes,
        )

    @property
    def queue(self) -> str:
        """The queue to which runs are sent, as stated by the last beat, which knows the app's routes."""
        return next((beat.queues[0] for beat in self.of_kind("beat") if beat.queues), f"rolling.{self.source}")

    @property
    def workers(self) -> list[Process]:
        """The live workers that consume the queue."""
        return [each for each in self.of_kind("worker") if each.is_alive and self.queue in each.queues]

    @property
    def beats(self) -> list[Process]:
        """The live beats."""
        return [each for each in self.of_kind("beat") if each.is_alive]

    @property
    def decided(self) -> list[Report]:
        """The last runs, newest first, without the skipped ones."""
        return [run for run in self.runs if run.status != "skipped"]

    @property
    def failures(self) -> list[Report]:
        """The runs that failed since the last one that did not."""
        return list(takewhile(lambda run: run.status == "failed", self.decided))

    def of_kind(self, kind: Literal["worker", "beat"]) -> list[Process]:
        """Return all known workers or beats, the latest heartbeat first."""
        return [each for each in self.processes if each.kind == kind]

    @property
    def is_stale(self) -> bool:
        """Whether no run has made or confirmed the shown version for three intervals, or none is shown."""
        return self.state is None or self.state.stale


def diagnose(facts: Facts) -> Diagnosis:
    """Return the diagnosis of a source."""
    cause = _redis_away(facts) or _runs_fail(facts)
    if cause is None and facts.is_stale:
        cause = _clock_ahead(facts) or _runs_skipped(facts) or _no_worker(facts) or _no_beat(facts) or _no_run(facts)
    return cause or _input_old(facts) or Diagnosis("ok", "ok", _shown(facts))


def describe_time(text: str, now_s: float) -> str:
    """Format an ISO 8601 time to the second, in UTC, with the date unless it is today's."""
    at = datetime.fromisoformat(text).astimezone(UTC)
    is_today = at.date() == datetime.fromtimestamp(now_s, UTC).date()
    return f"{at:%H:%M:%S} UTC" if is_today else f"{at:%Y-%m-%d %H:%M:%S} UTC"


def describe_age(seconds: float) -> str:
    """Format a time span for people, in one unit: `5 s`, `15 min`, `3 h`, `2 days`."""
    for limit, unit_s, unit in ((120, 1, "s"), (7_200, 60, "min"), (2 * DAY_S, 3_600, "h")):
        if seconds < limit:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{seconds / DAY_S:,.0f} days"


def _shown(facts: Facts) -> str:
    """Describe the shown version and its age."""
    state = facts.state
    if state is None:
        return "There is no version to show."
    data = ""
    if state.input_at is not None and state.input_age_s is not None:
        data = f"; data from {describe_time(state.input_at, facts.now_s)} ({describe_age(state.input_age_s)} ago)"
    return f"Checked {describe_age(state.age_s)} ago{data}."


def _showing(facts: Facts) -> str:
    """Describe the version that is shown meanwhile."""
    state = facts.state
    if state is None:
        return "There is no version to show."
    return f"Showing data from {describe_time(state.input_at or state.generated_at, facts.now_s)}."


def _level(facts: Facts) -> Literal["warning", "bad"]:
    return "bad" if facts.is_stale else "warning"


def _cause(code: Code, facts: Facts, text: str, advice: str, since: str | None = None) -> Diagnosis:
    docs = f"{PAGE}#{code.replace('_', '-')}"
    return Diagnosis(code, _level(facts), f"{text} {_showing(facts)}", advice, since, docs)


def _redis_away(facts: Facts) -> Diagnosis | None:
    if facts.redis_up:
        if not (facts.redis_is_slow and facts.is_stale):
            return None
        text = "Redis has not answered in time, so why nothing new is shown is not known."
        return _cause("redis_away", facts, text, "Ask again; if it stays so, see what keeps Redis or this host busy.")
    # No address: clients read this too.
    text = "Redis does not answer this process, whose log says why."
    return _cause("redis_away", facts, text, "Start Redis, or correct ROLLING_REDIS_URL.")


def _runs_fail(facts: Facts) -> Diagnosis | None:
    failed = facts.failures
    if not failed or facts.now_s - seconds_of(failed[0].timestamp) > facts.stale_after_s + RECENT_S:
        return None  # no run has ended since: the reason for that comes first
    if facts.state and seconds_of(failed[0].timestamp) < seconds_of(facts.state.checked_at) <= facts.now_s:
        return None  # a run has succeeded since; its report is written after its version
    last, since = failed[0], failed[-1].timestamp
    if len(failed) > 1 and len(failed) == len(facts.decided) and facts.state is not None:
        since = min(since, facts.state.checked_at, key=seconds_of)  # earlier ones are no longer in the list
    at = describe_time(since, facts.now_s)
    which = f"The run at {at} has failed" if len(failed) == 1 else f"Every run since {at} has failed"
    by = ", the last one by" if any(run.error != last.error for run in failed) else ":"
    text = f"{which}{by} {last.error}, {_as_sentence(last.details or '')}"
    advice = f"What {last.error} means, and what to do, is in the documentation."
    return _cause("runs_fail", facts, text, advice, since)


def _as_sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else f"{text}."


def _clock_ahead(facts: Facts) -> Diagnosis | None:
    state = facts.state
    if state is None or seconds_of(state.checked_at) <= facts.now_s + FUTURE_TOLERANCE_S:
        return None
    text = f"The last check is said to have been at {describe_time(state.checked_at, facts.now_s)}, in the future."
    return _cause("clock_ahead", facts, text, "Set the clocks of the workers, and of this host, by NTP.")


def _no_worker(facts: Facts) -> Diagnosis | None:
    if facts.workers:
        return None
    queue, workers = facts.queue, facts.of_kind("worker")
    text = f"No worker takes the queue {queue}."
    since = next((worker.seen_at for worker in workers if queue in worker.queues), None)
    if since is not None:
        text = f"No worker has taken the queue {queue} since {describe_time(since, facts.now_s)}."
    others = sorted({name for worker in workers if worker.is_alive for name in worker.queues})
    if others:
        text = f"{text[:-1]}; those that run take {', '.join(others)}."
    if not facts.beats:
        text = f"{text} {_beat_silent(facts)}"
    advice = "Start one, and see the log of the last." if workers else f"Start one. {UNSEEN}"
    return _cause("no_worker", facts, text, advice, since)


def _no_beat(facts: Facts) -> Diagnosis | None:
    if facts.beats:
        return None
    since = next((beat.seen_at for beat in facts.of_kind("beat")), None)
    advice = f"Start one. {UNSEEN}" if since is None else "Start it, and see the log of the last."
    return _cause("no_beat", facts, _beat_silent(facts), advice, since)


def _beat_silent(facts: Facts) -> str:
    """Describe since when no beat has sent runs."""
    beats = facts.of_kind("beat")
    return (
        f"Beat has sent nothing since {describe_time(beats[0].seen_at, facts.now_s)}."
        if beats
        else "No beat sends runs."
    )


def _runs_skipped(facts: Facts) -> Diagnosis | None:
    skipped = list(takewhile(lambda run: run.status == "skipped", facts.runs))
    recent = [run for run in skipped if facts.now_s - seconds_of(run.timestamp) <= facts.stale_after_s]
    if not recent:
        return None
    since = skipped[-1].timestamp
    text = f"Every run since {describe_time(since, facts.now_s)} was skipped: {skipped[0].reason}."
    return _cause("runs_skipped", facts, text, "If one run hangs, end it in Flower, or restart its worker.", since)


def _no_run(facts: Facts) -> Diagnosis:
    if not facts.runs and facts.state is None:
        text = "Worker and beat run, and no run has ended yet."
        return _cause("no_version", facts, text, "The first one ends within two intervals; else see the worker's log.")
    since = facts.runs[0].timestamp if facts.runs else None
    when = "" if since is None else f" since {describe_time(since, facts.now_s)}"
    text = f"Worker and beat run, but no run has ended{when}."
    return _cause("no_run", facts, text, "Are all slots of the worker busy, or does a run hang? See Flower.", since)


def _input_old(facts: Facts) -> Diagnosis | None:
    state = facts.state
    if state is None or not state.input_stale or state.input_at is None or state.input_age_s is None:
        return None
    text = (
        f"The engine has been silent since {describe_time(state.input_at, facts.now_s)}: the input is "
        f"{describe_age(state.input_age_s)} old, more than {facts.max_input_age_name}={facts.max_input_age_s:g}."
    )
    docs = f"{PAGE}#input-old"
    return Diagnosis("input_old", "bad", text, "See why the engine no longer writes it.", state.input_at, docs)
