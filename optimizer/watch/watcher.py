"""A thread that watches one source, and sends a run whenever its input has landed.

Nothing is kept: at its start it sends one run, which finds out whether the input has changed. So a watch that died, or
was started twice, costs an unchanged run.

A failure, of the broker or of the input's place, is one warning; the watch tries again, more and more seldom, and sends
what has landed meanwhile. Sources have a thread each: one whose place does not answer must not delay the others.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Final, Protocol

from optimizer.config.settings import Settings
from optimizer.errors import RollingError
from optimizer.log import SourceLog
from optimizer.watch.landing import Landing, Seen
from optimizer.watch.local_place import LocalPlace
from optimizer.watch.remote_place import RemotePlace
from optimizer.watch.sent_runs import RunSender, SentRuns

__all__ = ["Watcher"]

RETRY_S: Final = 0.5
RETRY_AT_MOST_S: Final = 5.0
# A watch that has not completed a step for this long is unhealthy: a single request to a store may take 10 s.
WELL_S: Final = 30.0

_log = SourceLog(__name__)


class _Place(Protocol):
    look_s: float

    def look(self) -> dict[str, Seen]:
        """Return the present files."""

    def wait(self) -> bool:
        """Wait for a moment; return whether anything may have changed."""

    def close(self) -> None:
        """End watching."""


class Watcher:
    """Watches one source in a thread of this process.

    Args:
        settings: All settings of the source.
        sender: What sends its runs.
        rest_s: How long a file that is written in place has to stay unchanged.
        poll_s: The time between two looks at an input by URL.
    """

    def __init__(self, settings: Settings, sender: RunSender, *, rest_s: float = 1.0, poll_s: float = 2.0) -> None:
        self._source = settings.source
        self._stopped = threading.Event()
        self._landing = Landing(rest_s)
        self._runs = SentRuns(settings, sender, self._landing)
        self._where = where = settings.input
        self._place: _Place = (
            LocalPlace(settings.source, where, self._stopped)
            if isinstance(where, Path)
            else RemotePlace(where, poll_s, self._stopped)
        )
        self._look_at_s = float("-inf")
        self._well_s = float("-inf")
        self._failures = 0
        self._thread = threading.Thread(target=self._repeat, name=f"watch-{settings.source}", daemon=True)

    @property
    def is_well(self) -> bool:
        """Whether nothing fails, and the input was checked within the last half minute."""
        return not self._failures and time.monotonic() - self._well_s < WELL_S

    def start(self) -> None:
        """Start the thread."""
        _log.info("watching %s", self._where, source=self._source)
        self._thread.start()

    def stop(self) -> None:
        """Send no further run; runs already sent go on."""
        self._stopped.set()

    def wait(self, timeout_s: float) -> bool:
        """Wait until the thread has ended, which it does after `stop`; return whether it has."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _repeat(self) -> None:
        changed = True
        while not self._stopped.is_set():
            try:
                self._step(changed=changed)
            except RollingError as error:
                self._fail(error)
            except Exception as error:  # a bug must not end the watch of this input, or of others
                _log.exception("a look at the input failed", source=self._source, error=error)
                self._stopped.wait(RETRY_AT_MOST_S)
            else:
                if self._failures:
                    _log.info("the watch goes on", source=self._source)
                self._failures, self._well_s = 0, time.monotonic()
            changed = self._place.wait()
        self._place.close()

    def _step(self, *, changed: bool) -> None:
        now_s = time.monotonic()
        # A file that seems unchanged is checked once more, since some file systems announce no changes.
        if changed or now_s >= self._look_at_s or self._runs.is_due(now_s):
            self._landing.observe(self._place.look(), now_s)
            self._look_at_s = now_s + self._place.look_s
        self._runs.step(now_s)

    def _fail(self, error: RollingError) -> None:
        if not self._failures:
            _log.warning("⚠️ no run can be sent yet, the watch tries again", source=self._source, error=error)
        pause_s = min(RETRY_AT_MOST_S, RETRY_S * 2 ** min(self._failures, 10))
        self._failures += 1
        self._stopped.wait(pause_s)
