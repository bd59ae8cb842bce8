"""`rolling-optimizer run --every`: scheduled runs in the foreground, until SIGTERM or Ctrl-C.

After the first signal, a run in progress may end, as in a worker; the exit status is 0. A second signal ends that run
at its next chunk; the exit status is 128 plus the signal's number.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import click
import msgspec

from optimizer.cli.options import usage_errors
from optimizer.config.settings import Settings
from optimizer.log import log_runs
from optimizer.models import Report
from optimizer.pipeline.background import ABORT_S, ScheduledRuns

__all__ = ["SIGNALS", "run_every", "signals_blocked"]

SIGNALS: Final = frozenset({signal.SIGINT, signal.SIGTERM})
POLL_S: Final = 0.1


def run_every(sources: Sequence[Settings], *, use_cache: bool, as_json: bool) -> int:
    """Make scheduled runs until a signal; return the exit status. Logs to stderr, reports as JSON to stdout."""
    log_runs()
    on_report = _print if as_json else _ignore
    with usage_errors():
        every = [ScheduledRuns(settings, use_cache=use_cache, on_report=on_report) for settings in sources]
    with signals_blocked():
        for runs in every:
            runs.start()
        signal.sigwait(SIGNALS)
        for runs in every:
            runs.stop()
        while not all(runs.wait(POLL_S) for runs in every):
            if SIGNALS & signal.sigpending():
                return 128 + _abort(every)
    return 0


def _abort(every: Sequence[ScheduledRuns]) -> int:
    """End runs in progress; return the number of the signal."""
    number = signal.sigwait(SIGNALS)
    for runs in every:
        runs.abort()
    for runs in every:
        runs.wait(ABORT_S)
    return number


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Block signals until they are waited for, since a handler could interrupt any step. Threads inherit the mask."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _print(report: Report) -> None:
    """Print a report; end the command as SIGTERM does if its output is closed."""
    try:
        click.echo(msgspec.json.encode(report))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the rest of its buffer
        os.kill(os.getpid(), signal.SIGTERM)


def _ignore(_report: Report) -> None:
    """Do nothing, since the log has a line about it."""
