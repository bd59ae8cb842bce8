"""`rolling-optimizer watch`: a run by the workers as soon as the input has landed, until SIGTERM or Ctrl-C.

A signal ends it at once, with exit status 0: it has nothing to finish, since the workers make the runs.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from pathlib import Path
from typing import Final

import click

from optimizer.cli.every import SIGNALS, signals_blocked
from optimizer.cli.options import sources_or_usage_error
from optimizer.errors import require
from optimizer.log import SourceLog, log_runs

__all__ = ["watch"]

BEAT_S: Final = 1.0
# How long threads have to end. A thread may wait seconds for a broker or a store.
STOP_S: Final = 0.5

_log = SourceLog(__name__)


@click.command()
@click.option("--source", metavar="NAME", help="Only this one of several sources. [ROLLING_SOURCES]")
@click.option(
    "--rest",
    "rest_s",
    default=1.0,
    show_default=True,
    metavar="S",
    type=click.FloatRange(0.05, 3_600),
    help="How long a file that is written in place has to stay unchanged.",
)
@click.option(
    "--poll",
    "poll_s",
    default=2.0,
    show_default=True,
    metavar="S",
    type=click.FloatRange(0.1, 3_600),
    help="How often an input by URL is asked for.",
)
@click.option(
    "--alive-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Touch this file each second while all is well, for a health check.",
)
def watch(source: str | None, rest_s: float, poll_s: float, alive_file: Path | None) -> None:
    """Send a run to the workers as soon as the input has landed.

    To the stand-alone workers, until Ctrl-C.
    """
    require("rolling-optimizer watch", "watch", "celery", "kombu", "watchfiles")
    every = sources_or_usage_error(source)
    # Imported here, since they are extras and take 0.3 s.
    from optimizer.celery.sender import CelerySender  # noqa: PLC0415
    from optimizer.celery.standalone import app  # noqa: PLC0415
    from optimizer.watch.watcher import Watcher  # noqa: PLC0415

    log_runs()
    watchers = [Watcher(settings, CelerySender(app), rest_s=rest_s, poll_s=poll_s) for settings in every]
    with signals_blocked():
        for watcher in watchers:
            watcher.start()
        can_touch = True
        while signal.sigtimedwait(SIGNALS, BEAT_S) is None:
            if alive_file is not None and all(watcher.is_well for watcher in watchers):
                can_touch = _touch(alive_file, warn=can_touch)
    for watcher in watchers:
        watcher.stop()
    until_s = time.monotonic() + STOP_S
    if not all(watcher.wait(max(0.0, until_s - time.monotonic())) for watcher in watchers):
        logging.shutdown()
        os._exit(0)  # a normal exit would wait for such a thread


def _touch(path: Path, *, warn: bool) -> bool:
    """Touch the file for a health check; a full disk is no reason to end the watch."""
    try:
        path.touch()
    except OSError as error:
        if warn:
            _log.warning("the file of --alive-file cannot be touched, and the watch goes on", error=error)
        return False
    return True
