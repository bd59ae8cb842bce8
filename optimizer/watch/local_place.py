"""An input on a local or network file system: its files, and the directories in which a change would show.

Changes come from watchfiles. On a network file system it hears nothing of what other hosts write, and a directory that
is deleted or does not exist has no watch; so files are looked at each second too, which takes microseconds.

A file is whole at once if it was renamed or linked into its place after it was written. Its times show that only if the
kernel's clock of files has ticked in between, which takes up to 10 ms: of renames without an fsync before, nine in ten
have equal times. So the names in the same directories are noted too: a file that had another name before was renamed.
A new file may get the inode number of a deleted one, so names that are gone, or lead to another file, do not count.

A directory that does not exist yet is waited for in the nearest one above it that does.
"""

from __future__ import annotations

import glob
import os
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from watchfiles import watch

from optimizer.errors import SourceMissing, SourceUnreadable
from optimizer.log import SourceLog
from optimizer.pipeline.parts import without_snapshots
from optimizer.source.opener import expand, split_pattern
from optimizer.watch.landing import Seen

__all__ = ["LocalPlace", "directories_of"]

LOOK_S: Final = 1.0
TICK_MS: Final = 50
# watchfiles returns changes when none has followed for a step: its defaults of 50 ms, and up to 1,600 ms, are most of
# the time that a reader may wait. A file that is written to continuously is checked ten times a second.
STEP_MS: Final = 20
GROUPED_MS: Final = 100
RETRY_S: Final = 30.0
# The number of files whose names are remembered.
NAMES: Final = 1_000

_log = SourceLog(__name__)


class LocalPlace:
    """The files of one input.

    Args:
        source: The source's name, for the log.
        pattern: A path, or a pattern.
        stopped: Ends a wait.
    """

    look_s = LOOK_S

    def __init__(self, source: str, pattern: Path, stopped: threading.Event) -> None:
        self._source = source
        self._pattern = pattern
        self._stopped = stopped
        self._watched: object = None
        self._directories: frozenset[str] = frozenset()
        self._announced: set[str] = set()
        self._names: OrderedDict[str, str] = OrderedDict()  # by file, the name under which it was last announced
        self._changes: Generator[set[Any]] | None = None
        self._retry_s = float("-inf")
        self._warned = False

    def look(self) -> dict[str, Seen]:
        """Return the files.

        Raises:
            SourceUnreadable: A directory on the way may not be searched, or the file system fails.
        """
        self._follow()
        files = {}
        for path in self._paths():
            try:
                state = path.stat()
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise SourceUnreadable(f"{path} cannot be looked at: {error.strerror or error}") from error
            if stat.S_ISREG(state.st_mode):
                file = _file(state)
                version = f"{file}-{state.st_size:x}-{state.st_mtime_ns:x}"
                # Writing sets both times to the same; a rename or a link sets only the second.
                is_whole = state.st_ctime_ns > state.st_mtime_ns or self._had_another_name(file, path)
                files[str(path)] = Seen(version, file, is_whole, is_empty=not state.st_size)
        self._note_names()
        return files

    def wait(self) -> bool:
        """Wait for `TICK_MS` at most; return whether anything has changed in the directories."""
        if self._changes is None:
            self._stopped.wait(TICK_MS / 1e3)
            return False
        try:
            changes = next(self._changes, None)
        except (OSError, RuntimeError) as error:
            self._end(error)
            return True
        if changes is None:  # stopped
            return False
        self._announced.update(path for _, path in changes)
        if not self._announced.isdisjoint(self._directories):
            self._watched = None  # deleted or moved, which also ended the kernel's watch
        return bool(changes)

    def close(self) -> None:
        """End watching."""
        if self._changes is not None:
            self._changes.close()

    def _had_another_name(self, file: str, path: Path) -> bool:
        name = self._names.get(file)
        if name is None or name == os.path.realpath(path):
            return False
        try:
            return _file(os.lstat(name)) == file  # linked
        except OSError:
            return True

    def _note_names(self) -> None:
        """Remember the names of announced files, after the observation, which uses their earlier names."""
        gone = set()
        for name in self._announced:
            try:
                state = os.lstat(name)
            except OSError:
                gone.add(name)
                continue
            if stat.S_ISREG(state.st_mode):
                self._names[_file(state)] = name
                self._names.move_to_end(_file(state))
        for file in [file for file, name in self._names.items() if name in gone]:
            del self._names[file]
        self._announced.clear()
        while len(self._names) > NAMES:
            self._names.popitem(last=False)

    def _paths(self) -> list[Path]:
        try:
            locations = expand(self._pattern)
            if locations != [self._pattern]:
                locations = without_snapshots(self._pattern, locations)
        except SourceMissing:
            return []
        return [location for location in locations if isinstance(location, Path)]

    def _follow(self) -> None:
        """Watch the directories in which a change would now show, if they differ from the watched ones."""
        directories, recursive = directories_of(self._pattern)
        watched = (recursive, sorted(map(_identity, directories)))
        if watched == self._watched and (self._changes is not None or time.monotonic() < self._retry_s):
            return
        self.close()
        self._watched, self._directories = watched, directories
        changes = watch(
            *sorted(directories),
            watch_filter=None,
            debounce=GROUPED_MS,
            step=STEP_MS,
            stop_event=self._stopped,
            rust_timeout=TICK_MS,
            yield_on_timeout=True,
            raise_interrupt=False,
            recursive=recursive,
            ignore_permission_denied=recursive,
        )
        try:
            next(changes, None)  # the first call begins to watch, before the observation that follows
        except (OSError, RuntimeError) as error:
            self._end(error)
        else:
            self._changes, self._warned = changes, False

    def _end(self, error: Exception) -> None:
        self._changes, self._retry_s = None, time.monotonic() + RETRY_S
        if not self._warned:
            _log.warning(
                "⚠️ changes are not announced, so the input is only looked at each second: %s: %s",
                ", ".join(sorted(self._directories)),
                error,
                source=self._source,
            )
            self._warned = True


