"""Files and directories that are being written: under a name that no pattern matches, locked, removed after a failure.

A producer that is killed leaves one behind. The next producer removes it; a file that another producer is still writing
is recognised by its lock (`flock`), which ends with the process that holds it.

Errors: `InputUnwritable`.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from optimizer.errors import InputUnwritable
from optimizer.storage.durable import shown_path, sync_file

__all__ = ["landed", "locked", "partial", "writing"]

ENDING: Final = ".partial"
RANDOM_BYTES: Final = 8


@contextmanager
def partial(parent: Path, name: str, *, is_directory: bool = False) -> Iterator[Path]:
    """Create a file or directory below `parent` to write to; remove it afterwards, if it has not been renamed.

    Args:
        parent: An existing directory.
        name: The final name; leftovers for this name that no process is writing are removed first.
        is_directory: Whether to create a directory.

    Raises:
        InputUnwritable: It cannot be created.
    """
    beginning = f".{name}."
    with writing(parent):
        _remove_abandoned(parent, beginning)
        path, descriptor = _make(parent, beginning, _mode_of(parent / name), is_directory=is_directory)
    try:
        yield path
    finally:
        _remove(path)
        os.close(descriptor)


def landed(path: Path, target: Path, began_ns: int) -> None:
    """Prepare a complete file for its rename: make it durable, and date its modification to the beginning of writing.

    Users who may read the replaced file may read it: the mode is the same, and so are owner and group as far as this
    user may set them.
    """
    with suppress(FileNotFoundError):
        replaced, made = target.stat(), path.stat()
        for owner, group in ((-1, replaced.st_gid), (replaced.st_uid, -1)):
            if owner not in (-1, made.st_uid) or group not in (-1, made.st_gid):
                with suppress(PermissionError):
                    os.chown(path, owner, group)
        if made.st_mode != replaced.st_mode:
            path.chmod(stat.S_IMODE(replaced.st_mode))
    os.utime(path, ns=(began_ns, began_ns))
    sync_file(path)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise an explanation of an `OSError` of writing to this path, or to the path that the error names.

    Raises:
        InputUnwritable: Always.
    """
    try:
        yield
    except OSError as error:
        remedy = f"Free space on its disk, or let the user {os.geteuid()} write there"
        if isinstance(error, FileNotFoundError):
            remedy = "Make the directory first"
        elif isinstance(error, FileExistsError | NotADirectoryError):
            remedy = "A file is where a directory has to be: give another path, or remove it"
        raise InputUnwritable(
            f"{shown_path(error.filename or path)} cannot be written: {error.strerror or error}; what was there before "
            f"stays. {remedy}"
        ) from error


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Wait for the lock of a directory, and hold it."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _mode_of(path: Path) -> int:
    """Return the mode of a file; for a new file, the usual mode minus the umask."""
    try:
        return stat.S_IMODE(path.stat().st_mode) | stat.S_IWUSR
    except FileNotFoundError:
        return 0o666


def _make(parent: Path, beginning: str, mode: int, *, is_directory: bool) -> tuple[Path, int]:
    """Create and lock it; the descriptor holds the lock."""
    while True:
        path = parent / f"{beginning}{secrets.token_hex(RANDOM_BYTES)}{ENDING}"
        if is_directory:
            path.mkdir(0o700)
            flags = os.O_RDONLY
        else:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with suppress(FileNotFoundError):
            descriptor = os.open(path, flags | os.O_CLOEXEC, mode)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Before it was locked, another producer may have taken it for abandoned.
            if _is_at(descriptor, path):
                return path, descriptor
            os.close(descriptor)


def _remove_abandoned(parent: Path, beginning: str) -> None:
    with os.scandir(parent) as entries:
        paths = [Path(entry) for entry in entries if entry.name.startswith(beginning) and entry.name.endswith(ENDING)]
    for path in paths:
        with suppress(OSError):  # it is being written, was just renamed, or belongs to another user
            # Over NFS a file has to be open for writing to be locked.
            descriptor = os.open(path, (os.O_RDONLY if path.is_dir() else os.O_WRONLY) | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(path)  # names are never reused, so it is this one or gone
            finally:
                os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), there)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
