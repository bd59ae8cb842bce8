"""`rolling-optimizer web`: the snapshots and the dashboard over HTTP."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from optimizer.cli.options import environment, usage_errors
from optimizer.config.settings import Settings
from optimizer.log import log_runs

if TYPE_CHECKING:
    from optimizer.web.trigger import Trigger

__all__ = ["web"]


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65_535), help="0 for one that is free.")
def web(host: str, port: int) -> None:
    """Serve the snapshots and the dashboard over HTTP.

    Until Ctrl-C; of each source at /sources/NAME/.
    """
    from optimizer.web.serve import serve  # noqa: PLC0415 - an extra, and takes half a second

    with usage_errors():
        every = Settings.every_from_env(environment(), strict=True)
    log_runs()
    try:
        serve(every, host=host, port=port, trigger=_sender(every), started=click.echo)
    except OSError as error:
        is_taken = error.errno == errno.EADDRINUSE
        advice = "choose another --port, or 0 for one that is free" if is_taken else "choose another --host or --port"
        raise click.ClickException(f"{host}:{port}: {error.strerror or error}; {advice}") from error


def _sender(every: Sequence[Settings]) -> Trigger | None:
    """Return the sender of runs, if a source has a token for them: a server that only reads needs no Celery."""
    if not any(settings.trigger_token for settings in every):
        return None
    from optimizer.celery.sender import CelerySender  # noqa: PLC0415 - an extra

    return CelerySender()
