"""Responses of one version: which of them are cached, so that requests cannot fill the memory."""

from __future__ import annotations

import gzip

import msgspec

from optimizer.models import Manifest, PredictionsSnapshot, Record
from optimizer.reader.results import CachedVersion, Sighting, load_payload
from optimizer.web.pages import CACHED_RESPONSES, Pages
from optimizer.web.prediction_query import PredictionQuery

AT = "2026-11-01T10:00:00.000Z"
MANY = 1_000  # over 32 KiB of JSON


def pages() -> Pages:
    """The responses of a version with many predictions."""
    records = [Record(f"S{number}", 1.0, 0.5, 1.0) for number in range(MANY)]
    plain = msgspec.json.encode(PredictionsSnapshot(records, AT, MANY))
    payloads = {"predictions": load_payload("predictions", "etag", "redis", gzip.compress(plain))}
    cached = CachedVersion.load(Sighting(Manifest("", 1, AT, "", {}), AT, 0.0), "redis", payloads)
    return Pages(cached, lambda _cached, _kind: [])


def test_short_responses_to_filters_are_cached_and_long_ones_are_not() -> None:
    """A short response to a filter is cached: the same object is returned again; a long one is made again each time."""
    prepared = pages()
    short, long = PredictionQuery(10, 0, 0.0, None), PredictionQuery(MANY - 1, 0, 0.0, None)
    assert prepared.filtered(short) is prepared.filtered(short)
    assert prepared.filtered(long) is not prepared.filtered(long)


def test_the_oldest_responses_are_dropped() -> None:
    """The oldest response is dropped after `CACHED_RESPONSES` newer ones, however many filters a client invents."""
    prepared = pages()
    first = prepared.filtered(PredictionQuery(0, 0, 0.0, None))
    for offset in range(1, CACHED_RESPONSES + 1):
        prepared.filtered(PredictionQuery(0, offset, 0.0, None))
    assert prepared.filtered(PredictionQuery(0, 0, 0.0, None)) is not first
