"""Parse the settings that map a user's own fields: from which member of the input each field is read.

In: the texts of `ROLLING_FIELDS`, `ROLLING_BOT_FIELDS` and `ROLLING_POSITION_FIELDS`, such as

    prediction=predictions.1d.prediction; confidence=predictions.1d.confidence/100; +sector; +volume=stats.volume

Out: a `FieldMap` for each, as one `InputMapping`. There are no expressions: an item is a field, its path (names of
members, joined by dots), and for a number what it is divided by.

Errors: `SettingsInvalid` with the variable, the item, the column at which it begins, and what may be there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, Final, NoReturn, get_args

import msgspec

from optimizer.errors import SettingsInvalid
from optimizer.models import Bot, Position, Record, names_of
from optimizer.models.field_map import (
    MAX_DIVISOR,
    MAX_EXTRAS,
    MAX_NAME_CHARACTERS,
    MAX_PATH_NAMES,
    FieldMap,
    InputMapping,
    MappedField,
)

__all__ = ["parse_mapping"]

_DIVISOR: Final = re.compile(r"[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_EXTRA_NAME: Final = re.compile(r"[A-Za-z0-9_-]+")
# Plain ASCII, which has the same bytes in every JSON text, without separators, escaped characters, and characters that
# look like an expression.
_MEMBER_NAME: Final = re.compile(r"[ -~]+")
_NOT_IN_NAMES: Final = '"\\;=/.*[]'


class _Target:
    """The fields that the items of one variable may set.

    Args:
        struct: The table of the fields.
        names: The default names of each field that may be mapped.
        units: What the fields belong to, in words.
        has_extras: Whether extra fields are allowed.
    """

    def __init__(
        self, struct: type[msgspec.Struct], names: Mapping[str, tuple[str, ...]], units: str, *, has_extras: bool
    ) -> None:
        infos = {info.name: info for info in msgspec.structs.fields(struct)}
        self.names = names
        self.units = units
        self.has_extras = has_extras
        self.numbers = frozenset(name for name in names if {int, float}.intersection(_parts(infos[name].type)))
        self.required = frozenset(name for name in names if infos[name].required)


def _parts(type_: Any) -> Iterator[Any]:
    """Yield a type and the types that it is made of."""
    yield type_
    for part in get_args(type_):
        yield from _parts(part)


# A bot's name is its key, or its file's name. Its positions are a list or a map, whose fields are `POSITIONS`.
_BOT_NAMES: Final = {name: names for name, names in names_of(Bot).items() if name != "name"}
_RECORDS: Final = _Target(Record, names_of(Record), "a record", has_extras=True)
_BOTS: Final = _Target(Bot, {**_BOT_NAMES, "positions": ("positions",)}, "a bot", has_extras=False)
_POSITIONS: Final = _Target(Position, names_of(Position), "a position", has_extras=False)


@lru_cache(maxsize=64)
def parse_mapping(fields: str = "", bot_fields: str = "", position_fields: str = "") -> InputMapping:
    """Parse the three settings; an empty text maps nothing.

    Raises:
        SettingsInvalid: An item cannot be used; the message has the variable, the item and its column.
    """
    return InputMapping(
        records=_Parser("ROLLING_FIELDS", fields, _RECORDS).parse(),
        bots=_Parser("ROLLING_BOT_FIELDS", bot_fields, _BOTS).parse(),
        positions=_Parser("ROLLING_POSITION_FIELDS", position_fields, _POSITIONS).parse(),
    )


class _Parser:
    """Parse the text of one variable."""

    def __init__(self, variable: str, text: str, target: _Target) -> None:
        self._variable = variable
        self._text = text
        self._target = target
        self._place = ""  # of the current item, in words
        self._fields: list[MappedField] = []
        self._extras: list[MappedField] = []

    def parse(self) -> FieldMap:
        column = 1
        for number, item in enumerate(self._text.split(";"), 1):
            written = item.strip()
            if written:
                at = column + len(item) - len(item.lstrip())
                self._place = f"item {number}, {written!r} at column {at}"
                self._take(written)
            column += len(item) + 1
        self._check_names_left()
        return FieldMap(tuple(self._fields), tuple(self._extras))

    def _take(self, item: str) -> None:
        is_extra = item.startswith("+")
        name, equals, place = map(str.strip, item.removeprefix("+").partition("="))
        if not is_extra and not equals:
            self._refuse("has no '='; write NAME=PATH, such as prediction=score, or +NAME for an extra field")
        path, divisor = self._path_and_divisor(place if equals else name)
        field = MappedField(name, path, divisor)
        if is_extra:
            self._check_extra(field)
        else:
            self._check_field(field)
        self._check_place(field)
        (self._extras if is_extra else self._fields).append(field)

    def _path_and_divisor(self, text: str) -> tuple[tuple[str, ...], float]:
        place, slash, after = map(str.strip, text.partition("/"))
        path = tuple(name.strip() for name in place.split("."))
        for name in path:
            if not name:
                self._refuse(
                    f"names no member in {text!r}; a path is names joined by dots, such as predictions.1d.score"
                )
            if not _MEMBER_NAME.fullmatch(name) or any(character in name for character in _NOT_IN_NAMES):
                self._refuse(f"has the name {name!r}; names are plain ASCII without any of {' '.join(_NOT_IN_NAMES)}")
            if len(name) > MAX_NAME_CHARACTERS:
                self._refuse(f"has a name of {len(name)} characters, {MAX_NAME_CHARACTERS} at most")
        if len(path) > MAX_PATH_NAMES:
            self._refuse(f"has a path of {len(path)} names, {MAX_PATH_NAMES} at most")
        if not slash:
            return path, 1.0
        divisor = float(after) if _DIVISOR.fullmatch(after) else 0.0
        if not 1 / MAX_DIVISOR <= divisor <= MAX_DIVISOR:
            self._refuse(
                f"divides by {after!r}; a divisor is a number above 0, from {1 / MAX_DIVISOR:g} to {MAX_DIVISOR:g}, "
                "such as 100 where the engine writes percent"
            )
        return path, divisor

    def _check_extra(self, extra: MappedField) -> None:
        if not self._target.has_extras:
            self._refuse(f"asks for an extra field; {self._target.units} has none, records have (ROLLING_FIELDS)")
        if not _EXTRA_NAME.fullmatch(extra.name) or len(extra.name) > MAX_NAME_CHARACTERS:
            self._refuse(
                f"has the name {extra.name!r}; an extra field's holds letters, digits, '_' and '-', at most "
                f"{MAX_NAME_CHARACTERS}; write +NAME=PATH for a member whose name has others"
            )
        if extra.name in self._target.names:
            self._refuse(f"asks for {extra.name}, which is a field already; map it as {extra.name}=PATH, without '+'")
        if extra.divisor != 1.0:
            self._refuse("divides an extra field, which is passed on as it is; leave the divisor out")
        if len(self._extras) >= MAX_EXTRAS:
            self._refuse(f"is one extra field too many; there may be {MAX_EXTRAS}")

    def _check_field(self, field: MappedField) -> None:
        if field.name not in self._target.names:
            extra = f"; an extra field is +{field.name}" if self._target.has_extras else ""
            self._refuse(f"names no field of {self._target.units}; they are {', '.join(self._target.names)}{extra}")
        if field.divisor != 1.0 and field.name not in self._target.numbers:
            self._refuse(f"divides {field.name}, which is not a number; leave the divisor out")
        if field.name == "symbol" and self._target is _RECORDS and len(field.path) > 1:
            self._refuse("reads the symbol from inside another object; it has to be a member of the record itself")

    def _check_place(self, field: MappedField) -> None:
        for other in (*self._fields, *self._extras):
            if field.name == other.name:
                self._refuse(f"comes after another item for {field.name}; leave one of them out")
            length = min(len(field.path), len(other.path))
            if field.path[:length] != other.path[:length]:
                continue
            if len(field.path) == len(other.path):
                self._refuse(f"reads {field.label}, as {other.name} does; a member can be read by one field only")
            self._refuse(
                f"takes {'.'.join(field.path[:length])} for {'an object' if len(field.path) > length else 'a value'}, "
                f"and {other.name}={other.label} for {'a value' if len(field.path) > length else 'an object'}"
            )

    def _check_names_left(self) -> None:
        """Check that no required field has lost all its names to items: a member can be read by one field only."""
        mapped = {field.name for field in self._fields}
        claimed = {item.path[0]: item.name for item in (*self._fields, *self._extras)}
        for name in sorted(self._target.required - mapped):
            if all(default in claimed for default in self._target.names[name]):
                raise SettingsInvalid(
                    f"{self._variable}: {claimed[name]} is read from {name!r}, so {name} has no member left to be "
                    f"read from; add {name}=PATH"
                )

    def _refuse(self, why: str) -> NoReturn:
        raise SettingsInvalid(f"{self._variable}: {self._place}: {why}")
