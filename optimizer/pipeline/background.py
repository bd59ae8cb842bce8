"""Scheduled runs without Celery: a thread for each source makes a run every `interval_s`.

    with background(Settings.from_env(os.environ)):
        ...  # the first run begins after `startup_delay_s`

Any number of processes may do that: ticks are claimed in Redis as with beat, so together they make one run per tick,
and the locks are the same as for all runs. Without Redis, the lock of the output directory excludes concurrent runs.

A failed run is one line in the log, and the next tick tries again. A run that takes longer than the interval skips the
ticks that have passed. A run ends after the time limit of a worker's task, at its next chunk.

Each source has its own thread, since each has its own interval, and one whose input hangs must not delay the others.
Their scans may then coincide, and share the GIL.

A forked child has none of these threads, and leaving the block does nothing there: the runs of the parent continue. So
a server with several processes enters the block in each of them after the fork, or once in their parent.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from optimizer.config.settings import Settings
from optimizer.errors import PublishRefused, RollingError, SettingsInvalid
from optimizer.log import SourceLog, logged_run
from optimizer.models import Report
from optimizer.pipeline.run import failed_report, optimize
from optimizer.scan.engine import choose_engine

__all__ = ["ABORT_S", "STOP_S", "ScheduledRuns", "background"]

# Leaving the block waits this long for a run in progress, and then this long for that run to notice that it has to end.
# Together this is below the 10 s after which a container is killed.
STOP_S: Final = 5.0
ABORT_S: Final = 3.0

_log = SourceLog(__name__)


class _TimeLimitExceeded(Exception):
    """A run has taken longer than its limit."""


class ScheduledRuns:
    """The scheduled runs of one source, in a thread of this process.

    Args:
        settings: All settings of the source.
        use_cache: False to use files only, without Redis.
        on_report: Called in the thread with the report of each run.

    Raises:
        SettingsInvalid: The engine that a setting names is not installed.
    """

    def __init__(
        self, settings: Settings, *, use_cache: bool = True, on_report: Callable[[Report], None] = lambda _: None
    ) -> None:
        self._settings = settings
        self._engine = choose_engine(settings.engine)
        self._use_cache = use_cache
        self._on_report = on_report
        self._stopped = threading.Event()
        self._aborted = False
        self._thread = threading.Thread(target=self._repeat, name=f"rolling-{settings.source}", daemon=True)

    def start(self) -> None:
        """Start the thread; warn if scans will be slow."""
        if self._engine.warning:
            _log.warning("⚠️ %s", self._engine.warning, source=self._settings.source)
        self._thread.start()

    def stop(self) -> None:
        """Start no further run."""
        self._stopped.set()

    def abort(self) -> None:
        """End the current run at its next chunk; it publishes nothing."""
        self._stopped.set()
        self._aborted = True

    def wait(self, timeout_s: float) -> bool:
        """Wait until the thread has ended, as it does after `stop` or `abort`; return whether it has ended."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _repeat(self) -> None:
        interval_s = self._settings.interval_s
        due_s = time.monotonic() + self._settings.startup_delay_s
        while not self._stopped.wait(max(0.0, due_s - time.monotonic())):
            with logged_run():
                report = self._run()
                try:
                    self._on_report(report)
                except Exception as error:  # for example stdout on a full disk: the schedule must go on
                    _log.exception("a report could not be passed on", source=self._settings.source, error=error)
            due_s += interval_s * max(1, 1 + (time.monotonic() - due_s) // interval_s)

    def _run(self) -> Report:
        settings = self._settings
        until_s = time.monotonic() + settings.time_limit_s

        def check(_done_bytes: int, _total_bytes: int) -> None:
            if self._aborted:
                raise PublishRefused("the process ended during the run; the next tick starts anew")
            if time.monotonic() > until_s:
                raise _TimeLimitExceeded

        try:
            report = optimize(
                settings,
                tick=int(time.time() // settings.interval_s),
                use_cache=self._use_cache,
                progress=check,
                time_limit_error=_TimeLimitExceeded,
            )
        except RollingError as error:
            _log.run_failed(settings.source, error)
            return failed_report(settings, error)
        except Exception as error:  # a bug must not end the schedule
            _log.exception("a scheduled run failed", source=settings.source, error=error)
            return failed_report(settings, error)
        _log.run_ended(report)
        return report


@contextmanager
def background(*sources: Settings, use_cache: bool = True, stop_s: float = STOP_S) -> Iterator[None]:
    """Make scheduled runs in threads of this process, until the block is left.

    Args:
        *sources: All settings of each source; for several, pass `*Settings.every_from_env(os.environ)`.
        use_cache: False to use files only, without Redis. Then each process makes a run per tick, one at a time.
        stop_s: How long leaving the block waits for a run in progress. After that the run ends at its next chunk,
            publishes nothing, and a later tick repeats it.

    Raises:
        SettingsInvalid: An engine that a setting names is not installed; or there are no settings.
    """
    if not sources:
        raise SettingsInvalid("background() has no settings, so nothing would run; pass Settings.from_env(os.environ)")
    every = [ScheduledRuns(settings, use_cache=use_cache) for settings in sources]
    owner = os.getpid()
    for runs in every:
        runs.start()
    try:
        yield
    finally:
        if os.getpid() == owner:
            _end(every, stop_s)


def _end(every: Sequence[ScheduledRuns], stop_s: float) -> None:
    """End the threads; one that hangs in a file system is left to end by itself."""
    for step, timeout_s in ((ScheduledRuns.stop, stop_s), (ScheduledRuns.abort, ABORT_S)):
        until_s = time.monotonic() + timeout_s
        for runs in every:
            step(runs)
        if all(runs.wait(max(0.0, until_s - time.monotonic())) for runs in every):
            return
