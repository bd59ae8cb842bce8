"""The typed values that packages exchange: records and bots of the input, snapshots, manifest, report, state of a run.

Structs are frozen and have only fields that are used. The order of the fields of an output struct is their order in the
JSON.

`Record`, `Bot` and `Position` are also the tables of what the input may have: each field has its type, its default
(none: the field is required), and a `Rule` with the limits, other names and the reason of a reject. The decoders, their
messages, the snapshots and the OpenAPI schemas are made of them, so a new field of a record is one line here, and what
`CONTRIBUTING.md` lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema

__all__ = [
    "MAX_MAGNITUDE",
    "MAX_SYMBOL_CHARACTERS",
    "MAX_TEXT_CHARACTERS",
    "UNDECODABLE",
    "Bot",
    "BotSummary",
    "BotsSnapshot",
    "ChangeCounts",
    "ExtraValue",
    "Failure",
    "FileEntry",
    "HeldUpdate",
    "Holding",
    "Index",
    "InputExtra",
    "KindCounts",
    "Manifest",
    "Origin",
    "PartResult",
    "Pin",
    "PortfolioSnapshot",
    "Position",
    "PredictionsSnapshot",
    "Process",
    "QueuedUpdate",
    "Record",
    "Reject",
    "RejectReason",
    "RejectTally",
    "Rejected",
    "Report",
    "Rule",
    "RunState",
    "Stats",
    "Timestamp",
    "Units",
    "UpdateCounts",
    "Value",
    "VersionContent",
    "check_times",
    "names_of",
    "rank",
    "rules_of",
]

Origin = Literal["redis", "files"]

# What decoding damaged JSON raises: msgspec has no error of its own for bad UTF-8, and for what is nested too deep.
UNDECODABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

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
    is missing or null. `example` is a valid value, which the examples of the OpenAPI schema show.
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
        """The same as dicts, lists, text and numbers, as in the JSON."""
        value: dict[str, Any] = msgspec.to_builtins(self)
        return value

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        from optimizer.pydantic_schema import core_schema_of  # noqa: PLC0415 - a reader needs no pydantic

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
    # Not set where none are configured, so that the JSON has no "extra" and no record needs a dict.
    extra_fields: Extras | UnsetType = msgspec.field(default=UNSET, name="extra")

    @property
    def extra(self) -> Mapping[str, ExtraValue]:
        """The extra fields that `ROLLING_FIELDS` asks for, by name: each of them, null where the input has none."""
        return _NO_EXTRAS if isinstance(self.extra_fields, UnsetType) else self.extra_fields


def rank(record: Record) -> tuple[float, str]:
    """Return the sort key of the order of records everywhere: by confidence descending, then by symbol ascending."""
    return -record.confidence, record.symbol


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


class PredictionsSnapshot(Value, frozen=True):
    """`rolling_optimized.json.gz`: the top records, by confidence descending, then symbol."""

    predictions: list[Record]
    timestamp: str
    count: int


class BotSummary(Value, frozen=True):
    """One bot as pages show it; `positions` is their number."""

    enabled: bool
    equity: float | None
    pnl_today: float | None
    positions: int
    last_updated: Timestamp | None


class BotsSnapshot(Value, frozen=True):
    """`bots_snapshot.json.gz`: every bot by name."""

    bots: dict[str, BotSummary]
    timestamp: str


class Holding(Value, frozen=True):
    """The net quantity of a symbol over all bots and its average cost; `avg` is null where no cost is known."""

    symbol: str
    qty: float
    avg: float | None


class PortfolioSnapshot(Value, frozen=True):
    """`portfolio_snapshot.json.gz`: holdings by symbol."""

    holdings: list[Holding]
    timestamp: str


class HeldUpdate(msgspec.Struct, frozen=True):
    """What was published for one symbol without a scan, and holds until a scan of an input that was written later.

    `at_ms` is when it was accepted, in milliseconds since the epoch by Redis' clock; `record` is `None` for a symbol
    that was removed.
    """

    at_ms: int
    record: Record | None


class QueuedUpdate(msgspec.Struct, frozen=True):
    """An entry of the queue: what one call has published. A symbol in both is removed.

    `sequence` only rises; `at_ms` is when it was accepted, in milliseconds since the epoch by Redis' clock.
    """

    sequence: int
    at_ms: int
    records: list[Record]
    removed: list[str]

    @property
    def size(self) -> int:
        """The number of records and removals."""
        return len(self.records) + len(self.removed)


class Index(msgspec.Struct, frozen=True):
    """`symbols_index.json.gz`: the best records whatever `min_confidence`, from which lookups by symbol are served.

    `updates` are those that hold, by symbol; a removed symbol, and a record that is not among the best, is here alone.
    """

    symbols: list[Record]
    timestamp: str
    updates: dict[str, HeldUpdate] | UnsetType = UNSET


class FileEntry(msgspec.Struct, frozen=True):
    """One file of a snapshot: `sha256` in hex of the file as it lies on disk, its bytes, the number of its entries."""

    file: str
    sha256: str
    bytes: int
    count: int


class Units(Value, frozen=True):
    """The number of units of one kind in an input, and the number of those that were rejected.

    `without_fields` are bots of which not one field is present, and which therefore show defaults; not set if there are
    none.
    """

    seen: int = 0
    rejected: int = 0
    without_fields: int | UnsetType = UNSET


class Rejected(Value, frozen=True):
    """What a version leaves out: the records and bots of its input that were rejected."""

    records: Units
    bots: Units


class KindCounts(Value, frozen=True):
    """How many entries of one kind a version added, changed and removed."""

    added: int = 0
    changed: int = 0
    removed: int = 0


class ChangeCounts(Value, frozen=True):
    """How many predictions, bots and holdings a version added, changed and removed, against the one before it."""

    predictions: KindCounts = KindCounts()
    bots: KindCounts = KindCounts()
    holdings: KindCounts = KindCounts()


class Pin(Value, frozen=True):
    """That no run replaces a version until it is unpinned: since when, and by whom (`user@host`)."""

    at: str
    by: str

    def describe(self) -> str:
        """Return it in words: `pinned since ... by ...`."""
        return f"pinned since {self.at} by {self.by}"


class Manifest(msgspec.Struct, frozen=True, omit_defaults=True):
    """`manifest.json`, the commit record of a set of snapshot files, and the pointer in Redis.

    Absent in a set that an older release has written: `rejected`, `content_since`, `changes`, `made_by`, `input_at`. A
    pointer in Redis has no `index` in `snapshots` until the files have caught up with an update.

    `input_at` is the time of the last write to the input, by the clock of its place; of many parts, to the newest.
    `content_since` is the oldest version from which on predictions, bots and holdings have been what they are;
    `changes` counts what differs from the version before, absent for the first one. `made_by` is `user@host`.
    `restored_from` is the old version that a rollback published again. `scan_version` is the version of the scan from
    which a version of updates stems, absent in a scan's own; `updates` is how many updates hold. Two manifests of one
    version may differ in `fingerprint`, `input_at`, `rejected` and `pinned` alone: another input with the same content,
    and a pin that was removed.
    """

    source: str
    version: int
    generated_at: str
    fingerprint: str
    snapshots: dict[str, FileEntry]
    rejected: Rejected | None = None
    content_since: int | None = None
    changes: ChangeCounts | None = None
    made_by: str | None = None
    restored_from: int | None = None
    pinned: Pin | None = None
    scan_version: int | None = None
    updates: int = 0
    input_at: str | None = None

    @property
    def times(self) -> dict[str, str]:
        """The times that it has, by their names."""
        pinned_at = None if self.pinned is None else self.pinned.at
        times = {"generated_at": self.generated_at, "input_at": self.input_at, "pinned_at": pinned_at}
        return {name: text for name, text in times.items() if text is not None}

    @property
    def lineage(self) -> int:
        """The version of the scan that this version stems from: equal where only updates came between."""
        return self.version if self.scan_version is None else self.scan_version

    def is_same_set(self, other: Manifest) -> bool:
        """Whether both are manifests of one version with the same files; an older release's pointer lacks the index."""
        both = self.snapshots.keys() & other.snapshots.keys()
        if self.version != other.version or not both:
            return False
        return all(self.snapshots[kind] == other.snapshots[kind] for kind in both)


