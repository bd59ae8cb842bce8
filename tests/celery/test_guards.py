"""A user's guard in the children of a real worker, where it refuses, exits, hangs, and is skipped once by `accept`."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from optimizer import Settings
from optimizer.celery.standalone import app
from optimizer.celery.tasks import TASK_NAME
from tests.support.command import rolling_optimizer
from tests.support.compose import ROOT
from tests.support.fleet import Fleet
from tests.support.rolling_files import a_record, local, write_json

pytestmark = pytest.mark.slow

GUARD = """
import sys
import time


def check(new, current):
    symbols = {record.symbol for record in new.predictions.predictions}
    if "EXIT" in symbols:
        sys.exit(0)
    while "HANG" in symbols:
        time.sleep(0.1)
    return "there is a BAD one" if "BAD" in symbols else None
"""


@pytest.mark.parametrize("parts", [False, True], ids=["one file", "parts"])
def test_a_guard_in_a_worker(tmp_path: Path, settings: Settings, parts: bool) -> None:
    """A guard that refuses, exits or hangs makes the run fail and ends no child; a run with `accept` does not call it.

    The failure has the guard's text, also if the run merges parts.
    """
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop/shop_guards.py").write_text(GUARD)
    path = local(settings.input).parent / "engine"
    settings = replace(settings, input=path / ("*.json" if parts else "a.json"), source="engine")
    variables = {"ROLLING_REDIS_URL": settings.redis_url, "ROLLING_SOURCE": "engine"}
    ours = {
        "ROLLING_SOURCE": "engine",
        "ROLLING_GUARD": "shop_guards:check",
        "PYTHONPATH": f"{ROOT}:{tmp_path / 'shop'}",
    }

    def write(symbol: str) -> None:
        for name in "ab" if parts else "a":
            write_json(path / f"{name}.json", {"AAPL": a_record(), symbol: a_record(confidence=0.9)})

    def trigger(*options: str) -> tuple[int, str]:
        done = rolling_optimizer(tmp_path, "trigger", "--wait", *options, **variables)
        return done.returncode, done.stdout + done.stderr

    with Fleet(tmp_path, settings, **ours) as fleet:
        fleet.start_worker("--concurrency", "1")
        children = fleet.children()
        write("GOOD")
        assert trigger()[0] == 0
        version = fleet.reader.predictions().version
        write("BAD")
        assert "GuardRefused: " in (said := trigger()[1])
        assert "ROLLING_GUARD=shop_guards:check refuses: there is a BAD one; the old snapshots stay" in said
        write("EXIT")
        assert "failed, and so refuses: SystemExit: 0" in trigger()[1]
        fleet.wait_for_line("sys.exit")  # its traceback
        assert fleet.reader.predictions().version == version
        write("HANG")
        options = {"soft_time_limit": 2, "queue": "rolling.engine", "kwargs": {"source": "engine"}}
        with app.connection_for_write(settings.redis_url) as connection:
            app.tasks[TASK_NAME].apply_async(connection=connection, ignore_result=True, **options)
        report = fleet.wait_for_runs(4)[0]
        assert (report.status, report.error) == ("failed", "RunTimedOut")
        assert "has not returned since an earlier run was ended" in trigger()[1]
        assert fleet.children() == children
        os.kill(children[0], 9)
        accepted = trigger("--accept")
        assert accepted[0] == 0, accepted
        assert "HANG" in {record.symbol for record in fleet.reader.predictions().value.predictions}
