"""One run: confirm an unchanged input, or scan it, select, write the files and publish in Redis.

    input -> scan (inflate, prune, decode) -> select -> snapshots -> files -> Redis

`run_source` is all of it: `optimize` calls it for one process, the Celery task with a `Dispatcher`. Every run, also the
end of a distributed one (`distributed.py`), is framed by `run_locked`: one at a time by the locks, each end in the
stream of runs. Every failure but a bug is a `RollingError`, after which files and Redis are as they were.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec

from optimizer.cache.client import UNREADABLE
from optimizer.cache.clocks import text_of
from optimizer.cache.writer import LOCK_TTL_S
from optimizer.config.settings import Settings
from optimizer.errors import RunLost, RunTimedOut
from optimizer.models import Manifest, Report, Stats
from optimizer.pipeline.memory import peak_rss_mb
from optimizer.pipeline.parts import Input, Part, Progress, ScannedInput, open_input
from optimizer.pipeline.session import Publisher
from optimizer.scan.engine import choose_engine
from optimizer.selection.acceptance import check_plausible
from optimizer.selection.top_n import top
from optimizer.snapshots.directory import SnapshotSet, encode_set
from optimizer.snapshots.store import mark_checked, output_lock, read_manifest, read_set, write_set

__all__ = [
    "Dispatcher",
    "Progress",
    "RunNote",
    "dispatch_lock_ttl_s",
    "failed_report",
    "optimize",
    "publish",
    "run_locked",
    "run_source",
    "skipped",
]

DISPATCH_LOCK_MAX_S: Final = 120.0

_log = logging.getLogger(__name__)
_Report = TypeVar("_Report", bound=Report | None)


class RunNote(msgspec.Struct, frozen=True):
    """A run that scans, as it is noted in Redis under its lock's token until it ends.

    `run_id` is the id that its sender knows, `token` its lock's, `version_before` the version that it is to replace (0
    for none), `newest_before` the newest one that Redis or the files had then (`None` in a note of an earlier release),
    `began_s` in seconds since the epoch. `parts` are all the parts of the source by name, none where it is one file;
    `to_scan` are the indexes of those that have to be read.
    """

    run_id: str
    token: str
    version_before: int
    began_s: float
    force: bool
    parts: list[Part] = []
    to_scan: list[int] = []
    accept: bool = False
    newest_before: int | None = None


_NOTE: Final = msgspec.json.Decoder(RunNote)


@dataclass(frozen=True)
class Dispatcher:
    """How a run reaches other workers.

    Attributes:
        run_id: The id by which the run's sender waits for it, revokes it, and hears that it is lost.
        send_parts: Sends the parts that a run has to scan to the workers.
        tell_lost: Tells the sender of an earlier run, by its id, that it did not end.
    """

    run_id: str
    send_parts: Callable[[RunNote], None]
    tell_lost: Callable[[str, RunLost], None]


def dispatch_lock_ttl_s(settings: Settings) -> float:
    """How long a distributed run keeps others out while no worker works at it, in seconds."""
    return min(DISPATCH_LOCK_MAX_S, max(LOCK_TTL_S, 0.9 * settings.interval_s))


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
        force: Scan though nothing changed.
        accept: Publish an input though too many of its records or bots are rejected.
        tick: The number of the scheduled tick (time / interval), of which only one run is made; `None` for a run by
            hand, which ignores ticks.
        use_cache: False to leave Redis alone: files only.
        progress: Called after each chunk with compressed bytes read and bytes in all.
        time_limit_error: What the caller's time limit raises during the run; it is reported as `RunTimedOut`.

    Returns:
        What was done: `success`, `unchanged`, or `skipped` with the reason.

    Raises:
        RollingError: Nothing was published, and why. The failure is in the stream of runs too.
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
    """Do one run of a source; arguments as of `optimize`.

    A single file is scanned in this process, and so are parts if there is no dispatcher, or while Redis is away.

    Returns:
        The report; `None` for a run whose parts were sent: `merge_parts` ends it.
    """

    def confirm_or_scan(session: Publisher, before: Manifest | None) -> Report | None:
        if dispatcher is not None:
            _report_lost_run(settings, session, dispatcher)
        began_s = time.time()
        with closing(open_input(settings)) as opened:
            are_kept = session.keep_parts([part.digest for part in opened.parts])
            report = None if force else _confirm(settings, session, opened, before)
            if report is not None:
                return report
            if dispatcher is None or session.state != "up":
                return _scan(settings, session, opened, progress, force=force, accept=accept)
            note = RunNote(
                run_id=dispatcher.run_id,
                token=session.token,
                version_before=session.version_before,
                began_s=began_s,
                force=force,
                parts=list(opened.parts),
                to_scan=[index for index, is_kept in enumerate(are_kept) if force or not is_kept],
                accept=accept,
                newest_before=session.newest_before,
            )
            if note.to_scan:
                with session.handing_out(msgspec.json.encode(note), dispatch_lock_ttl_s(settings)):
                    dispatcher.send_parts(note)
                return None
            with _noted(session, note):
                return _scan(settings, session, opened, progress, force=force, accept=accept)

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
    work: Callable[[Publisher, Manifest | None], _Report],
    *,
    run_id: str = "",
    token: str | None = None,
    tick: int | None = None,
    use_cache: bool = True,
    time_limit_error: type[Exception] = TimeoutError,
) -> _Report | Report:
    """Do a run's work under the locks of the output directory and of the source, and record how it ended.

    Redis decides where it can: a run that was stopped and has lost its lock there still holds the directory's. An
    object store has no lock and is always free; see `snapshots/object_store.py` for two runs there without Redis.

    Args:
        settings: All settings of the source.
        work: Gets the session and the manifest of the current set, read before the input is opened.
        run_id: The id of a run that begins here.
        token: The token of a distributed run, to end it here.
        tick: As of `optimize`.
        use_cache: As of `optimize`.
        time_limit_error: As of `optimize`.

    Returns:
        What `work` returned, or the report of a run that was skipped.

    Raises:
        RunTimedOut: In place of the caller's time limit.
        RollingError: The run failed.
    """
    started = time.monotonic()
    with Publisher(settings, use_cache=use_cache) as session:
        try:
            if tick is not None and not session.take_tick(tick):
                return skipped(settings, "tick_taken")
            with (
                output_lock(settings.output_dir) as directory_is_free,
                session.lock(token, run_id=run_id) as source_is_free,
            ):
                before = read_manifest(settings.output_dir)
                session.start_from(before.version if before else 0)
                report: _Report | Report
                if directory_is_free if source_is_free is None else source_is_free:
                    report = work(session, before)
                else:
                    report = skipped(settings, "already_running" if token is None else "superseded")
        except time_limit_error as error:
            timed_out = RunTimedOut(
                f"the run was ended by its time limit, after {time.monotonic() - started:.0f} s; raise "
                "ROLLING_INTERVAL_S, or see why the scan is slow: rolling-optimizer run --force shows its rate"
            )
            session.record(failed_report(settings, timed_out))
            raise timed_out from error
        except Exception as error:  # a bug too is a failed run that operators must see
            session.record(failed_report(settings, error))
            raise
        if report is not None:
            session.record(report)
        return report


@contextmanager
def _noted(session: Publisher, note: RunNote) -> Iterator[None]:
    """Note the run while it scans here: when its worker is killed, the next run finds the note and tells its sender."""
    with session.handing_out(msgspec.json.encode(note), 0.0):
        yield
    session.end_handed(note.token)


def _report_lost_run(settings: Settings, session: Publisher, dispatcher: Dispatcher) -> None:
    """Report an earlier run that was noted and did not end: its lock was free."""
    noted = session.take_lost()
    if noted is None:
        return
    lost = RunLost(
        "the scan of an earlier run has not come back: was its worker killed, or is there none, or none that is free, "
        "that takes the queue rolling.scan? See: celery -A tasks inspect active_queues"
    )
    _log.warning("[RollingOptimizer] ⚠️ %s", lost)
    session.record(failed_report(settings, lost))
    with suppress(*UNREADABLE):  # damaged: then its id is not known
        dispatcher.tell_lost(_NOTE.decode(noted).run_id, lost)


def _confirm(settings: Settings, session: Publisher, opened: Input, manifest: Manifest | None) -> Report | None:
    """Confirm the current set if the input has not changed; publish it again if Redis has none or an older one.

    Returns:
        The report; `None` where there is something to scan: a change, files that are not whole, or a Redis that shows
        another set that is as new as theirs.
    """
    if manifest is None or manifest.fingerprint != opened.fingerprint:
        return None
    snapshots = read_set(settings.output_dir)
    if snapshots is None or snapshots.manifest != manifest:
        return None
    standing = session.compare(manifest)
    if standing == "other":
        return None
    if standing == "current" and session.shows(snapshots):
        session.mark_checked()
        done = "current"
    else:
        session.publish(snapshots)
        done = "republished"
    mark_checked(settings.output_dir)
    return Report(
        "unchanged",
        settings.source,
        _now(),
        version=max(manifest.version, session.version_before),
        cache=session.outcome(done),
        rejected=manifest.rejected,
    )


def _scan(
    settings: Settings, session: Publisher, opened: Input, progress: Progress | None, *, force: bool, accept: bool
) -> Report:
    """Scan the input in this process and publish the result."""
    scanned = opened.scan(choose_engine(settings.engine), session, session.watched(progress), force=force)
    return publish(settings, session, scanned, accept=accept)


def publish(settings: Settings, session: Publisher, scanned: ScannedInput, *, accept: bool) -> Report:
    """Select, write the files, then Redis; the lock is checked before either shows anything."""
    result = scanned.result
    check_plausible(settings, result, accept=accept)
    ranked = result.selection.finish()
    newest = max(session.newest_version(), session.newest_before)
    snapshots = encode_set(
        source=settings.source,
        version=max(time.time_ns() // 1_000_000, newest + 1),
        generated_at=_now(),
        fingerprint=scanned.fingerprint,
        ranked=ranked,
        predictions=top(ranked, limit=settings.top_symbols_limit, min_confidence=settings.min_confidence),
        bots=result.bots,
        rejected=result.rejected,
        gzip_level=settings.gzip_level,
    )
    write_set(settings.output_dir, snapshots, replaced=session.newest_before, fence=session.check_superseded)
    session.publish(snapshots)
    return Report(
        "success",
        settings.source,
        snapshots.manifest.generated_at,
        version=snapshots.manifest.version,
        cache=session.outcome("published"),
        stats=_stats(scanned, snapshots),
        rejects=result.tallies(),
        rejected=result.rejected,
    )


def _stats(scanned: ScannedInput, snapshots: SnapshotSet) -> Stats:
    counts = {kind: entry.count for kind, entry in snapshots.manifest.snapshots.items()}
    result = scanned.result
    seconds = max(0.001, time.time() - scanned.began_s)
    return Stats(
        predictions_extracted=counts["predictions"],
        bots_processed=counts["bots"],
        portfolio_holdings=counts["portfolio"],
        records_seen=result.records_seen,
        records_rejected=result.records_rejected,
        duplicates=result.duplicates,
        symbols_ignored=result.symbols_ignored,
        input_bytes=scanned.input_bytes,
        json_bytes=result.json_bytes,
        seconds=round(seconds, 3),
        json_mb_per_s=round(result.json_bytes / 1e6 / seconds, 1),
        peak_rss_mb=round(max(peak_rss_mb(), scanned.peak_rss_mb), 1),
        engine=scanned.engine,
        parts=max(1, len(scanned.parts)),
        parts_scanned=scanned.parts_scanned,
        bots_seen=result.bots_seen,
        bots_rejected=result.bots_rejected,
    )


def failed_report(settings: Settings, error: Exception) -> Report:
    """The report of a run that failed."""
    return Report("failed", settings.source, _now(), error=type(error).__name__, details=str(error))


def skipped(settings: Settings, reason: str) -> Report:
    """The report of a run that had nothing to do."""
    return Report("skipped", settings.source, _now(), reason=reason)


def _now() -> str:
    return text_of(time.time())
