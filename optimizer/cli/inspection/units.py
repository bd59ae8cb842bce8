"""Collects the content of an input's records, bots and positions, step by step. Pure; memory is bounded."""

from __future__ import annotations

from typing import Any, Final

from optimizer.cli.inspection.paths import UnitStats
from optimizer.cli.inspection.shape import InputShape
from optimizer.cli.inspection.synonyms import BOT_NAMES, normalized
from optimizer.cli.inspection.walk import ENDS, Step
from optimizer.models.field_map import FieldMap
from optimizer.scan.layout import BOT_SECTIONS, RECORD_SECTIONS
from optimizer.scan.validation import load_unit

__all__ = ["Units"]

_POSITION_LISTS: Final = BOT_NAMES["positions"]


class Units:
    """The units of the files that were read, and the values found in place of units.

    Args:
        bots: The mapping of bots, which may set the path of their positions.
    """

    def __init__(self, bots: FieldMap) -> None:
        self._positions_path = next((item.path for item in bots.fields if item.name == "positions"), None)
        self.records = UnitStats()
        self.bots = UnitStats()
        self.positions = UnitStats()
        self.positions_have_keys = False
        self.records_have_keys = True
        self.listed_bots = 0  # in an array, so without a name
        self.not_objects = 0  # values in place of records
        self.too_large = 0  # units that are too long to be inspected
        self.json_bytes = 0
        self.steps = 0
        self.rest = "was not read"  # the rest of the last file, after enough records

    @property
    def has_bots(self) -> bool:
        """Whether any bots were seen."""
        return bool(self.bots.count or self.listed_bots)

    def take(self, step: Step, shape: InputShape) -> None:
        """Process a step of a walk with the layouts of a shape."""
        if step.event in ENDS or (step.level == 1 and (step.key or "").startswith("_")):
            return
        of_bots = step.level == 2 and step.section in BOT_SECTIONS
        if step.unit is None:
            self.not_objects += not of_bots and _is_in_place_of_a_record(step)
        elif not step.unit.data:
            self.too_large += 1
        elif not of_bots:
            # Beside a section under another name, objects of the root are no records.
            if step.level == 2 or not shape.unknown_sections:
                self.records.take(load_unit(step.unit))
                self.records_have_keys &= step.key is not None
        elif step.key is None:
            self.listed_bots += 1
        else:
            self._take_bot(load_unit(step.unit))

    def _take_bot(self, bot: dict[str, Any]) -> None:
        self.bots.take(bot)
        positions = self._positions_of(bot)
        self.positions_have_keys |= isinstance(positions, dict)
        for position in positions.values() if isinstance(positions, dict) else positions:
            if isinstance(position, dict):
                self.positions.take(position)

    def _positions_of(self, bot: dict[str, Any]) -> dict[str, Any] | list[Any]:
        """Return the positions of a bot: at the mapping's path, or under the first synonym."""
        value: Any = bot
        if self._positions_path is not None:
            for name in self._positions_path:
                value = value.get(name) if isinstance(value, dict) else None
        else:
            lists = {normalized(name): one for name, one in bot.items() if isinstance(one, dict | list)}
            value = next((lists[name] for name in _POSITION_LISTS if name in lists), None)
        return value if isinstance(value, dict | list) else []


def _is_in_place_of_a_record(step: Step) -> bool:
    if step.level == 1 and step.section in RECORD_SECTIONS:
        return step.event not in ("start_map", "start_array", "null")
    if step.level == 0:
        return step.event not in ("start_map", "start_array")
    return step.level == 2 or step.key is None
