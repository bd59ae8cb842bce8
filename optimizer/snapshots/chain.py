"""Select from the changes that are held those that lead from a version to the current one. No I/O.

In: changes, oldest first, possibly with gaps. A change leads from any version between its `since` and its `before` to
its `version`; all versions from `content_since` on have the content of the current one.

Errors: `ChangesMissing` if one that is needed is not held.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Protocol, TypeVar

from optimizer.errors import ChangesMissing

__all__ = ["Link", "chain", "oldest_start"]

L = TypeVar("L", bound="Link")


class Link(Protocol):
    """The attributes of a change that `chain` needs."""

    @property
    def version(self) -> int:
        """The version that the change leads to."""

    @property
    def before(self) -> int:
        """The newest version that it may be applied to."""

    @property
    def since(self) -> int:
        """The oldest version that it may be applied to."""


def chain(changes: Iterable[L], since: int, current: int, content_since: int | None = None) -> list[L]:
    """Return the changes that lead from a version to the current one, oldest first.

    Args:
        changes: The changes that are held, oldest first; there may be gaps.
        since: The version to start from; if it is newer than the current one, the result is empty.
        current: The current version.
        content_since: `Manifest.content_since`; `None`, as in older releases, if that is not known.

    Raises:
        ChangesMissing: One of them is not held.
    """
    content_since = current if content_since is None else content_since
    if since >= content_since:
        return []
    needed = [change for change in changes if since < change.version <= current]
    reached = since
    for change in needed:
        if not change.since <= reached <= change.before:
            break
        reached = change.version
    else:
        if reached >= content_since:
            return needed
    raise ChangesMissing(
        f"the changes from version {since} to {current} are not held any more; take the whole snapshot of version "
        f"{current}, and the changes since then"
    )


def oldest_start(changes: Sequence[L], current: int, content_since: int | None = None) -> int | None:
    """Return the oldest version with other content from which `chain` leads to the current one; `None` if none does."""
    target = current if content_since is None else content_since
    known = [change for change in changes if change.version <= current]
    if not known or known[-1].version < target:
        return None
    oldest = None
    for change, earlier in pairwise([*reversed(known), None]):
        assert change is not None  # noqa: S101 - for mypy: only the last one is
        start = change.since if earlier is None else max(change.since, earlier.version)
        if start > change.before:
            break
        oldest = start
        if earlier is None or earlier.version < change.since:
            break
    return oldest
