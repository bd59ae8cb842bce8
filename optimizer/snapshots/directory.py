"""Snapshot sets in a local directory.

    output_dir/
        current -> versions/1795000000000          the only link that changes
        rolling_optimized.json.gz -> current/...   fixed names for plain readers; these links never change
        bots_snapshot.json.gz, portfolio_snapshot.json.gz, symbols_index.json.gz, manifest.json   likewise
        versions/1795000000000/                    a whole set; until complete, it has another name. Of the current
                                                   one the manifest may be replaced, by one rename
        .output-id                                 an id that identifies the directory, see `marker.py`
        .lock                                      locked by the current run; mode 0600

Invariant: a set is complete and synced before `current` points at it, and `current` changes by one rename. So a reader
of the fixed names sees whole files, a reader that resolves `current` once sees one set, and a writer that dies at any
moment leaves the old set unchanged; the next writer removes its leftovers.

A user who may write to `output_dir` can remove its files, so it must be writable by trusted users only. In a sticky
directory such as /tmp, others cannot touch our files but can take our names first: `.lock`, `versions/` and each set
must belong to this user, to the directory's owner or to root. A name of another user is refused with an error, or not
removed.

Errors: `OutputUnwritable` when writing, `OutputUnreadable` when reading, with the path and what to do.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from optimizer.errors import OutputUnreadable, OutputUnwritable
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
from optimizer.snapshots.marker import Marker
from optimizer.storage import durable

__all__ = ["LOCK_NAME", "DirectoryStore"]

CURRENT_NAME: Final = "current"
LOCK_NAME: Final = ".lock"

_SET_NAME = re.compile(r"[0-9]+(\.[0-9a-f]+\.partial)?")


class DirectoryStore:
    """The sets in a directory; a `SnapshotStore`.

    Args:
        path: The directory.
        keep: How many sets are kept, the current one included.
    """

    def __init__(self, path: Path, keep: int = KEPT_SETS) -> None:
        self._path = path
        self._keep = keep
        self._current = path / CURRENT_NAME
        self._versions = path / VERSIONS_NAME
        self.marker = Marker(path)

    @contextmanager
    def lock(self) -> Iterator[bool]:
        """Create the directory and lock it against other runs on this host; yield whether the lock was acquired.

        The kernel holds the lock and releases it when the process ends. The locked file is one that no other user may
        open: any open descriptor, even a read-only one, is enough to lock a file or a directory.
        """
        path = self._path / LOCK_NAME
        with self._writing():
            self._path.mkdir(parents=True, exist_ok=True)
            # Without O_NONBLOCK, opening a named pipe in its place would wait.
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
        try:
            with self._writing():
                self._check_owner(path, os.fstat(descriptor))
                for link in (self._current, self._versions):  # a run reads them, and may publish their content again
                    with suppress(FileNotFoundError):
                        self._check_owner(link, link.lstat())
            with self._writing():
                is_acquired = _lock(descriptor)
            yield is_acquired
        finally:
            with suppress(OSError):  # closing is not enough: a child that was forked meanwhile has a copy
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def write(
        self,
        snapshots: SnapshotSet,
        *,
        replaced: int | None = None,
        before_commit: Callable[[], None] = lambda: None,
    ) -> None:
        """Write a set and make it the current one.

        `before_commit` is called when the set is synced, and again just before it becomes the current one: a file
        system has no "rename if the lock is still mine", so this is as close as files allow.
        """
        version = snapshots.manifest.version
        complete = self._versions / str(version)
        partial = self._partial(version)

        def check() -> None:
            before_commit()
            check_newer(version, replaced, self.read_manifest(), self._path)

        with self._writing():
            self._check_names()
            self._versions.mkdir(exist_ok=True)
            self._check_owner(self._versions, self._versions.lstat())
            self._sweep()
            try:
                partial.mkdir()
                for kind, data in snapshots.payloads.items():
                    durable.write_file(partial / FILE_NAMES[kind], data)
                durable.write_file(partial / MANIFEST_NAME, encode_manifest(snapshots.manifest))
                durable.sync_directory(partial)
                check()
                partial.rename(complete)
            except BaseException as error:
                shutil.rmtree(partial, ignore_errors=True)
                if isinstance(error, OSError):
                    before_commit()  # a run that overtook this one has removed its files: then that is the reason
                raise
            durable.sync_directory(self._versions)
            check()  # again, since syncing may take long; if this refuses, the next run removes the set
            durable.replace_link(self._current, f"{VERSIONS_NAME}/{version}")
            self._link_names()
            durable.sync_directory(self._path)
            self._sweep()

    def replace_manifest(self, manifest: Manifest, *, before_commit: Callable[[], None] = lambda: None) -> None:
        """Replace the manifest of the current set by another one for the same set, by one rename.

        It is written in a temporary directory among the sets, which the next writer removes if this one dies.
        """
        directory = self._versions / str(manifest.version)
        partial = self._partial(manifest.version)
        with self._writing():
            self._check_owner(self._versions, self._versions.lstat())
            try:
                partial.mkdir()
                durable.write_file(partial / MANIFEST_NAME, encode_manifest(manifest))
                before_commit()
                check_same_set(manifest, self.read_manifest(), self._path)
                (partial / MANIFEST_NAME).rename(directory / MANIFEST_NAME)
            except OSError:
                before_commit()  # a run that overtook this one has removed its files: then that is the reason
                raise
            finally:
                shutil.rmtree(partial, ignore_errors=True)
            durable.sync_directory(directory)
            self._link_names()
            self._sweep()

    def _partial(self, version: int) -> Path:
        """Return the directory in which a version is written.

        Its name is unique: a run that was paused and overtaken may continue when the other one has made the same
        version (if the clock is behind the newest). It must then write and remove only its own files.
        """
        return self._versions / f"{version}.{secrets.token_hex(8)}.partial"

    def read_manifest(self) -> Manifest | None:
        """Read the manifest of the current set; `None` if there is no usable one."""
        current = self.read_current()
        return None if current is None else current.manifest

    def read_current(self, known: CurrentManifest | None = None) -> CurrentManifest | None:
        """Read the manifest of the current set with its time of modification; `None` if there is no usable one."""
        path = self._current / MANIFEST_NAME
        try:
            if known is not None and _validator(path.stat()) == known.validator:
                return known
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                manifest = decode_manifest(file.read())
        except OSError as error:
            self._check_damaged(error)
            return None
        return None if manifest is None else CurrentManifest(manifest, status.st_mtime, _validator(status))

    def read_set(self, *, kinds: Sequence[str] = KINDS, manifest: Manifest | None = None) -> SnapshotSet | None:
        """Read the current set, or some kinds of it; `None` unless its payloads match its manifest."""
        for _ in range(READ_ATTEMPTS):
            try:
                if manifest is not None:
                    directory = self._versions / str(manifest.version)
                else:
                    directory = self._current.resolve(strict=True)
                    manifest = decode_manifest((directory / MANIFEST_NAME).read_bytes())
                    if manifest is None:
                        return None
                payloads = {kind: (directory / manifest.snapshots[kind].file).read_bytes() for kind in kinds}
            except FileNotFoundError:
                manifest = None
                continue  # removed between two reads: `current` points to another set by now
            except OSError as error:
                self._check_damaged(error)
                return None
            except (RuntimeError, KeyError):  # a loop of links; a manifest without one of these kinds
                return None
            snapshots = SnapshotSet(manifest, payloads)
            return snapshots if snapshots.is_whole else None
        return None

    def versions(self) -> list[KeptVersion]:
        """List the kept sets that are not newer than the current one, newest first; only sets of trusted users."""
        try:
            newest, ours = self._current_version(), self._sets()
        except OSError as error:
            self._check_damaged(error)
            return []
        versions = sorted((int(path.name) for path in ours if path.name.isdecimal()), reverse=True)
        return [self._kept_version(version) for version in versions if version <= newest]

    def _kept_version(self, version: int) -> KeptVersion:
        directory = self._versions / str(version)
        try:
            sizes = {path.name: path.stat().st_size for path in directory.iterdir()}
            manifest = decode_manifest((directory / MANIFEST_NAME).read_bytes())
        except OSError as error:
            self._check_damaged(error)
            return KeptVersion.of(version, None, {})
        return KeptVersion.of(version, manifest, sizes)

    def mark_checked(self) -> None:
        """Note that the current set is still the newest: the manifest's time of modification becomes now.

        It also completes the work of a writer that died: fixed names are restored, including removed ones, and its
        leftovers and old sets are removed. The next set may not be written for a long time.
        """
        with self._writing():
            self._link_names()
            self._check_owner(self._versions, self._versions.lstat())
            self._sweep()
            os.utime(self._current / MANIFEST_NAME)

    def _link_names(self) -> None:
        """Create the links with the fixed names that are missing or wrong."""
        for name in (*FILE_NAMES.values(), MANIFEST_NAME):
            target = f"{CURRENT_NAME}/{name}"
            link = self._path / name
            if not (link.is_symlink() and str(link.readlink()) == target):
                durable.replace_link(link, target)

    def _sweep(self) -> None:
        """Remove the leftovers of dead writers, and sets older than the kept ones; touch no files of other programs."""
        for name in (CURRENT_NAME, *SET_FILES):
            leftover = durable.partial_link(self._path / name)
            if leftover.is_symlink():
                leftover.unlink()
        newest, ours = self._current_version(), self._sets()
        versions = sorted(int(path.name) for path in ours if path.name.isdecimal())
        # A set newer than the current one never became current: its writer died before.
        kept = {str(version) for version in [version for version in versions if version <= newest][-self._keep :]}
        for path in ours:
            if path.name not in kept:
                shutil.rmtree(path, ignore_errors=True)

    def _current_version(self) -> int:
        """The version that `current` names, 0 for none."""
        current = ""
        with suppress(OSError):
            current = self._current.readlink().name
        return int(current) if current.isdecimal() else 0

    def _sets(self) -> list[Path]:
        """The directories of sets, complete or not, that belong to a trusted user."""
        trusted = self._trusted()
        return [path for path in self._versions.iterdir() if _is_set(path, trusted)]

    def _check_names(self) -> None:
        """Check, before anything is written, that links and sets would replace no file of another program."""
        for name in (CURRENT_NAME, MANIFEST_NAME, *FILE_NAMES.values()):
            path = self._path / name
            if path.is_dir() and not path.is_symlink():
                raise IsADirectoryError(errno.EISDIR, "is a directory, and stands where a link has to be", str(path))
        if self._versions.is_symlink():
            raise NotADirectoryError(errno.ENOTDIR, "is a link, and has to be a directory of ours", str(self._versions))

    def _check_owner(self, path: Path, status: os.stat_result) -> None:
        """Check that a path was created by this user, or by one who has all rights here anyway."""
        if status.st_uid not in self._trusted():
            raise PermissionError(
                errno.EPERM,
                f"belongs to the user {status.st_uid}, not to this one ({os.geteuid()}); remove it, and let others "
                "write nothing here",
                str(path),
            )

    def _trusted(self) -> set[int]:
        return {os.geteuid(), self._path.stat().st_uid, 0}

    def _check_damaged(self, error: OSError) -> None:
        """Ignore missing or damaged files, which the next run replaces; raise if the set may be whole but unreadable.

        Raises:
            OutputUnreadable: Reading the set is not permitted, or fails.
        """
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG):
            reason = (error.strerror or str(error)).lower()
            raise OutputUnreadable(
                f"{reason}: {error.filename or self._path}, read by the user {os.geteuid()}; the worker's umask and "
                f"the permissions of ROLLING_OUTPUT_DIR={self._path} decide who may"
            ) from error

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OutputUnreadable:
            raise
        except OSError as error:
            path = durable.shown_path(error.filename or self._path)
            raise OutputUnwritable(
                f"{path}: {error.strerror or error}; the old snapshots are as they were. "
                f"Free space on, or make writable, ROLLING_OUTPUT_DIR={self._path}"
            ) from error


def _validator(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_set(path: Path, trusted: set[int]) -> bool:
    """Whether a path is a snapshot set: a directory named by a version, with only a set's files in it."""
    if not _SET_NAME.fullmatch(path.name):
        return False
    try:
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid not in trusted:
            return False
        return {entry.name for entry in path.iterdir()} <= SET_FILES
    except FileNotFoundError:  # a run that was overtaken has just removed its set
        return False
