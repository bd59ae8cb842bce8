"""`rolling-optimizer status`: the published version and the last runs; with `--max-age` a health check."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import click
import msgspec

from optimizer.cli.options import settings_or_usage_error, source_option
from optimizer.cli.report import describe, describe_s
from optimizer.errors import SnapshotMissing
from optimizer.reader.diagnosis import diagnose
from optimizer.reader.reader import SnapshotReader
from optimizer.reader.results import InputTimes, State, describe_rejected, last_decided

__all__ = ["status"]

RUNS_SHOWN: Final = 5


@click.command()
@source_option
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.option("--max-age", type=float, metavar="S", help="Exit 1 if no run has made or confirmed it for S seconds.")
@click.option("--max-input-age", type=float, metavar="S", help="Exit 1 if the input is older than S seconds.")
def status(source: str | None, as_json: bool, max_age: float | None, max_input_age: float | None) -> None:
    """Show the current version, its age, the last runs, the last scan; with --max-age, a health check."""
    settings = settings_or_usage_error(source)
    if max_input_age is not None:
        settings = replace(settings, max_input_age_s=max_input_age)
    reader = SnapshotReader.from_settings(settings)
    facts = reader.facts()
    diagnosis = diagnose(facts)
    try:
        state = reader.manifest()
    except SnapshotMissing as error:
        raise SnapshotMissing(f"{diagnosis.sentence} Looked for: {error}") from None
    runs = list(facts.runs[:RUNS_SHOWN])
    last = last_decided(facts.runs)
    if last is not None and last.status == "failed" and last not in runs:
        runs.append(last)
    if all(run.status != "success" for run in runs):
        runs += reader.runs(1, status="success")
    times = InputTimes.of(facts.runs, runs)
    if as_json:
        figures = {**msgspec.to_builtins(state), "published_after_s": times.published_after_s}
        known = {"diagnosis": diagnosis, "processes": facts.processes, "runs": runs}
        click.echo(msgspec.json.encode({**figures, **known}))
    else:
        click.echo(diagnosis.sentence)
        for line in _lines(state, times):
            click.echo(line)
        for report in runs:
            click.echo(f"{report.timestamp} {describe(report)}")
    if max_age is not None and state.age_s > max_age:
        raise SnapshotMissing(
            f"the snapshot was last confirmed {state.age_s:.0f} s ago, more than {max_age:g} s. {diagnosis.sentence}"
        )
    if state.input_stale:
        raise SnapshotMissing(diagnosis.sentence)


def _lines(state: State, times: InputTimes) -> Iterator[str]:
    """What is to be known of a version."""
    yield f"version {state.version}, made {state.generated_at}, from {state.origin}"
    if times.published_after_s is not None:
        yield f"  published {describe_s(times.published_after_s)} after the input landed"
    if state.updates:
        hold = "1 update holds" if state.updates == 1 else f"{state.updates:,} updates hold"
        yield f"  {hold}, until a scan of an input that is written later"
    if state.restored_from is not None:
        yield f"  restored from version {state.restored_from}"
    if state.pinned is not None:
        yield f"  version {state.version} is {state.pinned.describe()}; unpin it with: rolling-optimizer unpin"
    yield from (f"  {line}" for line in describe_rejected(state.rejected))
