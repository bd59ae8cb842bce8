"""What the processes of the stand-alone app log: one line for each run, as text and as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from optimizer import Settings
from tests.support.fleet import Fleet
from tests.support.redis_servers import wait_until
from tests.support.rolling_files import a_record, write_json

pytestmark = pytest.mark.slow

RUN_TASK = "tasks.optimize_rolling_data"


def test_every_line_of_a_fleet_is_json_that_names_source_and_run(tmp_path: Path, settings: Settings) -> None:
    """Of worker, beat, watch and web, from the first line of the log on; of parts, which Celery calls ignored, too."""
    for part in "ab":
        write_json(tmp_path / "in" / f"{part}.json.gz", {part: a_record()})
    variables = {
        "ROLLING_LOG_FORMAT": "json",
        "ROLLING_INPUT": f"{tmp_path}/in/*.json.gz",
        "ROLLING_SOURCE": settings.source,
        "ROLLING_INTERVAL_S": "1",
        "ROLLING_WINDOW": "20",  # no setting, of which the web warns
    }
    with Fleet(tmp_path, settings, **variables) as fleet:
        fleet.start_watch()
        fleet.start_web()
        fleet.start_worker()
        fleet.start_beat()
        fleet.wait_for_runs(1, "success")
        for part in "ab":
            (tmp_path / "in" / f"{part}.json.gz").unlink()
        fleet.wait_for_runs(1, "failed")
        wait_until(lambda: any(line.get("error") for line in logged(fleet, "worker")), what="the failure")
        wait_until(lambda: logged(fleet, "beat"), what="a line of beat")
        by_process = {name: logged(fleet, name) for name in ("worker", "beat", "watch", "web")}
        reports = fleet.runs()

    for lines in by_process.values():
        assert lines
        assert all(line.keys() >= {"time", "level", "logger", "pid", "message"} for line in lines)
    of_runs = [line for line in by_process["worker"] if line["logger"] == "optimizer.celery.tasks"]
    assert {line["source"] for line in of_runs} == {settings.source}
    assert len({line["run_id"] for line in of_runs}) == len(of_runs)  # one line for each run
    [done] = [line for line in of_runs if "stats" in line]
    assert (done["level"], done["version"], done["stats"]["parts"]) == ("INFO", reports[-1].version, 2)
    assert {line["level"] for line in of_runs if line.get("error") == "SourceMissing"} == {"ERROR"}
    # Celery's begin so: received, succeeded, ignored, raised expected.
    assert not [line for line in by_process["worker"] if line["message"].startswith("Task tasks.")]


def test_a_run_that_fails_is_one_line_of_text_with_its_id(tmp_path: Path, settings: Settings) -> None:
    """Celery's own lines of it are there with DEBUG, for those who look for them."""
    with Fleet(tmp_path, settings) as fleet, Celery(broker=settings.redis_url, set_as_current=False) as client:
        fleet.start_worker("--loglevel", "DEBUG")
        run_id = client.send_task(RUN_TASK, queue=f"rolling.{settings.source}").id
        fleet.wait_for_line(f"DEBUG/.*{run_id}. raised expected")
        lines = [line for line in fleet.lines if run_id in line and "DEBUG/" not in line and "{'" not in line]
    [line] = lines
    assert ": ERROR/ForkPoolWorker-" in line
    assert f"] [{run_id}] [RollingOptimizer] ⚠️ Optimization failed: " in line


def logged(fleet: Fleet, name: str) -> list[dict[str, Any]]:
    """What a process has logged, from its first line of JSON on; what else it prints before is not its log's."""
    lines = [line.removeprefix(f"{name}| ") for line in fleet.lines if line.startswith(f"{name}| ")]
    first = next((index for index, line in enumerate(lines) if line.startswith("{")), len(lines))
    return [json.loads(line) for line in lines[first:] if name != "web" or not line.startswith("http://")]
