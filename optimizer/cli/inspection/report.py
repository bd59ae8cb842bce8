"""The report on an input: the content of each kind of unit, the fields read, missing fields, better settings. Pure.

`rolling-optimizer inspect --json` prints the values.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Final

import msgspec

from optimizer.cli.inspection.paths import PathStats, UnitStats
from optimizer.cli.inspection.shape import InputShape
from optimizer.cli.inspection.suggestion import UnitKind, read_from, suggested_line
from optimizer.cli.inspection.synonyms import BOT_NAMES, POSITION_NAMES, RECORD_NAMES
from optimizer.config.field_map import parse_mapping
from optimizer.models import RejectReason
from optimizer.models.field_map import FieldMap, MappedField
from optimizer.scan.fragment import SHOWN_CHARACTERS
from optimizer.scan.schema import Field, schema_of
from optimizer.scan.validation import shown_name

__all__ = ["BOTS", "POSITIONS", "RECORDS", "Inspection", "PathReport", "UnitReport", "report_on"]

_SCHEMA: Final = schema_of()

# A bot's positions are not a row of its table, since they are reported as units.
_LIST_OF_POSITIONS: Final = Field(
    name="positions",
    names=("positions",),
    type=list[Any] | dict[str, Any] | Annotated[int, msgspec.Meta(ge=0)],
    expected="a list, a map or a count",
    max_characters=None,
    reason=RejectReason.BOT,
    required=False,
    default=None,
)

RECORDS: Final = UnitKind(
    variable="ROLLING_FIELDS",
    parse=lambda text: parse_mapping(text, "", "").records,
    fields=tuple(_SCHEMA.records.values()),
    names=RECORD_NAMES,
    has_extras=True,
)
BOTS: Final = UnitKind(
    variable="ROLLING_BOT_FIELDS",
    parse=lambda text: parse_mapping("", text, "").bots,
    fields=(*(field for field in _SCHEMA.bots.values() if field.name != "name"), _LIST_OF_POSITIONS),
    names=BOT_NAMES,
)
POSITIONS: Final = UnitKind(
    variable="ROLLING_POSITION_FIELDS",
    parse=lambda text: parse_mapping("", "", text).positions,
    fields=tuple(_SCHEMA.position_fields.values()),
    names=POSITION_NAMES,
)


class PathReport(msgspec.Struct, frozen=True):
    """One path of the units of a kind.

    `types` counts values by type, `share` is the share of the units that have a value other than null, 0 to 1;
    `example` is the first such value as JSON, truncated if it is long. `used_as` is the field that is read from it now,
    `suggested_as` the field that the suggested setting reads from it; an extra field begins with `+`.
    """

    path: str
    types: dict[str, int]
    share: float
    example: str | None
    used_as: str | None = None
    suggested_as: str | None = None


class UnitReport(msgspec.Struct, frozen=True):
    """The content of the records, the bots or the positions.

    `in_force` is the present value of `variable`, `suggested` a value under which more fields are read, `None` if there
    is none. With the suggested value, `missing` are the required fields for which no path fits, with the expected
    values, and `absent` the optional ones. `paths_left_out` counts values at paths beyond the limit.
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
    """The content of the beginning of an input.

    `files` is the number of files; `files_read` of them were read, to the end if `to_the_end`. `json_bytes` is the JSON
    that was read, and `rest` says what was done with the rest of the last file. `not_objects` counts values in place of
    records, `too_large` units that are too long to be inspected, `listed_bots` bots in an array, which have no name.
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


def report_on(kind: UnitKind, text: str, stats: UnitStats, *, keyed: bool) -> UnitReport:
    """Report on units.

    Args:
        kind: Which units.
        text: The value of their setting.
        stats: Their content.
        keyed: Whether they are named by their keys, so that they need no `symbol`.
    """
    if keyed:
        kind = replace(kind, fields=[field for field in kind.fields if field.name != "symbol"])
    mapping = kind.parse(text)
    suggested = suggested_line(kind, mapping, stats)
    better = mapping if suggested is None else kind.parse(suggested)
    then = read_from(kind, better, stats)
    unread = [field for field in kind.fields if field.name not in then] if stats.count else []
    used_as = _by_path(read_from(kind, mapping, stats), mapping)
    suggested_as = _by_path(then, better)
    paths = [
        PathReport(
            path=shown_name(".".join(path)),
            types=one.types,
            share=round(one.count / stats.count, 4),
            example=_example(one),
            used_as=used_as.get(path),
            suggested_as=suggested_as.get(path),
        )
        for path, one in stats.paths.items()
    ]
    return UnitReport(
        variable=kind.variable,
        in_force=text,
        count=stats.count,
        paths=paths,
        suggested=suggested,
        missing=[f"{field.name} ({field.expected})" for field in unread if field.required],
        absent=[field.name for field in unread if not field.required],
        paths_left_out=stats.paths_left_out,
    )


def _by_path(read: Mapping[str, MappedField], mapping: FieldMap) -> dict[tuple[str, ...], str]:
    extras = set(mapping.extra_names)
    return {item.path: f"+{name}" if name in extras else name for name, item in read.items()}


def _example(stats: PathStats) -> str | None:
    """Return the first value other than null as JSON, truncated; for a container only its kind."""
    if not stats.values:
        return None
    value = stats.values[0]
    if isinstance(value, dict | list):
        return "{...}" if isinstance(value, dict) else "[...]"
    text = json.dumps(value, ensure_ascii=False)
    return shown_name(text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "...")
