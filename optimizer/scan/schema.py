"""What a record must have to count: its fields, their types, limits and defaults, stated once. Pure.

`Fields` is the statement. msgspec decodes records straight into it, alone or by the hundred, and what it takes counts.
For what it refuses, `explain` asks the same types one by one, which of them does not fit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Final, cast, get_args

import msgspec

from optimizer.models import DEFAULT_SENTIMENT, Record, RejectReason
from optimizer.scan.fragment import shown

__all__ = [
    "FIELD_NAMES",
    "MAX_SYMBOL_CHARACTERS",
    "MAX_TEXT_CHARACTERS",
    "PRICE_NAMES",
    "Fields",
    "Symbol",
    "Unusable",
    "as_finite",
    "explain",
    "is_text",
    "variant",
    "variants_by_price",
]

# Kept text is held for every record of the index, so it has to be short; the longest tickers have 30 characters.
MAX_SYMBOL_CHARACTERS: Final = 256
MAX_TEXT_CHARACTERS: Final = 1_024

# The descriptions are what messages say was expected. msgspec takes no number for infinite.
_Number = Annotated[float, msgspec.Meta(description="a finite number")]
_Confidence = Annotated[float, msgspec.Meta(ge=0, le=1, description="a number from 0 to 1")]
_Price = Annotated[float, msgspec.Meta(gt=0, description="a number above 0")]
_Text = Annotated[
    str, msgspec.Meta(max_length=MAX_TEXT_CHARACTERS, description=f"text of at most {MAX_TEXT_CHARACTERS:,} characters")
]
_Time = Annotated[
    _Text | int | float, msgspec.Meta(description=f"seconds, or text of at most {MAX_TEXT_CHARACTERS:,} characters")
]
Symbol = Annotated[
    str,
    msgspec.Meta(max_length=MAX_SYMBOL_CHARACTERS, description=f"text of at most {MAX_SYMBOL_CHARACTERS} characters"),
]


class Fields(msgspec.Struct, gc=False, kw_only=True):
    """A record's fields, in the order in which files mostly have them: msgspec finds them faster so.

    The price is the first of its three names that is there and not null. A record that stands under its symbol may have
    anything as `symbol` of its own.
    """

    symbol: Any = None
    prediction: _Number
    confidence: _Confidence
    last_price: _Price | None = None
    sentiment: _Text | None = None
    target_price: _Number | None = None
    stop_loss: _Number | None = None
    timestamp: _Time | None = None
    last: _Price | None = None
    price: _Price | None = None

    def record(self, symbol: str) -> Record:
        """The record as it is selected and published, of fields that have a price."""
        return Record(
            symbol,
            self.prediction,
            self.confidence,
            self.last_price or self.last or self.price,  # type: ignore[arg-type]
            self.sentiment if self.sentiment is not None else DEFAULT_SENTIMENT,
            self.target_price,
            self.stop_loss,
            self.timestamp,
        )


FIELD_NAMES: Final = Fields.__struct_fields__
PRICE_NAMES: Final = ("last_price", "last", "price")
_TYPES: Final = {field.name: field.type for field in msgspec.structs.fields(Fields)} | {
    "symbol": Symbol,
    "last_price": _Price,
}


def _expected(type_: Any) -> str:
    """The description of a type, or of the one beside `None`."""
    for part in (type_, *get_args(type_)):
        for meta in getattr(part, "__metadata__", ()):
            if meta.description:
                return str(meta.description)
    raise AssertionError(f"{type_} has no description")


_EXPECTED: Final = {name: _expected(type_) for name, type_ in _TYPES.items()}
# What is needed, in the order in which it is checked, and why a record without it is refused.
_NEEDED: Final = {
    "symbol": RejectReason.SYMBOL,
    "confidence": RejectReason.CONFIDENCE,
    "prediction": RejectReason.PREDICTION,
    "last_price": RejectReason.LAST_PRICE,
}
_REASONS: Final = _NEEDED | dict.fromkeys(PRICE_NAMES, RejectReason.LAST_PRICE)
_CHECKED: Final = (*_NEEDED, *(name for name in FIELD_NAMES if name not in (*_NEEDED, *PRICE_NAMES)))


class Unusable(Exception):
    """A field has a value that cannot be used; `reason` is a record's."""

    def __init__(self, details: str, reason: RejectReason = RejectReason.FIELD_TYPE) -> None:
        super().__init__(details)
        self.reason = reason


def variant(**required: Any) -> type[Fields]:
    """`Fields` with other types for some fields, which have to be there."""
    return cast("type[Fields]", msgspec.defstruct("Fields", required.items(), bases=(Fields,), gc=False, kw_only=True))


def variants_by_price(**required: Any) -> list[type[Fields]]:
    """`Fields` with a price, a struct for each of its names: what one of them takes counts without a look at it."""
    return [variant(**required, **{name: _Price}) for name in PRICE_NAMES]


def explain(given: Mapping[str, Any], symbol: str | None) -> Record:
    """Make a record of what `json.loads` reads, or say which field does not fit.

    Args:
        given: All fields.
        symbol: The key under which the record stands; `None` where it has to name its symbol itself.

    Raises:
        Unusable: Why it does not count.
    """
    values = {name: given.get(name) for name in FIELD_NAMES}
    for name, value in (("symbol", symbol), *values.items()):
        if type(value) is str and not is_text(value):
            raise Unusable(f"{name} is not valid text: {shown(value)}", RejectReason.TEXT)
    if symbol is not None:
        values["symbol"] = symbol
    price = next((name for name in PRICE_NAMES if values[name] is not None), PRICE_NAMES[0])
    used = {}
    for name in _CHECKED:
        source = price if name == PRICE_NAMES[0] else name
        value = values[source]
        if value is not None or name in _NEEDED:
            used[source] = _checked(source, value)
    return Fields(**used).record(used["symbol"])


def _checked(name: str, value: Any) -> Any:
    try:
        if value is None or (type(value) in (int, float) and as_finite(value) is None):
            raise msgspec.ValidationError
        return msgspec.convert(value, _TYPES[name])
    except msgspec.ValidationError:
        too_long = name == "symbol" and type(value) is str
        reason = RejectReason.FIELD_TYPE if too_long else _REASONS.get(name, RejectReason.FIELD_TYPE)
        raise Unusable(f"{name} is {shown(value)}, expected {_EXPECTED[name]}", reason) from None


def is_text(text: str) -> bool:
    """Whether text is valid Unicode: no half of a surrogate pair, which is what invalid UTF-8 is read as, too."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def as_finite(value: Any) -> float | None:
    """The value as a float; `None` where it is no number, infinite, or an integer that no float can hold."""
    if type(value) not in (int, float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
