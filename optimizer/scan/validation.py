"""One unit of pruned JSON in, one record out, or the reason why it was rejected. Pure.

A record is decoded into the strict structs of `structs`. What they refuse is parsed again by `json`, which decides
between malformed (`SourceMalformed`, the scan stops) and rejected (`Reject`, the scan continues), and for which reason.
The reasons are tried in a fixed order: size, text that is not valid Unicode in any field, symbol, confidence,
prediction, other fields in the order of the table.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final, NamedTuple

import msgspec

from optimizer.models import Record, Reject, RejectReason
from optimizer.scan.fragment import SHOWN_CHARACTERS, Fragment, malformed
from optimizer.scan.schema import Schema, Unusable, check_text, checked, extra_values, member_at, read_fields
from optimizer.scan.structs import Fields, record_structs

__all__ = [
    "ExtrasDropped",
    "RecordDecoder",
    "SymbolsIgnored",
    "decode_key",
    "load_unit",
    "shown_name",
    "too_large",
    "where",
]

# Python refuses to read longer integers (sys.int_info.default_max_str_digits); as a float they are infinite anyway.
MAX_DIGITS: Final = 4_300

# In the order in which reasons are tried.
_FIRST_CHECKED: Final = ("symbol", "confidence")
_KEY: Final = msgspec.json.Decoder(str)
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


class SymbolsIgnored(NamedTuple):
    """The number of records whose key differs from their own `symbol`, which is not used."""

    number: int


class ExtrasDropped(NamedTuple):
    """The number of extra fields that have a value which cannot be passed on, so that null is."""

    number: int


class RecordDecoder:
    """Decode records one by one.

    Args:
        schema: The rows of their fields.
        max_bytes: The longest unit that the pruner kept.
    """

    def __init__(self, schema: Schema, *, max_bytes: int) -> None:
        self.schema = schema
        self.max_bytes = max_bytes
        self._symbol = schema.records["symbol"]
        self._key = self._symbol.names[0]
        self._checked = sorted(schema.records.values(), key=lambda field: field.name not in _FIRST_CHECKED)
        self._keyed, self._named = (
            [msgspec.json.Decoder(struct) for struct in record_structs(schema, named=named)] for named in (False, True)
        )

    def decode(self, unit: Fragment, symbol: str | None) -> list[Record | Reject | SymbolsIgnored | ExtrasDropped]:
        """Decode one record.

        Args:
            unit: The record as JSON.
            symbol: Its key; `None` if it has to name its symbol itself.

        Returns:
            The record or reject, and a note if its own symbol was ignored because the key is another, or extra fields
            were dropped.

        Raises:
            SourceMalformed: It is not valid JSON; the message has the byte offset in the input.
        """
        if unit.size > self.max_bytes:
            return [too_large(RejectReason.TOO_LARGE, unit, symbol, self.max_bytes)]
        dropped = 0
        try:
            fields = self._decoded(unit.data, named=symbol is None)
            own = fields.symbol
            record = fields.record(own if symbol is None else checked(self._symbol, symbol, self._symbol.name))
        except (msgspec.DecodeError, UnicodeDecodeError, Unusable):
            given = load_unit(unit)
            own = given.get(self._key)
            try:
                record, dropped = self._read(given, symbol)
            except Unusable as error:
                name = own if symbol is None else symbol
                shown_as = shown_name(name) if type(name) is str else None
                return [Reject(error.reason, shown_as, where(unit.offset), str(error))]
        items: list[Record | Reject | SymbolsIgnored | ExtrasDropped] = [record]
        if own is not None and own != record.symbol:
            items.append(SymbolsIgnored(1))
        if dropped:
            items.append(ExtrasDropped(dropped))
        return items

    def _decoded(self, data: bytes, *, named: bool) -> Fields:
        """Decode a record by the first struct that accepts it."""
        *decoders, last = self._named if named else self._keyed
        for decoder in decoders:
            try:
                return decoder.decode(data)
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue
        return last.decode(data)

    def _read(self, given: dict[str, Any], symbol: str | None) -> tuple[Record, int]:
        """Build a record from parsed fields; return also the number of extra fields that were dropped.

        Raises:
            Unusable: The first field that does not fit.
        """
        if symbol is not None:
            check_text(self._symbol.name, symbol)
        for name in self.schema.record_names:
            check_text(name, _text_at(given, name))
        fields = read_fields(self._checked, given if symbol is None else {**given, self._key: symbol})
        if not self.schema.extras:
            return Record(**fields), 0
        extra, dropped = extra_values(self.schema.extras, given)
        return Record(**fields, extra_fields=extra), dropped


def decode_key(token: bytes) -> str:
    """Decode the name of a member; where it is not valid text it has lone surrogates, which `schema.is_text` finds.

    Raises:
        ValueError: A bad escape, or a control character.
    """
    try:
        return _KEY.decode(token)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return str(json.loads(token.decode("utf-8", "surrogateescape")))


def load_unit(unit: Fragment) -> dict[str, Any]:
    """Parse a unit in full. Bytes that are not valid text become lone surrogates.

    Raises:
        SourceMalformed: It is not valid JSON; the message has the byte offset in the input.
    """
    text = unit.data.decode("utf-8", "surrogateescape")
    try:
        fields: dict[str, Any] = json.loads(text, parse_int=_parse_int)
    except json.JSONDecodeError as error:
        position = len(text[: error.pos].encode("utf-8", "surrogateescape"))
        excerpt = unit.data[position : position + SHOWN_CHARACTERS]
        raise malformed(unit.input_offset(position), error.msg, excerpt) from None
    return fields


def shown_name(name: str) -> str:
    """Return a name as reports show it: cut, with a replacement character for what is not valid text."""
    return _SURROGATE.sub("\ufffd", name[:SHOWN_CHARACTERS])


def where(offset: int) -> str:
    """Return a byte offset in the input as reports show it."""
    return f"byte {offset:,}"


def too_large(reason: RejectReason, unit: Fragment, name: str | None, max_bytes: int) -> Reject:
    """Return the reject of a unit that is longer than the limit."""
    details = (
        f"{unit.size:,} bytes without its nested containers, over ROLLING_MAX_RECORD_BYTES={max_bytes:,}; "
        "raise that if such records are wanted"
    )
    return Reject(reason, shown_name(name) if name else None, where(unit.offset), details)


def _text_at(given: dict[str, Any], name: str) -> Any:
    """Return the value of a name; `None` where something else is in place of an object, which is another reject."""
    try:
        return member_at(given, name)
    except Unusable:
        return None


def _parse_int(text: str) -> int | float:
    return int(text) if len(text) <= MAX_DIGITS else float(text)
