"""The protocol by which snapshot sets are written and read, and the function that picks its implementation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from optimizer.models import Manifest
from optimizer.snapshots.format import KEPT_SETS, KINDS, CurrentManifest, KeptVersion, SnapshotSet
from optimizer.snapshots.marker import Marker
from optimizer.storage.location import Location, Url

__all__ = ["SnapshotStore", "snapshot_store"]


class SnapshotStore(Protocol):
    """The snapshot sets of one source, one of which is the current one.

    Creating a store does no I/O. Methods that read raise `OutputUnreadable`; those that write also `OutputUnwritable`.
    """

    @property
    def marker(self) -> Marker | None:
        """The file that identifies a directory; `None` for an object store, whose address is the same for all."""

    def lock(self) -> AbstractContextManager[bool]:
        """Lock the store against other runs, as far as it has locks; yield whether the lock was acquired."""

    def write(
        self,
        snapshots: SnapshotSet,
        *,
        replaced: int | None = None,
        before_commit: Callable[[], None] = lambda: None,
    ) -> None:
        """Write a set and make it the current one. The caller holds the `lock`.

        Args:
            snapshots: The set.
            replaced: The version that was current when the input was opened, 0 for none, see `check_newer`.
            before_commit: Called when the set is complete, before it becomes the current one; an exception from it
                stops the write.

        Raises:
            OutputUnwritable: The set cannot be written; the current set is unchanged.
            PublishRefused: A newer set is the current one by now.
        """

    def replace_manifest(self, manifest: Manifest, *, before_commit: Callable[[], None] = lambda: None) -> None:
        """Replace the manifest of the current set by another one of the same set. The caller holds the `lock`.

        Args:
            manifest: The new manifest; its version and digests are those of the current one.
            before_commit: Called before the new manifest is shown; an exception from it stops the replacement.

        Raises:
            OutputUnwritable: It cannot be written; the current manifest is unchanged.
            PublishRefused: Another set is the current one by now.
        """

    def read_manifest(self) -> Manifest | None:
        """Read the manifest of the current set; `None` if there is no usable one."""

    def read_current(self, known: CurrentManifest | None = None) -> CurrentManifest | None:
        """Read the manifest of the current set with its time; `None` if there is no usable one.

        Args:
            known: The result of an earlier call; a local file that has not changed since is not read again.
        """

    def read_set(self, *, kinds: Sequence[str] = KINDS, manifest: Manifest | None = None) -> SnapshotSet | None:
        """Read the current set, or some kinds of it; `None` unless its payloads match its manifest.

        Args:
            kinds: The kinds to read.
            manifest: The manifest that this caller has just read, if any; it is not read again.
        """

    def versions(self) -> list[KeptVersion]:
        """List the kept sets that are not newer than the current one, newest first; none if there is no current one.

        `read_set(manifest=...)` reads one of them. If the result has another manifest, it is not that set.
        """

    def mark_checked(self) -> None:
        """Note that the current set is still the newest, and restore its fixed names."""


def snapshot_store(output: Location, *, keep: int = KEPT_SETS) -> SnapshotStore:
    """Return the store of an output directory or URL, importing only the code of that kind.

    Args:
        output: The directory or the URL.
        keep: How many sets are kept when one is written or confirmed, the current one included; unused by readers.
    """
    if isinstance(output, Url):
        from optimizer.snapshots.object_store import ObjectStore  # noqa: PLC0415

        return ObjectStore(output, keep)
    from optimizer.snapshots.directory import DirectoryStore  # noqa: PLC0415

    return DirectoryStore(output, keep)
