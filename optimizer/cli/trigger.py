"""`rolling-optimizer trigger`: one run by the workers."""

from __future__ import annotations

import time
from typing import Final

import click

from optimizer.cli.options import accept_option, settings_or_usage_error, source_option
from optimizer.cli.report import describe
from optimizer.errors import RunTimedOut
from optimizer.models import Report

__all__ = ["trigger"]

POLL_S: Final = 0.2


@click.command()
@source_option
@click.option("--force", is_flag=True, help="Scan though nothing changed.")
@accept_option
@click.option("--wait", is_flag=True, help="Wait for the run to end, and print its report.")
@click.option("--timeout", default=600.0, show_default=True, metavar="S", help="How long to wait.")
def trigger(source: str | None, force: bool, accept: bool, wait: bool, timeout: float) -> None:
    """Send one run to the fleet."""
    from optimizer.celery.sender import broker_answers  # noqa: PLC0415 - an extra

    source = settings_or_usage_error(source).source
    with broker_answers():
        run_id = _send(source, force=force, accept=accept)
        click.echo(f"sent as {run_id}", err=True)
        report = _wait_for(run_id, timeout) if wait else None
    if report is not None:
        click.echo(describe(report))
    elif wait:
        raise RunTimedOut(f"no result within {timeout:g} s; is a worker running on this broker? celery -A tasks status")


def _send(source: str, *, force: bool, accept: bool) -> str:
    """Send the task, and return the run's id."""
    # Celery's settings are read on import: a bad one is a usage error of this command, and not of every command.
    from optimizer.celery.tasks import optimize_rolling_data  # noqa: PLC0415

    sent = optimize_rolling_data.apply_async(kwargs={"force": force, "accept": accept, "source": source})
    return str(sent.id)


def _wait_for(run_id: str, timeout_s: float) -> Report | None:
    """Wait for the report of a run; `None` if none came in time."""
    from optimizer.celery.results import read_result, report_of  # noqa: PLC0415 - as above

    deadline = time.monotonic() + timeout_s
    while (report := report_of(read_result(run_id))) is None and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return report
