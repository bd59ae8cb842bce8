"""From which members of the input the fields of records, bots and positions are read: the values and their limits.

`optimizer.config.field_map` makes the values from the settings, and `optimizer.scan` reads the fields by them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

__all__ = [
    "MAX_DIVISOR",
    "MAX_EXTRAS",
    "MAX_NAME_CHARACTERS",
    "MAX_PATH_NAMES",
    "UNMAPPED",
    "FieldMap",
    "InputMapping",
    "MappedField",
]

MAX_NAME_CHARACTERS: Final = 64
MAX_PATH_NAMES: Final = 8
# Extra fields are held for every record of the index.
MAX_EXTRAS: Final = 32
# Divisors are between this and its reciprocal: wei are 1e18 to one ether.
MAX_DIVISOR: Final = 1e30


@dataclass(frozen=True)
class MappedField:
    """One item: the field `name` is read from the member at `path`, and divided by `divisor`."""

    name: str
    path: tuple[str, ...]
    divisor: float = 1.0

    @property
    def label(self) -> str:
        """The path as the user wrote it."""
        return ".".join(self.path)


@dataclass(frozen=True)
class FieldMap:
    """The items of one variable: `fields` are read from other places than by default, `extras` are added, in order."""

    fields: tuple[MappedField, ...] = ()
    extras: tuple[MappedField, ...] = ()

    @cached_property
    def extra_names(self) -> tuple[str, ...]:
        """The names of the extra fields, in their order."""
        return tuple(extra.name for extra in self.extras)

    @cached_property
    def claimed(self) -> frozenset[str]:
        """The members of a record that belong to an item, and so lose their default meaning."""
        return frozenset(item.path[0] for item in (*self.fields, *self.extras))

    @property
    def max_path_names(self) -> int:
        """The number of names of the longest path; 1 without items."""
        return max((len(item.path) for item in (*self.fields, *self.extras)), default=1)


@dataclass(frozen=True)
class InputMapping:
    """From which members of the input the fields of records, bots and positions are read."""

    records: FieldMap = FieldMap()
    bots: FieldMap = FieldMap()
    positions: FieldMap = FieldMap()


UNMAPPED: Final = InputMapping()
