"""The files and functions by which docs/design.md follows a scheduled run are those that run, in that order."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from itertools import pairwise
from typing import Final, NamedTuple

import pytest

from optimizer.config.settings import Settings
from tests.support.pages import ROOT
from tests.support.rolling_files import a_record, write_json

HEADING: Final = "### A run in the code"
ROW: Final = re.compile(r"^\| `optimizer/([^`]+)` \| `([^`]+)` \|", re.MULTILINE)
# Makes two scheduled runs. For each it prints the status, and the functions in the order of their first calls: file,
# name, and whether the thread is the one that runs the task.
PROGRAM: Final = """
import json, os, sys, threading
from pathlib import Path
import optimizer
from optimizer.celery.standalone import app

app.finalize()
package, main = str(Path(optimizer.__file__).parent) + os.sep, threading.get_ident()
calls = {}

def note(frame, event, _):
    code = frame.f_code
    if event == "call" and code.co_filename.startswith(package):
        calls.setdefault((code.co_filename[len(package):], code.co_qualname), threading.get_ident() == main)

threading.setprofile(note)
runs = []
while len(runs) < 2:
    calls.clear()
    sys.setprofile(note)
    done = app.tasks["tasks.optimize_rolling_data"].apply(kwargs={"scheduled": True})
    sys.setprofile(None)
    status = done.get()["status"]
    if status != "skipped":  # of each tick one run is made
        runs.append([status, [[*place, is_main] for place, is_main in calls.items()]])
print(json.dumps(runs))
"""

# By file and function: the place in the order of first calls, and whether the task's thread made the call.
Calls = dict[tuple[str, str], tuple[int, bool]]


class Trail(NamedTuple):
    """The rows of one table."""

    rows: list[tuple[str, str]]

    @property
    def files(self) -> set[str]:
        """The files that a reader opens."""
        return {file for file, _ in self.rows}


def trails() -> tuple[Trail, Trail]:
    """The tables of docs/design.md: of a run that scans, and of one whose input has not changed."""
    section = (ROOT / "docs/design.md").read_text("utf-8").partition(HEADING)[2].partition("\n### ")[0]
    scans, unchanged = (Trail(ROW.findall(table)) for table in re.split(r"^\*\*", section, flags=re.MULTILINE)[1:])
    return scans, unchanged


def traced_runs(settings: Settings) -> list[tuple[str, Calls]]:
    """Make two scheduled runs; return the status and the calls of each."""
    variables = {
        "ROLLING_INPUT": str(settings.input),
        "ROLLING_OUTPUT_DIR": str(settings.output_dir),
        "ROLLING_REDIS_URL": settings.redis_url,
        "ROLLING_INTERVAL_S": "1",
        "ROLLING_ENGINE": "native",
    }
    command, environment = [sys.executable, "-c", PROGRAM], os.environ | variables
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return [
        (status, {(file, name): (place, is_main) for place, (file, name, is_main) in enumerate(calls)})
        for status, calls in json.loads(done.stdout.splitlines()[-1])
    ]


def check(trail: Trail, calls: Calls) -> None:
    """Check that each function was called, and in the order of the table.

    Functions in the task's thread were first called in that order. A function in another thread was first called after
    the one in the row before it.
    """
    assert [row for row in trail.rows if row not in calls] == []
    in_task = [row for row in trail.rows if calls[row][1]]
    assert in_task == sorted(in_task, key=lambda row: calls[row][0])
    for before, row in pairwise(trail.rows):
        assert calls[row][1] or calls[before][0] < calls[row][0], row


@pytest.mark.slow
def test_the_trails_are_what_runs(settings: Settings) -> None:
    """A run that scans, and the next, unchanged one, call the functions that docs/design.md names, in its order."""
    write_json(settings.input, {"AAPL": a_record(), "MSFT": a_record()})
    (first, scanning), (second, confirming) = traced_runs(settings)
    assert (first, second) == ("success", "unchanged")
    for trail, calls in zip(trails(), (scanning, confirming), strict=True):
        check(trail, calls)


def test_a_reader_opens_few_files() -> None:
    """A reader of docs/design.md opens at most 20 files to follow a run that scans, and 12 for an unchanged input.

    The page states the right numbers.
    """
    section = (ROOT / "docs/design.md").read_text("utf-8").partition(HEADING)[2]
    counted = [int(number) for number in re.findall(r"^\*\*.*\*\*, in (\d+) files:$", section, re.MULTILINE)]
    assert counted == [len(trail.files) for trail in trails()]
    assert counted[0] <= 20
    assert counted[1] <= 12
