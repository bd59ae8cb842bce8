"""Records as JSON: each encoded alone, finite numbers only.

Errors: `RecordUnwritable`, with the symbol, and the field and its value where one is to blame.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any, Final

import msgspec

from optimizer.errors import RecordUnwritable

__all__ = ["encode_bots", "encode_key", "encode_record", "symbol_of"]

# Decimals as numbers: as text, msgspec's default, a price would be rejected by the scan.
_ENCODER: Final = msgspec.json.Encoder(decimal_format="number")
# What `encode` raises: an unknown type, text that is not valid Unicode, a list that contains itself.
_ENCODE_ERRORS: Final = (TypeError, ValueError, OverflowError, RecursionError)
# Decimals may be -Infinity, -sNaN and NaN123, too.
BEFORE_TOKEN: Final = b":,[-s"
AFTER_TOKEN: Final = b",]}0123456789"
SHOWN_CHARACTERS: Final = 80


def symbol_of(record: object, number: int) -> str:
    """Return the symbol of a record, from its item or attribute `symbol`.

    Args:
        record: A mapping, or an object with attributes.
        number: Its number among the records, from 1, for the error.

    Raises:
        RecordUnwritable: It has none, or one that is not text.
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
        RecordUnwritable: It is not an object, holds NaN or an infinity, or what msgspec cannot encode.
    """
    try:
        data = _ENCODER.encode(record)
    except _ENCODE_ERRORS as error:
        raise _explained(name, record, error) from error
    if not data.startswith(b"{"):
        raise RecordUnwritable(f"{_shown(name)} is a {type(record).__name__}, and a record has to be an object")
    if _may_hide_a_number(data):
        for path, value in _unwritable_inside(record, ""):
            raise RecordUnwritable(
                f"{_shown(name)}: {path} is {value}, which JSON has no number for; write None or leave the field out, "
                "if there is no value"
            )
    return data


def encode_bots(bots: Mapping[str, object]) -> bytes:
    """Return bots, by name, as one JSON object.

    Raises:
        RecordUnwritable: One cannot be encoded.
    """
    return b"{" + b",\n".join(encode_key(name) + b":" + encode_record(name, bot) for name, bot in bots.items()) + b"}"


def _explained(name: str, record: object, error: Exception) -> RecordUnwritable:
    """Name the value that cannot be encoded."""
    path, value = next(_unwritable_inside(record, ""), ("", record))
    what = f"{_shown(name)}: {path} is {_shown(value)}" if path else _shown(name)
    return RecordUnwritable(
        f"{what} ({_type_name(value)}): {error}; convert it to what JSON has: text, a number, a list, an object"
    )


def _may_hide_a_number(data: bytes) -> bool:
    """Whether JSON has a null, as which msgspec writes NaN and infinities, or the name of one, as of decimals.

    One letter is searched at 20 GB/s, a word at 1.5; msgspec writes 0.4.
    """
    return (
        _has_token(data, b"null")
        or (b"N" in data and _has_token(data, b"NaN"))
        or (b"I" in data and _has_token(data, b"Infinity"))
    )


def _has_token(data: bytes, token: bytes) -> bool:
    """Whether JSON without white space has this token; in text only where it looks the same."""
    at = data.find(token)
    while at >= 0:
        if data[at - 1] in BEFORE_TOKEN and data[at + len(token)] in AFTER_TOKEN:
            return True
        at = data.find(token, at + len(token))
    return False


def _unwritable(value: object, path: str) -> Iterator[tuple[str, object]]:
    """Find numbers that are not finite, and values that cannot be encoded, with their paths."""
    if isinstance(value, Decimal):
        if not value.is_finite():
            yield path, value
        return
    if isinstance(value, float) and not math.isfinite(value):
        yield path, value
        return
    try:
        data = _ENCODER.encode(value)
        # If what was written reads as what was given, each null is a None. That takes three times as long as encoding,
        # looking at each value fifty times; both only where there are nulls, and not on a record's own level.
        if not _may_hide_a_number(data) or _reads_as(data, value):
            return
    except RecursionError:
        yield path, value
        return
    except _ENCODE_ERRORS:
        inside = list(_unwritable_inside(value, path))
        yield from inside or [(path, value)]
        return
    yield from _unwritable_inside(value, path)


def _reads_as(data: bytes, value: object) -> bool:
    try:
        return bool(msgspec.json.decode(data) == value)
    except ValueError:  # it has the name of a decimal that is not finite
        return False


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
    elif isinstance(value, msgspec.Struct) or dataclasses.is_dataclass(value):
        names = value.__struct_fields__ if isinstance(value, msgspec.Struct) else _fields(value)
        for name in names:
            if hasattr(value, name):
                yield f"{path}.{name}" if path else name, getattr(value, name)


def _fields(value: Any) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(value))


def _type_name(value: object) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."
