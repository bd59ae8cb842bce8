"""Confirm the current version without reading an input, if its input has not changed or if it is pinned.

A pinned version stays until it is unpinned, whatever the input. The pin is in the manifest, and the newest manifest, of
the files or in Redis, is decisive. So a worker that writes to another directory obeys a pin that is only in Redis.

Errors: `VersionMissing` for a pinned version that is whole neither in the files nor in Redis; `OutputUnwritable`,
`PublishRefused`.
"""

from __future__ import annotations

import time
from typing import Any, Final

from msgspec.structs import replace

from optimizer.cache.clocks import text_of
from optimizer.config.settings import Settings
from optimizer.errors import VersionMissing
from optimizer.log import SourceLog
from optimizer.models import Report
from optimizer.pipeline.catch_up import catch_up
from optimizer.pipeline.session import Session
from optimizer.selection.updates import merge_held
from optimizer.snapshots.format import SnapshotSet, index_of
from optimizer.snapshots.store import SnapshotStore, snapshot_store

__all__ = ["confirm_set", "date_input", "keep_pinned", "publish_again"]

NOT_WHOLE: Final = "the files of the pinned version %d in %s are not whole; Redis shows it"

_log = SourceLog(__name__)


def confirm_set(
    store: SnapshotStore,
    session: Session,
    snapshots: SnapshotSet,
    *,
    modified_s: float | None = None,
) -> str | None:
    """Confirm the set in the files; publish it again if Redis has none, an older one, or a damaged copy.

    If updates have made a newer version in Redis, the files are brought up to it.

    Args:
        store: The files.
        session: Redis, in a run that holds the lock.
        snapshots: The set.
        modified_s: When the input was last written to, if it is known.

    Returns:
        The state of Redis: `current` or `republished`. `None`, and nothing is confirmed, if Redis has a different set
        that is as new, or updates in force that the files do not have, or waiting updates older than the input.
    """
    standing = session.compare(snapshots)
    if standing == "other":
        return None
    done = "current"
    if standing == "current":
        if not catch_up(store, session):
            return None
        session.confirm()
    else:
        held = snapshots.decode_index().updates or {} if snapshots.manifest.updates else {}
        if merge_held(held, session.held_in_redis()) != held:
            return None
        if modified_s is not None and any(entry.at_ms < 1000 * modified_s for entry in session.queued()):
            return None
        if session.has_forgotten(snapshots.manifest):
            with session.publishing(store):
                publish_again(store, session, snapshots)
        else:
            session.publish(snapshots)
        done = "republished"
    store.mark_checked()
    return done


def date_input(store: SnapshotStore, session: Session, snapshots: SnapshotSet, modified_s: float | None) -> SnapshotSet:
    """Update the time of the last write to the input, which has not changed, in the set in the files, if it is later.

    A running engine may put an equal object again: then the store's tag is the same, and the time differs. A set from
    an older release has no time.

    Args:
        store: The files.
        session: Redis, in a run that holds the lock; `confirm_set` gives it the new manifest.
        snapshots: The set.
        modified_s: When the input was last written to, if it is known.
    """
    input_at = None if modified_s is None else text_of(modified_s)
    if input_at is None or input_at <= (snapshots.manifest.input_at or ""):
        return snapshots
    dated = SnapshotSet(replace(snapshots.manifest, input_at=input_at), snapshots.payloads)
    store.replace_manifest(dated.manifest, before_commit=session.check_superseded)
    session.in_files = dated.manifest
    return dated


def keep_pinned(settings: Settings, session: Session) -> Report | None:
    """Confirm the current version if it is pinned, and repair Redis from the files.

    Args:
        settings: All settings of the source.
        session: Its Redis, in a run that holds the lock.

    Returns:
        The report of a run that has nothing more to do; `None` if no version is pinned.

    Raises:
        VersionMissing: Neither the files nor Redis have the pinned version whole.
    """
    newest = session.newest_manifest
    pin = None if newest is None else newest.pinned
    if newest is None or pin is None:
        return None
    warning = None
    store = snapshot_store(settings.output_dir, keep=settings.keep_versions)
    snapshots = store.read_set(manifest=newest) if newest is session.in_files else None
    if snapshots is not None and snapshots.manifest == newest:
        done = confirm_set(store, session, snapshots)
        if done is None:  # readers may hold the set in Redis, so this one needs a higher number
            with session.publishing(store):
                newest = publish_again(store, session, snapshots).manifest
            done = "republished"
    elif session.has(newest.version):
        session.confirm()
        done = "current"
        if newest is session.in_files:
            _log.warning(NOT_WHOLE, newest.version, settings.output_dir, source=settings.source)
            warning = NOT_WHOLE % (newest.version, settings.output_dir)
    else:
        raise VersionMissing(
            f"version {newest.version} is {pin.describe()}, and is whole neither in {settings.output_dir} nor in "
            "Redis. Take another one of: rolling-optimizer versions; or let runs publish: rolling-optimizer unpin"
        )
    return Report(
        "skipped",
        settings.source,
        text_of(time.time()),
        version=newest.version,
        cache=session.outcome(done),
        reason="pinned",
        details=f"version {newest.version} is {pin.describe()}; runs publish again after: rolling-optimizer unpin",
        rejected=newest.rejected,
        warning=warning,
        pinned=pin,
    )


def publish_again(store: SnapshotStore, session: Session, old: SnapshotSet, **changed: Any) -> SnapshotSet:
    """Publish the payloads of a set under a new version, in the files and then in Redis; return the new set.

    The updates in force stay in force for the next scan, though this set does not show them.

    Args:
        store: The files.
        session: Redis, in a run that holds the lock and is `publishing`.
        old: The set.
        changed: New values for members of the manifest other than its version and time.
    """
    index = old.decode_index()
    old = old.with_index(index_of(index.symbols, index.timestamp, session.held))
    version, now = session.next_version()
    common = {"content_since": version, "changes": None, "scan_version": None}
    manifest = replace(old.manifest, version=version, generated_at=now, **(common | changed))
    snapshots = SnapshotSet(manifest, old.payloads)
    store.write(snapshots, replaced=session.newest_before, before_commit=session.check_superseded)
    session.publish(snapshots)
    session.in_files = manifest
    return snapshots
