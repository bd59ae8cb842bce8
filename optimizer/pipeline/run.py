"""One run: confirm an unchanged input, or scan it, select, write the files and publish in Redis.

    input -> scan (inflate, prune, decode) -> select -> snapshots -> files -> Redis

`run_source` is the whole run: `optimize` calls it for one process, the Celery task with a `Dispatcher`. Every run, also
the end of a distributed one (`distributed.py`), goes through `run_locked`, which takes the locks, so that there is one
run at a time, and records the end in the stream of runs. Every failure except a bug is a `RollingError`, after which
files and Redis are unchanged.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from functools import partial
from typing import Final, TypeVar

import msgspec

from optimizer.cache.clocks import elapsed_s, text_of
from optimizer.cache.parts import PartStore
from optimizer.config.settings import Settings
from optimizer.config.tracing import enable, span
from optimizer.errors import RollingError, RunTimedOut
from optimizer.log import SourceLog, logged_run
from optimizer.models import Manifest, Report
from optimizer.pipeline.assignment import (
    Assignment,
    Dispatcher,
    dispatch_lock_ttl_s,
    end_assignment,
    store_assignment,
    take_lost_assignment,
)
from optimizer.pipeline.confirm import confirm_set, date_input, keep_pinned
from optimizer.pipeline.drain import apply_updates
from optimizer.pipeline.parts import Input, Part, Progress, open_input
from optimizer.pipeline.publish import publish
from optimizer.pipeline.session import Session
from optimizer.scan.engine import choose_engine
from optimizer.snapshots.store import SnapshotStore, snapshot_store

__all__ = [
    "Progress",
    "failed_report",
    "optimize",
    "run_locked",
    "run_source",
    "skipped",
]

# How often a run that waits for another one tries its locks.
WAIT_POLL_S: Final = 0.2
# Updates that waited longer than the end of a run takes are worth a warning.
WAITED_S: Final = 5.0

_log = SourceLog(__name__)
_Report = TypeVar("_Report", bound=Report | None)


def optimize(
    settings: Settings,
    *,
    force: bool = False,
    accept: bool = False,
    tick: int | None = None,
    use_cache: bool = True,
    progress: Progress | None = None,
    time_limit_error: type[Exception] = TimeoutError,
) -> Report:
    """Do one run in this process.

    Args:
        settings: All settings of the source.
        force: Scan even if nothing changed.
        accept: Publish an input even if too many of its records or bots are rejected, or a guard refuses it.
        tick: The number of the scheduled tick (time / interval), for which only one run is made; `None` for a manual
            run, which ignores ticks.
        use_cache: False to use files only, without Redis.
        progress: Called after each chunk with the compressed bytes read so far and their total.
        time_limit_error: The exception of the caller's time limit; it is reported as `RunTimedOut`.

    Returns:
        The report: `success`, `unchanged`, or `skipped` with the reason.

    Raises:
        RollingError: Nothing was published; the message says why. The failure is in the stream of runs too.
    """
    report = run_source(
        settings,
        force=force,
        accept=accept,
        tick=tick,
        use_cache=use_cache,
        progress=progress,
        time_limit_error=time_limit_error,
    )
    assert report is not None  # noqa: S101 - without a dispatcher every run ends here
    return report


def run_source(
    settings: Settings,
    dispatcher: Dispatcher | None = None,
    *,
    force: bool = False,
    accept: bool = False,
    tick: int | None = None,
    use_cache: bool = True,
    progress: Progress | None = None,
    time_limit_error: type[Exception] = TimeoutError,
) -> Report | None:
    """Do one run of a source; arguments as in `optimize`.

    A single file is scanned in this process, and so are parts if there is no dispatcher, or while Redis is away.

    Returns:
        The report; `None` for a run whose parts were sent, which `merge_parts` ends.
    """

    def confirm_or_scan(session: Session, before: Manifest | None) -> Report | None:
        if dispatcher is not None:
            lost = take_lost_assignment(session, dispatcher.tell_lost)
            if lost is not None:
                session.record(failed_report(settings, lost))
        pinned = keep_pinned(settings, session)
        if pinned is not None:
            return pinned
        began_s = time.time()
        with ExitStack() as until_end:
            with span("look"):
                opened = until_end.enter_context(closing(open_input(settings)))
                are_kept = _renew_parts(session, opened.parts) if opened.parts else []
                report = None if force else _confirm(settings, session, opened, before)
            if report is not None:
                return report
            if dispatcher is None or session.state != "up":
                return _scan(settings, session, opened, progress, force=force, accept=accept)
            assignment = Assignment(
                run_id=dispatcher.run_id,
                token=session.token,
                version_before=session.version_before,
                began_s=began_s,
                force=force,
                parts=list(opened.parts),
                to_scan=[index for index, is_kept in enumerate(are_kept) if force or not is_kept],
                accept=accept,
                newest_before=session.newest_before,
                lineage=None if session.pointer is None else session.pointer.manifest.lineage,
            )
            store_assignment(session, assignment)
            with ExitStack() as at_end:
                at_end.callback(end_assignment, session, session.token)
                if not assignment.to_scan or session.state != "up" or dispatcher.send_parts is None:
                    return _scan(settings, session, opened, progress, force=force, accept=accept)
                dispatcher.send_parts(assignment)
                session.leave_lock(dispatch_lock_ttl_s(settings))
                at_end.pop_all()  # the merge ends it
                return None

    return run_locked(
        settings,
        confirm_or_scan,
        run_id=dispatcher.run_id if dispatcher else "",
        tick=tick,
        use_cache=use_cache,
        time_limit_error=time_limit_error,
    )


def run_locked(
    settings: Settings,
    work: Callable[[Session, Manifest | None], _Report],
    *,
    run_id: str = "",
    token: str | None = None,
    tick: int | None = None,
    use_cache: bool = True,
    wait_s: float = 0.0,
    on_wait: Callable[[], object] = lambda: None,
    time_limit_error: type[Exception] = TimeoutError,
) -> _Report | Report:
    """Do a run's work under the locks of the output directory and of the source, and record how it ended.

    The lock in Redis is decisive if Redis is there: a run that was paused and has lost it still holds the directory's.
    An object store has no lock and is always free; see `snapshots/object_store.py` for two runs there without Redis.

    Args:
        settings: All settings of the source.
        work: Called with the session and the manifest of the current set, read before the input is opened.
        run_id: The id of a run that begins here.
        token: The token of a distributed run, to end it here.
        tick: As in `optimize`.
        use_cache: As in `optimize`.
        wait_s: How long to wait for a run in progress before this one is skipped.
        on_wait: Called once if it waits.
        time_limit_error: As in `optimize`.

    Returns:
        The result of `work`, or the report of a skipped run.

    Raises:
        RunTimedOut: In place of the exception of the caller's time limit.
        RollingError: The run failed.
    """
    started = time.monotonic()
    store = snapshot_store(settings.output_dir, keep=settings.keep_versions)
    if settings.traces == "on":
        enable()
    with (
        logged_run(run_id),
        span("run", source=settings.source, run_id=run_id or None) as step,
        Session(settings, use_cache=use_cache) as session,
    ):
        try:
            if tick is not None and not session.ask(lambda: session.run_log.take_tick(tick), absent=True):
                return skipped(settings, "tick_taken")
            take = partial(session.lock, token, run_id=run_id)
            with _locked(store, take, wait_s, on_wait) as is_free:
                before = store.read_manifest()
                session.start_from(before)
                report: _Report | Report
                if is_free:
                    report = work(session, before)
                    if report is not None and report.status != "skipped":  # the directory has the published set
                        warning = session.warn_unless_shared(settings.output_dir, store.marker)
                        report = msgspec.structs.replace(report, warning=warning)
                else:
                    report = skipped(settings, "already_running" if token is None else "superseded")
        except time_limit_error as error:
            text = (
                f"the run was ended by its time limit, after {time.monotonic() - started:.0f} s; raise "
                "ROLLING_INTERVAL_S, or see why the scan is slow: rolling-optimizer run --force shows its rate"
            )
            timed_out = RunTimedOut(settings.reworded(text))
            session.record(failed_report(settings, timed_out))
            raise timed_out from error
        except Exception as error:  # a bug is a failed run as well, which operators must see
            if isinstance(error, RollingError):
                error.args = (settings.reworded(str(error)),)
            _record(settings, session, failed_report(settings, error))
            raise
        if report is not None:
            step.set(status=report.status, reason=report.reason, version=report.version)
            _record(settings, session, report)
        return report


def _record(settings: Settings, session: Session, report: Report) -> None:
    """Record how a run ended, and apply waiting updates, whose drain may be lost or may have waited for this run."""
    if not session.record(report) or report.status == "skipped":
        return
    try:
        applied = apply_updates(settings)
    except RollingError as error:
        _log.warning("updates that wait could not be applied", source=settings.source, error=error)
        return
    waited_s = applied.updated.waited_s if applied is not None and applied.updated is not None else 0.0
    could_be_shown = session.pointer is not None and session.pointer.manifest.pinned is None
    if waited_s > WAITED_S and could_be_shown:
        _log.warning(
            "updates have waited for %s s until this run applied them; does a worker take their queue, and has it a "
            "slot free?",
            round(waited_s, 1),
            source=settings.source,
        )


@contextmanager
def _locked(
    store: SnapshotStore,
    take: Callable[[], AbstractContextManager[bool | None]],
    wait_s: float,
    on_wait: Callable[[], object],
) -> Iterator[bool]:
    """Hold the locks of the output directory and of the source; yield whether they were free within `wait_s`."""
    until_s = time.monotonic() + wait_s
    told = False
    while True:
        with store.lock() as directory_is_free, take() as source_is_free:
            is_free = directory_is_free if source_is_free is None else source_is_free
            if is_free or time.monotonic() >= until_s:
                yield is_free
                return
        if not told:
            on_wait()
            told = True
        time.sleep(WAIT_POLL_S)


def _confirm(settings: Settings, session: Session, opened: Input, manifest: Manifest | None) -> Report | None:
    """Confirm the current set if the input has not changed; publish it again if Redis has none or an older one.

    Returns:
        The report; `None` if a scan is needed: after a change, for files that are not whole, or if Redis shows a
        different set that is as new as theirs.
    """
    if manifest is None or manifest.fingerprint != opened.fingerprint:
        return None
    store = snapshot_store(settings.output_dir, keep=settings.keep_versions)
    snapshots = store.read_set(manifest=manifest)
    if snapshots is None or snapshots.manifest != manifest:
        return None
    snapshots = date_input(store, session, snapshots, opened.modified_s)
    done = confirm_set(store, session, snapshots, modified_s=opened.modified_s)
    if done is None:
        return None
    now_s = time.time()
    return Report(
        "unchanged",
        settings.source,
        text_of(now_s),
        version=max((session.in_files or manifest).version, session.version_before),
        cache=session.outcome(done),
        rejected=manifest.rejected,
        input_age_s=elapsed_s(opened.modified_s, now_s),
    )


def _renew_parts(session: Session, parts: Sequence[Part]) -> list[bool]:
    """Keep the results of these parts and delete all others; return for each part whether it has a result."""
    digests = [part.digest for part in parts]
    return session.ask(lambda: PartStore(session.cache).renew(digests), absent=[False] * len(digests))


def _scan(
    settings: Settings, session: Session, opened: Input, progress: Progress | None, *, force: bool, accept: bool
) -> Report:
    """Scan the input in this process and publish the result."""
    with span("scan") as step:
        scanned = opened.scan(choose_engine(settings.engine), session, session.watched(progress), force=force)
        step.set(engine=scanned.engine, records=scanned.result.records_seen, json_bytes=scanned.result.json_bytes)
    return publish(settings, session, scanned, accept=accept, progress=progress)


def failed_report(settings: Settings, error: Exception) -> Report:
    """Return the report of a failed run."""
    return Report("failed", settings.source, _now(), error=type(error).__name__, details=str(error))


def skipped(settings: Settings, reason: str) -> Report:
    """Return the report of a run that had nothing to do."""
    return Report("skipped", settings.source, _now(), reason=reason)


def _now() -> str:
    return text_of(time.time())
