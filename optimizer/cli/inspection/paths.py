"""The content of units: for each path, the types of its values, how many units have it, and some values. Pure.

Memory is bounded for any units, by limits of paths, of values kept per path, and of characters per value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

__all__ = ["PathStats", "UnitStats", "type_of"]

MOST_PATHS: Final = 500
VALUES_KEPT: Final = 50
# Longer than any text that a field accepts, so that truncated text is still too long.
TEXT_KEPT: Final = 1_100
NAME_KEPT: Final = 256

_KEPT_OF: Final[dict[str, Callable[[Any], Any]]] = {
    "text": lambda text: text[:TEXT_KEPT],
    "object": lambda _: {},
    "array": lambda _: [],
}

Path = tuple[str, ...]


@dataclass
class PathStats:
    """The values at one path. `count` is the number of units in which it is not null; `types` has nulls as well."""

    path: Path
    count: int = 0
    types: dict[str, int] = field(default_factory=dict)
    values: list[Any] = field(default_factory=list)  # the first that are not null, containers without content

    def take(self, value: Any) -> None:
        """Add the value of the next unit that has the path."""
        kind = type_of(value)
        self.types[kind] = self.types.get(kind, 0) + 1
        self.count += kind != "null"
        if kind != "null" and len(self.values) < VALUES_KEPT:
            self.values.append(_KEPT_OF.get(kind, lambda value: value)(value))


class UnitStats:
    """The paths of all units of one kind, in the order in which they first occurred."""

    def __init__(self) -> None:
        self.count = 0
        self.paths: dict[Path, PathStats] = {}
        self.paths_left_out = 0  # occurrences beyond the limit

    def take(self, unit: Mapping[str, Any]) -> None:
        """Add the next unit."""
        self.count += 1
        for path, value in _values(unit, ()):
            stats = self.paths.get(path)
            if stats is None:
                if len(self.paths) >= MOST_PATHS or len(path[-1]) > NAME_KEPT:
                    self.paths_left_out += 1
                    continue
                stats = self.paths[path] = PathStats(path)
            stats.take(value)


def type_of(value: Any) -> str:
    """Return the type of a JSON value in words. A number that is no float, such as 1e999, is a number too."""
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "text"
    return "object" if isinstance(value, dict) else "array" if isinstance(value, list) else "null"


def _values(unit: Mapping[str, Any], before: Path) -> Iterator[tuple[Path, Any]]:
    for name, value in unit.items():
        path = (*before, name)
        yield path, value
        if isinstance(value, dict):
            yield from _values(value, path)
