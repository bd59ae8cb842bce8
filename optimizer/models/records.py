"""Records and bots of the input: the values, which are also the tables of the input's fields.

Each field of `Record`, `Bot` and `Position` has its type, its default (without one, the field is required), and a
`Rule` with the limits, other names and the reason of a reject. The decoders, their messages, the snapshots and the
OpenAPI schemas are made from them, so a new field of a record is one line here, plus the steps in `CONTRIBUTING.md`.
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
    "names_of",
    "rank",
    "rules_of",
]

# As the prediction engine wrote it: ISO 8601 text, or seconds since the epoch. It is passed on, never interpreted.
Timestamp = str | int | float

# The value of an extra field, as the prediction engine wrote it.
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
# The limit of quantities and costs: no sum or product of any number of positions comes near the largest float.
MAX_MAGNITUDE: Final = 1e100

# The types of input fields; messages quote the descriptions. msgspec accepts no infinite number.
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
    """The rule for a field of the input.

    `type` has the limits; `reason` is used in rejects; `other_names` are tried in turn if the field's name is missing
    or null. `example` is a valid value, which the examples of the OpenAPI schema show.
    """

    type: Any
    reason: RejectReason = RejectReason.FIELD_TYPE
    other_names: tuple[str, ...] = ()
    example: Any = None


def rules_of(struct: type[msgspec.Struct]) -> dict[str, Rule]:
    """Return the rule of each field that has one, by its name, in the order of the struct."""
    return {
        info.name: rule
        for info in msgspec.structs.fields(struct)
        for rule in getattr(info.type, "__metadata__", ())
        if isinstance(rule, Rule)
    }


def names_of(struct: type[msgspec.Struct]) -> dict[str, tuple[str, ...]]:
    """Return the names of each field that has a rule: its own, then the others in the order in which they are tried."""
    return {name: (name, *rule.other_names) for name, rule in rules_of(struct).items()}


class Value(msgspec.Struct, frozen=True):
    """A struct that readers return and the web sends: it converts itself to dicts, and is a type for pydantic."""

    def to_dict(self) -> dict[str, Any]:
        """Convert to dicts, lists, text and numbers, as in the JSON."""
        value: dict[str, Any] = msgspec.to_builtins(self)
        return value

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        from optimizer.models.pydantic_schema import core_schema_of  # noqa: PLC0415 - a reader needs no pydantic

        return core_schema_of(cls, handler)


class Record(Value, frozen=True, gc=False):
    """One symbol's prediction, as pages show it. Prices and prediction in the quote currency, confidence in 0..1."""

    symbol: Annotated[str, Rule(InputSymbol, RejectReason.SYMBOL, example="AAPL")]
    prediction: Annotated[float, Rule(InputNumber, RejectReason.PREDICTION, example=104.2)]
    confidence: Annotated[float, Rule(InputConfidence, RejectReason.CONFIDENCE, example=0.93)]
    last_price: Annotated[
        float, Rule(InputPrice, RejectReason.LAST_PRICE, other_names=("last", "price"), example=101.5)
    ]
    sentiment: Annotated[str, Rule(InputText, example="bullish")] = "neutral"
    target_price: Annotated[float | None, Rule(InputNumber, example=110.0)] = None
    stop_loss: Annotated[float | None, Rule(InputNumber, example=97.5)] = None
    timestamp: Annotated[Timestamp | None, Rule(InputTime, example="2026-11-01T09:59:30Z")] = None
    # Not set if none are configured, so that the JSON has no "extra" and no record needs a dict.
    extra_fields: Extras | UnsetType = msgspec.field(default=UNSET, name="extra")

    @property
    def extra(self) -> Mapping[str, ExtraValue]:
        """The extra fields that `ROLLING_FIELDS` asks for, by name: each of them, null where the input has none."""
        return _NO_EXTRAS if isinstance(self.extra_fields, UnsetType) else self.extra_fields


def rank(record: Record) -> tuple[float, str]:
    """Return the sort key of the order of records everywhere: by confidence descending, then by symbol ascending."""
    return -record.confidence, record.symbol


class Position(msgspec.Struct, frozen=True, gc=False):
    """The position of one bot in one symbol; a negative quantity is a short position."""

    symbol: Annotated[str, Rule(InputSymbol)]
    quantity: Annotated[float, Rule(InputAmount, other_names=("qty",))]
    avg_price: Annotated[float | None, Rule(InputAmount, other_names=("avg", "entry_price"))] = None


class Bot(msgspec.Struct, frozen=True):
    """One bot of the input. `position_count` is the number of positions in the input, even if it does not list them.

    `has_fields` is false for a bot without any known field: its engine may use other names.
    """

    name: Annotated[str, Rule(InputSymbol)]
    enabled: Annotated[bool, Rule(InputFlag, example=True)] = False
    equity: Annotated[float | None, Rule(InputNumber, example=10500.0)] = None
    pnl_today: Annotated[float | None, Rule(InputNumber, example=-12.5)] = None
    position_count: int = 0
    positions: tuple[Position, ...] = ()
    last_updated: Annotated[Timestamp | None, Rule(InputTime, example="2026-11-01T09:59:58Z")] = None
    has_fields: bool = True


class Reject(Value, frozen=True):
    """One rejected record or bot: why, its name, where it is (byte offset in the JSON, or a file), and the value."""

    reason: RejectReason
    name: str | None
    where: str
    details: str
