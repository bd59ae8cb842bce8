"""The end of a run that has scanned: its version, its report, and files that cannot be written."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from optimizer import Settings, optimize
from optimizer.cache.keys import Keys
from optimizer.errors import OutputUnwritable
from optimizer.snapshots.format import FILE_NAMES
from tests.support.published_state import (
    NEW,
    OLD,
    as_unprivileged,
    assert_redis_holds_the_files,
    assert_tidy,
    files_of,
    keys_of,
    run_next,
    run_old,
    runs_of,
    version_of,
)
from tests.support.redis_servers import RedisServer
from tests.support.rolling_files import a_record, local, write_json


def test_a_report_counts_what_was_read(settings_without_redis: Settings) -> None:
    """A report has the counts of the input, and each reject in it names the record and the reason."""
    settings = settings_without_redis
    records: list[Any] = [a_record(symbol="A"), a_record(symbol="A"), a_record(symbol="B", confidence=0.1)]
    broken = [a_record(symbol="C", confidence=2), 5]
    write_json(settings.input, {"predictions": records + broken, "bots": OLD["bots"]})

    report = optimize(settings, use_cache=False)

    stats = report.stats
    assert stats is not None
    assert (stats.records_seen, stats.records_rejected, stats.duplicates) == (5, 2, 1)
    assert (stats.predictions_extracted, stats.bots_processed, stats.portfolio_holdings) == (1, 1, 1)
    assert stats.input_bytes == local(settings.input).stat().st_size
    assert stats.json_bytes == len(gzip.decompress(local(settings.input).read_bytes()))
    first = [reject for tally in report.rejects for reject in tally.first]
    assert {(reject.reason.value, reject.name) for reject in first} == {
        ("ConfidenceInvalid", "C"),
        ("RecordNotObject", None),
    }
    assert report.cache == "off"


@pytest.fixture
def clock_gone_back(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A function that sets the clock back to the epoch."""
    return lambda: monkeypatch.setattr(time, "time_ns", lambda: 1_000_000_000)


def test_versions_rise_though_the_clock_goes_back(
    settings: Settings, redis_server: RedisServer, clock_gone_back: Callable[[], None]
) -> None:
    """A version is the time in milliseconds; if the clock has gone back, it is the last version plus 1."""
    before_ms = time.time_ns() // 1_000_000
    versions = [version_of(run_old(settings))]
    assert before_ms <= versions[0] <= time.time_ns() // 1_000_000

    versions += [version_of(run_next(settings)) for _ in range(3)]
    clock_gone_back()
    versions += [version_of(run_next(settings)) for _ in range(3)]

    assert versions == sorted(set(versions))
    assert versions[-1] == versions[3] + 3
    assert_redis_holds_the_files(redis_server, settings)


@pytest.mark.parametrize("pointer_is_lost", [False, True], ids=["pointer", "newest delta"])
def test_versions_rise_where_only_redis_knows_the_last(
    settings: Settings, redis_server: RedisServer, clock_gone_back: Callable[[], None], pointer_is_lost: bool
) -> None:
    """With a new directory, or one of another host, the next version is the last one of Redis plus 1.

    The stream of changes (`deltas`) is enough to know the last version if the pointer is lost.
    """
    run_old(settings)
    write_json(settings.input, NEW)
    last = version_of(optimize(settings))
    shutil.rmtree(local(settings.output_dir))
    if pointer_is_lost:
        with redis_server.client as client:
            client.delete(Keys(settings.source).current)
    clock_gone_back()

    assert version_of(optimize(settings)) == last + 1
    assert_redis_holds_the_files(redis_server, settings)


def test_versions_rise_where_only_the_files_know_the_last(
    settings: Settings, redis_server: RedisServer, clock_gone_back: Callable[[], None]
) -> None:
    """If Redis is new or was off, the next version is the last one of the files plus 1."""
    last = version_of(run_old(settings, use_cache=False))
    clock_gone_back()

    assert version_of(run_next(settings)) == last + 1
    assert_redis_holds_the_files(redis_server, settings)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB; only root may make one."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(path)]
    if mount is None or os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small file system, where that is allowed at all")
    yield path
    subprocess.run(["umount", str(path)], check=True)


