"""The table of a record's fields, from which structs, rejects and output follow. For the web, see `test_fields`."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import event, example, given
from hypothesis import strategies as st

from optimizer.models import Bot, Record, rules_of
from optimizer.scan.fragment import NO_OFFSETS, Fragment, FragmentKind
from optimizer.scan.schema import Field, Unusable, checked, read_fields, schema_of
from optimizer.scan.structs import Fields, record_structs
from optimizer.scan.validation import RecordDecoder

SCHEMA = schema_of()
RECORD_FIELDS, BOT_FIELDS, POSITION_FIELDS = SCHEMA.records, SCHEMA.bots, SCHEMA.position_fields
RECORD_NAMES = SCHEMA.record_names

GOOD: dict[str, Any] = {name: rule.example for name, rule in rules_of(Record).items()} | {"timestamp": 1_700_000_000}
values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2),
    st.sampled_from([10**30, 10**400]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["", "bullish", "x" * 256, "x" * 257, "x" * 1_024, "x" * 1_025, "0.5"]),
    st.just([]),
    st.just({}),
)


def decoded(fields: dict[str, Any], symbol: str | None) -> Any:
    """Return the record or the reject of one unit."""
    data = json.dumps(fields).encode()
    unit = Fragment(FragmentKind.UNIT, 0, len(data), data, NO_OFFSETS)
    return RecordDecoder(SCHEMA, max_bytes=1 << 20).decode(unit, symbol)[0]


def accepted(fields: dict[str, Any], symbol: str | None) -> Fields | None:
    """Return what the strict structs make of a record; `None` where all refuse it."""
    for struct in record_structs(SCHEMA, named=symbol is None):
        try:
            return msgspec.json.decode(json.dumps(fields), type=struct)
        except msgspec.DecodeError:
            continue
    return None


class TestRecords:
    """The strict structs and the rows of the table have the same rules."""

    @example({"last_price": "bad", "last": 5}, None)
    @example({"last_price": None, "last": -1, "price": 5}, "KEY")
    @given(st.dictionaries(st.sampled_from(RECORD_NAMES), values, max_size=5), st.sampled_from([None, "KEY"]))
    def test_the_structs_accept_nothing_that_the_rows_refuse(self, changed: dict[str, Any], symbol: str | None) -> None:
        """A record that a struct accepts equals the one that the rows give, which check each field alone."""
        fields = GOOD | changed
        fast = accepted(fields, symbol)
        event("accepted" if fast is not None else "refused")
        if fast is not None:
            given_fields = fields if symbol is None else fields | {"symbol": symbol}
            slow = Record(**read_fields(RECORD_FIELDS.values(), given_fields))
            assert fast.record(fast.symbol if symbol is None else symbol) == slow

    @pytest.mark.parametrize("field", RECORD_FIELDS.values(), ids=lambda field: field.name)
    @pytest.mark.parametrize("value", [None, True, [], {}, "x" * 2_000, 10**400], ids=lambda value: str(value)[:9])
    def test_each_row_has_a_reason(self, field: Field, value: Any) -> None:
        """A value that does not fit is rejected under each name, with the reason of its row and what was expected."""
        for name in field.names:
            fields = {key: value for key, value in GOOD.items() if key not in field.names} | {name: value}
            result = decoded(fields, None)

            if value is None and not field.required:
                assert getattr(result, field.name) == field.default
            elif field.name == "timestamp" and value == 10**400:
                assert result.timestamp == value  # an integer of any size, as it was written
            elif field.max_characters is not None and type(value) is str:
                assert f"{name} has 2,000 characters, expected {field.max_characters:,} at most" in result.details
            else:
                shown_name = field.name if value is None else name
                assert result.reason == field.reason
                assert result.details.startswith(f"{shown_name} is ")
                assert result.details.endswith(f"expected {field.expected}")

    def test_the_first_name_that_is_not_null_is_used(self) -> None:
        """Of the names of a field, the first one that is not null is used, and later ones are not read."""
        for field in RECORD_FIELDS.values():
            for place, name in enumerate(field.names):
                before = dict.fromkeys(field.names[:place])
                after = dict.fromkeys(field.names[place + 1 :], "unread")
                fields = {key: value for key, value in GOOD.items() if key not in field.names}
                result = decoded(fields | before | {name: GOOD[field.name]} | after, None)

                assert result == Record(**GOOD)

    def test_the_table_covers_the_output(self) -> None:
        """Every field of a record that is published is a row, in the same order.

        The tables of bots and of positions have exactly their fields.
        """
        assert (*RECORD_FIELDS, "extra_fields") == Record.__struct_fields__
        assert tuple(BOT_FIELDS) == ("name", "enabled", "equity", "pnl_today", "last_updated")
        assert tuple(POSITION_FIELDS) == ("symbol", "quantity", "avg_price")

    def test_examples_are_valid(self) -> None:
        """Each example is accepted unchanged by its rule, since the OpenAPI schema shows it as a value of the field."""
        for struct, table in ((Record, RECORD_FIELDS), (Bot, BOT_FIELDS)):
            for name, rule in rules_of(struct).items():
                if name != "name":  # a bot's key
                    assert checked(table[name], rule.example, name) == rule.example

    def test_an_amount_has_a_limit(self) -> None:
        """A quantity of -1e100 is accepted and one of 1e101 is refused, so that sums stay finite."""
        assert checked(POSITION_FIELDS["quantity"], -1e100, "qty") == -1e100
        with pytest.raises(Unusable, match=r"qty is 1e.101, expected a finite number from -1e.100 to 1e.100"):
            checked(POSITION_FIELDS["quantity"], 1e101, "qty")
