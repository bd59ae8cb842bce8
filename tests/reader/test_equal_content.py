"""Equal content: readers show the newest manifest, and fetch only the changed payloads of a new version."""

from __future__ import annotations

from dataclasses import replace

import pytest

from optimizer import Settings, optimize
from optimizer.models import Origin
from tests.support.published_state import OLD, run_old
from tests.support.readers import Open
from tests.support.rolling_files import a_record, write_json


@pytest.mark.parametrize("origin", ["redis", "files"])
def test_a_reader_shows_the_rejects_of_the_newest_input(settings: Settings, open_reader: Open, origin: Origin) -> None:
    """After a run over an input with equal content, a reader shows its rejects; version, ETag and value stay."""
    run_old(settings)
    reader = open_reader(settings, origin)
    before = reader.predictions()
    write_json(settings.input, OLD | {"BAD": a_record(confidence=7)})

    report = optimize(replace(settings, max_rejected_percent=50))

    reader.refresh()
    after = reader.predictions()
    assert after.rejected == report.rejected != before.rejected
    assert (after.version, after.etag) == (before.version, before.etag)
    assert after.value is before.value


def test_of_a_new_version_only_what_changed_is_fetched(settings: Settings, open_reader: Open) -> None:
    """Bots and portfolio stay the same objects in memory if a new version changes only the predictions."""
    run_old(settings)
    reader = open_reader(settings, "redis")
    bots, portfolio = reader.bots().value, reader.portfolio().value
    write_json(settings.input, OLD | {"MSFT": a_record(confidence=0.8)})
    version = optimize(settings).version

    reader.refresh()

    assert reader.predictions().version == version
    assert reader.bots().value is bots
    assert reader.portfolio().value is portfolio
