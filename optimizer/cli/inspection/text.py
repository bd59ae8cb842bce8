"""Format an inspection as text. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Final

from optimizer.cli.inspection.report import Inspection, PathReport, UnitReport
from optimizer.cli.inspection.shape import InputShape, ShapeName
from optimizer.scan.fragment import SHOWN_CHARACTERS
from optimizer.selection.result import SHAPES

__all__ = ["describe"]

# How many paths from which no field is read are shown for each kind of unit.
OTHERS_SHOWN: Final = 40

_PLAIN: Final = re.compile(r"[\w .;=/+-]*", re.ASCII)
_COLUMNS: Final = ("share", "type", "path", "example", "read as")
_SHAPES: Final = {
    ShapeName.MAP: "an object of records by symbol",
    ShapeName.SECTION: "an object with records in",
    ShapeName.ARRAY: "an array of records",
    ShapeName.LINES: "one record a line, or one record alone",
    ShapeName.NONE: "none that holds records",
}


def describe(inspection: Inspection) -> Iterator[str]:
    """Yield the lines."""
    files = f", {inspection.files_read:,} of {inspection.files:,} files" if inspection.files > 1 else ""
    extent = "to the end" if inspection.to_the_end else f"the rest {inspection.rest}"
    size = (
        f"{inspection.json_bytes / 1e6:,.1f} MB" if inspection.json_bytes >= 1e5 else f"{inspection.json_bytes:,} bytes"
    )
    yield f"{inspection.input}{files}: {size} of JSON, {extent}"
    yield f"shape: {_shape(inspection.shape)}"
    yield from _shape_advice(inspection)
    yield from _units("records", inspection.records)
    yield from _units("bots", inspection.bots)
    if inspection.listed_bots:
        yield f"bots: {inspection.listed_bots:,} in an array; a run reads an object of bots by name"
    yield from _units("positions of bots", inspection.positions)
    yield from _settings(inspection)


def _shape(shape: InputShape) -> str:
    sections = ", ".join(map(repr, shape.sections))
    beside = ", and more in" if shape.name is ShapeName.MAP else ""
    return f"{_SHAPES[shape.name]}{f'{beside} {sections}' if sections else ''} (the input is {shape.root})"


def _shape_advice(inspection: Inspection) -> Iterator[str]:
    if inspection.shape.unknown_sections:
        names = ", ".join(map(repr, inspection.shape.unknown_sections))
        yield f"  a run does not read records in {names}: let the engine name that member predictions"
    if inspection.shape.name is ShapeName.NONE:
        yield f"  {SHAPES}"
    if inspection.not_objects:
        yield f"  {inspection.not_objects:,} values are no objects, where a record should be"
    if inspection.too_large:
        yield f"  {inspection.too_large:,} records or bots are too large to be looked into"


def _units(name: str, units: UnitReport) -> Iterator[str]:
    if not units.count:
        if name == "records":
            yield "records: none"
        return
    yield ""
    yield f"{name}: {units.count:,}"
    read = [path for path in units.paths if path.used_as or path.suggested_as]
    others = [path for path in units.paths if not (path.used_as or path.suggested_as)]
    rows = [_COLUMNS, *map(_row, read), *map(_row, others[:OTHERS_SHOWN])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    for row in rows:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    if len(others) > OTHERS_SHOWN:
        yield f"  and {len(others) - OTHERS_SHOWN:,} paths more that no field is read from; --json lists them"
    if units.paths_left_out:
        yield f"  and {units.paths_left_out:,} values at more paths than are held"
    if units.absent:
        yield f"  no path for: {', '.join(units.absent)}"
    for missing in units.missing:
        name_only = missing.partition(" ")[0]
        yield (
            f"  a run needs {missing}, and no path has a name and values that say so; choose one: "
            f"{units.variable}='{name_only}=PATH'"
        )


def _row(path: PathReport) -> tuple[str, ...]:
    read = path.used_as or ""
    if path.suggested_as != path.used_as:
        read = f"{read + '; ' if read else ''}suggested: {path.suggested_as}" if path.suggested_as else read
    types = ", ".join(name for name in path.types if name != "null") or "null"
    return (f"{100 * path.share:.0f} %", types, _cut(path.path), _cut(path.example or ""), read)


def _settings(inspection: Inspection) -> Iterator[str]:
    every = (inspection.records, inspection.bots, inspection.positions)
    lines = [f"  {units.variable}={quoted(units.suggested)}" for units in every if units.suggested is not None]
    yield ""
    if lines:
        yield "suggested:"
        yield from lines
    elif inspection.records.count and not inspection.records.missing:
        yield "suggested: nothing; the fields of the records are read as they are"


def quoted(text: str) -> str:
    """Return a value quoted for a shell and an .env file."""
    return f'"{text}"' if _PLAIN.fullmatch(text) else shlex.quote(text)


def _cut(text: str) -> str:
    printable = "".join(character if character.isprintable() else "\ufffd" for character in text)
    return printable if len(printable) <= SHOWN_CHARACTERS else printable[: SHOWN_CHARACTERS - 3] + "..."
