"""Decide whether an input has landed: it differs from the one of the last run, and is no longer being written.

In: what a look at the input showed, and a monotonic time in seconds. No I/O and no clock: tests choose both.

A file that was renamed or linked into its place is whole at once. Any other may still be being written, which shows
only in its changing: it has landed when it has not changed for a rest. That is a quarter as long for a new file, until
it is seen to be written to. The input of many files lands when each of them has: a run in between would read one that
is half written.

A file that is gone may be about to come back, so an input that has lost one rests too. An input that has lost all of
them has nothing to read, and what comes next is new, even if it is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

__all__ = ["Landing", "Seen"]

# A new file may have been renamed, which its times do not always show, and then waits for nothing.
NEW_FILE_SHARE: Final = 0.25


class Seen(NamedTuple):
    """A file or an object at one moment.

    `version` differs whenever its content does; `file` is equal while the same file is written to; `is_whole` says that
    it cannot be amid being written, and `is_empty` that its engine has opened it and not written yet.
    """

    version: str
    file: str
    is_whole: bool
    is_empty: bool = False


class Landing:
    """Follows the observations of one input.

    Args:
        rest_s: How long a file that is written in place has to stay unchanged.
    """

    def __init__(self, rest_s: float) -> None:
        self._rest_s = rest_s
        self._files: dict[str, Seen] | None = None
        self._rests_from_s: dict[str, float] = {}
        self._lost_until_s = float("-inf")
        self._taken: dict[str, str] | None = None

    def observe(self, files: Mapping[str, Seen], now_s: float) -> None:
        """Take an observation: the files by name."""
        before = self._files or {}
        for name, seen in files.items():
            earlier = before.get(name)
            if earlier is None or earlier.version != seen.version:
                self._rests_from_s[name] = now_s + self._rest_of(earlier, seen)
        for name in before.keys() - files.keys():
            del self._rests_from_s[name]
            self._lost_until_s = now_s + self._rest_s
        self._files = dict(files)
        if not files:
            self._taken = None

    @property
    def lands_s(self) -> float | None:
        """When the input lands if it does not change before; `None` if there is nothing to send a run for.

        An empty file is waited for, however long it stays so.
        """
        if not self._files or self._versions() == self._taken:
            return None
        if any(seen.is_empty for seen in self._files.values()):
            return None
        return max(self._lost_until_s, *self._rests_from_s.values())

    def take(self) -> None:
        """Record that a run was sent, which reads the input as last seen, or a newer one."""
        self._taken = self._versions()

    def give_back(self) -> None:
        """Record that the sent run has read nothing, so that the input still waits for one."""
        self._taken = None

    def _rest_of(self, earlier: Seen | None, seen: Seen) -> float:
        if seen.is_whole:
            return 0.0
        # The file in the first observation may have been written to just before.
        was_there = self._files is None or (earlier is not None and earlier.file == seen.file)
        return self._rest_s if was_there else NEW_FILE_SHARE * self._rest_s

    def _versions(self) -> dict[str, str]:
        return {name: seen.version for name, seen in (self._files or {}).items()}
