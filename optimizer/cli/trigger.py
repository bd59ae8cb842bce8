"""`rolling-optimizer trigger`: one run by the workers."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Final

import click

from optimizer.cli import INTERRUPTED
from optimizer.cli.options import accept_option, settings_or_usage_error, source_option
from optimizer.cli.progress import progress_bar
from optimizer.cli.report import paint
from optimizer.config.settings import Settings
from optimizer.errors import RunTimedOut
from optimizer.models import Report
from optimizer.reader.reader import SnapshotReader

if TYPE_CHECKING:
    from optimizer.celery.results import RunResult

__all__ = ["trigger"]

POLL_S: Final = 0.2
# A free worker begins at once; after this time, the command checks whether there is one.
LOOK_S: Final = 2.0


@click.command()
@source_option
@click.option("--force", is_flag=True, help="Scan even if nothing changed.")
@accept_option
@click.option("--wait", is_flag=True, help="Wait for the run to end, and print its report.")
@click.option(
    "--timeout",
    default=600.0,
    show_default=True,
    metavar="S",
    type=click.FloatRange(min=0, min_open=True),
    help="How long to wait. A run that no worker has begun by then is dropped.",
)
def trigger(source: str | None, force: bool, accept: bool, wait: bool, timeout: float) -> None:
    """Send one run to the workers.

    To the stand-alone workers; CelerySender(app) sends to a Celery app of your own.
    """
    settings = settings_or_usage_error(source)
    # Celery is an extra, and takes 0.3 s to import, so only this command imports it.
    from optimizer.celery.registration import registration_of  # noqa: PLC0415
    from optimizer.celery.run_states import run_states  # noqa: PLC0415
    from optimizer.celery.schedule import TASK_NAME, source_queue  # noqa: PLC0415
    from optimizer.celery.standalone import app  # noqa: PLC0415

    states = run_states(registration_of(app))
    queue = source_queue(settings.source)
    run_id = ""
    try:
        with states.sending():
            arguments = {"force": force, "accept": accept, "source": settings.source}
            run_id = app.tasks[TASK_NAME].apply_async(kwargs=arguments, expires=timeout if wait else None).id
            click.echo(f"sent as {run_id}", err=True)
            if not wait:
                return
            report = _wait_for(lambda: states.read(run_id), settings, queue, timeout)
    except KeyboardInterrupt:
        if not run_id:
            raise
        click.echo(f"rolling-optimizer: interrupted; the run {run_id} was sent, and is not ended", err=True)
        click.get_current_context().exit(INTERRUPTED)
    if report is None:
        raise RunTimedOut(
            f"no result within {timeout:g} s from {queue}; is a worker running on this broker? See: "
            "celery -A optimizer.celery.standalone status"
        )
    click.echo(paint(report))


def _wait_for(read: Callable[[], RunResult], settings: Settings, queue: str, timeout_s: float) -> Report | None:
    """Wait for the report of a run; return `None` if none came in time."""
    from optimizer.celery.results import report_of  # noqa: PLC0415 - as above

    began = time.monotonic()
    has_looked = False
    with progress_bar("waiting for the run") as progress:
        while (report := report_of(result := read())) is None and time.monotonic() < began + timeout_s:
            if progress is not None:
                progress(round(result.percent or 0), 100)
            if result.state == "pending" and not has_looked and time.monotonic() > began + LOOK_S:
                has_looked = True
                warning = _no_worker(settings, queue)
                if warning:
                    end = "" if progress is None else "\n"  # after the bar
                    click.echo(f"{end}{warning}; waiting up to {timeout_s:g} s for one", err=True)
            time.sleep(POLL_S)
        if progress is not None and report is not None:
            progress(100, 100)
    return report


def _no_worker(settings: Settings, queue: str) -> str:
    """Return a warning if it is known that no worker consumes the queue, so that waiting would be in vain."""
    with closing(SnapshotReader.from_settings(settings)) as reader:
        facts = reader.facts()
    workers = [each for each in facts.processes if each.kind == "worker" and each.is_alive]
    is_taken = any(queue in worker.queues for worker in workers)
    return f"no worker is seen to take the queue {queue}" if facts.redis_up and not is_taken else ""
