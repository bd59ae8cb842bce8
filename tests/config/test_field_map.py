"""The mapping of fields: which items are accepted, and how the error names a mistake."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.config.field_map import parse_mapping
from optimizer.config.settings import Settings
from optimizer.errors import SettingsInvalid
from optimizer.models.field_map import MAX_EXTRAS, UNMAPPED, FieldMap, InputMapping, MappedField
from tests.support.examples import examples

NAMES = st.text("abcdefgh_ 0123456789-+@:|ABC", min_size=1, max_size=12).filter(lambda name: name == name.strip())


class TestItems:
    """Items that are accepted."""

    def test_names_paths_divisors_and_extra_fields(self) -> None:
        """Items separated by semicolons map fields to paths, with divisors, and add extra fields.

        White space around names, and empty items, are ignored.
        """
        parsed = parse_mapping(
            " prediction = predictions.1d.prediction ;confidence=predictions.1d.confidence / 100;\n"
            "last_price=quote.close; ; +name;+volume=stats.volume;"
        )
        assert parsed.records == FieldMap(
            fields=(
                MappedField("prediction", ("predictions", "1d", "prediction")),
                MappedField("confidence", ("predictions", "1d", "confidence"), 100.0),
                MappedField("last_price", ("quote", "close")),
            ),
            extras=(MappedField("name", ("name",)), MappedField("volume", ("stats", "volume"))),
        )
        assert parsed.records.extra_names == ("name", "volume")
        assert parsed.records.claimed == {"predictions", "quote", "name", "stats"}
        assert parsed.records.max_path_names == 3
        assert parsed.records.fields[1].label == "predictions.1d.confidence"

    def test_bots_and_positions(self) -> None:
        """Bots and positions each have a variable of their own; the list of positions may have another name too."""
        parsed = parse_mapping("", "positions=account.holdings; equity=balance/100", "quantity=size; symbol=asset.name")
        assert parsed == InputMapping(
            bots=FieldMap(
                (MappedField("positions", ("account", "holdings")), MappedField("equity", ("balance",), 100))
            ),
            positions=FieldMap((MappedField("quantity", ("size",)), MappedField("symbol", ("asset", "name")))),
        )

    @pytest.mark.parametrize("text", ["", " ", ";", " ; ;"])
    def test_nothing_maps_nothing(self, text: str) -> None:
        """A text of blanks and semicolons alone gives the default mapping, which maps nothing."""
        assert parse_mapping(text) == UNMAPPED

    @pytest.mark.parametrize(("written", "divisor"), [("100", 100), ("0.01", 0.01), ("1e18", 1e18), ("2.5E-3", 0.0025)])
    def test_divisors(self, written: str, divisor: float) -> None:
        """A divisor is a number above 0, written as in JSON."""
        assert parse_mapping(f"last_price=wei/{written}").records.fields[0].divisor == divisor

    @settings(max_examples=examples(200))
    @given(st.lists(NAMES, min_size=1, max_size=8))
    def test_any_path_of_names_is_read_as_it_is_written(self, path: list[str]) -> None:
        """A path is split at its dots alone, whatever other characters its names hold."""
        assert parse_mapping(f"prediction={' . '.join(path)}").records.fields == (
            MappedField("prediction", tuple(path)),
        )

    def test_a_name_by_default_can_be_read_by_another_field(self) -> None:
        """A default name of one field can be given to another: `price` is then no longer a name of the last price."""
        assert parse_mapping("target_price=price; +last").records.claimed == {"price", "last"}


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        ("prediction", "item 1, 'prediction' at column 1", "has no '='"),
        ("+a; predicton=x", "item 2, 'predicton=x' at column 5", "names no field of a record; they are symbol, "),
        ("+a;  prediction=", "item 2, 'prediction=' at column 6", "names no member in ''"),
        ("prediction=a..b", "item 1, 'prediction=a..b' at column 1", "names no member in 'a..b'"),
        ("+", "item 1, '+' at column 1", "names no member in ''"),
        (";; prediction=a=b", "item 3, 'prediction=a=b' at column 4", "has the name 'a=b'"),
        ("prediction=score confidence=c", "item 1, ", "has the name 'score confidence=c'"),
        ('prediction="score"', "item 1, ", "plain ASCII"),
        ("prediction=überschuss", "item 1, ", "plain ASCII"),
        ("prediction=a\tb", "item 1, ", "plain ASCII"),
        (f"prediction={'x' * 65}", "item 1, ", "has a name of 65 characters, 64 at most"),
        (f"prediction={'.'.join('abcdefghi')}", "item 1, ", "has a path of 9 names, 8 at most"),
        ("confidence=x/0", "item 1, 'confidence=x/0' at column 1", "divides by '0'; a divisor is a number above 0"),
        ("confidence=x/", "item 1, ", "divides by ''"),
        ("confidence=x/-1", "item 1, ", "divides by '-1'"),
        ("confidence=x/nan", "item 1, ", "divides by 'nan'"),
        ("confidence=x/10/10", "item 1, ", "divides by '10/10'"),
        ("confidence=x/1e31", "item 1, ", "divides by '1e31'"),
        ("confidence=x*100", "item 1, ", "has the name 'x*100'"),
        ("sentiment=x/2", "item 1, ", "divides sentiment, which is not a number"),
        ("+x=y/2", "item 1, ", "divides an extra field"),
        ("+sentiment", "item 1, ", "asks for sentiment, which is a field already"),
        ("+a b", "item 1, ", "has the name 'a b'; an extra field's holds letters"),
        (f"+{'x' * 65}=x", "item 1, ", "at most 64"),
        ("prediction=q; +q", "item 2, '+q' at column 15", "reads q, as prediction does"),
        ("prediction=q.a; +q", "item 2, ", "takes q for a value, and prediction=q.a for an object"),
        ("+q; prediction=q.a", "item 2, ", "takes q for an object, and q=q for a value"),
        ("prediction=a; prediction=b", "item 2, ", "comes after another item for prediction"),
        ("+x; +x=y", "item 2, ", "comes after another item for x"),
        ("symbol=meta.ticker", "item 1, ", "it has to be a member of the record itself"),
        ("symbol=ticker/2", "item 1, ", "divides symbol, which is not a number"),
        (
            "; ".join(f"+x{number}" for number in range(MAX_EXTRAS + 1)),
            "item 33, '+x32' at column 183",
            "one extra field",
        ),
    ],
)
def test_a_mistake_is_refused_with_its_place(text: str, place: str, said: str) -> None:
    """A mistake in `ROLLING_FIELDS` is refused when settings are made.

    The error has the variable, the number of the item, the column where it begins, and the reason.
    """
    with pytest.raises(SettingsInvalid, match=rf"^ROLLING_FIELDS: {re.escape(place)}") as caught:
        Settings(fields=text)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "text", "said"),
    [
        ("ROLLING_BOT_FIELDS", "name=x", "names no field of a bot; they are enabled, equity, pnl_today, last_updated"),
        ("ROLLING_BOT_FIELDS", "+x", "asks for an extra field; a bot has none"),
        ("ROLLING_BOT_FIELDS", "positions=x/2", "divides positions, which is not a number"),
        ("ROLLING_POSITION_FIELDS", "qty=x", "names no field of a position; they are symbol, quantity, avg_price"),
        ("ROLLING_POSITION_FIELDS", "+x", "asks for an extra field; a position has none"),
        (
            "ROLLING_FIELDS",
            "prediction=confidence",
            "confidence has no member left to be read from; add confidence=PATH",
        ),
        (
            "ROLLING_FIELDS",
            "+price; +last; +x=last_price.y",
            "x is read from 'last_price', so last_price has no member",
        ),
        ("ROLLING_POSITION_FIELDS", "avg_price=quantity; symbol=qty", "so quantity has no member left"),
    ],
)
def test_a_mistake_in_any_variable(variable: str, text: str, said: str) -> None:
    """An error begins with the name of the variable that has the mistake."""
    with pytest.raises(SettingsInvalid, match=f"^{variable}: ") as caught:
        Settings.from_env({variable: text})
    assert said in str(caught.value)


def test_a_source_may_have_a_mapping_of_its_own() -> None:
    """One of several sources may have its own mapping, as it may have its own value of any setting."""
    environ = {
        "ROLLING_SOURCES": "brain=a.json; intraday=b.json",
        "ROLLING_FIELDS": "+sector",
        "ROLLING_INTRADAY__FIELDS": "prediction=score",
    }
    brain, intraday = Settings.every_from_env(environ)
    assert brain.mapping.records.extra_names == ("sector",)
    assert intraday.mapping == parse_mapping("prediction=score")
