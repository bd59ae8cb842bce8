"""The snapshot files: encode, compress, write as one, read back.

    output_dir/
        current -> versions/1795000000000          the one link that is flipped
        rolling_optimized.json.gz -> current/...   fixed names for plain readers; these links never change
        bots_snapshot.json.gz, portfolio_snapshot.json.gz, symbols_index.json.gz, manifest.json   likewise
        versions/1795000000000/                    a whole set, never written again; before, it has a name of its own
        .lock                                      locked by the run that is on; mode 0600

Invariant: a set is complete and on the disk before `current` points at it, and pointing is one rename. So whoever reads
through the fixed names sees whole files, whoever resolves `current` once sees one set, and a writer that dies at any
moment leaves the old set as it was; what it left behind is swept by the next.

A user who may write to `output_dir` can remove what is there, so it must be writable for trusted users alone. In a
sticky one, such as /tmp, others cannot touch what is ours, but can take its names beforehand: `.lock`, `versions/` and
each set have to belong to this user, to the directory's owner or to root. Another's is refused by name, or not swept.

Errors: `OutputUnwritable` from what writes, `OutputUnreadable` from what reads, with the path and what to do.
"""

from __future__ import annotations

import errno
import fcntl
import gzip
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from optimizer.errors import OutputUnreadable, OutputUnwritable, PublishRefused
from optimizer.models import (
    UNDECODABLE,
    Bot,
    BotsSnapshot,
    FileEntry,
    Index,
    Manifest,
    PortfolioSnapshot,
    PredictionsSnapshot,
    Record,
    Rejected,
)
from optimizer.selection.portfolio import holdings, summaries
from optimizer.storage.location import Location

__all__ = [
    "FILE_NAMES",
    "KEPT_SETS",
    "KINDS",
    "LOCK_NAME",
    "MANIFEST_NAME",
    "READ_ATTEMPTS",
    "VERSIONS_NAME",
    "Current",
    "SnapshotSet",
    "check_newer",
    "decode_manifest",
    "encode_manifest",
    "encode_set",
    "mark_checked",
    "output_lock",
    "read_current",
    "read_manifest",
    "read_set",
    "write_set",
]

KINDS: Final = ("predictions", "bots", "portfolio", "index")
FILE_NAMES: Final = {
    "predictions": "rolling_optimized.json.gz",
    "bots": "bots_snapshot.json.gz",
    "portfolio": "portfolio_snapshot.json.gz",
    "index": "symbols_index.json.gz",
}
MANIFEST_NAME: Final = "manifest.json"
CURRENT_NAME: Final = "current"
VERSIONS_NAME: Final = "versions"
LOCK_NAME: Final = ".lock"
# The set before the current one stays, for readers that resolved `current` just before it was flipped.
KEPT_SETS: Final = 2
READ_ATTEMPTS: Final = 3

_SET_NAME = re.compile(r"[0-9]+(\.[0-9a-f]+\.partial)?")
_MANIFEST = msgspec.json.Decoder(Manifest)
_INDEX = msgspec.json.Decoder(Index)


@dataclass(frozen=True)
class SnapshotSet:
    """One version: its manifest, and the gz bytes of each kind."""

    manifest: Manifest
    payloads: dict[str, bytes]

    @property
    def is_whole(self) -> bool:
        """Whether the payloads are those that the manifest lists."""
        entries = self.manifest.snapshots
        return all(hashlib.sha256(data).hexdigest() == entries[kind].sha256 for kind, data in self.payloads.items())

    def index(self) -> list[Record]:
        """The records of the index, best first."""
        return _INDEX.decode(gzip.decompress(self.payloads["index"])).symbols


@dataclass(frozen=True)
class Current:
    """The manifest of the current set, and when a run last made or confirmed that.

    `checked_s` is in seconds since the epoch, by the clock of the file system or the store. `mark` is another one when
    the file is, where that can be told without reading it.
    """

    manifest: Manifest
    checked_s: float
    mark: tuple[int, int, int] | None = None


