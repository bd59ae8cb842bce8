"""The part of the predictions that a request asks for: its records, and the form in which they are sent. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import msgspec

from optimizer.models import PredictionsSnapshot, Record
from optimizer.reader.results import CachedVersion
from optimizer.web.prepared import Headers

__all__ = ["ALL", "JSON", "JSON_HEADERS", "Form", "PredictionQuery"]

JSON_HEADERS: Final[Headers] = [(b"content-type", b"application/json")]

_encode: Final = msgspec.json.Encoder().encode


class PredictionQuery(NamedTuple):
    """Filters of the predictions, and a window of the matches."""

    limit: int | None
    offset: int
    min_confidence: float
    sentiment: str | None

    def select(self, predictions: Sequence[Record]) -> tuple[list[Record], int]:
        """Return the records of the window, and the number of all matches."""
        sentiment = None if self.sentiment is None else self.sentiment.casefold()
        fitting = [
            record
            for record in predictions
            if record.confidence >= self.min_confidence and sentiment in (None, record.sentiment.casefold())
        ]
        end = None if self.limit is None else self.offset + self.limit
        return fitting[self.offset : end], len(fitting)


ALL: Final = PredictionQuery(None, 0, 0.0, None)


class Form(NamedTuple):
    """The form in which a part of the predictions is sent.

    `encode` gets the whole snapshot and the records to send; `headers` are those of the form, including the content
    type. `is_compressed` says whether it is compressed for clients that accept it.
    """

    name: str
    encode: Callable[[PredictionsSnapshot, Sequence[Record]], bytes]
    headers: Callable[[CachedVersion], Headers]
    is_compressed: bool


def _encode_part(whole: PredictionsSnapshot, shown: Sequence[Record]) -> bytes:
    return _encode(PredictionsSnapshot(list(shown), whole.timestamp, len(shown)))


# Not compressed: it is made in the event loop, where compression would take longer than everything else.
JSON: Final = Form("json", _encode_part, lambda _: JSON_HEADERS, is_compressed=False)
