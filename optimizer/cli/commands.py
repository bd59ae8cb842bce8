"""The `rolling-optimizer` command, a group of commands.

Exit status: 0 for success, unchanged and skipped; 1 for a run that failed or a snapshot that is too old, with one line
on stderr that says what, where and what to do; 2 for wrong usage, and for a command whose extra is not installed; 130
for Ctrl-C.

Only commands that communicate with the workers import Celery, which takes 8 MB and 0.3 s.
"""

from __future__ import annotations

import os
from typing import Any, Final

import click

from optimizer.cli import INTERRUPTED
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

__all__ = ["commands"]

SUMMARY_LENGTH: Final = 200


class _CommandGroup(click.Group):
    """A group whose commands end with one line on stderr, without a traceback, on Ctrl-C or a `RollingError`."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; exit with 1 on a `RollingError`, 2 if its extra is not installed, and 130 on Ctrl-C."""
        as_json = logs_json(os.environ)
        log_to_stderr(as_json=as_json)
        try:
            return super().invoke(ctx)
        except RollingError as error:
            error.args = (describe_error(error),)
            line = error_line("rolling-optimizer", error, as_json=as_json)
            if not as_json:
                name = type(error).__name__
                line = line.replace(name, click.style(name, fg="red", bold=True), 1)
            click.echo(line, err=True)
            ctx.exit(2 if isinstance(error, ExtraMissing) else 1)
        except KeyboardInterrupt:
            click.echo("rolling-optimizer: interrupted", err=True)
            ctx.exit(INTERRUPTED)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands; summaries are wrapped in a narrow terminal, not cut."""
        rows = [(name, self.commands[name].get_short_help_str(SUMMARY_LENGTH)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group(
    "rolling-optimizer",
    cls=_CommandGroup,
    commands=[run, inspect, sample, bench, status, versions, rollback, unpin, config, web, trigger, watch, up, demo],
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="rolling-optimizer", message="%(prog)s %(version)s")
def commands() -> None:
    """Small, fresh snapshots from one big rolling file."""
