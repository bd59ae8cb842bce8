"""Runs one after another over real files and a real Redis, and changes and faults between and during them."""

from __future__ import annotations

import gzip
import json
import os
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from optimizer import Settings, optimize
from optimizer.cache.keys import Keys
from optimizer.errors import (
    NoRecords,
    OutputUnwritable,
    SourceError,
    SourceMalformed,
    SourceMissing,
    SourceTorn,
    SourceUnreadable,
)
from optimizer.models import ChangeCounts
from optimizer.pipeline.run import Progress
from optimizer.snapshots.format import FILE_NAMES
from optimizer.snapshots.store import snapshot_store
from tests.support.published_state import (
    NEW,
    OLD,
    as_unprivileged,
    assert_redis_holds_the_files,
    assert_tidy,
    files_of,
    keys_of,
    no_scan,
    once,
    run_old,
    runs_of,
    symbols_shown,
    version_of,
)
from tests.support.redis_servers import RedisServer, wait_until
from tests.support.rolling_files import a_record, local, touch_later, write_json, write_raw

# ---- a run


def test_a_run_writes_three_snapshots_and_publishes_them(settings: Settings, redis_server: RedisServer) -> None:
    """After a run, files and Redis hold the same bytes, and no partial file, lock or staged key is left."""
    report = run_old(settings)

    assert (report.status, report.cache) == ("success", "published")
    assert symbols_shown(settings) == ["MSFT", "AAPL"]
    assert_redis_holds_the_files(redis_server, settings)
    assert_tidy(settings, redis_server)
    assert runs_of(redis_server, settings.source) == [report]


