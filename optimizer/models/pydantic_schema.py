"""The schema by which pydantic, and so FastAPI, validates, serialises and describes a struct.

Pydantic asks a struct of this package for it. A process that only reads loads neither pydantic nor this module.
"""

from __future__ import annotations

import functools
import operator
from typing import Any, Final, get_args

import msgspec
from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

__all__ = ["core_schema_of"]

PACKAGE: Final = "optimizer.models"


def core_schema_of(struct: type[msgspec.Struct], handler: GetCoreSchemaHandler) -> CoreSchema:
    """Return the core schema of a struct.

    msgspec validates and serialises, in one call for the struct and everything in it. The schemas of the fields only
    serve the description, from which FastAPI makes a component.
    """

    def convert(value: Any, _handler: Any) -> Any:
        if isinstance(value, struct):
            return value
        try:
            return msgspec.convert(value, struct)
        except msgspec.ValidationError as error:
            raise ValueError(str(error)) from None  # which pydantic expects from a validator

    fields = {}
    for field in _fields_of(struct):
        schema = handler.generate_schema(_without_unset(field.type))
        if field.default not in (msgspec.NODEFAULT, msgspec.UNSET):
            schema = core_schema.with_default_schema(schema, default=field.default)
        fields[field.encode_name] = core_schema.typed_dict_field(schema, required=field.required)
    return core_schema.no_info_wrap_validator_function(
        convert,
        core_schema.typed_dict_schema(fields, cls=struct),
        # Pydantic names a component by the last part of this, and by more of it if two are equal. A value of this
        # package is named by the module from which users import it.
        ref=f"{_public_module(struct)}.{struct.__qualname__}:{id(struct)}",
        serialization=core_schema.plain_serializer_function_ser_schema(msgspec.to_builtins),
    )


def _public_module(struct: type[msgspec.Struct]) -> str:
    return PACKAGE if struct.__module__.startswith(f"{PACKAGE}.") else struct.__module__


@functools.cache
def _fields_of(struct: type[msgspec.Struct]) -> tuple[msgspec.structs.FieldInfo, ...]:
    """Return the fields; msgspec compiles all annotations each time, and an app asks for a struct some 20 times."""
    return msgspec.structs.fields(struct)


def _without_unset(type_: Any) -> Any:
    """Return the type of a field without `UnsetType`, which marks optional fields and is unknown to pydantic."""
    members = get_args(type_)
    if msgspec.UnsetType not in members:
        return type_
    return functools.reduce(operator.or_, (member for member in members if member is not msgspec.UnsetType))
