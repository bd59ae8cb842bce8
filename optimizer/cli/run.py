"""`rolling-optimizer run`: one run in this process, or one every so many seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from optimizer.cli.every import run_every
from optimizer.cli.options import (
    accept_option,
    every_or_usage_error,
    settings_or_usage_error,
    source_option,
    usage_errors,
)
from optimizer.cli.progress import progress_bar
from optimizer.cli.report import paint
from optimizer.config.settings import ENGINES
from optimizer.errors import RollingError
from optimizer.pipeline.run import failed_report, optimize
from optimizer.scan.engine import choose_engine

__all__ = ["run"]


@click.command()
@source_option
@click.option("--input", metavar="PATH|URL", help="The rolling file, or a pattern. [ROLLING_INPUT]")
@click.option("--output-dir", metavar="PATH|URL", help="Where snapshots are written. [ROLLING_OUTPUT_DIR]")
@click.option("--bots-dir", type=click.Path(path_type=Path), help="One JSON file a bot. [ROLLING_BOTS_DIR]")
@click.option("--top", "top_symbols_limit", type=int, help="Predictions to keep. [ROLLING_TOP_SYMBOLS_LIMIT]")
@click.option("--min-confidence", type=float, help="Lowest confidence to keep, 0 to 1. [ROLLING_MIN_CONFIDENCE]")
@click.option("--engine", type=click.Choice(ENGINES), help="How the file is scanned. [ROLLING_ENGINE]")
@click.option("--no-cache", is_flag=True, help="Write files only; Redis is not needed.")
@click.option("--force", is_flag=True, help="Scan even if nothing changed.")
@accept_option
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON, alone.")
@click.option("--every", type=float, metavar="S", help="Do one every S seconds, until SIGTERM or Ctrl-C.")
def run(
    *,
    no_cache: bool,
    force: bool,
    accept: bool,
    as_json: bool,
    every: float | None,
    **options: Any,
) -> None:
    """Make one run in this process; with --every, scheduled runs.

    --every makes runs of all sources, unless --source names one.
    """
    if every is not None:
        if force or accept:
            raise click.UsageError("--force and --accept are for one run, and --every makes many")
        sources = every_or_usage_error(every, **options)
        click.get_current_context().exit(run_every(sources, use_cache=not no_cache, as_json=as_json))
    settings = settings_or_usage_error(**options)
    with usage_errors():
        choose_engine(settings.engine)
    try:
        with progress_bar("scanning", shown=not as_json) as progress:
            report = optimize(settings, force=force, accept=accept, use_cache=not no_cache, progress=progress)
    except RollingError as error:
        if as_json:
            click.echo(msgspec.json.encode(failed_report(settings, error)))
        raise
    click.echo(msgspec.json.encode(report) if as_json else paint(report))
