"""`rolling-optimizer sample`: a made-up rolling file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from optimizer.cli.dev.sample import SHAPES, write_sample
from optimizer.cli.progress import progress_bar
from optimizer.storage.durable import shown_path

__all__ = ["sample"]


@click.command()
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--symbols", default=2000, show_default=True, type=click.IntRange(0), help="Number of records.")
@click.option("--points", default=240, show_default=True, type=click.IntRange(0), help="History objects in a record.")
@click.option("--bots", default=12, show_default=True, type=click.IntRange(0), help="Number of bots.")
@click.option("--shape", default="map", show_default=True, type=click.Choice(SHAPES), help="How records are laid out.")
@click.option("--seed", default=1, show_default=True, help="The same seed gives the same file.")
@click.option("--indent", is_flag=True, help="Pretty-print.")
@click.option("--lean", is_flag=True, help="Records of about 1.1 KB besides their history, not 3.5 KB.")
@click.option("--nan", is_flag=True, help="NaN and -Infinity for target and stop, as Python writes them.")
@click.option("--force", is_flag=True, help="Replace PATH if it exists.")
def sample(path: Path, *, force: bool, **options: Any) -> None:
    """Write a made-up rolling file, as a prediction engine does.

    It is gzipped if PATH ends in .gz.
    """
    if not force and path.exists():
        raise click.ClickException(f"{path} exists: choose another path, or replace it with --force")
    try:
        with progress_bar("writing") as progress:
            json_bytes = write_sample(path, progress=progress, **options)
    except OSError as error:
        raise click.ClickException(f"{shown_path(error.filename or path)}: {error.strerror or error}") from error
    click.echo(f"{path}: {json_bytes / 1e6:,.1f} MB of JSON, {path.stat().st_size / 1e6:,.1f} MB on disk")