def encode_set(
    *,
    source: str,
    version: int,
    generated_at: str,
    fingerprint: str,
    ranked: Sequence[Record],
    predictions: list[Record],
    bots: Sequence[Bot],
    gzip_level: int,
    rejected: Rejected | None = None,
) -> SnapshotSet:
    """Make the snapshots of a version. Equal content gives equal bytes: gzip's time of modification is 0."""
    shown = summaries(bots)
    held = holdings(bots)
    contents: dict[str, tuple[msgspec.Struct, int]] = {
        "predictions": (PredictionsSnapshot(predictions, generated_at, len(predictions)), len(predictions)),
        "bots": (BotsSnapshot(shown, generated_at), len(shown)),
        "portfolio": (PortfolioSnapshot(held, generated_at), len(held)),
        "index": (Index(list(ranked), generated_at), len(ranked)),
    }
    payloads = {
        kind: gzip.compress(msgspec.json.encode(content), gzip_level, mtime=0)
        for kind, (content, _) in contents.items()
    }
    entries = {
        kind: FileEntry(FILE_NAMES[kind], hashlib.sha256(data).hexdigest(), len(data), contents[kind][1])
        for kind, data in payloads.items()
    }
    return SnapshotSet(Manifest(source, version, generated_at, fingerprint, entries, rejected), payloads)


def encode_manifest(manifest: Manifest) -> bytes:
    """The manifest's file."""
    return msgspec.json.format(msgspec.json.encode(manifest))


def decode_manifest(data: bytes) -> Manifest | None:
    """The manifest in a file, `None` where it is damaged."""
    try:
        return _MANIFEST.decode(data)
    except UNDECODABLE:
        return None


def check_newer(version: int, replaced: int | None, current: Manifest | None, where: Location) -> None:
    """Check, before a version becomes current, that it is newer than what is there, and that no other came between.

    Args:
        version: The version.
        replaced: The newest version when its input was opened; `None` where that does not matter. A newer one may be
            of a newer input, however high the number of this one is.
        current: What is there now.
        where: The place.

    Raises:
        PublishRefused: Another run has written a version meanwhile.
    """
    newest = version - 1 if replaced is None else min(replaced, version - 1)
    if current is not None and current.version > newest:
        raise PublishRefused(
            f"version {version} was not published: {where} holds version {current.version} by now, written while this "
            "run was on; the next tick starts anew"
        )


@contextmanager
def output_lock(output_dir: Path) -> Iterator[bool]:
    """Make the directory and lock it against other runs on this host; yield whether the lock was got.

    The lock is the kernel's and ends with the process. It is on a file that no other user may open: opening a file or
    a directory, if only to read it, is enough to lock it.
    """
    path = output_dir / LOCK_NAME
    with _explained(output_dir):
        output_dir.mkdir(parents=True, exist_ok=True)
        # O_NONBLOCK: a named pipe in its place would be waited for.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    try:
        with _explained(output_dir):
            _check_owner(output_dir, path, os.fstat(descriptor))
            for name in (CURRENT_NAME, VERSIONS_NAME):  # a run reads what is there, and may publish it
                with suppress(FileNotFoundError):
                    _check_owner(output_dir, output_dir / name, (output_dir / name).lstat())
        with _explained(output_dir):
            is_free = _lock(descriptor)
        yield is_free
    finally:
        os.close(descriptor)


