"""The shape of an input, from its beginning: where the records are, and whether a run finds them there. Pure.

The shapes that a run supports are decided by `scan.root`, with the same constants. Beyond that, there are guesses for
inputs that a run does not support: records in a member of another name, and one record a line without a `symbol`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Any, Final

import msgspec

from optimizer.cli.inspection.paths import NAME_KEPT
from optimizer.cli.inspection.synonyms import SECTION_NAMES, SYMBOL_NAMES, normalized
from optimizer.cli.inspection.walk import ENDS, Step
from optimizer.models.field_map import MAX_PATH_NAMES, UNMAPPED, InputMapping
from optimizer.scan.layout import (
    BOT_SECTIONS,
    RECORD_SECTIONS,
    FileLayout,
    Layout,
    Objects,
    RecordNames,
    file_layout,
)
from optimizer.scan.root import MAP_MEMBERS, Root, Shape, kind_of, telling_names
from optimizer.scan.schema import schema_of
from optimizer.scan.validation import load_unit

__all__ = ["InputShape", "ShapeName", "find_shape", "layout_of"]

# A root that is one record, or that has sections, has few objects; a map of records has more.
MOST_SECTIONS: Final = 5
# The levels of objects and arrays in a bot, whose positions may be in either.
BOT_LEVELS: Final = 6


class ShapeName(StrEnum):
    """The four shapes that a run supports, and other kinds of inputs."""

    MAP = "map"
    SECTION = "section"
    ARRAY = "array"
    LINES = "lines"
    NONE = "none"


class InputShape(msgspec.Struct, frozen=True):
    """The kind of an input.

    `sections` are the members of the root that hold records, `unknown_sections` those of them whose names a run does
    not know. `root` describes the first JSON text in words.
    """

    name: ShapeName
    root: str
    sections: tuple[str, ...] = ()
    unknown_sections: tuple[str, ...] = ()


def find_shape(steps: Iterable[Step], mapping: InputMapping = UNMAPPED) -> InputShape:
    """Find the shape from the steps of a walk with the layouts of a run, consuming no more steps than needed."""
    telling, record_key = telling_names(schema_of(mapping)), file_layout(mapping).names.key
    root = Root(0, max_record_bytes=0, telling=telling, after_records=False, described=True)
    members = _Members()
    roots = 0
    plain = ""
    for step in steps:
        if step.event in ENDS:
            continue
        if step.level == 0:
            is_object = step.event == "start_map"
            if roots:
                roots += is_object
                break
            if step.event == "start_array":
                return InputShape(ShapeName.ARRAY, kind_of(step.event))
            if not is_object:
                plain = plain or kind_of(step.event)
            roots += is_object
        elif step.level == 1:
            _take_member(root, step, record_key)
            members.take(step)
        else:
            members.count += 1
        if members.count >= MAP_MEMBERS or root.shape is Shape.RECORD:
            break
    return _decided(root, members, roots) if roots else InputShape(ShapeName.NONE, plain or "empty")


def layout_of(shape: InputShape) -> FileLayout:
    """Return the layout in which the records of a shape are units that keep their objects and empty their arrays."""
    names = RecordNames(objects=_AnyObjects(MAX_PATH_NAMES - 1))
    if shape.name is ShapeName.LINES:
        return FileLayout(Layout(1, 1), {}, names)
    records = {msgspec.json.encode(name): Layout(3, 1) for name in (*RECORD_SECTIONS, *shape.unknown_sections)}
    bots = {msgspec.json.encode(name): Layout(3, BOT_LEVELS) for name in BOT_SECTIONS}
    return FileLayout(Layout(2, 1), records | bots, names)


class _AnyObjects(Mapping[str, "Objects"]):
    """Nested objects of any name, up to a number of levels."""

    def __init__(self, levels: int) -> None:
        self._levels = levels

    def __getitem__(self, name: str) -> Objects:
        if self._levels == 1:
            raise KeyError(name)
        return _AnyObjects(self._levels - 1)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return self._levels


class _Members:
    """The members of the first root; names in the order of their first occurrence."""

    def __init__(self) -> None:
        self.count = 0  # the number of units, by which the decoder decides that a root is a map
        self.objects = 0  # the number of objects that may be records
        self.plain: dict[str, str] = {}
        self.sections: dict[str, None] = {}
        self.unknown: dict[str, None] = {}
        self.has_bots = False

    def take(self, step: Step) -> None:
        """Take the next member."""
        key = step.key or ""
        self.count += step.unit is not None
        if key in BOT_SECTIONS:
            self.has_bots = True
        elif key in RECORD_SECTIONS:
            self.sections[key] = None
        elif step.unit is not None or step.event == "start_array":
            self.objects += step.unit is not None and not key.startswith("_")
            may_hold_records = normalized(key) in SECTION_NAMES and len(self.unknown) < MOST_SECTIONS
            if may_hold_records and (step.unit is None or _is_map(load_unit(step.unit))):
                self.unknown[key] = None
        elif len(self.plain) < MAP_MEMBERS:
            self.plain[key[:NAME_KEPT]] = step.event  # a name may have as many bytes as a unit


def _take_member(root: Root, step: Step, record_key: str) -> None:
    """Tell the root of a member, as the decoder does."""
    key = step.key or ""
    if root.shape is Shape.RECORD:
        return
    if step.unit is not None:
        root.add_object(key)
        return
    root.name_member(key, step.event)
    if key == record_key and step.event == "string":
        root.add_symbol()
    elif key in RECORD_SECTIONS or key in BOT_SECTIONS:
        root.add_section(is_null=step.event == "null")
    else:
        root.add_plain(key)


def _decided(root: Root, seen: _Members, roots: int) -> InputShape:
    text = root.description
    symbols = (name for name, event in seen.plain.items() if event == "string" and normalized(name) in SYMBOL_NAMES)
    names_a_symbol = seen.objects <= MOST_SECTIONS and any(symbols)
    if seen.count < MAP_MEMBERS and root.is_record:
        return InputShape(ShapeName.LINES, text)
    if roots > 1 and names_a_symbol:
        return InputShape(ShapeName.LINES, text)
    if seen.sections:
        return InputShape(ShapeName.MAP if seen.objects else ShapeName.SECTION, text, tuple(seen.sections))
    if names_a_symbol or (roots > 1 and seen.plain):
        return InputShape(ShapeName.LINES, text)
    if seen.unknown and seen.objects <= MOST_SECTIONS:
        return InputShape(ShapeName.SECTION, text, tuple(seen.unknown), tuple(seen.unknown))
    return InputShape(ShapeName.MAP if seen.objects or seen.has_bots else ShapeName.NONE, text)


def _is_map(members: Mapping[str, Any]) -> bool:
    """Whether all members of an object are objects or arrays, which the pruner has emptied."""
    return bool(members) and all(isinstance(value, dict | list) for value in members.values())
