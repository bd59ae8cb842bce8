"""Records and snapshots as types of a FastAPI app, and as what Flask's `jsonify` takes."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Annotated, Any

import flask
import msgspec
import pytest
from fastapi import Body, FastAPI
from pydantic import BaseModel, TypeAdapter, ValidationError, create_model
from starlette.testclient import TestClient

from optimizer import models
from optimizer.models import (
    BotsSnapshot,
    BotSummary,
    Holding,
    PortfolioSnapshot,
    PredictionsSnapshot,
    Record,
    RejectReason,
    RejectTally,
    Report,
    Stats,
    Value,
)

AT = "2026-11-01T10:00:00.000Z"
AAPL = Record("AAPL", 104.2, 0.93, 101.5, "bullish", 110.0, None, 1_793_527_200)
VALUES: list[Value] = [
    AAPL,
    PredictionsSnapshot([AAPL, Record("MSFT", 1.0, 0.5, 2.0)], AT, 2),
    BotsSnapshot({"alpha": BotSummary(enabled=True, equity=10.5, pnl_today=None, positions=1, last_updated=AT)}, AT),
    PortfolioSnapshot([Holding("AAPL", 2.0, None)], AT),
    Report("success", "brain", AT, 3, stats=Stats(seconds=0.5), rejects=[RejectTally(RejectReason.TEXT, 1, [])]),
]
every_value = pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)


class Board(BaseModel):
    """A model of the app that holds ours."""

    title: str
    best: list[Record]
    worst: Record | None = None


def app() -> FastAPI:
    """An app that returns, takes and nests our values."""
    app = FastAPI()

    @app.get("/record")
    def record() -> Record:
        return AAPL

    @app.get("/records")
    async def records() -> list[Record]:
        return [AAPL, AAPL]

    @app.get("/snapshot", response_model=PredictionsSnapshot)
    def snapshot() -> Any:
        return VALUES[1]

    @app.get("/board")
    def board() -> Board:
        return Board(title="best", best=[AAPL])

    @app.post("/record")
    def take(record: Annotated[Record, Body()]) -> str:
        return f"{type(record).__name__} {record.symbol} {record.sentiment}"

    return app


@every_value
def test_a_value_is_the_same_as_json_by_any_way(value: Value) -> None:
    """Pydantic, Flask and msgspec make the same JSON of a value, and pydantic makes an equal value of that JSON."""
    encoded = json.loads(msgspec.json.encode(value))
    adapter: TypeAdapter[Any] = TypeAdapter(type(value))
    with flask.Flask(__name__).app_context():
        assert json.loads(flask.json.dumps(value.to_dict())) == encoded
    assert json.loads(adapter.dump_json(value)) == adapter.dump_python(value) == encoded
    assert adapter.validate_python(value) is value
    assert adapter.validate_python(encoded) == adapter.validate_json(json.dumps(encoded)) == value


@every_value
def test_a_schema_is_as_msgspec_has_it(value: Value) -> None:
    """Pydantic's schema of a value has msgspec's fields in the same order, with the same types and required fields."""
    described = TypeAdapter(type(value)).json_schema()
    _, expected = msgspec.json.schema_components([type(value)], ref_template="{name}")
    definitions = described.pop("$defs", {}) | {type(value).__name__: described}
    assert set(definitions) == set(expected)
    for name, schema in definitions.items():
        if "properties" in schema:
            assert list(schema["properties"]) == list(expected[name]["properties"])
            assert set(schema.get("required", ())) == set(expected[name].get("required", ()))
            for field, of_field in schema["properties"].items():
                assert kinds(of_field) == kinds(expected[name]["properties"][field]), (name, field)


def kinds(schema: dict[str, Any]) -> set[str]:
    """The types and references that a schema allows."""
    if "enum" in schema:
        return set(schema["enum"])
    members = (*schema.get("anyOf", ()), schema.get("items"), schema.get("additionalProperties"))
    own = {text.rpartition("/")[2] for text in (schema.get("type"), schema.get("$ref")) if text}
    return own.union(*(kinds(member) for member in members if member))


def test_routes_may_return_and_take_them() -> None:
    """Routes may return and take our values, alone, in lists and in models of the app.

    FastAPI's description names them.
    """
    encoded = json.loads(msgspec.json.encode(AAPL))
    with TestClient(app()) as client:
        assert client.get("/record").json() == encoded
        assert client.get("/records").json() == [encoded, encoded]
        assert client.get("/snapshot").json() == json.loads(msgspec.json.encode(VALUES[1]))
        assert client.get("/board").json() == {"title": "best", "best": [encoded], "worst": None}
        assert client.post("/record", json=encoded).json() == "Record AAPL bullish"
        assert client.post("/record", json={**encoded, "sentiment": None}).status_code == 422
        refused = client.post("/record", json={"symbol": "AAPL", "prediction": "much"})
        assert "Expected `float`, got `str` - at `$.prediction`" in refused.json()["detail"][0]["msg"]
        description = client.get("/openapi.json").json()
    content = description["paths"]["/records"]["get"]["responses"]["200"]["content"]["application/json"]
    assert content["schema"]["items"] == {"$ref": "#/components/schemas/Record"}
    described = description["components"]["schemas"]["Record"]
    assert list(described["properties"]) == list(Record.__struct_encode_fields__)
    assert described["properties"]["sentiment"]["default"] == "neutral"


def test_a_value_of_another_type_is_refused() -> None:
    """A value of another type is refused by pydantic's own error, with msgspec's message."""
    with pytest.raises(ValidationError, match="missing required field `symbol`"):
        TypeAdapter(Record).validate_python({})
    with pytest.raises(ValidationError, match="Expected `object`, got `int`"):
        TypeAdapter(list[Record]).validate_python([1])


def test_a_field_that_may_be_left_out_is_described_as_such() -> None:
    """An optional field is not required in the schema, and not in the JSON if the value lacks it."""
    adapter = TypeAdapter(Record)
    described = adapter.json_schema()
    assert "extra" not in described["required"]
    assert described["properties"]["extra"]["type"] == "object"
    assert "extra" not in json.loads(adapter.dump_json(Record("A", 1.0, 0.5, 1.0)))
    record = Record("A", 1.0, 0.5, 1.0, extra_fields={"sector": "x"})
    assert json.loads(adapter.dump_json(record))["extra"] == {"sector": "x"}


def test_all_that_readers_return_is_a_value() -> None:
    """Every struct that readers return is a `Value`, so that a new struct of the output is not forgotten."""
    internal = {"Rule", "Bot", "Position", "Index", "FileEntry", "Manifest", "PartResult", "HeldUpdate", "QueuedUpdate"}
    structs = {
        name
        for name in models.__all__
        if isinstance(getattr(models, name), type) and issubclass(getattr(models, name), msgspec.Struct)
    }
    assert {name for name in structs if not issubclass(getattr(models, name), Value)} == internal


def test_a_process_that_reads_does_not_load_pydantic() -> None:
    """A process that reads does not load pydantic, which `to_dict` does not need either."""
    program = "import optimizer, sys; optimizer.Record('A', 1, 1, 1).to_dict(); print('pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_name_that_the_app_has_too_gets_the_module_from_which_users_import_ours() -> None:
    """If the app has a model with the name of one of ours, the description names ours by `optimizer.models`.

    That is the module from which users import it, whichever module of `optimizer.models` defines it.
    """
    theirs = create_model("Record", __module__="shop.models", id=(int, ...))
    app = FastAPI()
    app.get("/theirs", response_model=theirs)(list)
    app.get("/ours", response_model=Record)(list)

    names = app.openapi()["components"]["schemas"].keys()
    assert {name for name in names if "Record" in name} == {"optimizer__models__Record", "shop__models__Record"}