def write_set(
    output_dir: Path,
    snapshots: SnapshotSet,
    *,
    replaced: int | None = None,
    fence: Callable[[], None] = lambda: None,
) -> None:
    """Write a set and make it the current one. The caller holds the `output_lock`.

    Args:
        output_dir: The directory.
        snapshots: The set.
        replaced: The version that was current when its input was opened, 0 for none, see `check_newer`.
        fence: Called when the set is on the disk, and again just before it becomes the current one; what it raises
            stops that. A file system knows no "rename if the lock is still mine", so this is as close as files allow.

    Raises:
        OutputUnwritable: The disk is full, read-only or not ours; the current set is as it was.
        PublishRefused: A newer set is the current one by now.
    """
    versions = output_dir / VERSIONS_NAME
    version = str(snapshots.manifest.version)
    # A name of its own: a run that is stopped here and overtaken goes on some day, and the other may have made the same
    # version (where the clock is behind the newest). What it then writes and removes must be its own.
    partial = versions / f"{version}.{secrets.token_hex(8)}.partial"

    def check() -> None:
        fence()
        check_newer(snapshots.manifest.version, replaced, read_manifest(output_dir), output_dir)

    with _explained(output_dir):
        _check_names(output_dir)
        versions.mkdir(exist_ok=True)
        _check_owner(output_dir, versions, versions.lstat())
        _sweep(output_dir)
        try:
            partial.mkdir()
            for kind, data in snapshots.payloads.items():
                _write_file(partial / FILE_NAMES[kind], data)
            _write_file(partial / MANIFEST_NAME, encode_manifest(snapshots.manifest))
            _sync_directory(partial)
            check()
            partial.rename(versions / version)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            if isinstance(error, OSError):
                fence()  # whoever overtook this run has swept its files: then that is the reason
            raise
        _sync_directory(versions)
        check()  # again: a disk may take its time to sync; the next run sweeps what is left here then
        _link(output_dir / CURRENT_NAME, f"{VERSIONS_NAME}/{version}")
        _link_names(output_dir)
        _sync_directory(output_dir)
        _sweep(output_dir)


def read_manifest(output_dir: Path) -> Manifest | None:
    """The manifest of the current set, or `None` where there is no usable one.

    Raises:
        OutputUnreadable: It is there and may not or cannot be read.
    """
    found = read_current(output_dir)
    return None if found is None else found.manifest


def read_current(output_dir: Path, before: Current | None = None) -> Current | None:
    """The manifest of the current set with its time, or `None` where there is no usable one.

    Args:
        output_dir: The directory.
        before: What was found the last time; the file is only read again where it is another one.

    Raises:
        OutputUnreadable: It is there and may not or cannot be read.
    """
    path = output_dir / CURRENT_NAME / MANIFEST_NAME
    try:
        if before is not None and _mark(path.stat()) == before.mark:
            return before
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            manifest = decode_manifest(file.read())
    except OSError as error:
        _check_damaged(output_dir, error)
        return None
    return None if manifest is None else Current(manifest, status.st_mtime, _mark(status))


def read_set(output_dir: Path, *, kinds: Sequence[str] = KINDS) -> SnapshotSet | None:
    """Read the current set, or some kinds of it, checked against the manifest; `None` where it is not whole.

    Raises:
        OutputUnreadable: It is there and may not or cannot be read.
    """
    for _ in range(READ_ATTEMPTS):
        try:
            directory = (output_dir / CURRENT_NAME).resolve(strict=True)
            manifest = decode_manifest((directory / MANIFEST_NAME).read_bytes())
            if manifest is None:
                return None
            payloads = {kind: (directory / manifest.snapshots[kind].file).read_bytes() for kind in kinds}
        except FileNotFoundError:
            continue  # swept between two reads: `current` points elsewhere by now
        except OSError as error:
            _check_damaged(output_dir, error)
            return None
        except (RuntimeError, KeyError):  # links in a circle; a manifest without one of these kinds
            return None
        found = SnapshotSet(manifest, payloads)
        return found if found.is_whole else None
    return None


def mark_checked(output_dir: Path) -> None:
    """Note that the current set is still the newest: the manifest's time of modification is when that was last seen.

    What a writer died before doing is done: fixed names are mended, also those that somebody removed, and its leftovers
    and old sets are swept. No other set may come for long.
    """
    with _explained(output_dir):
        _link_names(output_dir)
        _check_owner(output_dir, output_dir / VERSIONS_NAME, (output_dir / VERSIONS_NAME).lstat())
        _sweep(output_dir)
        os.utime(output_dir / CURRENT_NAME / MANIFEST_NAME)


