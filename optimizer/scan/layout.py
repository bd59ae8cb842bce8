"""Where records and bots are in a rolling file: the root's members that have a meaning, and how much of each is kept.

Pruners know nothing else about the format. A new kind of section is a line here and a branch in `decoder`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from optimizer.models.field_map import FieldMap, InputMapping

__all__ = [
    "BOT_FILE_LAYOUT",
    "BOT_SECTIONS",
    "DEFAULT_NAMES",
    "LAYOUTS",
    "RECORD_KEY",
    "RECORD_LAYOUT",
    "RECORD_SECTIONS",
    "FileLayout",
    "Layout",
    "Objects",
    "RecordNames",
    "bot_file_layout",
    "file_layout",
]

# A root object with text under this name, before any object of its own, is one record.
RECORD_KEY: Final = "symbol"
RECORD_SECTIONS: Final = ("predictions", "symbols")
BOT_SECTIONS: Final = ("bots", "_bots")


class Layout(NamedTuple):
    """The level of the units of a root member, and how many levels of each are kept.

    `unit_level` counts containers from the root, which is level 1: records of a map or an array are at 2, those of a
    section (`{"predictions": {...}}`) at 3. `kept_levels` is 1 for a record's own fields, 3 for a bot with positions.
    """

    unit_level: int
    kept_levels: int


RECORD_LAYOUT: Final = Layout(unit_level=2, kept_levels=1)
LAYOUTS: Final = {
    **{f'"{name}"'.encode(): Layout(unit_level=3, kept_levels=1) for name in RECORD_SECTIONS},
    # A bot keeps its own fields, its positions, and the fields of each.
    **{f'"{name}"'.encode(): Layout(unit_level=3, kept_levels=3) for name in BOT_SECTIONS},
}
# A bot file is one bot: its root is the unit, and keeps its positions and their fields.
BOT_FILE_LAYOUT: Final = Layout(unit_level=1, kept_levels=3)


# Names of objects inside each other: `{"predictions": {"1d": {}}}`.
Objects = Mapping[str, "Objects"]


class RecordNames(NamedTuple):
    """The names in a record that a pruner needs: the symbol's, and those of objects that it does not empty."""

    key: str = RECORD_KEY
    objects: Objects = MappingProxyType({})


DEFAULT_NAMES: Final = RecordNames()


class FileLayout(NamedTuple):
    """Everything that a pruner knows about a rolling file."""

    default: Layout
    members: Mapping[bytes, Layout]
    names: RecordNames


def file_layout(mapping: InputMapping) -> FileLayout:
    """Return the layout of a rolling file under a mapping."""
    key = next((item.path[0] for item in mapping.records.fields if item.name == "symbol"), RECORD_KEY)
    levels = bot_file_layout(mapping).kept_levels
    members = {
        name: layout if layout.kept_levels == RECORD_LAYOUT.kept_levels else Layout(layout.unit_level, levels)
        for name, layout in LAYOUTS.items()
    }
    return FileLayout(RECORD_LAYOUT, members, RecordNames(key, _objects(mapping.records)))


def bot_file_layout(mapping: InputMapping) -> Layout:
    """Return the layout of a bot file under a mapping.

    Bots are few and small, so they keep whole levels, down to the deepest field.
    """
    holder = max((len(item.path) for item in mapping.bots.fields if item.name == "positions"), default=1)
    levels = max(mapping.bots.max_path_names, holder + 1 + mapping.positions.max_path_names)
    return BOT_FILE_LAYOUT._replace(kept_levels=max(BOT_FILE_LAYOUT.kept_levels, levels))


def _objects(records: FieldMap) -> Objects:
    tree: dict[str, Any] = {}
    for item in (*records.fields, *records.extras):
        below = tree
        for name in item.path[:-1]:
            below = below.setdefault(name, {})
    return tree
