"""Confirm the current version without reading an input, if its input has not changed or if it is pinned.

A pinned version stays until it is unpinned, whatever the input. The pin is in the manifest, and the newest manifest, of
the files or in Redis, is decisive. So a worker that writes to another directory obeys a pin that is only in Redis.

A version of updates is in Redis alone, so that it takes milliseconds. `catch_up` writes it to the files in a run that
holds the locks of source and directory: its payloads, its index, and the updates in force, which Redis may lose. The
files are always of one version; updates that are applied meanwhile are left to the next run.

Errors: `VersionMissing` for a pinned version that is whole neither in the files nor in Redis; `OutputUnwritable`,
`PublishRefused`.
"""

from __future__ import annotations

import time
from typing import Any, Final, Literal

from msgspec.structs import replace

from optimizer.cache.clocks import text_of
from optimizer.cache.verification import is_intact
from optimizer.config.settings import Settings
from optimizer.errors import VersionMissing
from optimizer.log import SourceLog
from optimizer.models import Manifest, Report, rank
from optimizer.pipeline.session import Session
from optimizer.selection.updates import merge_held
from optimizer.snapshots.format import SnapshotSet, index_of
from optimizer.snapshots.store import SnapshotStore, snapshot_store

__all__ = ["catch_up", "catch_up_if_free", "confirm_set", "date_input", "keep_pinned", "publish_again"]

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
    standing = _compare(session, snapshots)
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
        if _has_forgotten(session, snapshots.manifest):
            with session.publishing(store):
                publish_again(store, session, snapshots)
        else:
            session.publish(snapshots)
        done = "republished"
    store.mark_checked()
    return done


def catch_up(store: SnapshotStore, session: Session) -> bool:
    """Write the set in Redis to the files, if it was made from the files' set by updates alone.

    Args:
        store: The files; the run holds their lock.
        session: Redis, in a run that holds the lock.

    Returns:
        False if it was made so, but Redis lacks a part of it, so that a scan is needed.
    """
    pointer, in_files = session.pointer, session.in_files
    if session.state != "up" or pointer is None or in_files is None:
        return True
    if pointer.version <= in_files.version or pointer.manifest.lineage != in_files.lineage:
        return True
    shown = session.read_shown()
    if shown is None:
        return session.state != "up"
    pointer, payloads, records, held = shown
    index = index_of(sorted(records, key=rank), pointer.manifest.generated_at, held)
    manifest = replace(pointer.manifest, input_at=in_files.input_at)  # of the same input, which may be rewritten
    snapshots = SnapshotSet(manifest, payloads).with_index(index)
    store.write(snapshots, replaced=session.newest_before, before_commit=session.check_lock)
    session.in_files = snapshots.manifest
    session.replace_manifest(snapshots.manifest)
    return True


def catch_up_if_free(settings: Settings) -> None:
    """Catch up outside a run, if no run holds the locks at this moment.

    Raises:
        RollingError: The files cannot be written, or a run has begun meanwhile.
    """
    store = snapshot_store(settings.output_dir, keep=settings.keep_versions)
    with (
        Session(settings, use_cache=True) as session,
        store.lock() as directory_is_free,
        session.lock() as source_is_free,
    ):
        if directory_is_free and source_is_free:
            session.start_from(store.read_manifest())
            catch_up(store, session)


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
    elif session.version_before == newest.version and _is_intact(session, newest.version):
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


def _compare(session: Session, snapshots: SnapshotSet) -> Literal["current", "behind", "other"]:
    """Compare Redis with the set in the files, which was made from the present input.

    Returns:
        `current`: Redis shows this set, or a newer one of the same input, complete and undamaged. `behind`: it needs
        this set, or its manifest, which may have been replaced since. `other`: it shows a different set that is as
        new, so a new version has to be made.
    """
    if session.state != "up":
        return "current"
    before, manifest = session.pointer, snapshots.manifest
    version = manifest.version
    is_same_input = before is not None and before.manifest.fingerprint == manifest.fingerprint
    is_same_set = before is not None and before.manifest.is_same_set(manifest)
    if before and before.manifest == manifest:
        if session.shows(snapshots):
            return "current"
    elif before and before.version >= version and is_same_input and _is_intact(session, before.version):
        return "behind" if is_same_set else "current"
    is_taken = before is not None and before.version == version and not (is_same_input or is_same_set)
    return "other" if is_taken or session.newest() > version else "behind"


def _is_intact(session: Session, version: int) -> bool:
    """Whether Redis has every value of a version that it shows."""
    return session.ask(lambda: is_intact(session.cache, version), absent=True)


def _has_forgotten(session: Session, manifest: Manifest) -> bool:
    """Whether Redis was emptied, and updates may have made versions newer than this one in the files.

    Readers that have seen such a version show nothing older, so this set needs a higher number.
    """
    if session.pointer is not None or not (manifest.updates or manifest.scan_version):
        return False
    return session.ask(session.writer.newest_known, absent=1) == 0
