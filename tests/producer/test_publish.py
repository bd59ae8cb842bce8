"""Updates through real workers: published by an engine, sent by Flower and by any Celery client, and killed workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from optimizer import Settings, SnapshotReader, optimize
from optimizer.cache.keys import Keys
from optimizer.errors import CacheUnavailable, SettingsInvalid, UpdatesPending, UpdatesRefused
from optimizer.producer import publish
from tests.support.fleet import Fleet
from tests.support.redis_servers import RedisServer, wait_until
from tests.support.rolling_files import a_record, write_json

pytestmark = pytest.mark.slow

TASK = "tasks.update_predictions"
QUEUE = "rolling.updates"


def shown(reader: SnapshotReader) -> dict[str, float]:
    """The confidence of each symbol that is shown."""
    return {record.symbol: record.confidence for record in reader.predictions().value.predictions}


@pytest.fixture
def scanned(settings: Settings) -> Settings:
    """A source of two symbols, and a version of it."""
    write_json(settings.input, {"AAPL": a_record(), "MSFT": a_record()})
    optimize(settings)
    return settings


@pytest.fixture
def fleet(tmp_path: Path, scanned: Settings) -> Iterator[Fleet]:
    """A worker that takes updates alone."""
    with Fleet(tmp_path, scanned) as fleet:
        fleet.start_worker("-Q", QUEUE, "-c", "1")
        yield fleet


def test_records_are_shown_symbols_are_removed_and_rejects_are_named(fleet: Fleet) -> None:
    """In one version, which the call waits for."""
    before = fleet.reader.predictions().version
    accepted = publish(
        [{"symbol": "TSLA", **a_record(confidence=0.97)}, {"symbol": "BAD", **a_record(confidence=2)}],
        remove=["MSFT"],
        settings=fleet.settings,
        wait_s=20,
    )
    assert (accepted.records, accepted.removals) == (1, 1)
    assert [(reject.reason.value, reject.name, reject.where) for reject in accepted.rejected] == [
        ("ConfidenceInvalid", "BAD", "record 2")
    ]
    assert accepted.version is not None
    assert accepted.version > before
    assert list(shown(fleet.reader)) == ["TSLA", "AAPL"]
    assert fleet.reader.predictions().version == accepted.version
    assert fleet.reader.symbol("MSFT").value is None
    assert not any("Traceback" in line for line in fleet.lines)
