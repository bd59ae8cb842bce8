"""The tables of `models` as the decoders use them: a row for each field of the input, and how a value is checked.

In: a struct of `models` whose fields have rules. Out: structs into which msgspec decodes records, alone or in batches;
what they accept counts. Where they refuse a record, `read_fields` checks the same rows one by one and says which one
fails.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Final, NamedTuple, cast, get_args

import msgspec

from optimizer.models import Bot, Position, Record, RejectReason, Rule
from optimizer.scan.fragment import shown

__all__ = [
    "BOT_FIELDS",
    "POSITION_FIELDS",
    "RECORD_FIELDS",
    "RECORD_NAMES",
    "Field",
    "Fields",
    "Unusable",
    "check_text",
    "checked",
    "is_text",
    "read_fields",
    "record_structs",
]


class Field(NamedTuple):
    """A row of a table. `names` are those of the input: the first one whose value is not null is used."""

    name: str
    names: tuple[str, ...]
    type: Any
    expected: str
    max_characters: int | None
    reason: RejectReason
    required: bool
    default: Any


class Unusable(Exception):
    """A field has a value that cannot be used; `reason` is for a record's reject."""

    def __init__(self, details: str, reason: RejectReason = RejectReason.FIELD_TYPE) -> None:
        super().__init__(details)
        self.reason = reason


def _table(struct: type[msgspec.Struct]) -> dict[str, Field]:
    return {
        info.name: Field(
            name=info.name,
            names=(info.name, *rule.other_names),
            type=rule.type,
            expected=next(meta.description for meta in _limits(rule.type) if meta.description),
            max_characters=next((meta.max_length for meta in _limits(rule.type) if meta.max_length is not None), None),
            reason=rule.reason,
            required=info.required,
            default=None if info.required else info.default,
        )
        for info in msgspec.structs.fields(struct)
        for rule in getattr(info.type, "__metadata__", ())
        if isinstance(rule, Rule)
    }


def _limits(type_: Any) -> Iterator[msgspec.Meta]:
    """Yield the limits of a type, then those of its parts."""
    yield from (meta for meta in getattr(type_, "__metadata__", ()) if isinstance(meta, msgspec.Meta))
    for part in get_args(type_):
        yield from _limits(part)


RECORD_FIELDS: Final = _table(Record)
BOT_FIELDS: Final = _table(Bot)
POSITION_FIELDS: Final = _table(Position)

# All names that have a meaning inside a record.
RECORD_NAMES: Final = tuple(name for field in RECORD_FIELDS.values() for name in field.names)


def _constructor() -> Callable[[Fields, str], Record]:
    """Compile the constructor of a record from the table: a loop over the table takes 2.5 times as long a record."""
    values = [
        f"fields.{name}" if field.default is None else f"{field.default!r} if fields.{name} is None else fields.{name}"
        for name, field in RECORD_FIELDS.items()
        if name != "symbol"
    ]
    source = f"lambda fields, symbol: Record(symbol, {', '.join(values)})"
    return cast("Callable[[Fields, str], Record]", eval(source, {"Record": Record}))  # noqa: S307 - our own names


class Fields(msgspec.Struct, gc=False, kw_only=True):
    """Base of the structs into which records are decoded; they have the attributes of `Record`.

    A record whose key is its symbol may have anything as its own `symbol`, which is decoded for comparison.
    `record(symbol)` returns the record as it is selected and published.
    """

    record: ClassVar[Callable[[Fields, str], Record]] = _constructor()

    symbol: Any = None


def record_structs(*, named: bool) -> list[type[Fields]]:
    """Return the structs for records whose key is their symbol, or that are `named` by a field of their own.

    A field with several names needs a struct for each of them: mostly, all records of a file use the same one. In the
    struct for a name, those before it have to be null; those after it are only checked for being valid text.

    msgspec finds fields fastest in the order of the struct, so the names that are used come first, in the table's
    order.
    """
    fields = [field for field in RECORD_FIELDS.values() if field.name != "symbol"]
    structs = []
    for used in max((field.names for field in fields), key=len):
        members: list[Any] = [("symbol", RECORD_FIELDS["symbol"].type)] if named else []
        others: list[Any] = []
        renamed = {}
        for field in fields:
            renamed[field.name] = used if used in field.names else field.name
            optional = (field.type | None, field.default)
            members.append((field.name, field.type) if field.required else (field.name, *optional))
            before = field.names.index(renamed[field.name])
            for place, name in enumerate(field.names):
                if place != before:
                    others.append((f"other_{name}", None if place < before else Any, None))
                    renamed[f"other_{name}"] = name
        struct = msgspec.defstruct("Fields", members + others, bases=(Fields,), gc=False, kw_only=True, rename=renamed)
        structs.append(cast("type[Fields]", struct))
    return structs


def read_fields(table: Iterable[Field], given: Mapping[str, Any]) -> dict[str, Any]:
    """Check fields in the order of the table, and return the values of those that are not null.

    Raises:
        Unusable: The first field that does not fit.
    """
    values = {}
    for field in table:
        name = next((name for name in field.names if given.get(name) is not None), field.name)
        value = given.get(name)
        if value is not None or field.required:
            values[field.name] = checked(field, value, name)
    return values


def checked(field: Field, value: Any, label: str) -> Any:
    """Return a value as the field's type.

    Raises:
        Unusable: It does not fit; the message begins with the label.
    """
    check_text(label, value)
    if type(value) is str and field.max_characters is not None and len(value) > field.max_characters:
        raise Unusable(f"{label} has {len(value):,} characters, expected {field.max_characters:,} at most")
    try:
        if value is None or (type(value) is float and not math.isfinite(value)):
            raise msgspec.ValidationError  # `convert` accepts infinite numbers, which JSON has not
        return msgspec.convert(value, field.type)
    except (msgspec.ValidationError, SystemError):  # msgspec before 0.22: an integer that no float can hold
        raise Unusable(f"{label} is {shown(value)}, expected {field.expected}", field.reason) from None


def check_text(label: str, value: Any) -> None:
    """Check that a value is not text that is invalid.

    Raises:
        Unusable: It is; the message begins with the label.
    """
    if type(value) is str and not is_text(value):
        raise Unusable(f"{label} is not valid text: {shown(value)}", RejectReason.TEXT)


def is_text(text: str) -> bool:
    """Whether text is valid Unicode, without lone surrogates; invalid UTF-8 is decoded to these too."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
