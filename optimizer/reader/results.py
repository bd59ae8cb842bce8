"""What a reader answers: values with their version, where they are from, and how old they are.

`origin` is `redis` or `files`. `age_s` is the time since a run last made or confirmed the version, at the moment of the
answer; `stale` says that this is longer than three intervals, so that nobody keeps the snapshot fresh any more.
`rejected` counts the records and bots that the version leaves out; `None` where an older release has published it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from optimizer.models import Origin, Rejected

__all__ = ["Answer", "Origin", "Snapshot", "State", "describe_rejected"]

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """Which version is current. `generated_at` is when it was made, `checked_at` when a run last confirmed it."""

    version: int
    generated_at: str
    checked_at: str
    origin: Origin
    age_s: float
    stale: bool
    rejected: Rejected | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot(Generic[T]):
    """One whole snapshot: `gz` as stored, `value` decoded; `etag` is the SHA-256 of `gz` in hex.

    `gz` and `value` are shared by all answers of a version, and may not be changed.
    """

    version: int
    etag: str
    gz: bytes
    value: T
    origin: Origin
    age_s: float
    stale: bool
    rejected: Rejected | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer(Generic[T]):
    """Part of a snapshot; `etag` stands for the version, which never changes once it is published."""

    version: int
    etag: str
    value: T
    origin: Origin
    age_s: float
    stale: bool


def describe_rejected(rejected: Rejected | None) -> list[str]:
    """What a version leaves out, one sentence per kind; none where nothing was rejected, or where it is not known."""
    if rejected is None:
        return []
    told = []
    if rejected.bots.rejected:
        them = "it" if rejected.bots.rejected == 1 else "them"
        told.append(f"{rejected.bots.rejected:,} of {rejected.bots.seen:,} bots rejected; sums leave {them} out")
    if rejected.records.rejected:
        told.append(f"{rejected.records.rejected:,} of {rejected.records.seen:,} records rejected")
    return told
