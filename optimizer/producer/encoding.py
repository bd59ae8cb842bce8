"""Records as JSON: each encoded alone, finite numbers only.

Errors: `RecordUnwritable`, with the symbol, and the field and its value if a field is the cause.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from enum import Enum
from typing import Final

import msgspec

from optimizer.errors import RecordUnwritable

__all__ = ["encode_bots", "encode_key", "encode_record", "symbol_of"]

# Decimals become numbers: as text, msgspec's default, a price would be rejected by the scan.
_ENCODER: Final = msgspec.json.Encoder(decimal_format="number")
# The errors of `encode`: an unknown type, text that is not valid Unicode, a list that contains itself.
_ENCODE_ERRORS: Final = (TypeError, ValueError, OverflowError, RecursionError)
# Decimals that are not finite, and decimals as keys, become invalid JSON. Checking takes a tenth of `write_rolling`.
_CHECKER: Final = msgspec.json.Decoder(msgspec.Raw)
SHOWN_CHARACTERS: Final = 80


def symbol_of(record: object, number: int) -> str:
    """Return the symbol of a record, from its item or attribute `symbol`.

    Args:
        record: A mapping, or an object with attributes.
        number: Its number among the records, from 1, for the error.

    Raises:
        RecordUnwritable: It has none, or its symbol is not text.
    """
    symbol = record.get("symbol") if isinstance(record, Mapping) else getattr(record, "symbol", None)
    if isinstance(symbol, str) and symbol:
        return symbol
    raise RecordUnwritable(
        f"record {number:,} ({type(record).__name__}) has {_shown(symbol)} as its symbol, which has to be text; "
        "give each record a `symbol`, or the records as a mapping by symbol"
    )


def encode_key(symbol: object) -> bytes:
    """Return a name as JSON.

    Raises:
        RecordUnwritable: It is not text, or empty, or not valid Unicode.
    """
    if not isinstance(symbol, str) or not symbol:
        raise RecordUnwritable(f"the name {_shown(symbol)} ({type(symbol).__name__}) is not text; records go by symbol")
    try:
        return _ENCODER.encode(symbol)
    except ValueError as error:
        raise RecordUnwritable(f"the name {_shown(symbol)} is not valid Unicode: {error}") from error


def encode_record(name: str, record: object) -> bytes:
    """Return a record, or a bot, as JSON.

    Raises:
        RecordUnwritable: It is not an object, holds NaN or an infinity, or a value that msgspec cannot encode.
    """
    try:
        data = _ENCODER.encode(record)
    except _ENCODE_ERRORS as error:
        raise _explained(name, record, error) from error
    if not data.startswith(b"{"):
        raise RecordUnwritable(f"{_shown(name)} is a {type(record).__name__}, and a record has to be an object")
    is_json = _is_json(data)
    if is_json and not _has_null(data):
        return data
    found = next(_unwritable_inside(record, ""), None if is_json else ("", record))
    if found is None:
        return data
    path, value = found
    if isinstance(value, float | Decimal):
        raise RecordUnwritable(
            f"{_shown(name)}: {path} is {value}, which JSON has no number for; write None or leave the field out, "
            "if there is no value"
        )
    raise _refusal(name, path, value, "it has a key or a value that JSON has no form for")


def encode_bots(bots: Mapping[str, object]) -> bytes:
    """Return bots, by name, as one JSON object.

    Raises:
        RecordUnwritable: A bot cannot be encoded.
    """
    return b"{" + b",\n".join(encode_key(name) + b":" + encode_record(name, bot) for name, bot in bots.items()) + b"}"


def _explained(name: str, record: object, error: Exception) -> RecordUnwritable:
    """Return the error that names the value that cannot be encoded."""
    path, value = next(_unwritable_inside(record, ""), ("", record))
    return _refusal(name, path, value, str(error))


def _refusal(name: str, path: str, value: object, reason: str) -> RecordUnwritable:
    what = f"{_shown(name)}: {path} is {_shown(value)}" if path else _shown(name)
    return RecordUnwritable(
        f"{what} ({_type_name(value)}): {reason}; convert it to what JSON has: text, a number, a list, an object"
    )


def _is_json(data: bytes) -> bool:
    try:
        _CHECKER.decode(data)
    except msgspec.DecodeError:
        return False
    return True


def _has_null(data: bytes) -> bool:
    """Whether JSON without white space has a null, which msgspec also writes for NaN and infinities.

    Text may look the same, which only costs a further check.
    """
    at = data.find(b"null", 1)
    while at >= 0:
        if data[at - 1] in b":,[" and data[at + 4] in b",]}":
            return True
        at = data.find(b"null", at + 4)
    return data == b"null"


def _unwritable(value: object, path: str) -> Iterator[tuple[str, object]]:
    """Find numbers that are not finite, and values that cannot be encoded, with their paths."""
    if isinstance(value, Decimal):
        if not value.is_finite():
            yield path, value
        return
    if isinstance(value, float) and not math.isfinite(value):
        yield path, value
        return
    is_json = False
    try:
        data = _ENCODER.encode(value)
        is_json = _is_json(data)
        # If the JSON decodes to the given value, each null is a None. That takes three times as long as encoding,
        # checking each value fifty times; both are only done if there are nulls, and not on a record's own level.
        if is_json and (not _has_null(data) or _reads_as(data, value)):
            return
    except RecursionError:
        yield path, value
        return
    except _ENCODE_ERRORS:
        pass
    inside = list(_unwritable_inside(value, path))
    yield from inside or ([] if is_json else [(path, value)])


def _reads_as(data: bytes, value: object) -> bool:
    return bool(msgspec.json.decode(data) == value)


def _unwritable_inside(value: object, path: str) -> Iterator[tuple[str, object]]:
    for inner, child in _children(value, path):
        yield from _unwritable(child, inner)


def _children(value: object, path: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield f"{path}.{key}" if path else str(key), child
    elif isinstance(value, list | tuple | set | frozenset):
        for number, child in enumerate(value):
            yield f"{path}[{number}]", child
    elif isinstance(value, Enum):
        yield path, value.value
    else:
        for name in _fields(value):
            if hasattr(value, name):
                yield f"{path}.{name}" if path else name, getattr(value, name)


def _fields(value: object) -> tuple[str, ...]:
    """Of a struct, a dataclass, or a class of attrs; of others none."""
    if isinstance(value, msgspec.Struct):
        return value.__struct_fields__
    if dataclasses.is_dataclass(value):
        return tuple(field.name for field in dataclasses.fields(value))
    return tuple(field.name for field in getattr(type(value), "__attrs_attrs__", ()))


def _type_name(value: object) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."