def directories_of(pattern: Path) -> tuple[frozenset[str], bool]:
    """Return the existing directories in which a change of the input would show, and whether to watch recursively."""
    before, pieces = split_pattern(pattern)
    path = os.path.abspath(before)  # noqa: PTH100 - `Path.resolve` raises where links lead in a circle
    if not pieces:  # where the name is, where the file is to which a link of that name leads, and links on the way
        parents = os.path.realpath(os.path.dirname(path)), os.path.dirname(os.path.realpath(path))  # noqa: PTH120
        return frozenset(map(_nearest, (*parents, *_directories_of_links(path, set())))), False
    if "**" in pieces:
        root = _nearest(os.path.realpath(path))
        return frozenset([root]), root == os.path.realpath(path)
    directories = {_nearest(os.path.realpath(path)), *_directories_of_links(path, set())}
    for depth in range(1, len(pieces)):
        matches = glob.iglob(str(Path(glob.escape(str(before)), *pieces[:depth], "")) + os.sep)  # noqa: PTH207 - as `expand`
        directories.update(os.path.realpath(match) for match in matches)
    return frozenset(directories), False


def _directories_of_links(path: str, seen: set[str]) -> Iterator[str]:
    """Return the directories of the links on the way to a path, such as `current` in `current/brain.json.gz`."""
    for name in (*map(str, reversed(Path(path).parents)), path):
        with suppress(OSError):  # not a link, or it is gone
            target = os.readlink(name)  # noqa: PTH115 - a text
            if name not in seen:
                seen.add(name)
                directory = os.path.realpath(os.path.dirname(name))  # noqa: PTH120
                yield directory
                yield from _directories_of_links(os.path.normpath(os.path.join(directory, target)), seen)  # noqa: PTH118


def _file(state: os.stat_result) -> str:
    return f"{state.st_dev:x}-{state.st_ino:x}"


def _nearest(directory: str) -> str:
    """The directory, or the nearest above it that exists."""
    while not os.path.isdir(directory) and directory != os.path.dirname(directory):  # noqa: PTH112, PTH120 - texts
        directory = os.path.dirname(directory)  # noqa: PTH120
    return directory


def _identity(directory: str) -> tuple[str, int, int]:
    """Identify a directory, so that one that was deleted and created again differs."""
    try:
        state = os.stat(directory)  # noqa: PTH116 - a text
    except OSError:
        return directory, 0, 0
    return directory, state.st_dev, state.st_ino
