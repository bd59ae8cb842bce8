"""Where snapshot sets go and come from: a directory (`snapshots.py`) or a URL (`remote_snapshots.py`), alike for all.

Errors: `OutputUnwritable`; `PublishRefused`; for a URL, of a reading function too, `OutputUnreadable`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from optimizer.models import Manifest
from optimizer.snapshots import directory as local
from optimizer.snapshots import object_store as remote
from optimizer.snapshots.directory import KINDS, Current, SnapshotSet
from optimizer.storage.location import Location, Url

__all__ = ["mark_checked", "output_lock", "read_current", "read_manifest", "read_set", "write_set"]


def output_lock(output: Location) -> AbstractContextManager[bool]:
    """Lock it against other runs as far as it knows locks; yield whether the lock was got."""
    return remote.output_lock(output) if isinstance(output, Url) else local.output_lock(output)


def write_set(
    output: Location, snapshots: SnapshotSet, *, replaced: int | None = None, fence: Callable[[], None] = lambda: None
) -> None:
    """Write a set and make it the current one, in place of the version that was current when its input was opened.

    `fence` is called just before that, and what it raises stops it.
    """
    if isinstance(output, Url):
        remote.write_set(output, snapshots, replaced=replaced, fence=fence)
    else:
        local.write_set(output, snapshots, replaced=replaced, fence=fence)


def read_manifest(output: Location) -> Manifest | None:
    """The manifest of the current set, or `None` where there is no usable one."""
    return remote.read_manifest(output) if isinstance(output, Url) else local.read_manifest(output)


def read_current(output: Location, before: Current | None = None) -> Current | None:
    """The manifest of the current set with its time, `None` where there is no usable one.

    `before` is what was found the last time: a local file that has not changed since is not read again.
    """
    return remote.read_current(output) if isinstance(output, Url) else local.read_current(output, before)


def read_set(output: Location, *, kinds: Sequence[str] = KINDS) -> SnapshotSet | None:
    """Read the current set, or some kinds of it, checked against the manifest; `None` where it is not whole."""
    return remote.read_set(output, kinds=kinds) if isinstance(output, Url) else local.read_set(output, kinds=kinds)


def mark_checked(output: Location) -> None:
    """Note that the current set is still the newest, and mend its fixed names."""
    if isinstance(output, Url):
        remote.mark_checked(output)
    else:
        local.mark_checked(output)
