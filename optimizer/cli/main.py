"""The `rolling-optimizer` command, put together from its commands.

Exit status: 0 for success, unchanged and skipped; 1 for a run that failed or a snapshot that is too old, with one line
on stderr that says what, where and what to do; 2 for wrong usage, and for a command whose extra is not installed.

Only commands that talk to the workers import Celery, which takes 8 MB and 0.3 s.
"""

from __future__ import annotations

import os
from typing import Any

import click

from optimizer.cli.bench import bench
from optimizer.cli.config import config
from optimizer.cli.demo import demo
from optimizer.cli.inspect import inspect
from optimizer.cli.options import describe_error
from optimizer.cli.run import run
from optimizer.cli.sample import sample
from optimizer.cli.status import status
from optimizer.cli.trigger import trigger
from optimizer.cli.up import up
from optimizer.cli.versions import rollback, unpin, versions
from optimizer.cli.watch import watch
from optimizer.cli.web import web
from optimizer.config.settings import logs_json
from optimizer.errors import ExtraMissing, RollingError
from optimizer.log import error_line, log_to_stderr

__all__ = ["commands", "main"]


class _CommandGroup(click.Group):
    """A group whose commands end with one line on stderr, not with a traceback, on an error of this package."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; exit 1 on a `RollingError`, and 2 where it is not installed."""
        try:
            return super().invoke(ctx)
        except RollingError as error:
            error.args = (describe_error(error),)
            click.echo(error_line("rolling-optimizer", error, as_json=logs_json(os.environ)), err=True)
            ctx.exit(2 if isinstance(error, ExtraMissing) else 1)


commands = _CommandGroup(
    "rolling-optimizer",
    commands=[run, inspect, sample, bench, status, versions, rollback, unpin, config, web, trigger, watch, up, demo],
    help="Small, fresh snapshots from one big rolling file.",
)


def main() -> None:
    """Run the command that `sys.argv` names."""
    log_to_stderr(as_json=logs_json(os.environ))
    commands(prog_name="rolling-optimizer")