@contextmanager
def the_run_stops(settings: Settings, server: RedisServer) -> Iterator[pytest.ExceptionInfo[OutputUnwritable]]:
    """Write a new input, and check that the run in the block fails and leaves files and Redis with the old set.

    The failure has to be reported with the remedy, which names ROLLING_OUTPUT_DIR.
    """
    files, keys = files_of(local(settings.output_dir)), keys_of(server, settings.source)
    write_json(settings.input, NEW)

    with pytest.raises(OutputUnwritable) as raised:
        yield raised

    assert f"ROLLING_OUTPUT_DIR={settings.output_dir}" in str(raised.value)
    assert files_of(local(settings.output_dir)) == files
    assert keys_of(server, settings.source) == keys
    failed = runs_of(server, settings.source)[0]
    assert (failed.error, failed.details) == ("OutputUnwritable", str(raised.value))
    assert_tidy(settings, server)


def test_a_read_only_directory_stops_the_run(
    settings: Settings, redis_server: RedisServer, open_directory: Path
) -> None:
    """A run whose output directory is read-only fails, and the message names the directory.

    Redis never shows a version that the files do not have. Once the directory is writable, the next run succeeds.
    """
    settings = replace(settings, input=open_directory / "rolling_brain.json.gz", output_dir=open_directory / "out")
    run_old(settings)
    versions = local(settings.output_dir) / "versions"
    for path in (versions, versions.parent):
        path.chmod(0o555)

    with the_run_stops(settings, redis_server) as raised, as_unprivileged():
        optimize(settings)
    assert str(raised.value).startswith(f"{settings.output_dir}/")
    assert "Permission denied" in str(raised.value)

    for path in (versions, versions.parent):
        path.chmod(0o755)
    assert optimize(settings).status == "success"
    assert_redis_holds_the_files(redis_server, settings)


def test_a_full_disk_stops_the_run(settings: Settings, redis_server: RedisServer, small_disk: Path) -> None:
    """A run fails if the disk is full; once there is space, the next run publishes the new set."""
    settings = replace(settings, output_dir=small_disk)
    run_old(settings)
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass

    with the_run_stops(settings, redis_server) as raised:
        optimize(settings)
    assert "No space left" in str(raised.value)

    filler.unlink()
    assert optimize(settings).status == "success"
    assert_redis_holds_the_files(redis_server, settings)


def test_a_file_that_cannot_be_written_whole_stops_the_run(settings: Settings, redis_server: RedisServer) -> None:
    """A run that reaches a limit on file sizes in the middle of a file fails and leaves the old set.

    That holds for whichever of the files the limit interrupts.
    """
    run_old(settings)
    files, keys = files_of(local(settings.output_dir)), keys_of(redis_server, settings.source)
    write_json(settings.input, NEW)
    limited = (
        "import resource, sys; from pathlib import Path; from optimizer import Settings, optimize\n"
        "settings = Settings(input=Path(sys.argv[1]), output_dir=Path(sys.argv[2]), redis_url=sys.argv[3])\n"
        "for limit in map(int, sys.argv[4:]):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))\n"
        "    try: optimize(settings)\n"
        "    except Exception as error: print(type(error).__name__, error)\n"
        "    else: print('written')\n"
    )
    sizes = {
        name: (local(settings.output_dir) / name).stat().st_size for name in (*FILE_NAMES.values(), "manifest.json")
    }
    limits = {10, max(sizes[name] for name in FILE_NAMES.values()) - 60, sizes["manifest.json"] - 60}
    arguments = [str(settings.input), str(settings.output_dir), settings.redis_url, *map(str, sorted(limits))]
    done = subprocess.run([sys.executable, "-c", limited, *arguments], capture_output=True, text=True, check=True)

    lines = done.stdout.splitlines()
    assert len(lines) == 3, done.stdout
    assert all(line.startswith("OutputUnwritable ") and "File too large" in line for line in lines), lines
    assert files_of(local(settings.output_dir)) == files
    assert keys_of(redis_server, settings.source) == keys
    assert_tidy(settings, redis_server)