@dataclass(frozen=True, kw_only=True, slots=True)
class VersionContent:
    """Predictions, bots and holdings of one version, decoded.

    `generated_at` is when the version was made. The `timestamp` of each of the three is when its content was: a kind
    that has not changed keeps it. `rejected` is `None` if an older release has published the version.
    """

    version: int
    generated_at: str
    predictions: PredictionsSnapshot
    bots: BotsSnapshot
    portfolio: PortfolioSnapshot
    rejected: Rejected | None = None


class Stats(Value, frozen=True):
    """What a run did. `input_bytes` are compressed bytes; MB are 10^6 bytes; memory is the process's peak so far.

    `symbols_ignored` are records whose key differs from their own `symbol`; the key is published. `extras_dropped` are
    values of extra fields that are null because they cannot be passed on: lists, objects, long text.
    Bytes are those that this run has read: of `parts` files it scanned `parts_scanned`, the others had not changed.
    """

    predictions_extracted: int = 0
    bots_processed: int = 0
    portfolio_holdings: int = 0
    records_seen: int = 0
    records_rejected: int = 0
    duplicates: int = 0
    symbols_ignored: int = 0
    input_bytes: int = 0
    json_bytes: int = 0
    seconds: float = 0.0
    json_mb_per_s: float = 0.0
    peak_rss_mb: float = 0.0
    engine: str = ""
    parts: int = 1
    parts_scanned: int = 1
    bots_seen: int = 0
    bots_rejected: int = 0
    extras_dropped: int = 0
    bots_without_fields: int = 0


