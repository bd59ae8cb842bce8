"""The tables of `models` under a mapping, as the decoders use them: a row for each field, and how a value is checked.

In: an `InputMapping`. Out: a `Schema`, with the rows of records, bots and positions. From these, `structs` makes the
structs into which msgspec decodes records, alone or in batches. A record is valid if the structs accept it; if they
refuse it, `read_fields` checks the same rows one by one and reports the one that fails.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Final, NamedTuple, get_args

import msgspec

from optimizer.models import MAX_MAGNITUDE, Bot, ExtraValue, InputExtra, Position, Record, RejectReason, Rule, rules_of
from optimizer.models.field_map import UNMAPPED, FieldMap, InputMapping, MappedField
from optimizer.scan.fragment import shown

__all__ = [
    "Field",
    "Schema",
    "Unusable",
    "check_text",
    "checked",
    "extra_values",
    "is_text",
    "member_at",
    "read_fields",
    "schema_of",
]

# The smallest price if prices are divided: a smaller one could become 0.
MIN_MAGNITUDE: Final = 1 / MAX_MAGNITUDE


class Field(NamedTuple):
    """A row of a table. `names` are those of the input, paths with dots: the first one whose value is not null is used.

    `type` and `expected` are for the value as it is in the input; it is then divided by `divisor`.
    """

    name: str
    names: tuple[str, ...]
    type: Any
    expected: str
    max_characters: int | None
    reason: RejectReason
    required: bool
    default: Any
    divisor: float = 1.0


class Unusable(Exception):
    """A field has a value that cannot be used; `reason` becomes the reason of the record's reject."""

    def __init__(self, details: str, reason: RejectReason = RejectReason.FIELD_TYPE) -> None:
        super().__init__(details)
        self.reason = reason


@dataclass(frozen=True, eq=False)
class Schema:
    """The rows of every table by the name of the field; `positions` is the path of a bot's positions."""

    records: Mapping[str, Field]
    extras: tuple[Field, ...]
    bots: Mapping[str, Field]
    positions: str
    position_fields: Mapping[str, Field]

    @property
    def record_names(self) -> tuple[str, ...]:
        """All names that have a meaning inside a record, except those of extra fields."""
        return tuple(name for field in self.records.values() for name in field.names)


@lru_cache(maxsize=16)
def schema_of(mapping: InputMapping = UNMAPPED) -> Schema:
    """Return the tables under a mapping."""
    bot_fields = {item.name: item for item in mapping.bots.fields}
    return Schema(
        records=_table(Record, mapping.records),
        extras=tuple(map(_extra, mapping.records.extras)),
        bots=_table(Bot, mapping.bots),
        positions=bot_fields["positions"].label if "positions" in bot_fields else "positions",
        position_fields=_table(Position, mapping.positions),
    )


def _table(struct: type[msgspec.Struct], field_map: FieldMap) -> dict[str, Field]:
    mapped, rules = {item.name: item for item in field_map.fields}, rules_of(struct)
    return {
        info.name: _row(info, rules[info.name], mapped.get(info.name), field_map)
        for info in msgspec.structs.fields(struct)
        if info.name in rules
    }


def _row(info: msgspec.structs.FieldInfo, rule: Rule, item: MappedField | None, field_map: FieldMap) -> Field:
    divisor = item.divisor if item else 1.0
    type_ = rule.type if divisor == 1.0 else _multiplied(rule.type, divisor)
    by_default = (name for name in (info.name, *rule.other_names) if name not in field_map.claimed)
    return Field(
        name=info.name,
        names=(item.label,) if item else tuple(by_default),
        type=type_,
        expected=next(meta.description for meta in _limits(type_) if meta.description),
        max_characters=next((meta.max_length for meta in _limits(type_) if meta.max_length is not None), None),
        reason=rule.reason,
        required=info.required,
        default=None if info.required else info.default,
        divisor=divisor,
    )


def _extra(item: MappedField) -> Field:
    return Field(item.name, (item.label,), InputExtra, "", None, RejectReason.FIELD_TYPE, required=False, default=None)


def _limits(type_: Any) -> Iterator[msgspec.Meta]:
    """Yield the limits of a type, then those of its parts."""
    yield from (meta for meta in getattr(type_, "__metadata__", ()) if isinstance(meta, msgspec.Meta))
    for part in get_args(type_):
        yield from _limits(part)


