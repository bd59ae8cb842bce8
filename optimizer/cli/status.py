"""`rolling-optimizer status`: the published version and the last runs; with `--max-age` a health check."""

from __future__ import annotations

from typing import Final

import click
import msgspec

from optimizer.cli.options import settings_or_usage_error, source_option
from optimizer.cli.report import describe, describe_s
from optimizer.errors import SnapshotMissing
from optimizer.reader.reader import SnapshotReader
from optimizer.reader.results import InputTimes, describe_rejected, last_decided

__all__ = ["status"]

RUNS_SHOWN: Final = 5
RUNS_READ: Final = 100  # among which the last run that was not skipped is searched


@click.command()
@source_option
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.option("--max-age", type=float, metavar="S", help="Exit 1 if no run has made or confirmed it for S seconds.")
def status(source: str | None, as_json: bool, max_age: float | None) -> None:
    """Show the current version, its age, the last runs, the last scan; with --max-age, a health check."""
    reader = SnapshotReader.from_settings(settings_or_usage_error(source))
    state = reader.manifest()
    recent = reader.runs(RUNS_READ)
    runs = recent[:RUNS_SHOWN]
    last = last_decided(recent)
    failure = last if last is not None and last.status == "failed" else None
    if failure is not None and failure not in runs:
        runs.append(failure)
    if all(run.status != "success" for run in runs):
        runs += reader.runs(1, status="success")
    times = InputTimes.of(recent, runs)
    if as_json:
        figures = msgspec.to_builtins(state) | msgspec.to_builtins(times)
        click.echo(msgspec.json.encode({**figures, "runs": runs}))
    else:
        click.echo(
            f"version {state.version}, made {state.generated_at}, confirmed {state.age_s:.0f} s ago, "
            f"from {state.origin}"
        )
        if times.input_age_s is not None:
            click.echo(f"  input written {describe_s(times.input_age_s)} ago")
        if times.published_after_s is not None:
            click.echo(f"  published {describe_s(times.published_after_s)} after the input landed")
        if state.updates:
            hold = "1 update holds" if state.updates == 1 else f"{state.updates:,} updates hold"
            click.echo(f"  {hold}, until a scan of an input that is written later")
        if state.restored_from is not None:
            click.echo(f"  restored from version {state.restored_from}")
        if state.pinned is not None:
            click.echo(
                f"  version {state.version} is {state.pinned.describe()}; unpin it with: rolling-optimizer unpin"
            )
        for line in describe_rejected(state.rejected):
            click.echo(f"  {line}")
        for report in runs:
            click.echo(f"{report.timestamp} {describe(report)}")
    if max_age is not None and state.age_s > max_age:
        cause = "is the worker running, and is beat?" if failure is None else f"the last run {describe(failure)}."
        raise SnapshotMissing(
            f"the snapshot was last confirmed {state.age_s:.0f} s ago, more than {max_age:g} s: {cause} "
            "The last runs are shown by: rolling-optimizer status"
        )
