"""The values that an inspection returns; `rolling-optimizer inspect --json` prints them."""

from __future__ import annotations

import msgspec

from optimizer.inspection.shape import InputShape

__all__ = ["Inspection", "PathReport", "UnitReport"]


class PathReport(msgspec.Struct, frozen=True):
    """One path of the units of a kind.

    `types` counts values by type, `share` is the share of the units that have a value other than null, 0 to 1;
    `example` is the first such value as JSON, cut where it is long. `used_as` is the field that is read from it now,
    `suggested_as` the one that the suggested line reads from it; an extra field begins with `+`.
    """

    path: str
    types: dict[str, int]
    share: float
    example: str | None
    used_as: str | None = None
    suggested_as: str | None = None


class UnitReport(msgspec.Struct, frozen=True):
    """What the records, the bots or the positions hold.

    `in_force` is the value of `variable` now, `suggested` one under which more fields are read; `None` if there is
    none. Even under that, `missing` are the required fields that no path fits, with what they expect, and `absent` the
    optional ones. `paths_left_out` counts values at paths beyond the number that is held.
    """

    variable: str
    in_force: str
    count: int
    paths: list[PathReport]
    suggested: str | None
    missing: list[str]
    absent: list[str]
    paths_left_out: int = 0


class Inspection(msgspec.Struct, frozen=True):
    """What the beginning of an input holds.

    `files` is the number of files, of which `files_read` were read, to the end if `to_the_end`. `json_bytes` were read
    of them, and `rest` says what was done with the rest of the last one. `not_objects` counts values where a record
    should be, `too_large` units that are too long to be looked into, `listed_bots` bots in an array, which have no
    name.
    """

    input: str
    files: int
    files_read: int
    to_the_end: bool
    json_bytes: int
    shape: InputShape
    records: UnitReport
    bots: UnitReport
    positions: UnitReport
    rest: str
    not_objects: int = 0
    too_large: int = 0
    listed_bots: int = 0
