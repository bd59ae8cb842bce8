"""The path from which each field is read, and a setting under which more fields are read. Pure.

A path is suggested for a field only if all its values have types that the field accepts, and most of the kept values
are within its limits. A setting is assembled item by item, and an item is kept only if the parser of the settings reads
it as intended: names that the grammar cannot express are left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from optimizer.cli.inspection.paths import PathStats, UnitStats, type_of
from optimizer.cli.inspection.synonyms import EXTRA_NAMES, normalized
from optimizer.errors import SettingsInvalid
from optimizer.models import MAX_TEXT_CHARACTERS
from optimizer.models.field_map import FieldMap, MappedField
from optimizer.scan.schema import Field, Unusable, checked

__all__ = ["UnitKind", "fit", "read_from", "suggested_line"]

# For each type, a value that no limit of a field excludes.
_PROBES: Final[dict[str, Any]] = {"number": 0.5, "text": "a", "boolean": True, "object": {}, "array": []}
_PLAIN: Final = frozenset(("text", "number", "boolean", "null"))
# Percent is the only unit that can be recognised by values.
_DIVISORS: Final[dict[str, tuple[float, ...]]] = {"confidence": (1, 100)}
# A field is read from a path if at least this share of the values fits; a path in fewer units is the last choice.
MOSTLY: Final = 0.5
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9_-]+")


@dataclass(frozen=True)
class UnitKind:
    """Records, bots or positions: their setting, the parser of its text, their fields, and the synonyms of these."""

    variable: str
    parse: Callable[[str], FieldMap]
    fields: Sequence[Field]
    names: Mapping[str, Sequence[str]]
    has_extras: bool = False


def read_from(kind: UnitKind, mapping: FieldMap, stats: UnitStats) -> dict[str, MappedField]:
    """Return by name the path of each field and extra field under a mapping, of those that most values fit."""
    read = {}
    for field in kind.fields:
        for item in _sources(field, mapping):
            if fit(field, stats.paths.get(item.path), item.divisor) >= MOSTLY:
                read[field.name] = item
                break
    return read | {extra.name: extra for extra in mapping.extras if extra.path in stats.paths}


def suggested_line(kind: UnitKind, mapping: FieldMap, stats: UnitStats) -> str | None:
    """Return a setting under which more fields are read than under a mapping; `None` if nothing can be added.

    Items of the mapping stay, except those that are replaced.
    """
    found = {item.name: item for item in _found(kind, mapping, stats)}
    old = [item for item in mapping.fields if item.name not in found]
    line = _Line(kind.parse)
    for item in (*old, *found.values()):
        line.add(item, is_extra=False)
    for extra in (*mapping.extras, *(_extras(kind, line.mapping, stats) if kind.has_extras else ())):
        line.add(extra, is_extra=True)
    return line.text if line.text and line.mapping != mapping else None


def fit(field: Field, stats: PathStats | None, divisor: float = 1) -> float:
    """Return the share of the values at a path that a field accepts, 0 to 1; 0 if the type of one contradicts it."""
    if stats is None or not stats.values or not stats.types.keys() - {"null"} <= _accepted_types(field):
        return 0.0
    return sum(_fits(field, value, divisor) for value in stats.values) / len(stats.values)


class _Line:
    """The value of a setting: its text, and the parsed result."""

    def __init__(self, parse: Callable[[str], FieldMap]) -> None:
        self._parse = parse
        self.text = ""
        self.mapping = FieldMap()

    def add(self, item: MappedField, *, is_extra: bool) -> None:
        """Add an item, unless the parser refuses it or reads it differently."""
        text = "; ".join(filter(None, (self.text, _written(item, is_extra=is_extra))))
        try:
            mapping = self._parse(text)
        except SettingsInvalid:
            return
        if (mapping.extras if is_extra else mapping.fields)[-1:] == (item,):
            self.text, self.mapping = text, mapping


def _written(item: MappedField, *, is_extra: bool) -> str:
    path = ".".join(item.path)
    if is_extra:
        return f"+{item.name}" if item.path == (item.name,) else f"+{item.name}={path}"
    return f"{item.name}={path}" + (f"/{item.divisor:g}" if item.divisor != 1 else "")


def _sources(field: Field, mapping: FieldMap) -> list[MappedField]:
    """Return the places from which a field is read: its item, or else its names that belong to no other item."""
    mapped = [item for item in mapping.fields if item.name == field.name]
    return mapped or [MappedField(field.name, (name,)) for name in field.names if name not in mapping.claimed]


def _found(kind: UnitKind, mapping: FieldMap, stats: UnitStats) -> Iterator[MappedField]:
    """Yield an item for each field that is not read yet but has a path; each path once, and no path that is read."""
    read = read_from(kind, mapping, stats)
    used = {item.path for item in read.values()}
    beside: tuple[str, ...] = ()
    for field in kind.fields:
        item = None if field.name in read else _best(field, kind.names[field.name], stats, used, beside)
        if item is not None:
            used.add(item.path)
            beside = item.path[:-1] or beside
            yield item


def _best(
    field: Field,
    names: Sequence[str],
    stats: UnitStats,
    used: set[tuple[str, ...]],
    beside: tuple[str, ...],
) -> MappedField | None:
    """Return the best path for a field, preferring one next to the path of another field."""
    ranked = []
    for number, (path, one) in enumerate(stats.paths.items()):
        name = normalized(path[-1])
        # A path into a member that is read as a whole would take the member from its field.
        if name not in names or any(path[: len(one)] == one for one in used):
            continue
        divisors = _DIVISORS.get(field.name, (1,))
        divisor = max(divisors, key=lambda divisor: fit(field, one, divisor))  # the first one, which is 1, if both fit
        if fit(field, one, divisor) >= MOSTLY:
            is_rare = one.count < MOSTLY * stats.count
            is_apart = bool(beside) and path[:-1] != beside
            rank = (is_rare, is_apart, name != normalized(field.name), len(path), names.index(name), number)
            ranked.append((rank, MappedField(field.name, path, divisor)))
    return min(ranked, key=lambda pair: pair[0])[1] if ranked else None


def _extras(kind: UnitKind, mapping: FieldMap, stats: UnitStats) -> Iterator[MappedField]:
    """Yield extra fields: values that would reject their record, then fields that pages often show."""
    read = {item.path for item in read_from(kind, mapping, stats).values()}
    free = {path[0]: one for path, one in stats.paths.items() if len(path) == 1 and path not in read and _is_plain(one)}
    for field in kind.fields:
        for item in _sources(field, mapping):
            # The extra field claims the member, so that it is no longer read as the field.
            if not field.required and item.path[0] in free:
                yield MappedField(f"raw_{item.path[0]}", item.path)
    for name in EXTRA_NAMES:
        for member in free:
            if normalized(member) == name:
                yield MappedField(_NOT_IN_NAMES.sub("_", member), (member,))


def _is_plain(stats: PathStats) -> bool:
    """Whether there are values, and all may be those of an extra field."""
    is_short = all(len(value) <= MAX_TEXT_CHARACTERS for value in stats.values if isinstance(value, str))
    return bool(stats.values) and stats.types.keys() <= _PLAIN and is_short


def _accepted_types(field: Field) -> set[str]:
    return {kind for kind, probe in _PROBES.items() if _converts(probe, field.type)}


def _converts(value: Any, type_: Any) -> bool:
    try:
        msgspec.convert(value, type_)
    except msgspec.ValidationError:
        return False
    return True


def _fits(field: Field, value: Any, divisor: float) -> bool:
    try:
        checked(field, value / divisor if divisor != 1 and type_of(value) == "number" else value, field.name)
    except (Unusable, OverflowError):
        return False
    return True