class UpdateCounts(Value, frozen=True, omit_defaults=True):
    """What a drain of the queue of updates did, in the versions that it made.

    `changed` and `removed` count symbols that were put into the ranking and taken out of it. `outdated` counts records
    that were not used, because the one that is shown has a newer timestamp; `first_outdated` names the first few.
    `refused` counts the records and removals that a guard has refused. `held` is how many updates hold now. `waited_s`
    is the longest time from a call to the version that shows its updates, in seconds.
    """

    versions: int = 0
    changed: int = 0
    removed: int = 0
    outdated: int = 0
    first_outdated: list[str] = msgspec.field(default_factory=list)
    refused: int = 0
    held: int = 0
    waited_s: float = 0.0


class RejectTally(Value, frozen=True):
    """The number of rejects with one reason, and the first few of them."""

    reason: RejectReason
    count: int
    first: list[Reject]


class PartResult(msgspec.Struct, frozen=True):
    """The result of scanning one part of a source: all that is needed of it to make snapshots of the whole source.

    `records` are its best `index_symbols_limit`, best first: a record among the best of all parts is also among the
    best of its own part.
    """

    records: list[Record]
    bots: list[Bot]
    rejects: list[RejectTally]
    records_seen: int
    records_rejected: int
    bots_seen: int
    bots_rejected: int
    duplicates: int
    symbols_ignored: int = 0
    extras_dropped: int = 0
    root: str | None = None


class Report(Value, frozen=True, omit_defaults=True):
    """The outcome of a run: the task's result, the log line, an entry of the runs stream.

    `cache` says what became of Redis: `published`, `republished` (from the files, without a scan), `current`, `down` or
    `off`. `reason` goes with `skipped`, `error` with `failed`; `details` say more of a failure, a pin or a rollback.
    `rejected` goes with the version that is current. `warning` says what is wrong with the run's worker though the run
    is right. `changes` goes with `success` and counts what differs from the version before: nothing, if the new input
    has the same content, which keeps its version. `pinned` goes with the reason `pinned`, and with a rollback.
    `input_age_s` goes with `success` and `unchanged`: the time from the last write to the input until `timestamp`.
    `published_after_s` goes with `success`: the time from the input's coming into its place, as by a rename, until
    readers could see the version; absent if they could before, as of an input that is scanned again by force. Both in
    seconds, at least 0, of parts those of the newest, and absent where the place of the input does not say.
    `updated` is of updates that were applied, instead of `stats`.
    """

    status: Literal["success", "unchanged", "skipped", "failed"]
    source: str
    timestamp: str
    version: int | None = None
    cache: str | None = None
    reason: str | None = None
    error: str | None = None
    details: str | None = None
    stats: Stats | None = None
    rejects: list[RejectTally] = msgspec.field(default_factory=list)
    rejected: Rejected | None = None
    warning: str | None = None
    changes: ChangeCounts | None = None
    pinned: Pin | None = None
    input_age_s: float | None = None
    published_after_s: float | None = None
    updated: UpdateCounts | None = None


class Process(Value, frozen=True):
    """A worker or a beat, as it told last.

    `seen_at` is when that was, by Redis' clock: a worker tells every few seconds, a beat each time that it has sent a
    run. `is_alive` says that it is not overdue. `queues` are those that a worker takes, or to which a beat has sent.
    `memory_limit_bytes` is what a process that makes runs may use, before a worker replaces it or the system kills it.
    """

    kind: Literal["worker", "beat"]
    name: str
    seen_at: str
    is_alive: bool
    queues: list[str] = msgspec.field(default_factory=list)
    memory_limit_bytes: int | None = None


class Failure(Value, frozen=True):
    """Why a run failed: the error's name, and what it says."""

    error: str
    details: str


class RunState(Value, frozen=True):
    """What has become of a run that was sent; an unknown one is `pending`. `percent` is of the bytes read."""

    id: str
    state: Literal["pending", "running", "done", "failed"]
    percent: float | None = None
    report: Report | None = None
    error: Failure | None = None


def check_times(**times: str) -> None:
    """Check times that were decoded: they are ISO 8601 with a time zone, of the years 1 to 9999 in UTC.

    Raises:
        ValueError: One is not.
    """
    for name, text in times.items():
        try:
            at = datetime.fromisoformat(text)
            at.astimezone(UTC)
        except OverflowError:
            raise ValueError(f"{name} is not of the years 1 to 9999") from None
        if at.tzinfo is None:
            raise ValueError(f"{name} has no time zone")
