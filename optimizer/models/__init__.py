"""The typed values that packages exchange.

Structs are frozen and have only fields that are used. The order of the fields of an output struct is their order in the
JSON. Here are those of a version (snapshots, index, manifest) and of a run (stats, report, state); records and bots of
the input are in `records.py`, the mapping of a user's own fields is in `field_map.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from optimizer.models.records import (
    MAX_MAGNITUDE,
    MAX_SYMBOL_CHARACTERS,
    MAX_TEXT_CHARACTERS,
    Bot,
    ExtraValue,
    InputExtra,
    Position,
    Record,
    Reject,
    RejectReason,
    Rule,
    Timestamp,
    Value,
    names_of,
    rank,
    rules_of,
)

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

# The errors of decoding damaged JSON: msgspec has no error class for bad UTF-8 and for too deep nesting.
UNDECODABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


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
    """An update of one symbol, published without a scan, in force until a scan of an input that was written later.

    `at_ms` is when it was accepted, in milliseconds since the epoch by Redis' clock; `record` is `None` for a removal.
    """

    at_ms: int
    record: Record | None


class QueuedUpdate(msgspec.Struct, frozen=True):
    """An entry of the queue: the updates of one call. A symbol that is in both lists is removed.

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
    """`symbols_index.json.gz`: the best records regardless of `min_confidence`, for lookups by symbol.

    `updates` are the updates in force, by symbol; removed symbols, and records that are not among the best, are only
    here.
    """

    symbols: list[Record]
    timestamp: str
    updates: dict[str, HeldUpdate] | UnsetType = UNSET


class FileEntry(msgspec.Struct, frozen=True):
    """One file of a snapshot: the hex `sha256` of the stored file, its size in bytes, the number of its entries."""

    file: str
    sha256: str
    bytes: int
    count: int


class Units(Value, frozen=True):
    """The number of units of one kind in an input, and the number of those that were rejected.

    `without_fields` are bots without any known field, which therefore show defaults; not set if there are none.
    """

    seen: int = 0
    rejected: int = 0
    without_fields: int | UnsetType = UNSET


class Rejected(Value, frozen=True):
    """The records and bots of the input that were rejected, which a version leaves out."""

    records: Units
    bots: Units


class KindCounts(Value, frozen=True):
    """How many entries of one kind a version added, changed and removed."""

    added: int = 0
    changed: int = 0
    removed: int = 0


class ChangeCounts(Value, frozen=True):
    """How many predictions, bots and holdings a version added, changed and removed, compared with the one before it."""

    predictions: KindCounts = KindCounts()
    bots: KindCounts = KindCounts()
    holdings: KindCounts = KindCounts()


class Pin(Value, frozen=True):
    """A pin, with which no run replaces a version until it is unpinned: since when, and by whom (`user@host`)."""

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
        """Return its times, by name."""
        pinned_at = None if self.pinned is None else self.pinned.at
        times = {"generated_at": self.generated_at, "input_at": self.input_at, "pinned_at": pinned_at}
        return {name: text for name, text in times.items() if text is not None}

    @property
    def lineage(self) -> int:
        """The version of the scan from which this version stems: equal for versions with only updates in between."""
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
    """The statistics of a run. `input_bytes` are compressed; MB are 10^6 bytes; memory is the process's peak so far.

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
    """The statistics of a drain of the queue of updates, over the versions that it made.

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
    """The result of scanning one part of a source: all data needed to make snapshots of the whole source.

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
    """A worker or a beat, as of its last heartbeat.

    `seen_at` is the time of that heartbeat, by Redis' clock: a worker sends one every few seconds, a beat each time
    that it has sent a run. `is_alive` says that it is not overdue. `queues` are those that a worker consumes, or to
    which a beat has sent. `memory_limit_bytes` is the memory that a process that makes runs may use before a worker
    replaces it or the system kills it.
    """

    kind: Literal["worker", "beat"]
    name: str
    seen_at: str
    is_alive: bool
    queues: list[str] = msgspec.field(default_factory=list)
    memory_limit_bytes: int | None = None


class Failure(Value, frozen=True):
    """Why a run failed: the error's name and message."""

    error: str
    details: str


class RunState(Value, frozen=True):
    """The state of a run that was sent; an unknown one is `pending`. `percent` is the share of bytes read."""

    id: str
    state: Literal["pending", "running", "done", "failed"]
    percent: float | None = None
    report: Report | None = None
    error: Failure | None = None


def check_times(**times: str) -> None:
    """Check decoded times: they are ISO 8601 with a time zone, in the years 1 to 9999 in UTC.

    Raises:
        ValueError: A time is not.
    """
    for name, text in times.items():
        try:
            at = datetime.fromisoformat(text)
            at.astimezone(UTC)
        except OverflowError:
            raise ValueError(f"{name} is not of the years 1 to 9999") from None
        if at.tzinfo is None:
            raise ValueError(f"{name} has no time zone")
