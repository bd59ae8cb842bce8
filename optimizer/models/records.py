"""Records and bots of the input, as values and as the tables of what the input may have.

Each field of `Record`, `Bot` and `Position` has its type, its default (none: the field is required), and a `Rule` with
the limits, other names and the reason of a reject. The decoders, their messages, the snapshots and the OpenAPI schemas
are made of them, so a new field of a record is one line here, and what `CONTRIBUTING.md` lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from msgspec import UNSET, UnsetType

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema

__all__ = [
    "MAX_MAGNITUDE",
    "MAX_SYMBOL_CHARACTERS",
    "MAX_TEXT_CHARACTERS",
    "Bot",
    "ExtraValue",
    "InputExtra",
    "Position",
    "Record",
    "Reject",
    "RejectReason",
    "Rule",
    "Timestamp",
    "Value",
]

# As the prediction engine wrote it: ISO 8601 text, or seconds since the epoch. It is passed on, never interpreted.
Timestamp = str | int | float

# Of an extra field: as the prediction engine wrote it.
ExtraValue = str | int | float | bool | None
Extras = Annotated[
    dict[str, ExtraValue],
    msgspec.Meta(
        description="The extra fields that ROLLING_FIELDS asks for, by name, as the prediction engine wrote them: "
        "text, numbers, true or false, and null where the input has none. Absent where none are configured.",
        examples=[{"sector": "Technology", "volume": 41200000, "halted": False}],
    ),
]
_NO_EXTRAS: Final[Mapping[str, ExtraValue]] = MappingProxyType({})

# Kept text is held for every record of the index, so it has to be short; the longest tickers have 30 characters.
MAX_SYMBOL_CHARACTERS: Final = 256
MAX_TEXT_CHARACTERS: Final = 1_024
# Of quantities and costs: no sum or product of any number of positions comes near the largest float.
MAX_MAGNITUDE: Final = 1e100

# What the input may have; descriptions are what messages say was expected. msgspec accepts no infinite number.
InputSymbol = Annotated[
    str,
    msgspec.Meta(max_length=MAX_SYMBOL_CHARACTERS, description=f"text of at most {MAX_SYMBOL_CHARACTERS} characters"),
]
InputText = Annotated[
    str, msgspec.Meta(max_length=MAX_TEXT_CHARACTERS, description=f"text of at most {MAX_TEXT_CHARACTERS:,} characters")
]
InputTime = Annotated[InputText | int | float, msgspec.Meta(description="text or seconds")]
InputNumber = Annotated[float, msgspec.Meta(description="a finite number")]
InputConfidence = Annotated[float, msgspec.Meta(ge=0, le=1, description="a number from 0 to 1")]
InputPrice = Annotated[float, msgspec.Meta(gt=0, description="a number above 0")]
InputAmount = Annotated[
    float,
    msgspec.Meta(
        ge=-MAX_MAGNITUDE, le=MAX_MAGNITUDE, description=f"a finite number from -{MAX_MAGNITUDE:g} to {MAX_MAGNITUDE:g}"
    ),
]
InputExtra = InputText | int | float | bool
InputFlag = Annotated[bool, msgspec.Meta(description="true or false")]


class RejectReason(StrEnum):
    """Why a record or a bot was rejected."""

    TEXT = "TextInvalid"
    CONFIDENCE = "ConfidenceInvalid"
    PREDICTION = "PredictionInvalid"
    LAST_PRICE = "LastPriceInvalid"
    FIELD_TYPE = "FieldTypeInvalid"
    SYMBOL = "SymbolMissing"
    TOO_LARGE = "RecordTooLarge"
    NOT_AN_OBJECT = "RecordNotObject"
    BOT = "BotInvalid"


class Rule(msgspec.Struct, frozen=True):
    """What the input may have in a field.

    `type` has the limits; `reason` is for a reject; `other_names` are tried in turn where the field's own name
    is missing or null.
    """

    type: Any
    reason: RejectReason = RejectReason.FIELD_TYPE
    other_names: tuple[str, ...] = ()


class Value(msgspec.Struct, frozen=True):
    """A struct that readers return and the web sends: it converts itself to dicts, and is a type for pydantic."""

    def to_dict(self) -> dict[str, Any]:
        """The same as dicts, lists, text and numbers, as in the JSON."""
        value: dict[str, Any] = msgspec.to_builtins(self)
        return value

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        from optimizer.models.pydantic_schema import core_schema_of  # noqa: PLC0415 - a reader needs no pydantic

        return core_schema_of(cls, handler)


class Record(Value, frozen=True, gc=False):
    """One symbol's prediction, as pages show it. Prices and prediction in the quote currency, confidence in 0..1."""

    symbol: Annotated[str, Rule(InputSymbol, RejectReason.SYMBOL)]
    prediction: Annotated[float, Rule(InputNumber, RejectReason.PREDICTION)]
    confidence: Annotated[float, Rule(InputConfidence, RejectReason.CONFIDENCE)]
    last_price: Annotated[float, Rule(InputPrice, RejectReason.LAST_PRICE, other_names=("last", "price"))]
    sentiment: Annotated[str, Rule(InputText)] = "neutral"
    target_price: Annotated[float | None, Rule(InputNumber)] = None
    stop_loss: Annotated[float | None, Rule(InputNumber)] = None
    timestamp: Annotated[Timestamp | None, Rule(InputTime)] = None
    # Not set where none are configured, so that the JSON has no "extra" and no record needs a dict.
    extra_fields: Extras | UnsetType = msgspec.field(default=UNSET, name="extra")

    @property
    def extra(self) -> Mapping[str, ExtraValue]:
        """The extra fields that `ROLLING_FIELDS` asks for, by name: each of them, null where the input has none."""
        return _NO_EXTRAS if isinstance(self.extra_fields, UnsetType) else self.extra_fields


class Position(msgspec.Struct, frozen=True, gc=False):
    """What one bot holds of one symbol; a negative quantity is a short position."""

    symbol: Annotated[str, Rule(InputSymbol)]
    quantity: Annotated[float, Rule(InputAmount, other_names=("qty",))]
    avg_price: Annotated[float | None, Rule(InputAmount, other_names=("avg", "entry_price"))] = None


class Bot(msgspec.Struct, frozen=True):
    """One bot of the input. `position_count` is the input's number of positions, also if it lists none of them.

    `has_fields` is false for a bot in which not one field is present: its engine may have other names for them.
    """

    name: Annotated[str, Rule(InputSymbol)]
    enabled: Annotated[bool, Rule(InputFlag)] = False
    equity: Annotated[float | None, Rule(InputNumber)] = None
    pnl_today: Annotated[float | None, Rule(InputNumber)] = None
    position_count: int = 0
    positions: tuple[Position, ...] = ()
    last_updated: Annotated[Timestamp | None, Rule(InputTime)] = None
    has_fields: bool = True


class Reject(Value, frozen=True):
    """One rejected record or bot: why, its name, where it is (byte offset in the JSON, or a file), and the value."""

    reason: RejectReason
    name: str | None
    where: str
    details: str
