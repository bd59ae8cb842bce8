"""A field of the models reaches every place that describes or shows it: OpenAPI, its examples, and the dashboard."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

import optimizer.web
from optimizer import Settings
from optimizer.models import BotSummary, Holding, Record
from optimizer.web import describe

COLUMNS = Path(optimizer.web.__file__).parent / "static" / "components" / "columns.js"

# Name of the columns, of their variable, the model, values that the page adds to it, and columns that it computes.
TABLES: list[tuple[str, str, type[msgspec.Struct], set[str], set[str]]] = [
    ("predictionColumns", "record", Record, set(), {"expected_move"}),
    ("botColumns", "bot", BotSummary, {"name"}, set()),
    ("holdingColumns", "holding", Holding, set(), {"side", "cost"}),
]
EXAMPLES: list[tuple[type[msgspec.Struct], dict[str, Any]]] = [
    (Record, describe.RECORD_EXAMPLE),
    (BotSummary, describe.BOTS_EXAMPLE["bots"]["alpha"]),
    (Holding, describe.PORTFOLIO_EXAMPLE["holdings"][0]),
]

# Fields that have a designed column, which a plain one must not replace.
PRICES = {"prediction", "last_price", "target_price", "stop_loss"}
DESIGNED = {
    "record": {
        "symbol",
        "prediction",
        "confidence",
        "last_price",
        "sentiment",
        "target_price",
        "stop_loss",
        "timestamp",
    },
    "bot": {"name", "enabled", "equity", "pnl_today", "positions", "last_updated"},
    "holding": {"symbol", "qty", "avg"},
}
# Fields that exist only if they are configured, under names that no page knows.
CONFIGURED = {"extra"}


def columns(name: str) -> str:
    """The source text of one list of columns."""
    text = COLUMNS.read_text()
    start = text.index(f"export const {name} = [")
    return text[start : text.index("\n];", start)]


@pytest.mark.parametrize(("name", "variable", "model", "added", "computed"), TABLES, ids=[name for name, *_ in TABLES])
def test_every_column_is_of_a_field(
    name: str, variable: str, model: type[msgspec.Struct], added: set[str], computed: set[str]
) -> None:
    """No column shows a field that does not exist. Fields without a column here get plain ones, see `test_table`."""
    text = columns(name)
    ids = set(re.findall(r'\bid: "(\w+)"', text))
    assert ids >= DESIGNED[variable]
    assert set(re.findall(rf"\b{variable}\.(\w+)", text)) == ids - computed
    assert computed <= ids <= {*model.__struct_encode_fields__, *added, *computed} - CONFIGURED


@pytest.mark.parametrize(("model", "example"), EXAMPLES, ids=[model.__name__ for model, _ in EXAMPLES])
def test_every_field_is_described(model: type[msgspec.Struct], example: dict[str, Any]) -> None:
    """Every field is in the example of a response, which decodes and has the model's order, and in the schema."""
    msgspec.convert(example, model)
    assert tuple(example) == tuple(name for name in model.__struct_encode_fields__ if name not in CONFIGURED)
    described = optimizer.web.create_app(Settings()).openapi()["components"]["schemas"][model.__name__]
    assert set(described["properties"]) == set(model.__struct_encode_fields__)