def _mark(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _check_damaged(output_dir: Path, error: OSError) -> None:
    """Pass over what is missing or damaged: the next run replaces it. Raise what hides a set that may be whole."""
    if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG):
        reason = (error.strerror or str(error)).lower()
        raise OutputUnreadable(
            f"{reason}: {error.filename or output_dir}, read by the user {os.geteuid()}; the worker's umask and the "
            f"permissions of ROLLING_OUTPUT_DIR={output_dir} decide who may"
        ) from error


def _check_owner(output_dir: Path, path: Path, status: os.stat_result) -> None:
    """Check that something of ours was made by us, or by those who can do anything here anyway."""
    if status.st_uid not in _trusted(output_dir):
        raise PermissionError(
            errno.EPERM,
            f"belongs to the user {status.st_uid}, not to this one ({os.geteuid()}); remove it, and let others write "
            "nothing here",
            str(path),
        )


def _trusted(output_dir: Path) -> set[int]:
    return {os.geteuid(), output_dir.stat().st_uid, 0}


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write_file(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _link(path: Path, target: str) -> None:
    """Point `path` at `target` in one rename, whatever it was before."""
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    partial.symlink_to(target)
    partial.rename(path)


def _link_names(output_dir: Path) -> None:
    """Put the links with the fixed names in place where they are not."""
    for name in (*FILE_NAMES.values(), MANIFEST_NAME):
        target = f"{CURRENT_NAME}/{name}"
        link = output_dir / name
        if not (link.is_symlink() and str(link.readlink()) == target):
            _link(link, target)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_names(output_dir: Path) -> None:
    """Check, before anything is written, that nothing of somebody else's stands where our links and sets go."""
    for name in (CURRENT_NAME, MANIFEST_NAME, *FILE_NAMES.values()):
        path = output_dir / name
        if path.is_dir() and not path.is_symlink():
            raise IsADirectoryError(errno.EISDIR, "is a directory, and stands where a link has to be", str(path))
    versions = output_dir / VERSIONS_NAME
    if versions.is_symlink():
        raise NotADirectoryError(errno.ENOTDIR, "is a link, and has to be a directory of ours", str(versions))


def _sweep(output_dir: Path) -> None:
    """Remove what dead writers left, and sets older than the kept ones; touch nothing that is not ours."""
    for name in (CURRENT_NAME, MANIFEST_NAME, *FILE_NAMES.values()):
        leftover = output_dir / f".{name}.partial"
        if leftover.is_symlink():
            leftover.unlink()
    current = ""
    with suppress(OSError):
        current = (output_dir / CURRENT_NAME).readlink().name
    trusted = _trusted(output_dir)
    found = [path for path in (output_dir / VERSIONS_NAME).iterdir() if _is_ours(path, trusted)]
    sets = sorted(int(path.name) for path in found if path.name.isdecimal())
    # A set newer than the current one was never pointed at: its writer died before.
    newest = int(current) if current.isdecimal() else 0
    kept = {current, *[str(version) for version in sets if version <= newest][-KEPT_SETS:]}
    for path in found:
        if path.name not in kept:
            shutil.rmtree(path, ignore_errors=True)


def _is_ours(path: Path, trusted: set[int]) -> bool:
    """Whether a directory is a set: of ours, named by a version, with no other files in it than a set has."""
    if not _SET_NAME.fullmatch(path.name):
        return False
    try:
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid not in trusted:
            return False
        return {entry.name for entry in path.iterdir()} <= {MANIFEST_NAME, *FILE_NAMES.values()}
    except FileNotFoundError:  # a run that was overtaken has just removed its own
        return False


@contextmanager
def _explained(output_dir: Path) -> Iterator[None]:
    try:
        yield
    except OutputUnreadable:
        raise
    except OSError as error:
        raise OutputUnwritable(
            f"{error.filename or output_dir}: {error.strerror or error}; the old snapshots are as they were. "
            f"Free space on, or make writable, ROLLING_OUTPUT_DIR={output_dir}"
        ) from error
