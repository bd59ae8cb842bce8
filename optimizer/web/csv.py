"""`GET /predictions.csv`: the predictions of a version as a table by RFC 4180, all or those that match filters.

One column for each field of a record, in the order of the JSON, then one for each extra field, `extra.NAME`: the name
that `pandas.json_normalize` gives it, and never the name of a field that a later release adds. Text is quoted and
numbers are not; null is `""`. A cell of text that a spreadsheet would take for a formula begins with an apostrophe
(OWASP, "CSV Injection"). So does text after a separator inside a cell, and after a quote behind it: if the list
separator is a semicolon, a cell may begin there.
"""

from __future__ import annotations

import asyncio
import csv
import io
import re
from collections.abc import Sequence
from typing import Final
from urllib.parse import quote

import msgspec
from fastapi import APIRouter, Response

from optimizer.models import PredictionsSnapshot, Record
from optimizer.reader.results import CachedVersion
from optimizer.web import describe
from optimizer.web.prediction_query import Form, PredictionQuery
from optimizer.web.prepared import Headers, Sending
from optimizer.web.service import Service

__all__ = ["CSV", "add_csv"]

MEDIA_TYPE: Final = "text/csv"
FIELDS: Final = tuple(name for name in Record.__struct_encode_fields__ if name != "extra")

# Some programs skip tab, carriage return, line feed and NUL; the other signs have full-width forms.
_SIGNS: Final = "=+\\-@\uff1d\uff0b\uff0d\uff20"
# A program may treat any of Unicode's line breaks as the end of a row.
_BREAKS: Final = "\r\n\v\f\x1c-\x1e\x85\u2028\u2029"
# A quote after a separator would open a quoted cell there, which begins with the sign that follows.
_FORMULA: Final = re.compile(rf'^(?=[{_SIGNS}\t\r\n\0])|(?<=[,;|\t{_BREAKS}])(?=["\0]*[{_SIGNS}])')

Cell = str | int | float | None


def add_csv(router: APIRouter, service: Service) -> None:
    """Add the route."""
    example = msgspec.convert(describe.PREDICTIONS_EXAMPLE, PredictionsSnapshot)

    @router.get(
        "/predictions.csv",
        response_class=_Table,
        summary="The top predictions as a table, all or those that fit",
        responses=describe.text_response(
            MEDIA_TYPE,
            "A row for each, by RFC 4180; what a spreadsheet would take for a formula begins with an apostrophe.",
            _encode(example, example.predictions).decode(),
            *(304, 422, 503),
            headers={"Content-Disposition": "The name of a file: source and version."},
        ),
    )
    async def predictions_csv(
        limit: describe.Limit = None,
        offset: describe.Offset = 0,
        min_confidence: describe.MinConfidence = 0.0,
        sentiment: describe.Sentiment = None,
    ) -> Response:
        """The filters are those of `/predictions`. The header `X-Total-Count` has the number of all matches."""
        query = PredictionQuery(limit, offset, min_confidence, sentiment)
        pages = await service.current()
        pages.readable("predictions")
        response = pages.cached(query, CSV)
        if response is None:  # in a thread: for 10,000 records it takes 80 ms
            response = await asyncio.to_thread(pages.filtered, query, CSV)
        return Sending(response)


class _Table(Response):
    media_type = MEDIA_TYPE


def _encode(whole: PredictionsSnapshot, shown: Sequence[Record]) -> bytes:
    """Encode records as a table; it always has the columns of the whole snapshot."""
    extras = list(dict.fromkeys(name for record in whole.predictions for name in record.extra))
    text = io.StringIO(newline="")
    table = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\r\n")
    table.writerow([*FIELDS, *(f"extra.{name}" for name in extras)])
    for record in shown:
        values = [getattr(record, name) for name in FIELDS]
        table.writerow([_cell(value) for value in (*values, *map(record.extra.get, extras))])
    return text.getvalue().encode()


def _cell(value: Cell) -> Cell:
    if isinstance(value, str):
        return _FORMULA.sub("'", value)
    return str(value).lower() if isinstance(value, bool) else value


def _headers(cached: CachedVersion) -> Headers:
    """Return the headers of a file download; the pointer of an old release does not name its source."""
    name = f"{cached.manifest.source or 'predictions'}-{cached.version}.csv"
    quoted = quote(name, safe="")
    disposition = f'filename="{name}"' if quoted == name else f"filename*=UTF-8''{quoted}"
    return [
        (b"content-type", f"{MEDIA_TYPE}; charset=utf-8".encode()),
        (b"content-disposition", f"attachment; {disposition}".encode()),
    ]


CSV: Final = Form("csv", _encode, _headers, is_compressed=True)