def _multiplied(type_: Any, divisor: float) -> Any:
    """Return the type of a number that is divided afterwards, so that the quotient has the limits of the type.

    A number without limits gets some, so that no quotient becomes infinite and no price becomes 0.
    """
    metas = list(_limits(type_))
    low = next((meta.ge for meta in metas if meta.ge is not None), -MAX_MAGNITUDE)
    high = next((meta.le for meta in metas if meta.le is not None), MAX_MAGNITUDE)
    is_positive = any(meta.gt == 0 for meta in metas)
    low, high = (MIN_MAGNITUDE if is_positive else low) * divisor, high * divisor
    kind = "a number above 0," if is_positive else "a number"
    return Annotated[float, msgspec.Meta(ge=low, le=high, description=f"{kind} from {low:g} to {high:g}")]


def read_fields(table: Iterable[Field], given: Mapping[str, Any]) -> dict[str, Any]:
    """Check fields in the order of the table, and return the values of those that are not null.

    Raises:
        Unusable: The first field that does not fit.
    """
    values = {}
    for field in table:
        name, value = _first(field, given)
        if value is not None or field.required:
            values[field.name] = checked(field, value, name)
    return values


def _first(field: Field, given: Mapping[str, Any]) -> tuple[str, Any]:
    for name in field.names:
        value = member_at(given, name, field.reason)
        if value is not None:
            return name, value
    return (field.names or (field.name,))[0], None


def member_at(given: Mapping[str, Any], path: str, reason: RejectReason = RejectReason.FIELD_TYPE) -> Any:
    """Return the member at a path; `None` if it, or an object on the way, is missing or null.

    Raises:
        Unusable: There is a value of another type in place of an object.
    """
    if "." not in path:
        return given.get(path)
    value: Any = given
    names = path.split(".")
    for place, name in enumerate(names):
        if value is None:
            return None
        if not isinstance(value, dict):
            raise Unusable(f"{'.'.join(names[:place])} is {shown(value)}, expected an object", reason)
        value = value.get(name)
    return value


def extra_values(extras: Iterable[Field], given: Mapping[str, Any]) -> tuple[dict[str, ExtraValue], int]:
    """Return the extra fields, and how many of them have a value that cannot be passed on: those are null."""
    values: dict[str, ExtraValue] = {}
    dropped = 0
    for extra in extras:
        try:
            value = member_at(given, extra.names[0])
            check_text(extra.name, value)
            values[extra.name] = None if value is None else _converted(value, extra.type)
        except (Unusable, msgspec.ValidationError):
            values[extra.name] = None
            dropped += 1
    return values, dropped


def checked(field: Field, value: Any, label: str) -> Any:
    """Return a value as the field's type, divided by the field's divisor.

    Raises:
        Unusable: It does not fit; the message begins with the label.
    """
    check_text(label, value)
    if type(value) is str and field.max_characters is not None and len(value) > field.max_characters:
        raise Unusable(f"{label} has {len(value):,} characters, expected {field.max_characters:,} at most")
    try:
        if value is None:
            raise msgspec.ValidationError
        usable = _converted(value, field.type)
    except msgspec.ValidationError:
        raise Unusable(f"{label} is {shown(value)}, expected {field.expected}", field.reason) from None
    return usable if field.divisor == 1.0 else usable / field.divisor


def _converted(value: Any, type_: Any) -> Any:
    if type(value) is float and not math.isfinite(value):
        raise msgspec.ValidationError  # `convert` accepts infinite numbers, which JSON does not have
    try:
        return msgspec.convert(value, type_)
    except SystemError:  # msgspec before 0.22 raises this for an integer that no float can hold
        raise msgspec.ValidationError from None


def check_text(label: str, value: Any) -> None:
    """Check that a value, if it is text, is valid Unicode.

    Raises:
        Unusable: It is invalid text; the message begins with the label.
    """
    if type(value) is str and not is_text(value):
        raise Unusable(f"{label} is not valid text: {shown(value)}", RejectReason.TEXT)


def is_text(text: str) -> bool:
    """Whether text is valid Unicode without lone surrogates, to which invalid UTF-8 is decoded as well."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
