"""The command line as its users type it: output, exit status, and one line of error instead of a traceback."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from optimizer import Settings, optimize
from optimizer.cache.client import CacheClient
from optimizer.cache.run_log import RunLog
from optimizer.errors import NoBots
from optimizer.pipeline.run import failed_report, skipped
from tests.support.fleet import Fleet
from tests.support.ports import free_port
from tests.support.published_state import report_unchanged
from tests.support.redis_servers import RedisServer
from tests.support.rolling_files import a_record, local, write_json, write_raw
from tests.support.s3_server import S3Server

ROOT = Path(__file__).parents[2]


def rolling_optimizer(directory: Path, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a directory."""
    return subprocess.run(
        [sys.executable, "-m", "optimizer.cli", *map(str, arguments)],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A directory with an input where the settings expect it by default."""
    records = {f"S{number}": a_record(confidence=number / 10) for number in range(11)}
    write_json(tmp_path / "data" / "rolling_brain.json.gz", records)
    return tmp_path


def test_run_needs_neither_redis_nor_settings(data: Path) -> None:
    """`run --no-cache` in a directory with the input writes the files and prints figures."""
    done = rolling_optimizer(data, "run", "--no-cache")

    assert done.returncode == 0
    assert done.stdout.startswith("success: version ")
    assert "6 predictions of 11 records" in done.stdout
    assert done.stderr == ""
    assert (data / "data" / "rolling_optimized.json.gz").is_file()


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--no-cache"],
        ["sample", "made.json", "--symbols", "1"],
        ["bench", "--rounds", "1"],
        ["status"],
        ["config"],
        *([name, "--help"] for name in ("web", "trigger", "up", "demo")),
    ],
    ids=lambda arguments: arguments[0],
)
def test_commands_that_need_no_celery_import_none(data: Path, redis_server: RedisServer, arguments: list[str]) -> None:
    """It takes 8 MB and 0.3 s, so only commands that talk to workers import it, and not before they do."""
    program = (
        "import sys; sys.modules['celery'] = sys.modules['kombu'] = None; from optimizer.cli.main import main; main()"
    )
    if arguments == ["status"]:
        rolling_optimizer(data, "run", "--no-cache")
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=data,
        env=os.environ | {"PYTHONPATH": str(ROOT), "ROLLING_REDIS_URL": redis_server.url},
        check=False,
    )
    assert done.returncode == 0


def test_run_prints_the_report_alone_with_json(data: Path) -> None:
    """Standard output is one JSON text, for a success and for a failure."""
    good = rolling_optimizer(data, "run", "--no-cache", "--json", "--top", 3, "--min-confidence", 0.9)
    bad = rolling_optimizer(data, "run", "--no-cache", "--json", "--input", "missing.json.gz")

    assert json.loads(good.stdout)["stats"]["predictions_extracted"] == 2
    assert good.returncode == 0
    assert json.loads(bad.stdout)["error"] == "SourceMissing"
    assert bad.returncode == 1


def test_run_again_is_unchanged_and_force_scans(data: Path) -> None:
    """Exit status 0 for both."""
    rolling_optimizer(data, "run", "--no-cache")
    again = rolling_optimizer(data, "run", "--no-cache")
    forced = rolling_optimizer(data, "run", "--no-cache", "--force")

    assert (again.returncode, again.stdout.split(":")[0]) == (0, "unchanged")
    assert (forced.returncode, forced.stdout.split(":")[0]) == (0, "success")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--top", "0"], "ROLLING_TOP_SYMBOLS_LIMIT=0 is not between 1 and"),
        (["--top", "x"], "'x' is not a valid integer"),
        (["--min-confidence", "1.5"], "ROLLING_MIN_CONFIDENCE=1.5 is not between 0 and 1"),
        (["--min-confidence", "nan"], "ROLLING_MIN_CONFIDENCE=nan is not between"),
        (["--engine", "warp"], "'warp' is not one of"),
        (["--unknown"], "No such option"),
    ],
)
def test_wrong_usage_exits_2_and_names_the_value(data: Path, arguments: list[str], said: str) -> None:
    """A value that cannot be used is refused before anything is read."""
    done = rolling_optimizer(data, "run", "--no-cache", *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_run_takes_more_predictions_than_the_index_holds_by_default(data: Path) -> None:
    """`--top` alone may be any number: the index grows with it."""
    done = rolling_optimizer(data, "run", "--no-cache", "--json", "--top", 20_000)
    assert json.loads(done.stdout)["stats"]["predictions_extracted"] == 6


@pytest.mark.parametrize("command", [["run"], ["status"], ["config"], ["trigger"]], ids=lambda command: command[0])
def test_a_bad_variable_is_one_line_for_every_command(data: Path, command: list[str]) -> None:
    """The variable and the value are named."""
    done = rolling_optimizer(data, *command, ROLLING_INTERVAL_S="often")
    assert done.returncode == 2
    assert "ROLLING_INTERVAL_S='often' is not a number" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_failed_run_is_one_line_that_says_what_where_and_what_to_do(data: Path) -> None:
    """Malformed JSON in a kept place is named with its file and byte offset."""
    write_raw(data / "bad.json.gz", b'{"AAPL": {"confidence": 0.5, "prediction": oops}}')
    done = rolling_optimizer(data, "run", "--no-cache", "--input", "bad.json.gz")

    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "SourceMalformed: bad.json.gz: malformed JSON at byte 43" in done.stderr


def test_run_draws_a_progress_bar_on_a_terminal(data: Path) -> None:
    """Over the compressed bytes, on stderr, up to 100 %."""
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


def test_sample_writes_what_run_reads(tmp_path: Path) -> None:
    """Both commands agree on the format, also without gzip and with indentation."""
    made = rolling_optimizer(
        tmp_path, "sample", "in/big.json", "--symbols", 50, "--points", 5, "--shape", "lines", "--indent"
    )
    done = rolling_optimizer(tmp_path, "run", "--no-cache", "--json", "--input", "in/big.json", "--output-dir", "out")

    assert "in/big.json: " in made.stdout
    assert json.loads(done.stdout)["stats"]["records_seen"] == 50


def test_sample_says_where_it_cannot_write(tmp_path: Path) -> None:
    """One line, exit status 1."""
    (tmp_path / "file").touch()
    done = rolling_optimizer(tmp_path, "sample", "file/big.json")
    assert done.returncode == 1
    assert "Error: file: " in done.stderr


def test_status_shows_version_age_and_runs(settings: Settings, data: Path) -> None:
    """As text and as JSON, from Redis; the last scan, too, however many runs have found nothing new since."""
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

    report_unchanged(settings, 5)
    shown = json.loads(rolling_optimizer(data, "status", "--json", **variables).stdout)
    assert [run["status"] for run in shown["runs"]] == ["unchanged"] * 5 + ["success"]


def test_a_run_that_finds_too_much_unusable_says_so_and_accept_publishes_it(settings: Settings, data: Path) -> None:
    """The published version is not confirmed meanwhile, and `status` says why, and how many records a version lacks."""
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
    for text in (refused.stderr, old.stdout, old.stderr):
        assert "TooManyRejected: " in text
        assert "99 of 101 records (98.0 %) cannot be used, more than ROLLING_MAX_REJECTED_PERCENT=50 allows" in text
        assert "99 x ConfidenceInvalid, first 'S2' (byte " in text
        assert "rolling-optimizer run --accept" in text
    assert (accepted.returncode, accepted.stdout.split(":")[0]) == (0, "success")
    assert (again.returncode, again.stdout.split(":")[0]) == (0, "unchanged")
    assert fresh.returncode == 0
    for text in (again.stdout, fresh.stdout):
        assert "\n  99 of 101 records rejected\n" in text


def test_status_shows_a_failure_that_many_skipped_runs_hide(settings: Settings, data: Path) -> None:
    """Skipped runs say nothing about the input; a later success replaces the failure."""
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
    """Exit 0 for a fresh snapshot, 1 for an old one or none; a run that finds nothing new makes it fresh."""
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
    assert "SnapshotMissing: no snapshot of 'rolling_brain'" in none.stderr
    assert "more than 60 s" in old.stderr


def test_config_shows_settings_redacted_and_asks_both_redis(data: Path, redis_server: RedisServer) -> None:
    """Passwords never show, neither in the table nor in an error."""
    good = rolling_optimizer(data, "config", ROLLING_REDIS_URL=redis_server.url, ROLLING_TOP_SYMBOLS_LIMIT="7")
    bad = rolling_optimizer(data, "config", ROLLING_REDIS_URL="redis://ops:s3cret@127.0.0.1:1/0")

    assert good.returncode == 0
    assert "ROLLING_TOP_SYMBOLS_LIMIT     7 " in good.stdout
    assert f"cache: {redis_server.url} answers" in good.stdout
    assert f"broker: {redis_server.url} answers" in good.stdout
    assert bad.returncode == 1
    assert "redis://ops:***@127.0.0.1:1/0" in bad.stderr
    assert "s3cret" not in bad.stdout + bad.stderr


def test_config_warns_of_a_broker_that_may_evict(data: Path, redis_server: RedisServer) -> None:
    """An eviction would lose messages."""
    with redis_server.client as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            done = rolling_optimizer(data, "config", ROLLING_REDIS_URL=redis_server.url)
        finally:
            client.config_set("maxmemory-policy", "noeviction")
    assert "may evict messages (maxmemory-policy allkeys-lru)" in done.stdout


@pytest.mark.slow
def test_trigger_runs_on_the_fleet_and_waits_for_the_report(tmp_path: Path, settings: Settings) -> None:
    """`--wait` prints the report, or the failure in one line; without it only the id is printed."""
    variables = {"ROLLING_REDIS_URL": settings.redis_url}
    write_json(settings.input, {"AAPL": a_record()})
    with Fleet(tmp_path, settings) as fleet:
        fleet.start_worker()
        sent = rolling_optimizer(tmp_path, "trigger", **variables)
        fleet.wait_for_runs(1)
        waited = rolling_optimizer(tmp_path, "trigger", "--force", "--wait", **variables)
        write_json(settings.input, {"AAPL": a_record(), "bots": [{}]})
        refused = rolling_optimizer(tmp_path, "trigger", "--wait", **variables)
        accepted = rolling_optimizer(tmp_path, "trigger", "--accept", "--wait", **variables)
        local(settings.input).unlink()
        failed = rolling_optimizer(tmp_path, "trigger", "--wait", **variables)

    assert sent.returncode == 0
    assert "sent as " in sent.stderr
    assert waited.stdout.startswith("success: ")
    assert refused.returncode == 1
    assert "NoBots: " in refused.stderr
    assert accepted.stdout.startswith("success: ")
    assert failed.returncode == 1
    assert "SourceMissing: " in failed.stderr
    assert "Traceback" not in failed.stderr


def test_trigger_says_that_no_worker_and_no_broker_answers(tmp_path: Path, redis_server: RedisServer) -> None:
    """No worker, and no broker, are one line each."""
    no_worker = rolling_optimizer(
        tmp_path, "trigger", "--wait", "--timeout", 1, ROLLING_REDIS_URL=redis_server.url, ROLLING_SOURCE="unattended"
    )
    no_broker = rolling_optimizer(tmp_path, "trigger", ROLLING_REDIS_URL="redis://127.0.0.1:1/0")

    assert no_worker.returncode == no_broker.returncode == 1
    assert "is a worker running on this broker?" in no_worker.stderr
    assert "CacheUnavailable: " in no_broker.stderr
    assert "Traceback" not in no_worker.stderr + no_broker.stderr


@pytest.mark.slow
def test_urls_work_as_paths_do(data: Path, s3: S3Server) -> None:
    """`run` from and to a bucket, `status` and `config` on it, and `bench` of an object."""
    place = s3.bucket / data.name
    s3.put(place / "rolling_brain.json.gz", data / "data" / "rolling_brain.json.gz")
    where = {"ROLLING_INPUT": f"{place}/rolling_brain.json.gz", "ROLLING_OUTPUT_DIR": f"{place}/out"}
    nowhere = {"ROLLING_REDIS_URL": f"redis://127.0.0.1:{free_port()}/0"}
    options = ["--input", where["ROLLING_INPUT"], "--output-dir", where["ROLLING_OUTPUT_DIR"]]

    ran = rolling_optimizer(data, "run", "--no-cache", *options)
    status = rolling_optimizer(data, "status", **where, **nowhere)
    config = rolling_optimizer(data, "config", **where, **nowhere)
    bench = rolling_optimizer(data, "bench", "--rounds", 1, "--json", where["ROLLING_INPUT"], **nowhere)

    assert (ran.returncode, ran.stderr) == (0, "")
    assert "6 predictions of 11 records" in ran.stdout
    assert "from files" in status.stdout
    assert where["ROLLING_OUTPUT_DIR"] in config.stdout
    assert json.loads(bench.stdout)["input"] == where["ROLLING_INPUT"]
    assert {name.partition("/")[0] for name in s3.names(place / "out")} == {
        "versions",
        "manifest.json",
        "rolling_optimized.json.gz",
        "bots_snapshot.json.gz",
        "portfolio_snapshot.json.gz",
        "symbols_index.json.gz",
    }


def test_a_url_that_cannot_be_used_is_wrong_usage(data: Path) -> None:
    """Exit status 2, as for any option."""
    done = rolling_optimizer(data, "run", "--no-cache", "--input", "s4://bucket/a.json")
    assert done.returncode == 2
    assert "ROLLING_INPUT begins with s4://" in done.stderr
