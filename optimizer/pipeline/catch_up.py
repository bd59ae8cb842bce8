"""Let the files catch up with the version of updates that Redis shows.

A flip of updates writes no files, so that it takes milliseconds. A run that holds the locks of source and directory
writes the set of the current version from Redis: its payloads, its index, and the updates that hold, which Redis may
lose. The files are of one version then, as always; updates that are applied meanwhile are for the next run.

Errors: `OutputUnwritable`, `PublishRefused`.
"""

from __future__ import annotations

from msgspec.structs import replace

from optimizer.config.settings import Settings
from optimizer.models import rank
from optimizer.pipeline.session import Session
from optimizer.snapshots.format import SnapshotSet, index_of
from optimizer.snapshots.store import SnapshotStore, snapshot_store

__all__ = ["catch_up", "catch_up_if_free"]


def catch_up(store: SnapshotStore, session: Session) -> bool:
    """Write the set that Redis shows into the files, if updates alone have made it of the set there.

    Args:
        store: The files; the run holds their lock.
        session: Redis, in a run that holds the lock.

    Returns:
        False if they have, and Redis has not all of it, so that a scan is needed.
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
    manifest = replace(pointer.manifest, input_at=in_files.input_at)  # of the same input, which may be written again
    snapshots = SnapshotSet(manifest, payloads).with_index(index)
    store.write(snapshots, replaced=session.newest_before, before_commit=session.check_lock)
    session.in_files = snapshots.manifest
    session.replace_manifest(snapshots.manifest)
    return True


def catch_up_if_free(settings: Settings) -> None:
    """Do so outside a run, if no run holds the locks at this moment.

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
