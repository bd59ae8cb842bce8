"""The logs of the stand-alone app's processes: one line for each run, as text and as JSON."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.app import trace
from celery.app.log import Logging

from optimizer import Settings
from optimizer.celery import create_app, register
from optimizer.celery.process_log import ProcessLog, _with_debug_lines
from tests.support.fleet import Fleet
from tests.support.redis_servers import wait_until
from tests.support.rolling_files import a_record, write_json

RUN_TASK = "tasks.optimize_rolling_data"


@pytest.mark.slow
def test_every_line_of_a_fleet_is_json_that_names_source_and_run(tmp_path: Path, settings: Settings) -> None:
    """With `ROLLING_LOG_FORMAT=json`, all log lines of worker, beat, watch and web are JSON, from the first one on.

    Each run is one line with its source and its id. Celery's own lines on tasks are not shown, not even those on parts,
    which Celery calls ignored.
    """
    for part in "ab":
        write_json(tmp_path / "in" / f"{part}.json.gz", {part: a_record()})
    variables = {
        "ROLLING_LOG_FORMAT": "json",
        "ROLLING_INPUT": f"{tmp_path}/in/*.json.gz",
        "ROLLING_SOURCE": settings.source,
        "ROLLING_INTERVAL_S": "1",
        "ROLLING_WINDOW": "20",  # no setting, so the web warns of it
    }
    with Fleet(tmp_path, settings, **variables) as fleet:
        fleet.start_watch()
        fleet.start_web()
        fleet.start_worker("--loglevel", "INFO")
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
    # Celery's own lines begin like this: received, succeeded, ignored, raised expected.
    assert not [line for line in by_process["worker"] if line["message"].startswith("Task tasks.")]


@pytest.mark.slow
def test_a_run_that_fails_is_one_line_of_text_with_its_id(tmp_path: Path, settings: Settings) -> None:
    """A failed run is one line of text with its id; Celery's own lines on it are logged too, but as DEBUG."""
    with Fleet(tmp_path, settings) as fleet, Celery(broker=settings.redis_url, set_as_current=False) as client:
        fleet.start_worker("--loglevel", "DEBUG")
        run_id = client.send_task(RUN_TASK, queue=f"rolling.{settings.source}").id
        fleet.wait_for_line(f"DEBUG/.*{run_id}. raised expected")
        lines = [line for line in fleet.lines if run_id in line and "DEBUG/" not in line and "{'" not in line]
    [line] = lines
    assert ": ERROR/ForkPoolWorker-" in line
    assert f"] [{run_id}] [RollingOptimizer] ⚠️ Optimization failed: " in line


def test_the_log_of_another_app_is_its_own() -> None:
    """`register` gives another app neither our log formats nor our levels of Celery's lines; our own app has both."""
    theirs = Celery("proj", set_as_current=False)
    register(theirs)
    assert type(theirs.log) is Logging
    assert theirs.conf.worker_log_format == Celery(set_as_current=False).conf.worker_log_format
    assert not logging.getLogger("celery.app.trace").filters
    assert type(create_app().log) is ProcessLog


@pytest.mark.parametrize("level", [logging.INFO, logging.DEBUG])
def test_what_celery_says_of_each_task_has_debug(level: int, caplog: pytest.LogCaptureFixture) -> None:
    """Celery's lines on each task become DEBUG, and are dropped where DEBUG is not shown.

    Other lines of the same logger stay, also for an unexpected error, which is a bug.
    """
    log = logging.getLogger("celery.app.trace")
    caplog.set_level(level, logger=log.name)
    log.addFilter(_with_debug_lines)
    try:
        trace.info(trace.LOG_SUCCESS, {"name": "a", "id": "1", "runtime": 1, "return_value": "2"})
        for policy in (trace.log_policy_ignore, trace.log_policy_expected, trace.log_policy_unexpected):
            about = {"name": "a", "id": "1", "description": policy.description, "exc": "an error"}
            log.log(policy.severity, policy.format, about)
        log.info("another")
    finally:
        log.removeFilter(_with_debug_lines)
    debug = ["DEBUG"] * 3 if level == logging.DEBUG else []
    assert [record.levelname for record in caplog.records] == [*debug, "ERROR", "INFO"]


def logged(fleet: Fleet, name: str) -> list[dict[str, Any]]:
    """Return the log lines of a process from its first line of JSON on; output before that is not its log's."""
    lines = [line.removeprefix(f"{name}| ") for line in fleet.lines if line.startswith(f"{name}| ")]
    first = next((index for index, line in enumerate(lines) if line.startswith("{")), len(lines))
    return [json.loads(line) for line in lines[first:] if name != "web" or not line.startswith("http://")]
