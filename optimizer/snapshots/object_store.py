"""Snapshot sets in an object store, which has neither rename nor links.

    output/
        versions/1795000000000/    a whole set with its manifest; of the current one the manifest may be replaced
        rolling_optimized.json.gz ...   fixed names for plain readers: copies, each whole, briefly of two different sets
        manifest.json              put last: it names the current set, and one put changes it

Invariant: a set is complete in the store before `manifest.json` names it, and a put is atomic. So a reader of
`manifest.json` and then of the set that it names sees one set, and a writer that dies at any moment leaves the old one.

There is no lock, since no kind of lock exists in all stores. Redis ensures that there is only one run; while it is
away, or with `--no-cache`, two runs may write at the same time. Each writes its own set, so both stay whole, and the
run that sees the other's manifest just before it puts its own is refused. If both check at the same time, the last
manifest wins. At worst it names the set of the older input, or one that the other run has removed; the next tick then
sees another fingerprint, or a set that is not whole, and makes a new one. Readers never go back to an older version.

Errors: `OutputUnwritable` when writing, `OutputUnreadable` when reading; `PublishRefused`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

from optimizer.errors import OutputUnreadable, OutputUnwritable
from optimizer.log import SourceLog
from optimizer.models import Manifest
from optimizer.snapshots.format import (
    FILE_NAMES,
    KEPT_SETS,
    KINDS,
    MANIFEST_NAME,
    READ_ATTEMPTS,
    SET_FILES,
    VERSIONS_NAME,
    CurrentManifest,
    KeptVersion,
    SnapshotSet,
    check_newer,
    check_same_set,
    decode_manifest,
    encode_manifest,
)
from optimizer.storage.location import Url
from optimizer.storage.object_store import file_system, translated_errors

__all__ = ["ObjectStore"]

# A set newer than the current one is still being written, or its writer has died: no write takes this long. Versions
# are milliseconds since the epoch.
GRACE_MS: Final = 3_600_000

_log = SourceLog(__name__)


class ObjectStore:
    """The sets below a URL; a `SnapshotStore`.

    Args:
        url: The URL of the output.
        keep: How many sets are kept, the current one included.
    """

    marker: Final = None  # every worker has the same URL, and another object would cost a request at each tick

    def __init__(self, url: Url, keep: int = KEPT_SETS) -> None:
        self._url = url
        self._keep = keep
        self._manifest = (url / MANIFEST_NAME).text

    @property
    def _store(self) -> Any:
        return file_system(self._url)

    @contextmanager
    def lock(self) -> Iterator[bool]:
        """Check that the store answers before an input is scanned for it; yield True, since there is no lock."""
        with self._writing():
            self.read_manifest()
        yield True

    def write(
        self,
        snapshots: SnapshotSet,
        *,
        replaced: int | None = None,
        before_commit: Callable[[], None] = lambda: None,
    ) -> None:
        """Put a set and make it the current one.

        `before_commit` is called when the set is in the store, just before the fixed names become its own.
        """
        version, source = snapshots.manifest.version, snapshots.manifest.source
        manifest = encode_manifest(snapshots.manifest)
        directory = self._set(version)
        files = {FILE_NAMES[kind]: data for kind, data in snapshots.payloads.items()}
        with self._writing():
            try:
                everything = {**files, MANIFEST_NAME: manifest}
                self._store.pipe({(directory / name).text: data for name, data in everything.items()})
                before_commit()
                check_newer(version, replaced, self.read_manifest(), self._url)
            except BaseException:
                self._remove(version, source)
                raise
            self._store.pipe({(self._url / name).text: data for name, data in files.items()})
            self._store.pipe_file(self._manifest, manifest)
        self._sweep(version, source)

    def replace_manifest(self, manifest: Manifest, *, before_commit: Callable[[], None] = lambda: None) -> None:
        """Replace the manifest of the current set by another one for the same set: first in the set, then at the top.

        If a writer dies between the two, the old manifest stays in force.
        """
        data = encode_manifest(manifest)
        with self._writing():
            before_commit()
            check_same_set(manifest, self.read_manifest(), self._url)
            self._store.pipe_file((self._set(manifest.version) / MANIFEST_NAME).text, data)
            self._store.pipe_file(self._manifest, data)

    def read_manifest(self) -> Manifest | None:
        """Read the manifest of the current set; `None` if there is no usable one."""
        with self._reading():
            try:
                return decode_manifest(self._store.cat_file(self._manifest))
            except FileNotFoundError:
                return None

    def read_current(self, known: CurrentManifest | None = None) -> CurrentManifest | None:  # noqa: ARG002 - the time needs a request anyway
        """Read the manifest of the current set with its time by the store's clock; `None` if there is no usable one."""
        with self._reading():
            try:
                modified: datetime = self._store.modified(self._manifest)
                manifest = decode_manifest(self._store.cat_file(self._manifest))
            except FileNotFoundError:
                return None
        checked_s = (modified if modified.tzinfo else modified.replace(tzinfo=UTC)).timestamp()
        return None if manifest is None else CurrentManifest(manifest, checked_s)

    def read_set(self, *, kinds: Sequence[str] = KINDS, manifest: Manifest | None = None) -> SnapshotSet | None:
        """Read the current set, or some kinds of it; `None` unless its payloads match its manifest."""
        for _ in range(READ_ATTEMPTS):
            manifest = manifest or self.read_manifest()
            if manifest is None or not manifest.snapshots.keys() >= set(kinds):
                return None
            files = {kind: (self._set(manifest.version) / manifest.snapshots[kind].file).text for kind in kinds}
            with self._reading():
                try:
                    payloads = {kind: self._store.cat_file(file) for kind, file in files.items()}
                except FileNotFoundError:
                    manifest = None
                    continue  # removed between two reads: the manifest names another set by now
            snapshots = SnapshotSet(manifest, payloads)
            return snapshots if snapshots.is_whole else None
        return None

    def versions(self) -> list[KeptVersion]:
        """List the kept sets that are not newer than the current one, newest first."""
        current = self.read_manifest()
        if current is None:
            return []
        sizes: dict[int, dict[str, int]] = {}
        with self._reading():
            found = self._store.find((self._url / VERSIONS_NAME).text, detail=True)
            for name, info in found.items():
                version, file = name.rsplit("/", 2)[-2:]
                if version.isdecimal() and file in SET_FILES and int(version) <= current.version:
                    sizes.setdefault(int(version), {})[file] = info["size"]
            manifests = self._manifests([version for version in sizes if version != current.version])
        manifests[current.version] = current
        return [KeptVersion.of(each, manifests.get(each), sizes[each]) for each in sorted(sizes, reverse=True)]

    def _manifests(self, versions: Sequence[int]) -> dict[int, Manifest | None]:
        """Read the manifests of several sets at the same time; those that are gone are left out."""
        names = [(self._set(version) / MANIFEST_NAME).text for version in versions]
        manifests = {}
        for name, data in self._store.cat(names, on_error="return").items() if names else ():
            if isinstance(data, bytes):
                manifests[int(name.rsplit("/", 2)[-2])] = decode_manifest(data)
            elif not isinstance(data, FileNotFoundError):
                raise data
        return manifests

    def mark_checked(self) -> None:
        """Note that the current set is still the newest: put the manifest again, so that the store dates it anew.

        Fixed names that were removed, or that have another size than the set's files, are restored.
        """
        with self._writing():
            data = self._store.cat_file(self._manifest)
            manifest = decode_manifest(data)
            if manifest is None:
                return  # damaged since it was read: the next run makes a new set
            objects = self._store.ls(self._url.text, detail=True)
            sizes = {info["name"].rpartition("/")[2]: info["size"] for info in objects}
            for entry in manifest.snapshots.values():
                if sizes.get(entry.file) != entry.bytes:
                    content = self._store.cat_file((self._set(manifest.version) / entry.file).text)
                    self._store.pipe_file((self._url / entry.file).text, content)
            self._store.pipe_file(self._manifest, data)

    def _set(self, version: int) -> Url:
        return self._url / VERSIONS_NAME / str(version)

    def _sweep(self, current: int, source: str) -> None:
        """Remove sets older than the kept ones, and leftovers of dead writers; failing to remove them does no harm."""
        try:
            with translated_errors(self._url):
                names = self._store.find((self._url / VERSIONS_NAME).text)
            pieces = [name.rsplit("/", 2)[-2:] for name in names]
            versions = sorted({int(version) for version, file in pieces if version.isdecimal() and file in SET_FILES})
            kept = [version for version in versions if version <= current][-self._keep :]
            oldest_written = time.time() * 1000 - GRACE_MS
            for version in versions:
                if version not in kept and (version < current or version < oldest_written):
                    self._remove(version, source)
        except OSError as error:
            _log.warning("old sets of snapshots stay", source=source, error=error)

    def _remove(self, version: int, source: str) -> None:
        """Remove the objects of one set, as far as the store allows it."""
        for name in sorted(SET_FILES):
            try:
                with translated_errors(self._url):
                    self._store.rm_file((self._set(version) / name).text)
            except FileNotFoundError:
                continue
            except OSError as error:
                _log.warning("an old set of snapshots stays", source=source, error=error)
                return

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            with translated_errors(self._url):
                yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise OutputUnreadable(str(error)) from error

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with translated_errors(self._url):
                yield
        except FileNotFoundError as error:
            raise OutputUnwritable(
                f"{self._url}: {error}; the old snapshots are as they were. Is there such a bucket? Make it, or set "
                "ROLLING_OUTPUT_DIR to another"
            ) from error
        except OSError as error:
            raise OutputUnwritable(f"{error}; the old snapshots are as they were, see ROLLING_OUTPUT_DIR") from error
