"""The base of the structs that readers return and the web sends: usable as such in a FastAPI or Flask app.

    @app.get("/best")
    def best() -> list[Record]: ...                          FastAPI: the response and its OpenAPI schema

    flask.jsonify(record.to_dict())

Pydantic is imported only when it asks for a schema, so a reader's process does not need it.
"""

from __future__ import annotations

import functools
import operator
from typing import TYPE_CHECKING, Any, get_args

import msgspec

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema

__all__ = ["Value"]


class Value(msgspec.Struct, frozen=True):
    """A struct that converts itself to dicts, and that pydantic accepts as a type."""

    def to_dict(self) -> dict[str, Any]:
        """The same as dicts, lists, text and numbers, as it is in JSON."""
        value: dict[str, Any] = msgspec.to_builtins(self)
        return value

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Tell pydantic how to validate, serialise and describe it; FastAPI makes a component of the description.

        msgspec does the work, in one call for the struct with all that it holds. The schema of the fields is there to
        be described.
        """
        from pydantic_core import core_schema  # noqa: PLC0415 - a reader needs no pydantic

        def convert(value: Any, _handler: Any) -> Value:
            if isinstance(value, cls):
                return value
            try:
                return msgspec.convert(value, cls)
            except msgspec.ValidationError as error:
                raise ValueError(str(error)) from None  # what pydantic expects of a validator

        fields = {}
        for field in msgspec.structs.fields(cls):
            schema = handler.generate_schema(_without_unset(field.type))
            if field.default not in (msgspec.NODEFAULT, msgspec.UNSET):
                schema = core_schema.with_default_schema(schema, default=field.default)
            fields[field.encode_name] = core_schema.typed_dict_field(schema, required=field.required)
        return core_schema.no_info_wrap_validator_function(
            convert,
            core_schema.typed_dict_schema(fields, cls=cls),
            # Pydantic names a component by the last part of this, and by more of it if two have the same.
            ref=f"{cls.__module__}.{cls.__qualname__}:{id(cls)}",
            serialization=core_schema.plain_serializer_function_ser_schema(msgspec.to_builtins),
        )


def _without_unset(type_: Any) -> Any:
    """The type of a field that may be left out of the JSON, without the mark for that, which pydantic does not know."""
    members = get_args(type_)
    if msgspec.UnsetType not in members:
        return type_
    return functools.reduce(operator.or_, (member for member in members if member is not msgspec.UnsetType))
