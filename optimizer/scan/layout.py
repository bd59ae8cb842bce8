"""Where a rolling file has records and bots: the members of a root with a meaning, and how much of each is kept.

Pruners know nothing else of the format. A new kind of section is a line here and a branch in `decoder`.
"""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = [
    "BOT_FILE_LAYOUT",
    "BOT_SECTIONS",
    "LAYOUTS",
    "RECORD_KEY",
    "RECORD_LAYOUT",
    "RECORD_SECTIONS",
    "Layout",
]

# A root object with text under this name, before any object of its own, is one record: its objects are discarded.
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
