"""The predictions as a table, read back by Python's own `csv`."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace

import msgspec
import pytest
from fastapi import FastAPI
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import UNSET
from starlette.testclient import TestClient

from optimizer import Settings, optimize, testing
from optimizer.models import ExtraValue, Manifest, PredictionsSnapshot, Record
from optimizer.reader.results import CachedVersion, Payload, Sighting
from optimizer.web import make_router
from optimizer.web.csv import CSV, FIELDS
from optimizer.web.pages import CACHED_RESPONSE_BYTES, Pages
from optimizer.web.prediction_query import ALL, Form, PredictionQuery
from tests.support.rolling_files import a_record, write_json
from tests.support.web_apps import asking

FORMULAS = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
BEFORE_A_CELL = (*",;|\t\r\n\v\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029")


def table(text: str) -> list[list[str]]:
    """All cells as text, header first."""
    return list(csv.reader(io.StringIO(text, newline=""), strict=True))


def encoded(records: Sequence[Record], shown: Sequence[Record] | None = None) -> str:
    """Return the table of some records of a snapshot, by default of all."""
    whole = PredictionsSnapshot(list(records), "2026-11-01T10:00:00.000Z", len(records))
    return CSV.encode(whole, records if shown is None else shown).decode()


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.lists(
    st.sampled_from([*FORMULAS, "a", " ", '"', "'", *BEFORE_A_CELL, "\r\n", "\0"]), max_size=8
).map("".join)
numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**63), 2**63)
extras = st.none() | texts | numbers | st.booleans()
records = st.builds(
    Record,
    symbol=texts,
    prediction=numbers,
    confidence=st.floats(0, 1),
    last_price=st.floats(min_value=1e-9, max_value=1e9),
    sentiment=texts,
    target_price=st.none() | numbers,
    stop_loss=st.none() | numbers,
    timestamp=st.none() | texts | numbers,
    extra_fields=st.just(UNSET) | st.fixed_dictionaries({"sector": extras, "volume": extras}),
)


@given(st.lists(records, max_size=5))
def test_every_value_is_read_back(every: list[Record]) -> None:
    """Every value can be read back from the table.

    Numbers are exact to the last digit, text is the same apart from apostrophes before formulas, true and false are as
    in JSON, and null is empty.
    """
    header, *rows = table(encoded(every))
    names = [name.removeprefix("extra.") for name in header[len(FIELDS) :]]
    assert header == [*FIELDS, *(f"extra.{name}" for name in names)]
    assert set(names) == {name for record in every for name in record.extra}
    assert len(rows) == len(every)
    for record, row in zip(every, rows, strict=True):
        values = [*(getattr(record, name) for name in FIELDS), *(record.extra.get(name) for name in names)]
        for value, cell in zip(values, row, strict=True):
            if value is None:
                assert cell == ""
            elif isinstance(value, bool):
                assert json.loads(cell) is value
            elif isinstance(value, str):
                assert is_disarmed(value, cell)
            else:
                assert type(value)(cell) == value


def is_disarmed(text: str, cell: str) -> bool:
    """Return whether a cell is the text with apostrophes before formulas: at its beginning, and after separators."""
    expected, before = "", ""
    for place, character in enumerate(text):
        begins = not before and character in (*FORMULAS, "\t", "\r", "\n", "\0")
        if begins or (before in BEFORE_A_CELL and text[place:].lstrip('"\0').startswith(FORMULAS)):
            expected += "'"
        expected += character
        before = character
    return cell == expected


@given(texts, texts)
@example("", "\f=")
@example("", "\u2028=")
@example("", ';"=;')
@example("", ";\0=")
def test_no_cell_is_a_formula_whatever_separates_cells(symbol: str, sentiment: str) -> None:
    """No cell begins with a formula, even where a program splits lines at other characters than the comma.

    This includes programs that split without regard to quotes, and programs that skip NUL before a formula.
    """
    text = encoded([Record(symbol, 1.0, 0.5, 1.0, sentiment)]).partition("\r\n")[2]
    for separator in (";", "\t", "|"):
        for line in text.splitlines():
            (with_regard_to_quotes,) = csv.reader([line], delimiter=separator)
            for cell in (*line.split(separator), *with_regard_to_quotes):
                assert not cell.lstrip("\0").startswith(FORMULAS), text


def test_numbers_are_bare_and_text_is_quoted() -> None:
    """Numbers are bare and text is quoted, so that a negative number is a number, and `1` as text is text.

    Lines end with CRLF, as RFC 4180 requires.
    """
    extra: dict[str, ExtraValue] = {"n": -7, "b": True, "t": "-7", "z": None}
    record = Record("=1+1", -1.5, 0.5, 1e22, 'a "b", c', None, -0.1, "1", extra_fields=extra)
    assert encoded([record]) == (
        '"symbol","prediction","confidence","last_price","sentiment","target_price","stop_loss","timestamp",'
        '"extra.n","extra.b","extra.t","extra.z"\r\n'
        '"\'=1+1",-1.5,0.5,1e+22,"a ""b"", c","",-0.1,"1",-7,"true","\'-7",""\r\n'
    )


def test_the_columns_are_those_of_the_version(settings: Settings) -> None:
    """The table has all columns of the version, whichever records fit, and also if none does.

    So tables of two filters can be put together.
    """
    settings = replace(settings, fields="+sector; +volume")
    write_json(settings.input, {"A": a_record(sector="Tech", volume=5), "B": a_record(confidence=0.9)})
    optimize(settings)
    with asking(settings) as client:
        every = table(client.get("/predictions.csv").text)
        none = table(client.get("/predictions.csv?min_confidence=1").text)
    assert every[0] == [*FIELDS, "extra.sector", "extra.volume"]
    assert [row[-2:] for row in every[1:]] == [["", ""], ["Tech", "5"]]
    assert none == every[:1]


@pytest.mark.parametrize(
    "query", ["", "limit=2", "limit=0", "offset=2", "limit=1&offset=1", "min_confidence=0.8", "sentiment=BEARISH"]
)
def test_the_filters_are_those_of_the_json(settings: Settings, query: str) -> None:
    """With the same filter, the table and the JSON have the same records in the same order, and the same total.

    A filter that is not valid is a 422.
    """
    sentiments = {"A": "bullish", "B": "bearish", "C": "bullish", "D": "Bearish"}
    content = {
        symbol: a_record(confidence=0.9 - number / 10, sentiment=sentiment)
        for number, (symbol, sentiment) in enumerate(sentiments.items())
    }
    write_json(settings.input, content)
    optimize(settings)
    with asking(settings) as client:
        as_json, as_csv = client.get(f"/predictions?{query}"), client.get(f"/predictions.csv?{query}")
        wrong = client.get("/predictions.csv?limit=-1")
    assert [row[0] for row in table(as_csv.text)[1:]] == [one["symbol"] for one in as_json.json()["predictions"]]
    assert as_csv.headers["X-Total-Count"] == as_json.headers.get("X-Total-Count", "4")
    assert (wrong.status_code, wrong.headers["Content-Type"]) == (422, "application/problem+json")


def test_the_answer_is_a_file_of_its_version(settings: Settings) -> None:
    """The response is a CSV file that is named by source and version, with the headers of every response of a version.

    A 304 and a HEAD have no body, and a table of some size is sent as gzip.
    """
    settings = replace(settings, source="brain.1_a-B")
    write_json(settings.input, {f"S{number}": a_record(confidence=number / 100) for number in range(100)})
    report = optimize(settings)
    with asking(settings) as client:
        packed = client.get("/predictions.csv")
        plain = client.get("/predictions.csv", headers={"Accept-Encoding": "identity"})
        small = client.get("/predictions.csv?limit=1")
        known = client.get("/predictions.csv", headers={"If-None-Match": packed.headers["ETag"]})
        head = client.head("/predictions.csv")
        ours = client.get("/bots")
        origin = client.get("/predictions.csv?limit=2").headers["X-Snapshot-Origin"]

    assert packed.headers["Content-Type"] == "text/csv; charset=utf-8"
    assert packed.headers["Content-Disposition"] == f'attachment; filename="brain.1_a-B-{report.version}.csv"'
    assert {*ours.headers} <= {*packed.headers}
    assert packed.headers["X-Snapshot-Version"] == str(report.version)
    assert (packed.headers["Content-Encoding"], origin) == ("gzip", "redis")
    assert "Content-Encoding" not in plain.headers
    assert "Content-Encoding" not in small.headers
    assert packed.content == plain.content
    assert int(packed.headers["Content-Length"]) < len(plain.content) / 4
    assert packed.headers["ETag"] != plain.headers["ETag"]
    assert (known.status_code, known.content) == (304, b"")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Type"] == packed.headers["Content-Type"]


def pages_of(every: list[Record], source: str = "brain") -> Pages:
    """Return the responses of a version that has these predictions alone."""
    snapshot = PredictionsSnapshot(every, "2026-11-01T10:00:00.000Z", len(every))
    plain = msgspec.json.encode(snapshot)
    payload = Payload("e", "redis", gzip.compress(plain), plain, snapshot)
    manifest = Manifest(source, 7, "2026-11-01T10:00:00.000Z", "", {})
    sighting = Sighting(manifest, "2026-11-01T10:00:00.000Z", 0.0)
    return Pages(CachedVersion.load(sighting, "redis", {"predictions": payload}), lambda _cached, _kind: [])


def headers_of(pages: Pages, form: Form = CSV) -> dict[bytes, bytes]:
    """Return the headers of the response with the whole table."""
    return dict(pages.filtered(ALL, form)._plain.headers)


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("", 'filename="predictions-7.csv"'),
        ('a"; filename="x', "filename*=UTF-8''a%22%3B%20filename%3D%22x-7.csv"),
        ("a\r\nSet-Cookie: b", "filename*=UTF-8''a%0D%0ASet-Cookie%3A%20b-7.csv"),
        ("../é", "filename*=UTF-8''..%2F%C3%A9-7.csv"),
    ],
)
def test_the_name_of_the_file_is_quoted(source: str, shown: str) -> None:
    """The source in the name of the file is quoted, since a pointer in Redis may hold any source.

    A pointer of an old release has no source, and the name then begins with `predictions`.
    """
    assert headers_of(pages_of([], source))[b"content-disposition"] == f"attachment; {shown}".encode()


def test_the_whole_table_is_held_and_so_are_small_parts() -> None:
    """One whole table is held for each version, whatever its size, and small parts too.

    Large parts are made again for each request, as with the JSON; a part as a table and as JSON are two responses.
    """
    pages = pages_of([Record(f"S{number}", 1.0, 0.5, 1.0) for number in range(2_000)])
    assert len(pages.filtered(ALL, CSV)._plain.body) > CACHED_RESPONSE_BYTES
    assert pages.filtered(ALL, CSV) is pages.filtered(ALL, CSV) is pages.cached(ALL, CSV)
    large, small = PredictionQuery(1_900, 0, 0.0, None), PredictionQuery(3, 0, 0.0, None)
    assert pages.filtered(large, CSV) is not pages.filtered(large, CSV)
    assert pages.filtered(small, CSV) is pages.filtered(small, CSV)
    assert pages.filtered(small) is not pages.filtered(small, CSV)


def test_a_part_that_cannot_be_read_is_a_503() -> None:
    """The table is a 503 with a problem while the predictions cannot be read, and while there is no version.

    It does not need the other parts.
    """
    app = FastAPI()
    with closing(testing.reader(missing=True)) as reader:
        app.include_router(make_router(reader=reader))
        with TestClient(app) as client:
            assert_a_problem(client, "no snapshot can be read")
            reader.publish(unreadable=["predictions"])
            assert_a_problem(client, "version 1 has no readable predictions")
            reader.publish(unreadable=["bots", "portfolio"])
            assert client.get("/predictions.csv").status_code == 200


def assert_a_problem(client: TestClient, cause: str) -> None:
    """Check that the table is a 503 with a problem that names its cause."""
    answer = client.get("/predictions.csv")
    assert (answer.status_code, answer.headers["Content-Type"]) == (503, "application/problem+json")
    assert cause in answer.json()["detail"]
