"""`rolling-optimizer status`: version, workers, beat and last runs of all sources; once, repeatedly, or as a check.

Several sources are shown one after another. Problems are described by `reader/diagnosis.py`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

import click
import msgspec

from optimizer.cache.clocks import seconds_of
from optimizer.cli.options import sources_or_usage_error
from optimizer.cli.report import describe_s, paint
from optimizer.errors import SnapshotMissing
from optimizer.log import printable
from optimizer.models import Process, Report
from optimizer.reader.diagnosis import Diagnosis, Facts, describe_age, describe_time, diagnose
from optimizer.reader.reader import SnapshotReader
from optimizer.reader.reports import describe_rejected, last_decided, published_after_s
from optimizer.reader.results import State

__all__ = ["status"]

RUNS_SHOWN: Final = 5
WATCH_S: Final = 2.0
_COLOURS: Final = {"ok": "green", "warning": "yellow", "bad": "red"}


@click.command()
@click.option("--source", metavar="NAME", help="Only this one of several sources. [ROLLING_SOURCES]")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.option("--watch", "is_watch", is_flag=True, help="Show it again every 2 s, until Ctrl-C.")
@click.option("--max-age", type=float, metavar="S", help="Exit 1 if no run has made or confirmed it for S seconds.")
@click.option("--max-input-age", type=float, metavar="S", help="The same for an older input. [ROLLING_MAX_INPUT_AGE_S]")
def status(
    source: str | None, as_json: bool, is_watch: bool, max_age: float | None, max_input_age: float | None
) -> None:
    """Show version, age, workers and last runs of all sources.

    With --max-age or --max-input-age it is a health check.
    """
    if is_watch and max_age is not None:
        raise click.UsageError("--watch does not end, and --max-age decides the exit status")
    every = sources_or_usage_error(source)
    look_at = _Look.of
    if max_input_age is not None:
        every = [replace(settings, max_input_age_s=max_input_age) for settings in every]
        look_at = partial(_Look.of, max_input_age_name="--max-input-age")
    with ExitStack() as opened:
        readers = [opened.enter_context(closing(SnapshotReader.from_settings(settings))) for settings in every]
        if is_watch:
            _watch(lambda: [look_at(reader) for reader in readers], as_json=as_json)
            return
        looks = [look_at(reader) for reader in readers]
    click.echo(_as_json(looks) if as_json else "\n".join(_text(looks)))
    problems = [
        f"source {look.facts.source}: {problem}" if len(looks) > 1 else problem
        for look in looks
        if (problem := look.problem(max_age))
    ]
    if problems:
        raise SnapshotMissing("; ".join(problems))


def _watch(look: Callable[[], Sequence[_Look]], *, as_json: bool) -> None:
    """Show all sources repeatedly until Ctrl-C, which is a normal end."""
    try:
        while True:
            looks = look()
            if as_json:
                click.echo(_as_json(looks))
            else:
                text = "\n".join(_text(looks))
                if sys.stdout.isatty():
                    click.clear()
                click.echo(f"every {WATCH_S:g} s, at {datetime.now(UTC):%H:%M:%S} UTC; end with Ctrl-C\n{text}\n")
            time.sleep(WATCH_S)
    except KeyboardInterrupt:
        return


@dataclass(frozen=True, slots=True)
class _Look:
    """The facts about a source at one moment. `missing` says why there is no version, and is empty if there is one."""

    facts: Facts
    missing: str
    runs: list[Report]

    @classmethod
    def of(cls, reader: SnapshotReader, *, max_input_age_name: str = "ROLLING_MAX_INPUT_AGE_S") -> _Look:
        """Collect the facts about a source."""
        facts = replace(reader.facts(), max_input_age_name=max_input_age_name)
        runs = list(facts.runs[:RUNS_SHOWN])
        last = last_decided(facts.runs)
        if last is not None and last.status == "failed" and last not in runs:
            runs.append(last)
        if all(run.status != "success" for run in runs):
            runs += reader.runs(1, status="success")
        missing = ""
        if facts.state is None:
            try:
                facts = replace(facts, state=reader.manifest())
            except SnapshotMissing as error:
                missing = str(error)
        return cls(facts, missing, runs)

    @property
    def diagnosis(self) -> Diagnosis:
        """The diagnosis of the source."""
        return diagnose(self.facts)

    @property
    def latency_s(self) -> float | None:
        """How soon the last input was published."""
        return published_after_s(self.facts.runs, self.runs)

    def problem(self, max_age_s: float | None) -> str:
        """Return why the source is not healthy; empty if it is."""
        state = self.facts.state
        if state is None:
            return f"{self.diagnosis.sentence} Looked for: {self.missing}"
        if max_age_s is not None and state.age_s > max_age_s:
            ago = f"the snapshot was last confirmed {state.age_s:.0f} s ago, more than {max_age_s:g} s."
            return f"{ago} {self.diagnosis.sentence}"
        if not state.input_stale:
            return ""
        if self.diagnosis.code == "input_old":
            return self.diagnosis.sentence
        limit_s = self.facts.max_input_age_s
        return f"the input is {state.input_age_s:.0f} s old, more than {limit_s:g} s. {self.diagnosis.sentence}"

    def figures(self) -> dict[str, Any]:
        """Return everything as values for JSON."""
        state: dict[str, Any] = {} if self.facts.state is None else msgspec.to_builtins(self.facts.state)
        known = {"diagnosis": self.diagnosis, "processes": self.facts.processes, "runs": self.runs}
        return {"source": self.facts.source, **state, "published_after_s": self.latency_s, **known}


def _as_json(looks: Sequence[_Look]) -> bytes:
    """Return one source as an object, several as a list of objects."""
    figures = [look.figures() for look in looks]
    return msgspec.json.encode(figures[0] if len(looks) == 1 else {"sources": figures})


def _text(looks: Sequence[_Look]) -> Iterator[str]:
    for number, look in enumerate(looks):
        if len(looks) > 1:
            yield f"{'' if number == 0 else chr(10)}source {look.facts.source}:"
        diagnosis, state = look.diagnosis, look.facts.state
        yield click.style(printable(diagnosis.sentence), fg=_COLOURS[diagnosis.level])
        if diagnosis.docs:
            yield f"  see docs/{diagnosis.docs}"
        if state is not None:
            yield from _version(state, look.latency_s)
        for process in look.facts.processes:
            yield _process(process, look.facts.now_s)
        for report in look.runs:
            yield f"{report.timestamp} {paint(report)}"


def _version(state: State, latency_s: float | None) -> Iterator[str]:
    """Describe a version."""
    yield f"version {state.version}, made {state.generated_at}, from {state.origin}"
    if latency_s is not None:
        yield f"  published {describe_s(latency_s)} after the input landed"
    if state.updates:
        hold = "1 update holds" if state.updates == 1 else f"{state.updates:,} updates hold"
        yield f"  {hold}, until a scan of an input that is written later"
    if state.restored_from is not None:
        yield f"  restored from version {state.restored_from}"
    if state.pinned is not None:
        pinned = printable(state.pinned.describe())
        yield f"  version {state.version} is {pinned}; unpin it with: rolling-optimizer unpin"
    yield from (f"  {line}" for line in describe_rejected(state.rejected))


def _process(process: Process, now_s: float) -> str:
    """Describe a worker or a beat: its queues, and its last heartbeat."""
    does = "takes" if process.kind == "worker" else "sends to"
    line = printable(f"{process.kind} {process.name} {does} {', '.join(process.queues) or 'no queue'}")
    if process.is_alive:
        return f"{line}, seen {describe_age(max(0.0, now_s - seconds_of(process.seen_at)))} ago"
    return f"{line}, {click.style(f'silent since {describe_time(process.seen_at, now_s)}', fg='red')}"
