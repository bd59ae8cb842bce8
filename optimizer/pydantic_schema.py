"""The schema by which pydantic, and so FastAPI, validates, serialises and describes a struct.

Pydantic asks a struct of `models.py` for it. A process that only reads loads neither pydantic nor this module.
"""

from __future__ import annotations

import functools
import operator
from typing import Any, get_args

import msgspec
from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

__all__ = ["core_schema_of"]


def core_schema_of(struct: type[msgspec.Struct], handler: GetCoreSchemaHandler) -> CoreSchema:
    """The core schema of a struct.

    msgspec does the work, in one call for the struct with all that it holds. The schemas of the fields are there to be
    described; FastAPI makes a component of the description.
    """

    def convert(value: Any, _handler: Any) -> Any:
        if isinstance(value, struct):
            return value
        try:
            return msgspec.convert(value, struct)
        except msgspec.ValidationError as error:
            raise ValueError(str(error)) from None  # what pydantic expects of a validator

    fields = {}
    for field in _fields_of(struct):
        schema = handler.generate_schema(_without_unset(field.type))
        if field.default not in (msgspec.NODEFAULT, msgspec.UNSET):
            schema = core_schema.with_default_schema(schema, default=field.default)
        fields[field.encode_name] = core_schema.typed_dict_field(schema, required=field.required)
    return core_schema.no_info_wrap_validator_function(
        convert,
        core_schema.typed_dict_schema(fields, cls=struct),
        # Pydantic names a component by the last part of this, and by more of it if two have the same.
        ref=f"{struct.__module__}.{struct.__qualname__}:{id(struct)}",
        serialization=core_schema.plain_serializer_function_ser_schema(msgspec.to_builtins),
    )


@functools.cache
def _fields_of(struct: type[msgspec.Struct]) -> tuple[msgspec.structs.FieldInfo, ...]:
    """The fields of a struct. msgspec compiles all its annotations, and an app asks for a struct some 20 times."""
    return msgspec.structs.fields(struct)


def _without_unset(type_: Any) -> Any:
    """The type of a field that may be left out of the JSON, without the mark for that, which pydantic does not know."""
    members = get_args(type_)
    if msgspec.UnsetType not in members:
        return type_
    return functools.reduce(operator.or_, (member for member in members if member is not msgspec.UnsetType))
