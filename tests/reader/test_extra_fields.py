"""Extra fields of records, as programs read them: by name, typed, from Redis and from the files."""

from __future__ import annotations

import gzip
from dataclasses import replace

import pytest

from optimizer import Settings, optimize
from optimizer.models import Origin
from tests.support.readers import Open
from tests.support.rolling_files import a_record, write_json


@pytest.mark.parametrize("origin", ["redis", "files"])
def test_extra_fields_are_read_by_name(settings: Settings, open_reader: Open, origin: Origin) -> None:
    """Extra fields of predictions and index are as the engine wrote them, and null where it did not."""
    mapped = replace(settings, fields="+sector; +volume=stats.volume; +halted")
    records = {
        "A": a_record(sector="Energy", stats={"volume": 12}, halted=False),
        "B": a_record(sector="Größe", stats={"volume": 0.5}, confidence=0.25),
        "C": a_record(confidence=0.6),
    }
    write_json(settings.input, records)
    assert optimize(mapped).status == "success"
    reader = open_reader(settings, origin)

    first, second = reader.predictions().value.predictions
    assert first.extra == {"sector": "Energy", "volume": 12, "halted": False}
    assert first.extra["sector"] == "Energy"
    assert second.extra == {"sector": None, "volume": None, "halted": None}
    below = reader.symbol("B").value
    assert below is not None
    assert below.extra == {"sector": "Größe", "volume": 0.5, "halted": None}


@pytest.mark.parametrize("origin", ["redis", "files"])
def test_without_a_setting_there_are_none(settings: Settings, open_reader: Open, origin: Origin) -> None:
    """Without the setting, `extra` is empty, and the JSON of the snapshot does not name it."""
    write_json(settings.input, {"A": a_record(sector="Energy")})
    assert optimize(settings).status == "success"
    reader = open_reader(settings, origin)
    (record,) = reader.predictions().value.predictions
    assert record.extra == {}
    assert b"extra" not in gzip.decompress(reader.predictions().gz)
