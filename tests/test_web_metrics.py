"""The metrics, read by Prometheus's own parser."""

from __future__ import annotations

from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from optimizer import Settings, optimize
from optimizer.errors import SourceMissing
from optimizer.sample import write_sample
from tests.rolling import a_record, local, write_json
from tests.servers import wait_until
from tests.webs import asking


def metrics(text: str) -> dict[str, float]:
    """Every sample under its name and labels, without the prefix."""
    return {
        sample.name.removeprefix("rolling_") + "".join(f" {value}" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_are_the_last_runs_from_redis(settings: Settings) -> None:
    """Right whoever made the run; the last scan is shown though later runs found nothing new."""
    write_json(settings.input, {"AAPL": a_record(), "BAD": a_record(confidence=7), "WORSE": a_record(confidence="x")})
    report = optimize(settings)
    stats = report.stats
    assert stats is not None
    optimize(settings)
    with asking(settings) as client:
        client.get("/predictions")
        answer = client.get("/metrics")
        found = metrics(answer.text)

    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert found["snapshot_version"] == report.version
    assert 0 <= found["snapshot_age_seconds"] < 60
    assert found["last_run_status unchanged"] == 1
    assert found["last_run_status success"] == 0
    assert found["last_scan_duration_seconds"] == stats.seconds
    assert found["last_scan_input_bytes"] == stats.input_bytes
    assert found["last_scan_json_bytes"] == stats.json_bytes
    assert found["last_scan_json_bytes_per_second"] == pytest.approx(stats.json_mb_per_s * 1e6)
    assert found["last_scan_peak_memory_bytes"] == pytest.approx(stats.peak_rss_mb * 1e6)
    assert found["last_scan_records"] == 3
    assert found["last_scan_rejected ConfidenceInvalid"] == 2
    assert found["cache_up"] == 1
    assert found["reads_total redis"] == 1
    assert found["snapshot_stale"] == 0
    assert found["last_success_timestamp_seconds"] >= found["snapshot_generated_timestamp_seconds"]


def test_a_failed_run_shows_and_the_snapshot_grows_old(settings: Settings) -> None:
    """What an alert needs: the last status, and the age of what is shown."""
    write_sample(local(settings.input), symbols=10, points=1)
    fast = replace(settings, interval_s=0.1)
    optimize(fast)
    local(settings.input).unlink()
    with pytest.raises(SourceMissing):
        optimize(fast)
    with asking(fast) as client:
        wait_until(lambda: metrics(client.get("/metrics").text)["snapshot_stale"] == 1, limit_s=5, what="staleness")
        assert metrics(client.get("/metrics").text)["last_run_status failed"] == 1


def test_metrics_without_a_snapshot_are_those_of_the_process(settings: Settings) -> None:
    """Nothing is made up."""
    with asking(settings) as client:
        found = metrics(client.get("/metrics").text)
    assert found == {"cache_up": 1, "reads_total redis": 0, "reads_total files": 0, "event_listeners": 0}
