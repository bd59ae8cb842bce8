"""`rolling-optimizer inspect`: shows the content of an input, and the settings under which a run reads it."""

from __future__ import annotations

import click
import msgspec

from optimizer.cli.inspection.inspect import inspect_input
from optimizer.cli.inspection.text import describe
from optimizer.cli.options import settings_or_usage_error, source_option

__all__ = ["inspect"]


@click.command()
@source_option
@click.argument("file", metavar="[PATH|URL]", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def inspect(source: str | None, file: str | None, as_json: bool) -> None:
    """Show what a file holds, and what to set so that a run reads it.

    It reads the first thousand records.

    PATH|URL is a rolling file, or a pattern, as for `run --input`. [ROLLING_INPUT]
    """
    inspection = inspect_input(settings_or_usage_error(source, input=file))
    click.echo(msgspec.json.encode(inspection) if as_json else "\n".join(describe(inspection)))
