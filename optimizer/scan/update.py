"""An update as a caller gives it: records and symbols in, checked and mapped records and rejects out. Pure.

The records are written as JSON and scanned, so an update accepts what a scan of a file of these records accepts, with
the same mapping, limits and reasons. Two differences: a reject is found by the number of its record, and what JSON
cannot hold is a reject too.

    a list, any iterable     scanned as `[RECORD, ...]`: each record has its symbol
    a mapping by symbol      scanned as `{"predictions": {SYMBOL: RECORD, ...}}`
    bytes or text            scanned as the JSON of a rolling file; rejects have the byte

Errors: `SettingsInvalid` for arguments that do not fit, `UpdatesRefused` for too many records, `SourceMalformed` and
`SourceTorn` as of a scan; those of the caller's iterable as they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from typing import Any, Final, NamedTuple

import msgspec

from optimizer.errors import SettingsInvalid, SourceMalformed, UpdatesRefused
from optimizer.models import Bot, Record, Reject, RejectReason
from optimizer.models.field_map import UNMAPPED, InputMapping
from optimizer.scan.engine import Engine
from optimizer.scan.fragment import shown
from optimizer.scan.scanner import scan_items
from optimizer.scan.schema import Schema, Unusable, checked, schema_of
from optimizer.scan.validation import shown_name

__all__ = ["Update", "read_update"]

# Decimals as numbers: as text, msgspec's default, a price would be rejected.
_ENCODER: Final = msgspec.json.Encoder(decimal_format="number")
# A type that JSON has not, an integer over 64 bits or text that is not Unicode, a list that contains itself.
_ENCODE_ERRORS: Final = (TypeError, ValueError, OverflowError, RecursionError)


class Update(NamedTuple):
    """The records of an update in their order, a symbol perhaps several times; symbols to remove; rejects."""

    records: list[Record]
    removed: list[str]
    rejects: list[Reject]


def read_update(
    records: Iterable[Any],
    remove: Iterable[str],
    engine: Engine,
    *,
    limit: int,
    max_record_bytes: int,
    mapping: InputMapping = UNMAPPED,
) -> Update:
    """Check and map the records of an update.

    Args:
        records: As the prediction engine writes them; see above. At most `limit` and one are taken from an iterator.
        remove: Symbols.
        engine: As of a scan.
        limit: The most records and symbols together (`ROLLING_UPDATE_RECORDS_LIMIT`).
        max_record_bytes: As of a scan.
        mapping: As of a scan.

    Raises:
        SettingsInvalid: An argument is of another type, a symbol is both given and removed, or there are bots.
        UpdatesRefused: There are more than `limit`.
        SourceMalformed: The JSON is malformed, or a record is nested too deep.
        SourceTorn: The JSON ends early.
    """
    schema = schema_of(mapping)
    removed = _removed(remove, schema, limit)
    document = _Document(records, schema, limit, len(removed))
    update = Update([], removed, [])
    try:
        items = scan_items(document.chunks, engine, max_record_bytes=max_record_bytes, mapping=mapping)
        for number, item in enumerate(items, 1):
            if number > limit - len(removed):
                raise _too_many(limit)
            if isinstance(item, Record):
                update.records.append(item)
            elif isinstance(item, Bot) or item.reason is RejectReason.BOT:
                raise SettingsInvalid("records has a section of bots, which only a scan reads; give the records alone")
            else:
                update.rejects.append(document.explained(item, number))
    except SourceMalformed as error:
        if document.is_text:
            raise
        raise SourceMalformed(f"record {document.count:,}: {error}") from None
    both = {record.symbol for record in update.records}.intersection(removed)
    if both:
        names = ", ".join(map(shown, sorted(both)[:5]))
        raise SettingsInvalid(
            f"{names} {'is' if len(both) == 1 else 'are'} in records and in remove: one call either shows or removes a "
            "symbol; make two calls, in the order that is meant"
        )
    return update


def _removed(remove: Iterable[str], schema: Schema, limit: int) -> list[str]:
    if isinstance(remove, str | bytes | Mapping) or not isinstance(remove, Iterable):
        raise SettingsInvalid(f"remove={_argument(remove)} is not a list of symbols")
    removed: dict[str, None] = {}
    for number, symbol in enumerate(remove, 1):
        if number > limit:
            raise _too_many(limit)
        try:
            removed[checked(schema.records["symbol"], symbol, "the symbol")] = None
        except Unusable as error:
            raise SettingsInvalid(f"remove: number {number:,}: {error}") from None
    return list(removed)


class _Document:
    """Records as the chunks of a JSON document, one record each, which gives one item of the scan each.

    Attributes:
        chunks: The document; it is made while it is scanned.
        count: How many records it has so far.
        is_text: Whether the caller gave the document itself.
    """

    def __init__(self, records: Iterable[Any], schema: Schema, limit: int, others: int) -> None:
        self.count = 0
        self.is_text = isinstance(records, bytes | bytearray | memoryview | str)
        self._symbol = schema.records["symbol"]
        self._limit = limit
        self._others = others
        self._unwritable: dict[int, Reject] = {}
        self.chunks: Iterable[bytes]
        if isinstance(records, str):
            self.chunks = [records.encode("utf-8", "surrogatepass")]
        elif isinstance(records, bytes | bytearray | memoryview):
            self.chunks = [bytes(records)]
        elif isinstance(records, Mapping):
            if isinstance(records.get(self._symbol.names[0]), str):
                raise SettingsInvalid("records is one record; give a list of records, or a mapping of them by symbol")
            self.chunks = self._members(records)
        elif isinstance(records, Iterable):
            self.chunks = self._elements(records)
        else:
            raise SettingsInvalid(
                f"records={_argument(records)} is neither a list of records, nor a mapping of them by symbol, nor JSON"
            )

    def explained(self, reject: Reject, number: int) -> Reject:
        """Return a reject with the number of its record."""
        if self.is_text:
            return reject
        given = self._unwritable.get(number)
        return given or Reject(reject.reason, reject.name, _where(number), reject.details)

    def _elements(self, records: Iterable[Any]) -> Iterator[bytes]:
        yield b"["
        for record in records:
            if self.count:
                yield b","  # an error in the record before is found here at the latest
            self._add()
            yield self._json(record, self._name(record))
        yield b"]"

    def _members(self, records: Mapping[Any, Any]) -> Iterator[bytes]:
        yield b'{"predictions":{'
        for symbol, record in records.items():
            if self.count:
                yield b","
            self._add()
            if isinstance(symbol, str):
                key, value = json.dumps(symbol).encode(), self._json(record, symbol)
            else:
                key, value = b'""', self._reject(self._symbol.reason, None, self._unusable(symbol))
            yield key + b":" + value
        yield b"}}"

    def _add(self) -> None:
        self.count += 1
        if self.count > self._limit - self._others:
            raise _too_many(self._limit)

    def _json(self, record: Any, name: str | None) -> bytes:
        try:
            return _ENCODER.encode(record)
        except _ENCODE_ERRORS:
            pass  # the scan decides about text that is not Unicode and about large integers, which msgspec refuses
        try:
            return json.dumps(record, default=_plain).encode()
        except _ENCODE_ERRORS as error:
            return self._reject(RejectReason.FIELD_TYPE, name, f"it cannot be written as JSON: {error}")

    def _reject(self, reason: RejectReason, name: str | None, details: str) -> bytes:
        """Note why a record is rejected; return what stands for it in the document, which the scan rejects."""
        shown_as = None if name is None else shown_name(name)
        self._unwritable[self.count] = Reject(reason, shown_as, _where(self.count), details)
        return b"null"

    def _name(self, record: Any) -> str | None:
        name = record.get(self._symbol.names[0]) if isinstance(record, Mapping) else None
        return name if isinstance(name, str) else None

    def _unusable(self, symbol: Any) -> str:
        return f"{self._symbol.name} is {shown(symbol)}, expected {self._symbol.expected}"


def _plain(value: Any) -> Any:
    """Return a value that `json` does not know as one that it does."""
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, Mapping):
        return dict(value)
    return msgspec.to_builtins(value)


def _argument(value: object) -> str:
    return "None" if value is None else shown(value)  # null is `missing` in records


def _where(number: int) -> str:
    return f"record {number:,}"


def _too_many(limit: int) -> UpdatesRefused:
    return UpdatesRefused(
        f"more than {limit:,} records and removals in one call, and nothing of it was taken; send fewer at a time, or "
        "raise ROLLING_UPDATE_RECORDS_LIMIT; what changes most of an input belongs into the input"
    )
