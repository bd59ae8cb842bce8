"""`rolling-optimizer web`: the snapshots and the dashboard over HTTP."""

from __future__ import annotations

import os

import click

from optimizer.celery.sender import CelerySender
from optimizer.cli.options import usage_errors
from optimizer.config.settings import Settings

__all__ = ["web"]


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65_535), help="0 for one that is free.")
def web(host: str, port: int) -> None:
    """Serve the snapshots and the dashboard over HTTP, until Ctrl-C: of each source at /sources/NAME/."""
    try:
        from optimizer.web.serve import serve  # noqa: PLC0415 - FastAPI is an extra, and takes half a second
    except ModuleNotFoundError as error:
        raise click.UsageError(f"no {error.name} here; pip install 'rolling-optimizer[web]'") from error
    with usage_errors():
        every = Settings.every_from_env(os.environ, strict=True)
    try:
        serve(every, host=host, port=port, trigger=CelerySender(), started=click.echo)
    except OSError as error:
        raise click.ClickException(f"{host}:{port}: {error.strerror or error}") from error
