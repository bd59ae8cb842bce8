"""One run after another over real files and a real Redis."""

from __future__ import annotations

import gzip
import json

from optimizer import Settings, optimize
from tests.rolling import a_record, write_json


def test_a_run_writes_three_snapshots_and_publishes_them(settings: Settings) -> None:
    """Files and Redis hold the same bytes after a run."""
    write_json(settings.input, {"AAPL": a_record(), "MSFT": a_record(confidence=0.9)})

    report = optimize(settings)

    assert report.status == "success"
    shown = json.loads(gzip.decompress((settings.output_dir / "rolling_optimized.json.gz").read_bytes()))
    assert [record["symbol"] for record in shown["predictions"]] == ["MSFT", "AAPL"]