def test_an_unchanged_input_is_confirmed_without_a_scan(settings: Settings, redis_server: RedisServer) -> None:
    """An unchanged input is not scanned: the version stays, and files and Redis have the time of its confirmation."""
    first = run_old(settings)
    manifest = local(settings.output_dir) / "manifest.json"
    os.utime(manifest, (0, 0))
    with redis_server.client as client:
        client.hset(Keys(settings.source).current, "checked_at", first.timestamp)
        wait_until(lambda: time.time_ns() // 1_000_000 > version_of(first), what="another millisecond")

        report = optimize(settings, progress=no_scan)

        checked_at = client.hget(Keys(settings.source).current, "checked_at")
    assert (report.status, report.cache, report.version) == ("unchanged", "current", first.version)
    assert first.timestamp.encode() < checked_at <= report.timestamp.encode()
    assert manifest.stat().st_mtime > 0
    assert_redis_holds_the_files(redis_server, settings)


def test_a_forced_run_scans_though_nothing_changed(settings: Settings) -> None:
    """A forced run scans an unchanged input, and the same content keeps its version.

    This also holds if a setting that shapes the snapshots was changed and makes no difference here.
    """
    first = run_old(settings)
    scanned: list[int] = []

    for one in (settings, replace(settings, min_confidence=0.1)):
        scanned.clear()
        again = optimize(one, force=True, progress=lambda done, _: scanned.append(done))
        assert (again.status, again.version, again.changes) == ("success", first.version, ChangeCounts())
        assert scanned


@pytest.mark.parametrize(
    "change",
    [
        {"top_symbols_limit": 1},
        {"min_confidence": 0.8},
        {"index_symbols_limit": 300},
        {"gzip_level": 1},
        {"max_record_bytes": 4_096},
        {"fields": "+sector"},
        {"bot_fields": "equity=balance"},
        {"position_fields": "avg_price=cost"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_setting_that_shapes_the_snapshots_makes_them_anew(
    settings_without_redis: Settings, change: dict[str, Any]
) -> None:
    """After a change of a setting that shapes the snapshots, the next run scans the unchanged input.

    The run after that does not.
    """
    run_old(settings_without_redis, use_cache=False)
    changed = replace(settings_without_redis, **change)

    assert optimize(changed, use_cache=False).status == "success"
    assert optimize(changed, use_cache=False, progress=no_scan).status == "unchanged"


def test_a_setting_that_does_not_shape_them_changes_nothing(settings_without_redis: Settings) -> None:
    """Another `interval_s` causes no scan, since it does not shape the snapshots."""
    run_old(settings_without_redis, use_cache=False)

    report = optimize(replace(settings_without_redis, interval_s=5), use_cache=False, progress=no_scan)

    assert report.status == "unchanged"


def test_a_touched_input_is_scanned(settings_without_redis: Settings) -> None:
    """An input with another time of modification is scanned, since its content may have changed."""
    run_old(settings_without_redis, use_cache=False)
    touch_later(local(settings_without_redis.input))

    assert optimize(settings_without_redis, use_cache=False).status == "success"


def test_a_change_in_the_bots_directory_is_noticed(settings_without_redis: Settings, tmp_path: Path) -> None:
    """A run publishes a bot file that was added, changed or removed, though the input is unchanged."""
    settings = replace(settings_without_redis, bots_dir=tmp_path / "bots")
    (tmp_path / "bots").mkdir()
    run_old(settings, use_cache=False)

    def bots_after(change: Callable[[], object]) -> dict[str, Any]:
        change()
        assert optimize(settings, use_cache=False).status == "success"
        assert optimize(settings, use_cache=False, progress=no_scan).status == "unchanged"
        shown = json.loads(gzip.decompress((local(settings.output_dir) / FILE_NAMES["bots"]).read_bytes()))["bots"]
        return {name: bot["equity"] for name, bot in shown.items()}

    bot = tmp_path / "bots" / "gamma.json"
    assert bots_after(lambda: write_json(bot, {"equity": 1})) == {"alpha": 10.5, "gamma": 1}
    assert bots_after(lambda: write_json(bot, {"equity": 2})) == {"alpha": 10.5, "gamma": 2}
    assert bots_after(bot.unlink) == {"alpha": 10.5}


@pytest.mark.parametrize("name", [*FILE_NAMES.values(), "manifest.json"])
def test_a_damaged_set_is_made_anew(settings: Settings, redis_server: RedisServer, name: str) -> None:
    """A set whose files do not match their manifest is not confirmed: a new version is made of the same input."""
    first = run_old(settings)
    damaged = (local(settings.output_dir) / name).resolve()
    damaged.write_bytes(damaged.read_bytes()[:-1])

    report = optimize(settings)

    assert report.status == "success"
    assert version_of(report) > version_of(first)
    assert_redis_holds_the_files(redis_server, settings)


@pytest.mark.parametrize("name", [*FILE_NAMES.values(), "manifest.json"])
def test_a_fixed_name_that_was_removed_comes_back(settings_without_redis: Settings, name: str) -> None:
    """The next run restores a fixed name that was removed, even if it finds the input unchanged.

    The next version may not be made for a long time.
    """
    run_old(settings_without_redis, use_cache=False)
    before = files_of(local(settings_without_redis.output_dir))
    (local(settings_without_redis.output_dir) / name).unlink()

    assert optimize(settings_without_redis, use_cache=False, progress=no_scan).status == "unchanged"

    assert files_of(local(settings_without_redis.output_dir)) == before


# ---- bad input


@dataclass(frozen=True)
class Fault:
    """A bad input: how it is made, before the run or during its scan, and the error that the run reports."""

    make: Callable[[Path], object]
    error: type[SourceError]
    says: str
    amid_the_scan: bool = False


def make_a_directory(path: Path) -> None:
    """Put a directory in the place of the file."""
    path.unlink()
    path.mkdir()


def write_gzip(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    """Return a function that writes a good file with changed compressed bytes."""
    return lambda path: path.write_bytes(change(gzip.compress(json.dumps(NEW).encode())))


def write_text(text: bytes) -> Callable[[Path], object]:
    """Return a function that writes some bytes as a whole gzip file."""
    return lambda path: write_raw(path, text)


def overwrite(path: Path) -> None:
    """Write other bytes over the second half of the file, which keeps its length."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"x" * 1_000)


def append(path: Path) -> None:
    """Append a gzip member to the file."""
    with path.open("ab") as file:
        file.write(gzip.compress(b"{}"))


# Several chunks of JSON, and of compressed bytes.
NOISE = random.Random(1)
BIG = {f"S{number}": a_record(debug={"noise": NOISE.randbytes(10_000).hex()}) for number in range(60)}
WRITTEN_TO = "was written to while it was read"

LONG_AND_DISCARDED = json.dumps({"AAPL": a_record(curve=[1.5] * 2_000)}).encode()[:-1]
BARE_WORD = LONG_AND_DISCARDED + b', "MSFT": {"confidence": 0.9, "sentiment": bullish}}'
BARE_WORD_AT = f"byte {BARE_WORD.rindex(b'bullish'):,}:"
NO_UTF8 = b'{"AAPL": {"prediction": 1, "confidence": 0.9, "last_price": 1, "sentiment": "\xff"}}'

FAULTS = {
    "missing": Fault(Path.unlink, SourceMissing, "not found; set ROLLING_INPUT"),
    "a directory": Fault(make_a_directory, SourceUnreadable, "directory"),
    "garbage": Fault(lambda path: path.write_bytes(bytes(range(256)) * 9), SourceMalformed, "byte 0"),
    "text that is no JSON": Fault(write_text(b"Internal Server Error"), SourceMalformed, "byte 0"),
    "truncated gzip": Fault(write_gzip(lambda data: data[:-40]), SourceTorn, "ends early"),
    "gzip without its trailer": Fault(write_gzip(lambda data: data[:-8]), SourceTorn, "ends early"),
    "bad checksum": Fault(
        write_gzip(lambda data: data[:-8] + bytes([data[-8] ^ 1]) + data[-7:]), SourceTorn, "check failed"
    ),
    "bad length": Fault(write_gzip(lambda data: data[:-1] + bytes([data[-1] ^ 1])), SourceTorn, "check failed"),
    "bytes after the end": Fault(
        write_gzip(lambda data: data + b"more than a header"), SourceTorn, "what follows is no gzip"
    ),
    "empty file": Fault(lambda path: path.write_bytes(b""), NoRecords, "0 records seen"),
    "gzip of nothing": Fault(write_text(b""), NoRecords, "0 records seen"),
    "empty object": Fault(write_text(b"{}"), NoRecords, "0 records seen"),
    "no UTF-8": Fault(write_text(NO_UTF8), NoRecords, "1 x TextInvalid (sentiment is not valid text: "),
    "malformed": Fault(write_text(BARE_WORD), SourceMalformed, BARE_WORD_AT),
    "all rejected": Fault(
        write_text(json.dumps({"A": a_record(confidence=7), "B": a_record(confidence=8)}).encode()),
        NoRecords,
        "2 x ConfidenceInvalid",
    ),
    "too deep": Fault(
        write_text(b'{"AAPL": {"x": ' + b"[" * 1_000 + b"]" * 1_000 + b"}}"),
        SourceMalformed,
        "nested deeper than 1,000",
    ),
    "torn JSON": Fault(write_text(json.dumps(NEW).encode()[:-9]), SourceTorn, "the JSON ends"),
    "overwritten": Fault(overwrite, SourceTorn, WRITTEN_TO, amid_the_scan=True),
    "appended to": Fault(append, SourceTorn, WRITTEN_TO, amid_the_scan=True),
    "truncated": Fault(lambda path: os.truncate(path, 100), SourceTorn, WRITTEN_TO, amid_the_scan=True),
    "rewritten": Fault(
        lambda path: path.write_bytes(gzip.compress(json.dumps(NEW).encode())),
        SourceTorn,
        WRITTEN_TO,
        amid_the_scan=True,
    ),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_bad_input_leaves_everything_as_it_was(settings: Settings, redis_server: RedisServer, fault: Fault) -> None:
    """A run over a bad input fails and is reported; files and Redis keep the old snapshots.

    The run over the next good input publishes again.
    """
    run_old(settings)
    files, keys = files_of(local(settings.output_dir)), keys_of(redis_server, settings.source)
    progress: Progress | None = None
    if fault.amid_the_scan:
        write_json(settings.input, BIG)
        os.utime(local(settings.input), (0, 0))  # a file system's clock is coarse: date this before the next write
        progress = once(lambda: fault.make(local(settings.input)))
    else:
        fault.make(local(settings.input))

    with pytest.raises(fault.error) as raised:
        optimize(settings, progress=progress)

    assert type(raised.value) is fault.error
    assert str(settings.input) in str(raised.value)
    assert fault.says in str(raised.value)
    assert files_of(local(settings.output_dir)) == files
    assert keys_of(redis_server, settings.source) == keys
    failed = runs_of(redis_server, settings.source)[0]
    assert (failed.status, failed.error, failed.details) == ("failed", fault.error.__name__, str(raised.value))
    assert_tidy(settings, redis_server)

    with suppress(OSError):
        local(settings.input).rmdir()
    write_json(settings.input, NEW)
    assert optimize(settings).status == "success"
    assert symbols_shown(settings) == ["NVDA", "MSFT"]
    assert_redis_holds_the_files(redis_server, settings)
    assert_tidy(settings, redis_server)


@pytest.mark.parametrize("name", ["rolling_brain.json.gz", "rolling_brain.json"])
def test_a_file_replaced_amid_the_scan_is_published_as_it_was(settings_without_redis: Settings, name: str) -> None:
    """A file that is replaced during its scan is published as it was opened, since an open file stays whole.

    The next run publishes the new file.
    """
    settings = replace(settings_without_redis, input=local(settings_without_redis.input).with_name(name))
    write_json(settings.input, BIG)

    report = optimize(settings, use_cache=False, progress=once(lambda: write_json(settings.input, NEW)))

    assert report.status == "success"
    assert set(symbols_shown(settings)) == set(BIG)
    assert optimize(settings, use_cache=False).status == "success"
    assert symbols_shown(settings) == ["NVDA", "MSFT"]


def test_a_first_run_that_fails_leaves_no_snapshot(settings: Settings, redis_server: RedisServer) -> None:
    """A first run that fails leaves no file in the output directory, and no key that looks like a snapshot in Redis."""
    write_raw(settings.input, b"{}")

    with pytest.raises(NoRecords):
        optimize(settings)

    assert files_of(local(settings.output_dir)) == {}
    assert keys_of(redis_server, settings.source) == {}


# ---- ticks


def test_a_tick_is_taken_once(settings: Settings, redis_server: RedisServer) -> None:
    """Of several runs for one tick only the first is made, and the others are skipped, also a forced one.

    A run for the next tick is made, and so is a run by hand, which takes no tick.
    """
    write_json(settings.input, OLD)

    reports = [optimize(settings, tick=7), optimize(settings, tick=7), optimize(settings, tick=7, force=True)]

    assert [(report.status, report.reason) for report in reports] == [
        ("success", None),
        ("skipped", "tick_taken"),
        ("skipped", "tick_taken"),
    ]
    assert optimize(settings, tick=8).status == "unchanged"
    assert optimize(settings).status == "unchanged"
    with redis_server.client as client:
        assert settings.interval_s < client.ttl(Keys(settings.source).tick(7)) <= 2 * settings.interval_s


# ---- places that cannot be used


def test_an_input_that_may_not_be_read_stops_the_run(settings_without_redis: Settings, open_directory: Path) -> None:
    """An input that is there but may not be read fails the run, and the message says that permission is denied."""
    output_dir = open_directory / "out"
    settings = replace(settings_without_redis, input=open_directory / "rolling_brain.json.gz", output_dir=output_dir)
    write_json(settings.input, OLD).chmod(0)
    open_directory.chmod(0o777)

    with as_unprivileged(), pytest.raises(SourceUnreadable, match="Permission denied"):
        optimize(settings, use_cache=False)


def test_an_output_directory_that_is_a_file_stops_the_run(settings_without_redis: Settings) -> None:
    """If the output directory is a file, the run fails before it scans anything, and leaves the file alone."""
    write_json(settings_without_redis.input, OLD)
    local(settings_without_redis.output_dir).write_text("precious")

    with pytest.raises(OutputUnwritable, match="File exists"):
        optimize(settings_without_redis, use_cache=False, progress=no_scan)

    assert local(settings_without_redis.output_dir).read_text() == "precious"
    assert snapshot_store(settings_without_redis.output_dir).read_manifest() is None
