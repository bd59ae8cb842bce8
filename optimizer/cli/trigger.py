"""`rolling-optimizer trigger`: one run by the workers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import click

from optimizer.cli.options import accept_option, settings_or_usage_error, source_option
from optimizer.cli.report import describe
from optimizer.errors import RunTimedOut
from optimizer.models import Report

if TYPE_CHECKING:
    from optimizer.celery.run_states import RunStates

__all__ = ["trigger"]

POLL_S: Final = 0.2


@click.command()
@source_option
@click.option("--force", is_flag=True, help="Scan though nothing changed.")
@accept_option
@click.option("--wait", is_flag=True, help="Wait for the run to end, and print its report.")
@click.option("--timeout", default=600.0, show_default=True, metavar="S", help="How long to wait.")
def trigger(source: str | None, force: bool, accept: bool, wait: bool, timeout: float) -> None:
    """Send one run to the stand-alone workers; CelerySender(app) sends to a Celery app of your own."""
    source = settings_or_usage_error(source).source
    # An extra, which takes 0.3 s: it is imported by no other command.
    from optimizer.celery.queues import source_queue  # noqa: PLC0415
    from optimizer.celery.registration import registration_of  # noqa: PLC0415
    from optimizer.celery.run_states import run_states  # noqa: PLC0415
    from optimizer.celery.schedule import TASK_NAME  # noqa: PLC0415
    from optimizer.celery.standalone import app  # noqa: PLC0415

    states = run_states(registration_of(app))
    with states.sending():
        sent = app.tasks[TASK_NAME].apply_async(kwargs={"force": force, "accept": accept, "source": source})
        click.echo(f"sent as {sent.id}", err=True)
        report = _wait_for(states, sent.id, timeout) if wait else None
    if report is not None:
        click.echo(describe(report))
    elif wait:
        raise RunTimedOut(
            f"no result within {timeout:g} s from {source_queue(source)}; is a worker running on this broker? See: "
            "celery -A optimizer.celery.standalone status"
        )


def _wait_for(states: RunStates, run_id: str, timeout_s: float) -> Report | None:
    """Wait for the report of a run; `None` if none came in time."""
    from optimizer.celery.results import report_of  # noqa: PLC0415 - as above

    deadline = time.monotonic() + timeout_s
    while (report := report_of(states.read(run_id))) is None and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return report
