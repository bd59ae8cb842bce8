"""The structs into which msgspec decodes records, made from the rows of `schema`.

A name that a user wrote is used as a name of JSON only: the attributes, and the source of the constructor that is
compiled here, have the names of the table of fields, or numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from operator import attrgetter
from typing import Any, ClassVar, Final, cast

import msgspec

from optimizer.models import ExtraValue, Record
from optimizer.scan.schema import Field, Schema, schema_of

__all__ = ["Fields", "record_structs"]


def _constructor(*, has_extras: bool) -> Callable[[Fields, str], Record]:
    """Compile the constructor of a record from the table: a loop over the table takes 2.5 times as long a record."""
    values = [
        f"fields.{name}" if field.default is None else f"{field.default!r} if fields.{name} is None else fields.{name}"
        for name, field in schema_of().records.items()
        if name != "symbol"
    ]
    if has_extras:
        values.append("fields.extra_fields")
    source = f"lambda fields, symbol: Record(symbol, {', '.join(values)})"
    return cast("Callable[[Fields, str], Record]", eval(source, {"Record": Record}))  # noqa: S307 - our own names


class Fields(msgspec.Struct, gc=False, kw_only=True):
    """Base of the structs into which records are decoded; they have the attributes of `Record`.

    A record whose key is its symbol may have anything as its own `symbol`, which is decoded for comparison.
    `record(symbol)` returns the record as it is selected and published.
    """

    record: ClassVar[Callable[[Fields, str], Record]] = _constructor(has_extras=False)

    symbol: Any = None


_record_with_extras: Final = _constructor(has_extras=True)


class _Object:
    """The members of a JSON object from which a struct is made, and of those inside it, by their names there.

    Attributes:
        is_required: Something in it has to be there.
    """

    def __init__(self) -> None:
        self._values: list[tuple[str, str, tuple[Any, ...]]] = []  # attribute, name, type and perhaps default
        self._objects: dict[str, _Object] = {}
        self.is_required = False

    def add(self, path: Sequence[str], attribute: str, *type_and_default: Any) -> str:
        """Add a value; return the attributes that lead to it, joined by dots."""
        self.is_required |= len(type_and_default) == 1
        name, *inner = path
        if not inner:
            self._values.append((attribute, name, type_and_default))
            return attribute
        below = self._objects.setdefault(name, _Object())
        place = list(self._objects).index(name)
        return f"in_{place}.{below.add(inner, attribute, *type_and_default)}"

    def struct(self, *, base: type[msgspec.Struct] = msgspec.Struct, namespace: dict[str, Any] | None = None) -> Any:
        """Return the struct. An object that holds nothing required may be missing or null."""
        members: list[Any] = [(attribute, *rest) for attribute, _, rest in self._values]
        renamed = {attribute: name for attribute, name, _ in self._values}
        for place, (name, below) in enumerate(self._objects.items()):
            type_ = below.struct()
            members.append((f"in_{place}", type_) if below.is_required else (f"in_{place}", type_ | None, None))
            renamed[f"in_{place}"] = name
        return msgspec.defstruct(
            "Fields", members, bases=(base,), namespace=namespace, gc=False, kw_only=True, rename=renamed
        )


@lru_cache(maxsize=32)
def record_structs(schema: Schema, *, named: bool) -> list[type[Fields]]:
    """Return the structs for records whose key is their symbol, or that are `named` by a field of their own.

    A field with several names needs a struct for each of them: mostly, all records of a file use the same one. In the
    struct for a name, those before it have to be null; those after it are only checked for being valid text.

    msgspec finds fields fastest in the order of the struct, so the names that are used come first, in the table's
    order.
    """
    fields = [field for field in schema.records.values() if field.name != "symbol"]
    return [_struct(schema, fields, used, named=named) for used in max((field.names for field in fields), key=len)]


def _struct(schema: Schema, fields: Sequence[Field], used: str, *, named: bool) -> type[Fields]:
    symbol = schema.records["symbol"]
    members = _Object()
    namespace: dict[str, Any] = {}
    members.add(symbol.names, "symbol", *((symbol.type,) if named else (Any, None)))
    others: list[tuple[str, Any]] = []
    for field in fields:
        if not field.names:
            namespace[field.name] = None  # another field is read from its member
            continue
        name = used if used in field.names else field.names[0]
        path = name.split(".")
        is_plain = len(path) == 1 and field.divisor == 1.0
        type_and_default = (field.type,) if field.required else (field.type | None, field.default)
        attributes = members.add(path, field.name if is_plain else f"read_{field.name}", *type_and_default)
        if not is_plain:
            namespace[field.name] = property(_getter(attributes, field))
        before = field.names.index(name)
        others += [
            (other, None if place < before else Any) for place, other in enumerate(field.names) if place != before
        ]
    if schema.extras:
        namespace["extra_fields"] = property(_extras(schema.extras, members))
        namespace["record"] = _record_with_extras
    for place, (other, type_) in enumerate(others):
        members.add((other,), f"other_{place}", type_, None)
    return cast("type[Fields]", members.struct(base=Fields, namespace=namespace))


def _getter(attributes: str, field: Field) -> Callable[[Fields], Any]:
    read = attrgetter(attributes) if field.required else _optional(attributes)
    if field.divisor == 1.0:
        return read
    divisor = field.divisor

    def divided(fields: Fields) -> float | None:
        value = read(fields)
        return None if value is None else value / divisor

    return divided


def _optional(attributes: str) -> Callable[[Any], Any]:
    """Return a function that reads a value from objects that may be missing."""
    *objects, last = attributes.split(".")

    def read(fields: Any) -> Any:
        for name in objects:
            fields = getattr(fields, name)
            if fields is None:
                return None
        return getattr(fields, last)

    return read if objects else attrgetter(last)


def _extras(extras: Sequence[Field], members: _Object) -> Callable[[Fields], dict[str, ExtraValue]]:
    readers = [
        (extra.name, _optional(members.add(extra.names[0].split("."), f"extra_{place}", extra.type | None, None)))
        for place, extra in enumerate(extras)
    ]
    return lambda fields: {name: read(fields) for name, read in readers}
