"""The runs that a watch sends for one source: one at a time, followed to its end.

The input may change while a run is on, and another run may have held the source's lock, so that the one that was sent
has read nothing. Then the next one is sent when that has ended. What a run found in the input is for the log of its
worker; a run that failed is made again by the next tick, and by the next change.

Errors: those of `CelerySender`.
"""

from __future__ import annotations

from typing import Final, Protocol

from optimizer.celery.sender import SHORTEST_EXPIRY_S, SentRun
from optimizer.config.settings import Settings
from optimizer.errors import RollingError
from optimizer.log import SourceLog
from optimizer.models import RunState
from optimizer.watch.landing import Landing

__all__ = ["RunSender", "SentRuns"]

FOLLOW_S: Final = 0.2
# If another run holds the lock, such as a scheduled one, it is retried after this time, which then doubles.
SKIPPED_S: Final = 0.25
SKIPPED_AT_MOST_S: Final = 2.0

_log = SourceLog(__name__)


class RunSender(Protocol):
    """The interface of `CelerySender`."""

    def send_or_join(self, *, force: bool, accept: bool, source: str) -> SentRun:
        """Send a run, unless one that was sent has not ended."""

    def state(self, run_id: str) -> RunState:
        """Read the state of a run."""


class SentRuns:
    """Sends runs for an input that has landed.

    Args:
        settings: All settings of the source.
        sender: What sends them.
        landing: The input.
    """

    def __init__(self, settings: Settings, sender: RunSender, landing: Landing) -> None:
        self._settings = settings
        self._sender = sender
        self._landing = landing
        self._run: SentRun | None = None
        self._is_running = False
        self._lost_s = 0.0  # when it is given up
        self._not_before_s = float("-inf")
        self._skipped = 0
        self._warned = False

    def is_due(self, now_s: float) -> bool:
        """Whether the input has landed and a run can be sent for it."""
        lands_s = self._landing.lands_s
        return self._run is None and lands_s is not None and now_s >= max(lands_s, self._not_before_s)

    def step(self, now_s: float) -> None:
        """Follow the current run, or send one that is due.

        Raises:
            RollingError: The broker is away, or refuses; what was to be done is done by a later step.
        """
        if self._run is not None and now_s >= self._not_before_s:
            self._not_before_s = now_s + FOLLOW_S
            self._follow(self._run, now_s)
        if self.is_due(now_s):
            self._run = self._sender.send_or_join(force=False, accept=False, source=self._settings.source)
            self._landing.take()
            self._is_running = False
            self._lost_s = now_s + max(SHORTEST_EXPIRY_S, self._settings.interval_s)
            self._not_before_s = now_s + FOLLOW_S
            verb = "sent" if self._run.is_new else "waits for"
            _log.info("the input has landed: %s run %s", verb, self._run.id, source=self._settings.source)

    def _follow(self, run: SentRun, now_s: float) -> None:
        try:
            state = self._sender.state(run.id)
        except RollingError:  # a broker that comes back may have lost the run; its sender decides
            self._run = None
            self._landing.give_back()
            raise
        if state.state == "running" and not self._is_running:
            self._is_running, self._lost_s = True, now_s + self._settings.time_limit_s
        if state.state in ("pending", "running") and now_s < self._lost_s:
            return
        self._end(run, state, now_s)

    def _end(self, run: SentRun, state: RunState, now_s: float) -> None:
        self._run, self._not_before_s = None, now_s
        was_skipped = state.report is not None and state.report.reason in ("already_running", "superseded")
        is_lost = state.state in ("pending", "running") or (state.error is not None and state.error.error == "Expired")
        if was_skipped:
            self._not_before_s = now_s + min(SKIPPED_AT_MOST_S, SKIPPED_S * 2 ** min(self._skipped, 10))
        self._skipped = self._skipped + 1 if was_skipped else 0
        if is_lost and not self._warned:
            _log.warning("⚠️ no worker has ended run %s in time; the next is sent", run.id, source=self._settings.source)
        self._warned = is_lost
        if was_skipped or is_lost or not run.is_new:  # a run that another process sent may have read the input before
            self._landing.give_back()
