"""The typed values that pass between the rooms: input records, snapshots, manifest and report.

Structs are frozen and list only the fields that somebody uses. The order of the fields of an output struct is their
order in the JSON.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, Literal

import msgspec

__all__ = [
    "DEFAULT_SENTIMENT",
    "UNDECODABLE",
    "Bot",
    "BotSummary",
    "BotsSnapshot",
    "FileEntry",
    "Findings",
    "Holding",
    "Index",
    "Manifest",
    "Origin",
    "PortfolioSnapshot",
    "Position",
    "PredictionsSnapshot",
    "Record",
    "Reject",
    "RejectReason",
    "RejectTally",
    "Rejected",
    "Report",
    "Stats",
    "Timestamp",
    "Units",
]

Origin = Literal["redis", "files"]

# What decoding damaged JSON raises: msgspec has no error of its own for bad UTF-8, and for what is nested too deep.
UNDECODABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

# As the prediction engine wrote it: ISO 8601 text, or seconds since the epoch. It is passed on, never interpreted.
Timestamp = str | int | float

# Where a record has no sentiment, or null.
DEFAULT_SENTIMENT: Final = "neutral"


class Record(msgspec.Struct, frozen=True, gc=False):
    """One symbol's prediction, as pages show it. Prices and prediction in the quote currency, confidence in 0..1."""

    symbol: str
    prediction: float
    confidence: float
    last_price: float
    sentiment: str = DEFAULT_SENTIMENT
    target_price: float | None = None
    stop_loss: float | None = None
    timestamp: Timestamp | None = None


class Position(msgspec.Struct, frozen=True, gc=False):
    """What one bot holds of one symbol; a negative quantity is a short position."""

    symbol: str
    quantity: float
    avg_price: float | None = None


class Bot(msgspec.Struct, frozen=True):
    """One bot of the input. `position_count` is what the input says, also where it gives a bare number."""

    name: str
    enabled: bool
    equity: float | None
    pnl_today: float | None
    position_count: int
    positions: tuple[Position, ...]
    last_updated: Timestamp | None


class RejectReason(StrEnum):
    """Why a record, or a bot, does not count."""

    TEXT = "TextInvalid"
    CONFIDENCE = "ConfidenceInvalid"
    PREDICTION = "PredictionInvalid"
    LAST_PRICE = "LastPriceInvalid"
    FIELD_TYPE = "FieldTypeInvalid"
    SYMBOL = "SymbolMissing"
    TOO_LARGE = "RecordTooLarge"
    NOT_AN_OBJECT = "RecordNotObject"
    BOT = "BotInvalid"


class Reject(msgspec.Struct, frozen=True):
    """One record or bot that does not count: which, where (byte offset in the JSON, or a file), why, which value."""

    reason: RejectReason
    name: str | None
    where: str
    details: str


class PredictionsSnapshot(msgspec.Struct, frozen=True):
    """`rolling_optimized.json.gz`: the top records, by confidence descending, then symbol."""

    predictions: list[Record]
    timestamp: str
    count: int


class BotSummary(msgspec.Struct, frozen=True):
    """One bot as pages show it; `positions` is their number."""

    enabled: bool
    equity: float | None
    pnl_today: float | None
    positions: int
    last_updated: Timestamp | None


class BotsSnapshot(msgspec.Struct, frozen=True):
    """`bots_snapshot.json.gz`: every bot by name."""

    bots: dict[str, BotSummary]
    timestamp: str


class Holding(msgspec.Struct, frozen=True):
    """The net quantity of a symbol over all bots and its average cost; `avg` is null where no cost is known."""

    symbol: str
    qty: float
    avg: float | None


class PortfolioSnapshot(msgspec.Struct, frozen=True):
    """`portfolio_snapshot.json.gz`: holdings by symbol."""

    holdings: list[Holding]
    timestamp: str


class Index(msgspec.Struct, frozen=True):
    """`symbols_index.json.gz`: the best records whatever `min_confidence`, from which lookups by symbol are served."""

    symbols: list[Record]
    timestamp: str


class FileEntry(msgspec.Struct, frozen=True):
    """One file of a snapshot: `sha256` in hex of the file as it lies on disk, its bytes, the number of its entries."""

    file: str
    sha256: str
    bytes: int
    count: int


class Units(msgspec.Struct, frozen=True):
    """How many units of a kind an input had, and how many of them were rejected."""

    seen: int = 0
    rejected: int = 0


class Rejected(msgspec.Struct, frozen=True):
    """What a version leaves out: of its input's records and bots, those that could not be used."""

    records: Units
    bots: Units


class Manifest(msgspec.Struct, frozen=True):
    """`manifest.json`, the commit record of a set of snapshot files, and the pointer in Redis.

    `rejected` is null in a set that an older release has written, which did not count bots.
    """

    source: str
    version: int
    generated_at: str
    fingerprint: str
    snapshots: dict[str, FileEntry]
    rejected: Rejected | None = None


class Stats(msgspec.Struct, frozen=True):
    """What a run did. `input_bytes` are compressed bytes; MB are 10^6 bytes; memory is the process's peak so far.

    `symbols_ignored` are records that stand under another name than their own `symbol`; that name is published.
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


class RejectTally(msgspec.Struct, frozen=True):
    """How many were rejected for one reason, and the first few of them."""

    reason: RejectReason
    count: int
    first: list[Reject]


class Findings(msgspec.Struct, frozen=True):
    """What a scan of one part of a source has found: as good as the part itself for making snapshots of the whole.

    `records` are its best `index_symbols_limit`, best first: a record among the best of all parts is among the best of
    its own.
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
    root: str | None = None


class Report(msgspec.Struct, frozen=True, omit_defaults=True):
    """The outcome of a run: the task's result, the log line, an entry of the runs stream.

    `cache` says what became of Redis: `published`, `republished` (from the files, without a scan), `current`, `down`
    or `off`. `reason` goes with `skipped`, `error` and `details` with `failed`, `rejected` with the version that is
    current.
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
    rejects: list[RejectTally] = []
    rejected: Rejected | None = None
