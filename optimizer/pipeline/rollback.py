"""Go back to a kept version, and let runs publish again.

    rollback    publishes an old set as a new version, and pins it: no run replaces it
    unpin       removes the pin; the next run publishes the content of the input at that time

Both are runs: under the same locks, one at a time, each in the stream of runs. A rollback uses the steps of a publish,
so one that is killed at any moment leaves the old version or the new, pinned one. `unpin` replaces the manifest of the
version in the files, then in Redis: if it is killed in between, the files are decisive, and the next run repairs Redis.

Both wait for a run in progress, whose version is then replaced. A distributed run whose parts come back later finds a
version other than the one that it would replace, and does nothing.

Errors: `VersionMissing`, `PublishRefused` if another run takes too long, `OutputUnwritable`, `OutputUnreadable`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from msgspec.structs import replace

from optimizer.cache.client import UNREADABLE
from optimizer.cache.clocks import text_of
from optimizer.config.settings import MOST_KEPT_VERSIONS, Settings
from optimizer.errors import PublishRefused, VersionMissing
from optimizer.models import ChangeCounts, Manifest, Pin, Report
from optimizer.pipeline.confirm import publish_again
from optimizer.pipeline.process import user_at_host
from optimizer.pipeline.run import run_locked, skipped
from optimizer.pipeline.session import Session
from optimizer.pipeline.version import Predecessor, read_predecessor
from optimizer.snapshots.delta import change_between
from optimizer.snapshots.format import KeptVersion, SnapshotSet
from optimizer.snapshots.store import SnapshotStore, snapshot_store
from optimizer.snapshots.successor import equal_kinds

__all__ = ["rollback", "unpin"]

NAMED: Final = 10

_Report = TypeVar("_Report", bound=Report | None)
_Wait = Callable[[], object]


def rollback(
    settings: Settings,
    version: int,
    *,
    wait_s: float | None = None,
    on_wait: _Wait = lambda: None,
    use_cache: bool = True,
) -> Report:
    """Publish a kept version again, under a new number, and pin it. The current version may be given, to pin it.

    Args:
        settings: All settings of the source.
        version: The kept version.
        wait_s: How long to wait for a run in progress; by default as long as a run may take.
        on_wait: Called once if it waits.
        use_cache: False to use files only, without Redis.

    Returns:
        A report with the status `success`, the new version and its pin.

    Raises:
        VersionMissing: The version is not kept, or its files are damaged; nothing has changed.
        PublishRefused: Another run takes longer than `wait_s`, or has published meanwhile.
    """
    # A mistyped version must not wait, nor count as a failed run.
    _read(_store(settings), settings, version)

    def publish_old(session: Session, _before: Manifest | None) -> Report:
        store = _store(settings)
        old = _read(store, settings, version)
        by = user_at_host()
        with session.publishing(store):
            old, changed = _keep_equal(read_predecessor(store, session), old)
            snapshots = publish_again(
                store,
                session,
                old,
                made_by=by,
                restored_from=version,
                pinned=Pin(text_of(time.time()), by),
                **changed,
            )
        manifest = snapshots.manifest
        assert manifest.pinned is not None  # noqa: S101 - set above
        return Report(
            "success",
            settings.source,
            manifest.generated_at,
            version=manifest.version,
            cache=session.outcome("published"),
            details=f"version {version} again; version {manifest.version} is {manifest.pinned.describe()}",
            rejected=manifest.rejected,
            changes=manifest.changes,
            pinned=manifest.pinned,
        )

    return _run(settings, publish_old, wait_s, on_wait, use_cache=use_cache)


def unpin(
    settings: Settings, *, wait_s: float | None = None, on_wait: _Wait = lambda: None, use_cache: bool = True
) -> Report:
    """Remove the pin of the current version, which stays until a run publishes another; arguments as in `rollback`.

    Returns:
        A report with the status `unchanged` and the same version; `skipped` if no version is pinned.

    Raises:
        PublishRefused: As in `rollback`.
    """

    def replace_manifest(session: Session, in_files: Manifest | None) -> Report | None:
        newest, pointer = session.newest_manifest, session.pointer
        pin = None if newest is None else newest.pinned
        if newest is not None and pin is None and pointer is not None and pointer.manifest.is_same_set(newest):
            pin = pointer.manifest.pinned  # an earlier unpin was killed between the files and Redis
        if newest is None or pin is None:
            return None  # not recorded as a run: the last run may have failed, and its alert must not end
        manifest = replace(newest, pinned=None)
        if newest.updates:  # the restored set does not show them: another fingerprint makes the next run scan
            manifest = replace(manifest, fingerprint=f"{newest.fingerprint}+updates")
        if newest is in_files and newest.pinned is not None:
            _store(settings).replace_manifest(manifest, before_commit=session.check_superseded)
        session.replace_manifest(manifest)
        details = f"unpinned by {user_at_host()}: version {newest.version} was {pin.describe()}"
        if newest is not in_files:
            details += f"; {settings.output_dir} does not hold it, and a worker whose directory does pins it again"
        return Report(
            "unchanged",
            settings.source,
            text_of(time.time()),
            version=newest.version,
            cache=session.outcome("current"),
            details=details,
            rejected=newest.rejected,
        )

    report = _run(settings, replace_manifest, wait_s, on_wait, use_cache=use_cache)
    if report is None:
        details = f"no version of {settings.source!r} is pinned: runs publish what the input holds"
        report = replace(skipped(settings, "not_pinned"), details=details)
    return report


def _run(
    settings: Settings,
    work: Callable[[Session, Manifest | None], _Report],
    wait_s: float | None,
    on_wait: _Wait,
    *,
    use_cache: bool,
) -> _Report | Report:
    limit_s = settings.time_limit_s if wait_s is None else wait_s
    report = run_locked(settings, work, use_cache=use_cache, wait_s=limit_s, on_wait=on_wait)
    if report is not None and report.reason == "already_running":
        raise PublishRefused(
            f"nothing has changed: a run of {settings.source!r} is on, and has not ended within {limit_s:g} s; try "
            "again, wait longer with --wait, or end the run: celery -A tasks control terminate SIGTERM ID"
        )
    return report


def _store(settings: Settings) -> SnapshotStore:
    """Return the files' store. A shell may lack the worker's `ROLLING_KEEP_VERSIONS`, so it removes no kept set."""
    return snapshot_store(settings.output_dir, keep=MOST_KEPT_VERSIONS)


def _read(store: SnapshotStore, settings: Settings, version: int) -> SnapshotSet:
    """Read a kept set.

    Raises:
        VersionMissing: It is not kept, or is not whole.
    """
    kept = store.versions()
    found = next((each for each in kept if each.version == version), None)
    if found is None:
        problem = f"is not kept in {settings.output_dir}"
    else:
        snapshots = None if found.problem else store.read_set(manifest=found.manifest)
        if snapshots is not None and snapshots.manifest == found.manifest:
            return snapshots
        problem = f"in {settings.output_dir} is damaged: {found.problem or 'a file is not what its manifest lists'}"
    raise VersionMissing(f"version {version} of {settings.source!r} {problem}; {_describe_kept(kept)}")


def _describe_kept(kept: Sequence[KeptVersion]) -> str:
    whole = [str(each.version) for each in kept if not each.problem]
    if not whole:
        return "no version is kept there"
    more = f" and {len(whole) - NAMED} more" if len(whole) > NAMED else ""
    return f"kept are {', '.join(whole[:NAMED])}{more}: rolling-optimizer versions"


def _keep_equal(before: Predecessor | None, old: SnapshotSet) -> tuple[SnapshotSet, dict[str, Any]]:
    """Copy each kind that is equal from the version before into an old set, so that it keeps its time and its ETag.

    Returns:
        The resulting set, and the members of its manifest that describe the changes.
    """
    if before is None or before.snapshots is None:
        return old, {}
    try:
        stored = change_between(before.snapshots.content(), old.content())
    except UNREADABLE:  # written by another release
        return old, {}
    kept, entries = equal_kinds(stored), before.snapshots.manifest.snapshots
    manifest = replace(old.manifest, snapshots=old.manifest.snapshots | {kind: entries[kind] for kind in kept})
    payloads = old.payloads | {kind: before.snapshots.payloads[kind] for kind in kept}
    if stored is not None:
        return SnapshotSet(manifest, payloads), {"changes": stored.counts}
    same: dict[str, Any] = {"changes": ChangeCounts()}
    if before.is_in_redis:
        same["content_since"] = before.manifest.content_since or before.manifest.version
    return SnapshotSet(manifest, payloads), same
