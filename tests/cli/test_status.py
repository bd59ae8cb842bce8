"""`rolling-optimizer status`: the version, the runs, and a health check."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from optimizer import Settings, optimize
from optimizer.cache.client import CacheClient
from optimizer.cache.heartbeats import Heartbeat, Heartbeats
from optimizer.cache.run_log import RunLog
from optimizer.cli.commands import commands
from optimizer.errors import NoBots
from optimizer.pipeline.drain import apply_updates
from optimizer.pipeline.run import failed_report, skipped
from optimizer.pipeline.updates import enqueue
from optimizer.reader.diagnosis import UNSEEN
from tests.support.command import command_line, in_terminal, rolling_optimizer
from tests.support.compose import ROOT
from tests.support.published_state import report_unchanged
from tests.support.redis_servers import RedisServer
from tests.support.rolling_files import a_record, local, write_json

pytestmark = pytest.mark.slow


def test_status_shows_version_age_and_runs(settings: Settings, data: Path) -> None:
    """`status` shows version, age and runs from Redis, as text and as JSON, and how many updates hold.

    It also shows the last scan, however many runs have found nothing new since.
    """
    write_json(settings.input, {"AAPL": a_record()})
    report = optimize(settings)
    variables = {"ROLLING_REDIS_URL": settings.redis_url, "ROLLING_OUTPUT_DIR": str(settings.output_dir)}

    text = rolling_optimizer(data, "status", **variables)
    shown = json.loads(rolling_optimizer(data, "status", "--json", **variables).stdout)

    assert text.returncode == 0
    assert f"version {report.version}" in text.stdout
    assert "from redis" in text.stdout
    assert shown["version"] == report.version
    assert shown["rejected"] == {"records": {"seen": 1, "rejected": 0}, "bots": {"seen": 0, "rejected": 0}}
    assert shown["runs"][0]["stats"]["predictions_extracted"] == 1

    assert re.match(r"Checked \d s ago; data from \d\d:\d\d:\d\d UTC \(\d s ago\)\.\n", text.stdout)
    assert len(re.findall(r"^  published \d+\.\d s after the input landed$", text.stdout, re.MULTILINE)) == 2
    assert shown["published_after_s"] == report.published_after_s is not None
    assert 0 <= shown["input_age_s"] < 60

    assert "updates" not in text.stdout
    enqueue(settings, [], ["NONE"])
    apply_updates(settings)
    text = rolling_optimizer(data, "status", **variables)
    assert "\n  1 update holds, until a scan of an input that is written later\n" in text.stdout

    report_unchanged(settings, 5)
    shown = json.loads(rolling_optimizer(data, "status", "--json", **variables).stdout)
    assert [run["status"] for run in shown["runs"]] == ["unchanged"] * 5 + ["success"]


def test_status_shows_a_failure_that_many_skipped_runs_hide(settings: Settings, data: Path) -> None:
    """`status` shows a failure until a run succeeds: skipped runs after it say nothing about the input."""
    variables = {"ROLLING_REDIS_URL": settings.redis_url, "ROLLING_OUTPUT_DIR": str(settings.output_dir)}
    write_json(settings.input, {"AAPL": a_record()})
    optimize(settings)
    with closing(CacheClient(settings.redis_url, settings.source, settings.interval_s)) as cache:
        RunLog(cache).add(failed_report(settings, NoBots("no bot there can be used")))
        for _ in range(10):
            RunLog(cache).add(skipped(settings, "already_running"))
    failed = rolling_optimizer(data, "status", **variables)
    optimize(settings)
    well = rolling_optimizer(data, "status", **variables)

    assert "failed: NoBots: no bot there can be used" in failed.stdout
    assert "NoBots" not in well.stdout


def test_status_with_max_age_is_a_health_check(settings: Settings, data: Path, redis_server: RedisServer) -> None:
    """With `--max-age` the exit status is 0 for a fresh snapshot, and 1 for an old one or none.

    A run that finds nothing new makes the snapshot fresh.
    """
    variables = {"ROLLING_REDIS_URL": settings.redis_url, "ROLLING_OUTPUT_DIR": str(settings.output_dir)}
    none = rolling_optimizer(data, "status", "--max-age", 60, **variables)
    write_json(settings.input, {"AAPL": a_record()})
    optimize(settings)
    with redis_server.client as client:
        client.hset("rolling:{rolling_brain}:current", "checked_at", "2026-01-01T00:00:00.000Z")
    os.utime(local(settings.output_dir) / "manifest.json", (0, 0))
    old = rolling_optimizer(data, "status", "--max-age", 60, **variables)
    optimize(settings)
    fresh = rolling_optimizer(data, "status", "--max-age", 60, **variables)

    assert (none.returncode, old.returncode, fresh.returncode) == (1, 1, 0)
    assert none.stderr.startswith(
        "rolling-optimizer: SnapshotMissing: No worker takes the queue rolling.rolling_brain. No beat sends runs. "
        f"There is no version to show. Start one. {UNSEEN} Looked for: no snapshot of 'rolling_brain': Redis: it holds"
    ), none.stderr
    assert "more than 60 s" in old.stderr


def test_status_with_max_input_age_is_a_health_check(settings: Settings, data: Path) -> None:
    """With `--max-input-age` the exit status is 1 for an input that is too old, and the error names that option.

    It does not name the variable. If Redis is away too, the age is still reported.
    """
    variables = {"ROLLING_REDIS_URL": settings.redis_url, "ROLLING_OUTPUT_DIR": str(settings.output_dir)}
    write_json(settings.input, {"AAPL": a_record()})
    os.utime(local(settings.input), (time.time() - 3_600,) * 2)
    optimize(settings)
    old = rolling_optimizer(data, "status", "--max-input-age", 60, **variables)
    new = rolling_optimizer(data, "status", "--max-input-age", 7_200, **variables)
    away = variables | {"ROLLING_REDIS_URL": "redis://127.0.0.1:1/0"}
    both = rolling_optimizer(data, "status", "--max-input-age", 60, **away)

    assert (old.returncode, new.returncode, both.returncode) == (1, 0, 1)
    assert "the input is 60 min old, more than --max-input-age=60. " in old.stderr
    assert "ROLLING_MAX_INPUT_AGE" not in old.stderr + both.stderr
    assert re.search(r"the input is 36\d\d s old, more than 60 s\. Redis does not answer", both.stderr), both.stderr


def test_status_lists_workers_and_beats(settings: Settings, data: Path, redis_server: RedisServer) -> None:
    """`status` lists each worker and beat with its queues, and since when it is silent, also without a version.

    On a terminal the diagnosis is coloured by how bad it is, and names cannot send escape sequences.
    """
    variables = {"ROLLING_REDIS_URL": settings.redis_url, "ROLLING_OUTPUT_DIR": str(settings.output_dir)}
    with closing(CacheClient(settings.redis_url, settings.source, settings.interval_s)) as cache:
        Heartbeats(cache).tell(Heartbeat("worker", "celery@here", 60.0, ["rolling.rolling_brain", "other"]))
        Heartbeats(cache).tell(Heartbeat("beat", "here 7", 60.0, ["rolling.rolling_brain"]))
        Heartbeats(cache).tell(Heartbeat("worker", "forged\n\x1b[2J", 60.0, ["\x1b[2J"]))
    with redis_server.client as client:
        key = "rolling:{rolling_brain}:processes"
        told = client.hget(key, "beat here 7")
        assert isinstance(told, bytes)
        client.hset(key, "beat here 7", b"1000 " + told.partition(b" ")[2])

    shown = rolling_optimizer(data, "status", **variables)
    _, coloured = in_terminal(data, "status", **variables)

    assert shown.returncode == 1
    sentence = "Beat has sent nothing since 1970-01-01 00:00:01 UTC. There is no version to show. "
    assert shown.stdout.startswith(sentence)
    assert "\n  see docs/operations.md#no-beat\n" in shown.stdout
    assert re.search(
        r"^worker celery@here takes rolling.rolling_brain, other, seen \d s ago$", shown.stdout, re.MULTILINE
    )
    silent = "beat here 7 sends to rolling.rolling_brain, silent since 1970-01-01 00:00:01 UTC\n"
    assert silent in shown.stdout
    assert coloured.startswith(f"\x1b[31m{sentence}")
    assert r"worker forged\n\x1b[2J takes \x1b[2J, seen " in coloured
    assert "\x1b[2J" not in coloured


def test_status_shows_all_sources_or_one(
    data: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`status` shows all sources one after another, in JSON as a list, or the one that `--source` names.

    As a check it fails if one of them does, and names it.
    """
    write_json(data / "b.json.gz", {"AAPL": a_record()})
    variables = {
        "ROLLING_SOURCES": "a = data/rolling_brain.json.gz; b = b.json.gz",
        "ROLLING_OUTPUT_DIR": str(data / "all"),
        "ROLLING_REDIS_URL": redis_server.url,
    }
    monkeypatch.chdir(data)

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(commands, arguments, env=variables)

    invoke("run", "--source", "a")
    one_lacks = invoke("status")
    invoke("run", "--source", "b")

    text = rolling_optimizer(data, "status", "--max-age", 60, **variables)
    listed = json.loads(invoke("status", "--json").stdout)
    alone = json.loads(invoke("status", "--json", "--source", "b").stdout)
    unknown = invoke("status", "--source", "c")

    assert one_lacks.exit_code == 1
    assert re.search(r"^source a:\nChecked .*\n\nsource b:\n", one_lacks.stdout, re.MULTILINE | re.DOTALL)
    assert one_lacks.stderr.startswith("rolling-optimizer: SnapshotMissing: source b: ")
    assert "source a" not in one_lacks.stderr
    assert (text.returncode, text.stderr) == (0, "")
    assert [each["source"] for each in listed["sources"]] == ["a", "b"]
    assert all(each["version"] and each["diagnosis"]["code"] == "ok" for each in listed["sources"])
    assert "Error: --source='c' is not one of those that are configured: a, b\n" in unknown.stderr
    assert alone["source"] == "b"
    assert alone["version"] == listed["sources"][1]["version"]
    assert unknown.exit_code == 2


def test_status_watches_until_ctrl_c(settings: Settings, data: Path) -> None:
    """`status --watch` shows each new state until Ctrl-C, then exits with 0.

    It is no health check: together with `--max-age` it is wrong usage.
    """
    environ = {"ROLLING_REDIS_URL": settings.redis_url, "ROLLING_OUTPUT_DIR": str(settings.output_dir)}
    with subprocess.Popen(
        command_line("status", "--watch", "--json"),
        cwd=data,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as watch:
        assert watch.stdout is not None
        assert watch.stderr is not None
        before = json.loads(watch.stdout.readline())
        write_json(settings.input, {"AAPL": a_record()})
        version = optimize(settings).version
        seen = next(line for line in watch.stdout if "version" in json.loads(line))
        watch.send_signal(signal.SIGINT)
        assert watch.wait(20) == 0
        assert watch.stderr.read() == ""
    refused = rolling_optimizer(data, "status", "--watch", "--max-age", 60)

    assert before["diagnosis"]["code"] == "no_worker"
    assert json.loads(seen)["version"] == version
    assert refused.returncode == 2
