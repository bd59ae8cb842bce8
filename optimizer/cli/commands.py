"""The `rolling-optimizer` command, a group of commands.

Exit status: 0 for success, unchanged and skipped; 1 for a run that failed or a snapshot that is too old, with one line
on stderr that says what, where and what to do; 2 for wrong usage, and for a command whose extra is not installed; 130
for Ctrl-C.

A command's module is imported when the command is run or described: all of them take half a second, most of it for
redis. Only commands that communicate with the workers import Celery, which takes 8 MB and 0.3 s.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import click

from optimizer.cli import INTERRUPTED
from optimizer.errors import ExtraMissing, RollingError

__all__ = ["commands"]

SUMMARY_LENGTH: Final = 200
# The function has the command's name.
MODULES: Final = {
    "run": "optimizer.cli.run",
    "inspect": "optimizer.cli.inspect",
    "sample": "optimizer.cli.sample",
    "bench": "optimizer.cli.bench",
    "status": "optimizer.cli.status",
    "versions": "optimizer.cli.versions",
    "rollback": "optimizer.cli.versions",
    "unpin": "optimizer.cli.versions",
    "config": "optimizer.cli.config",
    "web": "optimizer.cli.web",
    "trigger": "optimizer.cli.trigger",
    "watch": "optimizer.cli.watch",
    "up": "optimizer.cli.up",
    "demo": "optimizer.cli.demo",
}


class _CommandGroup(click.Group):
    """A group whose commands end with one line on stderr, without a traceback, on Ctrl-C or a `RollingError`."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the names of all commands, without importing them."""
        return sorted(MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - as above
        """Import a command; return `None` if there is none of this name."""
        if cmd_name not in MODULES:
            return None
        command: click.Command = getattr(importlib.import_module(MODULES[cmd_name]), cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; exit with 1 on a `RollingError`, 2 if its extra is not installed, and 130 on Ctrl-C."""
        with _interruptible(ctx):
            # `--version` and the completion of a shell come before this, and need none of it.
            from optimizer.cli.options import describe_error  # noqa: PLC0415
            from optimizer.config.settings import logs_json  # noqa: PLC0415
            from optimizer.log import error_line, log_to_stderr  # noqa: PLC0415

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

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands; summaries are wrapped in a narrow terminal, not cut."""
        with _interruptible(ctx):
            every = [command for name in self.list_commands(ctx) if (command := self.get_command(ctx, name))]
        rows = [(str(command.name), command.get_short_help_str(SUMMARY_LENGTH)) for command in every]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@contextmanager
def _interruptible(ctx: click.Context) -> Iterator[None]:
    """End with one line and exit status 130 on Ctrl-C in the block."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo("rolling-optimizer: interrupted", err=True)
        ctx.exit(INTERRUPTED)


@click.group(
    "rolling-optimizer",
    cls=_CommandGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="rolling-optimizer", message="%(prog)s %(version)s")
def commands() -> None:
    """Small, fresh snapshots from one big rolling file."""
