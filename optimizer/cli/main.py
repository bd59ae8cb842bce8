"""The `rolling-optimizer` command: the commands of `optimizer.cli.commands`, and those of the fleet.

Celery is imported by those that talk to it, and by no other.
"""

from __future__ import annotations

import time
from typing import Final

import click
from redis.exceptions import RedisError

from optimizer.cache.client import ping
from optimizer.celery.sender import CelerySender
from optimizer.cli.commands import accept_option, commands, describe, settings_or_usage_error, source_option
from optimizer.cli.dev.stack import demo as run_demo
from optimizer.cli.dev.stack import up as run_up
from optimizer.errors import CacheUnavailable, RunTimedOut
from optimizer.models import Report
from optimizer.storage.location import redact_url

__all__ = ["main"]

POLL_S: Final = 0.2


@commands.command()
@source_option
@click.option("--force", is_flag=True, help="Scan though nothing changed.")
@accept_option
@click.option("--wait", is_flag=True, help="Wait for the run to end, and print its report.")
@click.option("--timeout", default=600.0, show_default=True, metavar="S", help="How long to wait.")
def trigger(source: str | None, force: bool, accept: bool, wait: bool, timeout: float) -> None:
    """Send one run to the fleet."""
    from kombu.exceptions import OperationalError  # noqa: PLC0415

    settings = settings_or_usage_error(source)
    ping(settings.broker_url)  # Celery alone would try for a while, and then end with four tracebacks
    try:
        report = _send(settings.source, force=force, accept=accept, timeout_s=timeout if wait else None)
    except (OperationalError, RedisError, OSError, RuntimeError) as error:  # RuntimeError: lost while waiting
        raise CacheUnavailable(f"the broker {redact_url(settings.broker_url)} cannot be reached: {error}") from error
    if report is not None:
        click.echo(describe(report))
    elif wait:
        raise RunTimedOut(f"no result within {timeout:g} s; is a worker running on this broker? celery -A tasks status")


def _send(source: str, *, force: bool, accept: bool, timeout_s: float | None) -> Report | None:
    """Send the task, and wait for its report where there is a timeout; `None` where none came."""
    # Celery's settings are read on import: a bad one must be a usage error of this command, not of all.
    from optimizer.celery.results import read_result, report_of  # noqa: PLC0415
    from optimizer.celery.tasks import optimize_rolling_data  # noqa: PLC0415

    sent = optimize_rolling_data.apply_async(kwargs={"force": force, "accept": accept, "source": source})
    click.echo(f"sent as {sent.id}", err=True)
    if timeout_s is None:
        return None
    deadline = time.monotonic() + timeout_s
    while (report := report_of(read_result(sent.id))) is None and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return report


@commands.command()
def up() -> None:
    """Run Redis, worker, beat, Flower and web in the foreground until Ctrl-C."""
    run_up()


@commands.command()
def demo() -> None:
    """Show the whole line once: a sample file, real processes, the first scheduled run, what routers read."""
    started = time.monotonic()
    run_demo()
    click.echo(f"all stopped, after {time.monotonic() - started:.0f} s")


def main() -> None:
    """Entry point of the console script."""
    commands(prog_name="rolling-optimizer", obj=CelerySender())
