"""`rolling-optimizer run`: output, exit status, and one line of error instead of a traceback."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from optimizer import Settings
from tests.support.command import rolling_optimizer
from tests.support.compose import ROOT
from tests.support.rolling_files import a_record, write_json, write_raw

pytestmark = pytest.mark.slow


def test_run_needs_neither_redis_nor_settings(data: Path) -> None:
    """`run --no-cache` in a directory with the input writes the files and prints figures."""
    done = rolling_optimizer(data, "run", "--no-cache")

    assert done.returncode == 0
    assert done.stdout.startswith("success: version ")
    assert "6 predictions of 11 records" in done.stdout
    assert done.stderr == ""
    assert (data / "data" / "rolling_optimized.json.gz").is_file()


def test_run_prints_the_report_alone_with_json(data: Path) -> None:
    """With `--json`, standard output is one JSON text, for a success and for a failure."""
    good = rolling_optimizer(data, "run", "--no-cache", "--json", "--top", 3, "--min-confidence", 0.9)
    bad = rolling_optimizer(data, "run", "--no-cache", "--json", "--input", "missing.json.gz")

    assert json.loads(good.stdout)["stats"]["predictions_extracted"] == 2
    assert good.returncode == 0
    assert json.loads(bad.stdout)["error"] == "SourceMissing"
    assert bad.returncode == 1


def test_run_again_is_unchanged_and_force_scans(data: Path) -> None:
    """A second run is `unchanged`, and one with `--force` scans again; both exit with 0."""
    rolling_optimizer(data, "run", "--no-cache")
    again = rolling_optimizer(data, "run", "--no-cache")
    forced = rolling_optimizer(data, "run", "--no-cache", "--force")

    assert (again.returncode, again.stdout.split(":")[0]) == (0, "unchanged")
    assert (forced.returncode, forced.stdout.split(":")[0]) == (0, "success")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--top", "0"], "--top=0 is not between 1 and"),
        (["--top", "x"], "'x' is not a valid integer"),
        (["--min-confidence", "1.5"], "--min-confidence=1.5 is not between 0 and 1"),
        (["--min-confidence", "nan"], "--min-confidence=nan is not between"),
        (["--engine", "warp"], "'warp' is not one of"),
        (["--unknown"], "No such option"),
    ],
)
def test_wrong_usage_exits_2_and_names_the_value(data: Path, arguments: list[str], said: str) -> None:
    """A value that cannot be used is refused with exit status 2 and named, before anything is read."""
    done = rolling_optimizer(data, "run", "--no-cache", *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_run_takes_more_predictions_than_the_index_holds_by_default(data: Path) -> None:
    """`--top` alone may be more than the index contains by default, since the index grows with it."""
    done = rolling_optimizer(data, "run", "--no-cache", "--json", "--top", 20_000)
    assert json.loads(done.stdout)["stats"]["predictions_extracted"] == 6


def test_a_failed_run_is_one_line_that_says_what_where_and_what_to_do(data: Path) -> None:
    """Malformed JSON in a field that is kept ends a run with exit status 1 and one line with file and byte offset."""
    write_raw(data / "bad.json.gz", b'{"AAPL": {"confidence": 0.5, "prediction": oops}}')
    done = rolling_optimizer(data, "run", "--no-cache", "--input", "bad.json.gz")

    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "SourceMalformed: bad.json.gz: malformed JSON at byte 43" in done.stderr


def test_run_draws_a_progress_bar_on_a_terminal(data: Path) -> None:
    """If stderr is a terminal, a run draws a progress bar over the compressed bytes there, up to 100 %."""
    ours, theirs = pty.openpty()
    subprocess.run(
        [sys.executable, "-m", "optimizer.cli", "run", "--no-cache"],
        cwd=data,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        check=True,
    )
    os.close(theirs)
    drawn = b""
    try:
        while part := os.read(ours, 4096):
            drawn += part
    except OSError:  # what Linux raises when the other end is closed
        pass
    os.close(ours)
    assert b"scanning" in drawn
    assert b"100%" in drawn


def test_a_run_that_finds_too_much_unusable_says_so_and_accept_publishes_it(settings: Settings, data: Path) -> None:
    """A run that rejects too many records fails with the reason and confirms no version; `--accept` publishes.

    `status` says why the version is not confirmed, and how many records an accepted version lacks.
    """
    variables = {"ROLLING_REDIS_URL": settings.redis_url, "ROLLING_OUTPUT_DIR": str(settings.output_dir)}
    rolling_file = data / "data" / "rolling_brain.json.gz"
    write_json(rolling_file, {f"S{number}": a_record(confidence=number / 100) for number in range(101)})
    good = rolling_optimizer(data, "run", **variables)
    write_json(rolling_file, {f"S{number}": a_record(confidence=number) for number in range(101)})
    refused = rolling_optimizer(data, "run", **variables)
    old = rolling_optimizer(data, "status", "--max-age", 0.01, **variables)
    accepted = rolling_optimizer(data, "run", "--accept", **variables)
    again = rolling_optimizer(data, "run", **variables)
    fresh = rolling_optimizer(data, "status", "--max-age", 60, **variables)

    assert (good.returncode, refused.returncode, old.returncode) == (0, 1, 1)
    assert refused.stderr.count("\n") == 1
    for text, name in (
        (refused.stderr, "TooManyRejected: "),
        (old.stdout, "TooManyRejected, "),
        (old.stderr, "TooManyRejected, "),
    ):
        assert name in text
        assert "99 of 101 records (98.0 %) cannot be used, more than ROLLING_MAX_REJECTED_PERCENT=50 allows" in text
        assert "99 x ConfidenceInvalid, first 'S2' (byte " in text
        assert "rolling-optimizer run --accept" in text
    assert (accepted.returncode, accepted.stdout.split(":")[0]) == (0, "success")
    assert (again.returncode, again.stdout.split(":")[0]) == (0, "unchanged")
    assert fresh.returncode == 0
    for text in (again.stdout, fresh.stdout):
        assert "\n  99 of 101 records rejected\n" in text


def test_a_url_that_cannot_be_used_is_wrong_usage(data: Path) -> None:
    """A URL that cannot be used ends a run with exit status 2, like a bad value of any option."""
    done = rolling_optimizer(data, "run", "--no-cache", "--input", "s4://bucket/a.json")
    assert done.returncode == 2
    assert "--input begins with s4://" in done.stderr
