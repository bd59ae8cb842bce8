"""Rollback and unpin: a kept version is published again and pinned, ticks confirm it, and its pin is removed."""

from __future__ import annotations

import shutil
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from optimizer import Settings, SnapshotReader, optimize
from optimizer.cache.clocks import text_of
from optimizer.cache.keys import Keys
from optimizer.cache.writer import VersionWriter
from optimizer.errors import OutputUnwritable, PublishRefused, VersionMissing
from optimizer.models import ChangeCounts, KindCounts, Manifest, Report
from optimizer.pipeline.background import ScheduledRuns
from optimizer.pipeline.distributed import merge_parts
from optimizer.pipeline.process import user_at_host
from optimizer.pipeline.rollback import rollback, unpin
from optimizer.snapshots.format import FILE_NAMES
from optimizer.snapshots.store import snapshot_store
from tests.support.distributed_runs import dispatched, run_here, scan_all
from tests.support.ports import free_port
from tests.support.published_state import (
    NEW,
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
from tests.support.rolling_files import a_record, local, write_json
from tests.support.s3_server import S3Server


def run_new(settings: Settings, **options: Any) -> Report:
    """Write an input other than the one of `run_old`, and publish it."""
    write_json(settings.input, NEW)
    report = optimize(settings, **options)
    assert report.status == "success"
    return report


def manifest_in_files(settings: Settings) -> Manifest:
    """The manifest of the current set."""
    manifest = snapshot_store(settings.output_dir).read_manifest()
    assert manifest is not None
    return manifest


def manifest_in_redis(server: RedisServer, settings: Settings) -> Manifest:
    """The manifest in Redis' pointer."""
    with server.client as client:
        return msgspec.json.decode(client.hget(Keys(settings.source).current, "manifest"), type=Manifest)


def payloads_of(settings: Settings, version: int) -> list[bytes]:
    """The bytes of the snapshot files of a kept set."""
    return [
        (local(settings.output_dir) / "versions" / str(version) / name).read_bytes() for name in FILE_NAMES.values()
    ]


def assert_pinned(report: Report, version: int) -> None:
    """Check the report of a run that found its version pinned."""
    assert (report.status, report.reason, report.version) == ("skipped", "pinned", version)
    assert report.pinned is not None
    assert report.details == (
        f"version {version} is pinned since {report.pinned.at} by {user_at_host()}; runs publish again after: "
        "rolling-optimizer unpin"
    )


# ---- a rollback


def test_an_old_version_is_published_again_under_a_new_number(settings: Settings, redis_server: RedisServer) -> None:
    """A rollback publishes a kept version under a new number, with the same bytes in the files and in Redis.

    The manifest names the old version, what changed, and who made and pinned it. A rollback is reported as a run, and
    is no scan.
    """
    old = version_of(run_old(settings))
    new = version_of(run_new(settings))
    before = payloads_of(settings, old)

    report = rollback(settings, old)

    manifest = manifest_in_files(settings)
    assert report.status == "success"
    assert report.version == manifest.version > new
    assert payloads_of(settings, manifest.version) == before
    assert symbols_shown(settings) == ["MSFT", "AAPL"]
    assert_redis_holds_the_files(redis_server, settings)
    assert manifest.restored_from == old
    assert manifest.made_by == user_at_host()
    assert manifest.pinned == report.pinned
    assert report.pinned is not None
    assert report.pinned.by == user_at_host()
    assert report.changes == manifest.changes
    assert manifest.changes == ChangeCounts(
        predictions=KindCounts(1, 1, 1), bots=KindCounts(1, 0, 1), holdings=KindCounts(1, 0, 0)
    )
    assert runs_of(redis_server, settings.source)[0] == report
    with redis_server.client as client:  # a rollback is no scan
        assert client.xlen(Keys(settings.source).scans) == 2
    assert_tidy(settings, redis_server)


def test_the_version_that_is_shown_can_be_pinned(settings: Settings, redis_server: RedisServer) -> None:
    """A rollback to the current version pins it under a new number, as every rollback makes one.

    Nothing changes, and `content_since` stays at the old number.
    """
    shown = version_of(run_old(settings))
    report = rollback(settings, shown)
    manifest = manifest_in_files(settings)
    assert version_of(report) > shown
    assert (manifest.restored_from, manifest.content_since, report.changes) == (shown, shown, ChangeCounts())
    assert_redis_holds_the_files(redis_server, settings)
    assert_pinned(optimize(settings), manifest.version)


def test_a_rollback_may_follow_a_rollback(settings: Settings) -> None:
    """A rollback to another kept version works while the version of an earlier rollback is pinned."""
    settings = replace(settings, keep_versions=5)
    first, second = version_of(run_old(settings)), version_of(run_new(settings))
    rollback(settings, first)
    again = rollback(settings, second)
    assert symbols_shown(settings) == ["NVDA", "MSFT"]
    assert_pinned(optimize(settings), version_of(again))


def test_versions_rise_though_the_clock_is_behind(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the clock is set back by a day, a rollback and a later run still make versions above the newest one.

    Readers have that version; each new one is the last plus 1.
    """
    with monkeypatch.context() as patched:
        patched.setattr(time, "time_ns", lambda now=time.time_ns: now() + 86_400 * 10**9)
        old, new = version_of(run_old(settings)), version_of(run_new(settings))
    report = rollback(settings, old)
    assert report.version == new + 1
    unpin(settings)
    write_json(settings.input, {"AMD": a_record()})
    assert optimize(settings).version == new + 2


@pytest.mark.parametrize("damage", ["none kept", "not kept", "payload", "size", "manifest"])
def test_a_version_that_cannot_be_restored_is_refused_by_name(
    settings: Settings, redis_server: RedisServer, damage: str
) -> None:
    """A rollback to a version that is not kept or is damaged fails with an error that names the kept versions.

    Files and Redis stay unchanged, and no failed run is reported.
    """
    if damage == "none kept":
        with pytest.raises(VersionMissing, match=r"version 7 of 'rolling_brain' is not kept in .*; no"):
            rollback(settings, 7)
        assert runs_of(redis_server, settings.source) == []
        return
    old, new = version_of(run_old(settings)), version_of(run_new(settings))
    path = local(settings.output_dir) / "versions" / str(old)
    file = path / ("manifest.json" if damage == "manifest" else FILE_NAMES["bots"])
    text, wanted = rf"version {old} of 'rolling_brain' in {settings.output_dir} is damaged: ", old
    if damage == "not kept":
        text, wanted = "version 7 of 'rolling_brain' is not kept in .*", 7
    elif damage == "payload":
        file.write_bytes(bytes(file.stat().st_size))
        text += "a file is not what its manifest lists"
    elif damage == "size":
        file.write_bytes(b"")
        text += "bots_snapshot.json.gz has 0 of [0-9]+ bytes"
    else:
        file.write_bytes(b"{")
        text += "manifest.json is missing or damaged"
    files, keys, runs = files_of(local(settings.output_dir)), keys_of(redis_server, "rolling_brain"), 2

    kept = f"{new}, {old}" if damage in ("not kept", "payload") else f"{new}"
    with pytest.raises(VersionMissing, match=rf"{text}; kept are {kept}: rolling-optimizer versions"):
        rollback(settings, wanted)

    assert files_of(local(settings.output_dir)) == files
    assert keys_of(redis_server, "rolling_brain") == keys
    assert len(runs_of(redis_server, settings.source)) == runs


def test_a_rollback_removes_no_kept_version(settings: Settings) -> None:
    """A rollback and an unpin remove no kept version; the next tick removes the versions that are too old.

    The shell of an operator may lack the worker's ROLLING_KEEP_VERSIONS.
    """
    worker = replace(settings, keep_versions=5)
    versions = [version_of(run_old(worker))]
    for number in range(3):
        write_json(settings.input, {f"S{number}": a_record()})
        versions.append(version_of(optimize(worker)))
    shell = replace(settings, keep_versions=2)
    restored = version_of(rollback(shell, versions[0]))
    unpin(shell)
    assert [kept.version for kept in snapshot_store(settings.output_dir).versions()] == [restored, *versions[::-1]]
    optimize(worker)
    assert len(snapshot_store(settings.output_dir).versions()) == 5


def test_an_output_directory_that_is_not_writable_is_named(settings: Settings, open_directory: Path) -> None:
    """A rollback in a directory that is not writable fails and names it, and the old version stays."""
    settings = replace(settings, output_dir=open_directory / "snapshots")
    old = version_of(run_old(settings))
    with as_unprivileged(), pytest.raises(OutputUnwritable, match=rf"Permission denied.*{settings.output_dir}"):
        rollback(settings, old)
    assert manifest_in_files(settings).version == old


# ---- ticks while a version is pinned


@pytest.mark.parametrize("options", [{}, {"force": True}, {"accept": True}, {"tick": 5}], ids=str)
def test_a_run_on_a_pinned_version_opens_no_input(settings: Settings, options: dict[str, Any]) -> None:
    """A run on a pinned version confirms it in Redis and in the files, and opens no input, which may be missing.

    That holds with `force`, with `accept` and for a tick too.
    """
    old = version_of(run_old(settings))
    run_new(settings)
    pinned = version_of(rollback(settings, old))
    local(settings.input).unlink()
    manifest = local(settings.output_dir) / "manifest.json"
    before_s = manifest.stat().st_mtime_ns
    with closing(SnapshotReader.from_settings(settings)) as reader:
        confirmed = reader.manifest().checked_at
        report = optimize(settings, progress=no_scan, **options)
        reader.refresh()
        state = reader.manifest()

    assert_pinned(report, pinned)
    assert report.cache == "current"
    assert manifest.stat().st_mtime_ns > before_s
    assert state.checked_at > confirmed
    assert (state.version, state.pinned, state.restored_from) == (pinned, report.pinned, old)


def test_a_pinned_tick_without_redis_confirms_the_files(settings: Settings, redis_server: RedisServer) -> None:
    """If a rollback was made without Redis, runs without Redis confirm its pinned version in the files.

    The first tick that reaches Redis publishes the version there, pinned.
    """
    old = version_of(run_old(settings))
    new = version_of(run_new(settings))
    away = replace(settings, redis_url=f"redis://127.0.0.1:{free_port()}/0")
    report = rollback(away, old)
    assert (report.status, report.cache) == ("success", "down")
    assert manifest_in_redis(redis_server, settings).version == new

    assert optimize(away, use_cache=False).cache == "off"
    assert_pinned(optimize(away), version_of(report))
    report = optimize(settings, progress=no_scan)

    assert_pinned(report, version_of(report))
    assert report.cache == "republished"
    assert manifest_in_redis(redis_server, settings) == manifest_in_files(settings)
    assert_redis_holds_the_files(redis_server, settings)


@pytest.mark.parametrize("loss", ["all", "a payload", "the pin"])
def test_a_pinned_tick_repairs_redis(settings: Settings, redis_server: RedisServer, loss: str) -> None:
    """A tick on a pinned version publishes it again from the files if Redis has lost data or the pin; the pin stays."""
    pinned = version_of(rollback(settings, version_of(run_old(settings))))
    keys = Keys(settings.source)
    with redis_server.client as client:
        if loss == "all":
            client.flushall()
        elif loss == "a payload":
            client.delete(keys.payload(pinned, "bots"))
        else:
            manifest = msgspec.structs.replace(manifest_in_files(settings), pinned=None)
            client.hset(keys.current, "manifest", msgspec.json.encode(manifest))
    report = optimize(settings, progress=no_scan)
    assert_pinned(report, pinned)
    assert report.cache == "republished"
    assert_redis_holds_the_files(redis_server, settings)


def test_a_pinned_version_below_one_that_redis_has_shown_gets_a_number_above_it(
    settings: Settings, redis_server: RedisServer
) -> None:
    """A pinned version in the files is published under a new number if Redis has shown a newer version.

    That happens with files of a backup, for example: readers hold the newer version and never go back.
    """
    old = version_of(run_old(settings))
    pinned = version_of(rollback(settings, old))
    shutil.copytree(local(settings.output_dir), backup := local(settings.output_dir).with_name("backup"), symlinks=True)
    unpin(settings)
    newest = version_of(run_new(settings))
    shutil.rmtree(local(settings.output_dir))
    backup.rename(local(settings.output_dir))
    with redis_server.client as client:
        client.delete(Keys(settings.source).current)

    report = optimize(settings, progress=no_scan)

    manifest = manifest_in_files(settings)
    assert report.reason == "pinned"
    assert report.version == manifest.version > newest > pinned
    assert (manifest.restored_from, manifest.pinned) == (old, report.pinned)
    assert_redis_holds_the_files(redis_server, settings)


def test_a_worker_with_another_directory_obeys_a_pin(settings: Settings, redis_server: RedisServer) -> None:
    """A worker with another directory sees the pin in Redis and confirms the version there.

    Its own files stay unchanged.
    """
    old = version_of(run_old(settings))
    other = replace(settings, output_dir=local(settings.output_dir).with_name("other"))
    assert optimize(other).status == "success"
    pinned = version_of(rollback(settings, old))
    write_json(settings.input, NEW)
    files = files_of(local(other.output_dir))

    report = optimize(other, progress=no_scan)

    assert_pinned(report, pinned)
    assert files_of(local(other.output_dir)) == files
    assert manifest_in_redis(redis_server, settings).pinned == report.pinned


def test_files_of_a_pinned_version_that_are_damaged_are_told(settings: Settings, redis_server: RedisServer) -> None:
    """If the files of a pinned version are damaged, a run confirms it in Redis, and its report has a warning.

    Once Redis has lost the version too, runs fail with `VersionMissing` until the version is unpinned.
    """
    pinned = version_of(rollback(settings, version_of(run_old(settings))))
    (local(settings.output_dir) / "current" / FILE_NAMES["index"]).write_bytes(b"")
    report = optimize(settings)
    assert_pinned(report, pinned)
    assert report.warning == (
        f"the files of the pinned version {pinned} in {settings.output_dir} are not whole; Redis shows it"
    )
    with redis_server.client as client:
        client.flushall()
    with pytest.raises(
        VersionMissing, match=f"version {pinned} is pinned since .* is whole neither in .* nor in Redis"
    ):
        optimize(settings)
    unpin(settings)
    assert optimize(settings).status == "success"


def test_parts_that_come_back_after_a_rollback_publish_nothing(parted: Settings, redis_server: RedisServer) -> None:
    """A distributed run whose parts are scanned after a rollback publishes nothing, and the pinned version stays.

    The lock of that run had expired, so the rollback did not wait for it.
    """
    first = version_of(optimize(parted))
    write_json(local(parted.input).parent / "a.json", {"NVDA": a_record()})
    assignment = dispatched(parted)
    with redis_server.client as client:
        client.delete(Keys(parted.source).lock)
    pinned = version_of(rollback(parted, first))

    report = merge_parts(parted, assignment.token, scan_all(parted, assignment))

    assert_pinned(report, pinned)
    assert manifest_in_files(parted).version == pinned
    with redis_server.client as client:
        assert client.exists(Keys(parted.source).handed) == 0
    assert_pinned(run_here(parted, force=True), pinned)


def test_scheduled_runs_in_a_thread_obey_a_pin(settings: Settings) -> None:
    """Scheduled runs in a thread, as `background` and `run --every` have them, leave a pinned version in place."""
    pinned = version_of(rollback(settings, version_of(run_old(settings))))
    write_json(settings.input, NEW)
    reports: list[Report] = []
    runs = ScheduledRuns(replace(settings, interval_s=0.1, startup_delay_s=0), on_report=reports.append)
    runs.start()
    wait_until(lambda: len(reports) >= 2, what="two ticks")
    runs.stop()
    assert runs.wait(10)
    for report in reports:
        assert_pinned(report, pinned)


@pytest.mark.slow
def test_a_rollback_in_an_object_store(settings: Settings, redis_server: RedisServer, s3: S3Server) -> None:
    """In an object store, versions are listed, published again, confirmed and unpinned as in a directory."""
    settings = replace(settings, output_dir=s3.bucket / "rollback", keep_versions=3)
    old, new = version_of(run_old(settings)), version_of(run_new(settings))
    store = snapshot_store(settings.output_dir)
    assert [kept.version for kept in store.versions()] == [new, old]

    pinned = version_of(rollback(settings, old))

    before, after = store.versions()[2], store.versions()[0]
    assert (before.version, after.version) == (old, pinned)
    assert before.manifest is not None
    assert after.manifest is not None
    assert after.manifest.snapshots == before.manifest.snapshots
    assert_pinned(optimize(settings, progress=no_scan), pinned)
    assert manifest_in_redis(redis_server, settings) == after.manifest
    with redis_server.client as client:
        client.flushall()
    assert optimize(settings, progress=no_scan).cache == "republished"
    unpin(settings)
    assert (
        manifest_in_redis(redis_server, settings)
        == store.read_manifest()
        == msgspec.structs.replace(after.manifest, pinned=None)
    )
    assert optimize(settings).status == "success"


# ---- a run in progress


def test_a_rollback_waits_for_a_run_that_is_on(settings: Settings, redis_server: RedisServer) -> None:
    """A rollback waits for a run in progress, calls `on_wait` once, and replaces the version that the run published."""
    old = version_of(run_old(settings))
    waits: list[None] = []
    reports: list[Report] = []
    thread = threading.Thread(
        target=lambda: reports.append(rollback(settings, old, on_wait=lambda: waits.append(None)))
    )

    def begin_rollback() -> None:
        thread.start()
        wait_until(lambda: bool(waits), what="the rollback to wait")

    new = run_new(settings, progress=once(begin_rollback))
    thread.join(20)

    assert len(waits) == 1
    assert version_of(reports[0]) > version_of(new)
    assert manifest_in_files(settings).restored_from == old
    assert [report.status for report in runs_of(redis_server, settings.source)] == ["success"] * 3
    assert_redis_holds_the_files(redis_server, settings)


@pytest.mark.parametrize("use_cache", [True, False], ids=["with Redis", "files only"])
def test_a_rollback_waits_no_longer_than_its_limit(settings: Settings, *, use_cache: bool) -> None:
    """A rollback is refused if a run in progress does not end within its limit; the run continues and publishes."""
    old = version_of(run_old(settings, use_cache=use_cache))

    def refused() -> None:
        with pytest.raises(PublishRefused, match=r"a run of 'rolling_brain' is on, and has not ended within 0\.3 s"):
            rollback(settings, old, wait_s=0.3, use_cache=use_cache)

    assert manifest_in_files(settings).version == old
    report = run_new(settings, progress=once(refused), use_cache=use_cache)
    assert manifest_in_files(settings).version == report.version


def test_two_rollbacks_at_once_come_one_after_the_other(settings: Settings, redis_server: RedisServer) -> None:
    """Four rollbacks at the same time are published one after the other.

    The last one stays, and Redis holds the same version as the files.
    """
    settings = replace(settings, keep_versions=10)
    versions = [version_of(run_old(settings)), version_of(run_new(settings))]
    reports: list[Report] = []
    threads = [
        threading.Thread(target=lambda version=version: reports.append(rollback(settings, version)))
        for version in versions * 2
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len({report.version for report in reports}) == 4
    last = max(reports, key=version_of)
    assert manifest_in_files(settings).version == last.version
    assert_redis_holds_the_files(redis_server, settings)


# ---- unpin


def test_unpin_lets_the_next_run_publish(settings: Settings, redis_server: RedisServer) -> None:
    """`unpin` removes the pin and keeps the version, in files and Redis and for readers that hold it.

    The next run publishes the input.
    """
    old = version_of(run_old(settings))
    run_new(settings)
    pinned = version_of(rollback(settings, old))
    with closing(SnapshotReader.from_settings(settings)) as reader:
        assert reader.manifest().pinned is not None
        report = unpin(settings)
        reader.refresh()
        state = reader.manifest()

    assert (report.status, report.version) == ("unchanged", pinned)
    assert report.details is not None
    assert report.details.startswith(f"unpinned by {user_at_host()}: version {pinned} was pinned since ")
    assert (state.version, state.pinned, state.restored_from) == (pinned, None, old)
    assert_redis_holds_the_files(redis_server, settings)
    report = optimize(settings)
    assert (report.status, symbols_shown(settings)) == ("success", ["NVDA", "MSFT"])
    assert_redis_holds_the_files(redis_server, settings)


@pytest.mark.parametrize("times", [0, 1], ids=["never pinned", "unpinned before"])
def test_without_a_pin_there_is_nothing_to_remove(settings: Settings, redis_server: RedisServer, times: int) -> None:
    """`unpin` is skipped if no version is pinned, also as the second of two, and is not reported as a run."""
    version = version_of(run_old(settings))
    for _ in range(times):
        rollback(settings, version)
        unpin(settings)
    runs = runs_of(redis_server, settings.source)
    report = unpin(settings)
    assert (report.status, report.reason) == ("skipped", "not_pinned")
    assert report.details == "no version of 'rolling_brain' is pinned: runs publish what the input holds"
    assert runs_of(redis_server, settings.source) == runs


def test_unpin_without_redis_is_in_the_files_and_reaches_redis_later(
    settings: Settings, redis_server: RedisServer
) -> None:
    """`unpin` without Redis removes the pin in the files, and the next tick removes it in Redis.

    At equal versions the files' manifest counts, so the tick does not take the pin in Redis for newer.
    """
    version_of(rollback(settings, version_of(run_old(settings))))
    report = unpin(replace(settings, redis_url=f"redis://127.0.0.1:{free_port()}/0"))
    assert report.cache == "down"
    assert manifest_in_redis(redis_server, settings).pinned is not None

    assert optimize(settings, progress=no_scan).status == "unchanged"

    assert manifest_in_redis(redis_server, settings).pinned is None
    assert_redis_holds_the_files(redis_server, settings)


def test_unpin_ends_what_an_earlier_one_left_in_redis(settings: Settings, redis_server: RedisServer) -> None:
    """`unpin` removes a pin that an earlier `unpin`, killed between the files and Redis, has left in Redis.

    No run can repair that here, since the input is gone.
    """
    first = version_of(run_old(settings))
    run_new(settings)
    pinned = version_of(rollback(settings, first))
    local(settings.input).unlink()
    store = snapshot_store(settings.output_dir)
    store.replace_manifest(msgspec.structs.replace(manifest_in_files(settings), pinned=None))
    assert manifest_in_redis(redis_server, settings).pinned is not None

    report = unpin(settings)

    assert (report.status, report.version) == ("unchanged", pinned)
    assert manifest_in_redis(redis_server, settings).pinned is None


def test_unpin_where_the_version_is_in_redis_alone(settings: Settings, redis_server: RedisServer) -> None:
    """If the directory with the pinned version is lost, `unpin` replaces the manifest in Redis, and runs publish again.

    Its report says that the directory does not hold the version.
    """
    rollback(settings, version_of(run_old(settings)))
    shutil.rmtree(local(settings.output_dir))
    assert optimize(settings, progress=no_scan).reason == "pinned"
    report = unpin(settings)
    assert report.details is not None
    assert f"{settings.output_dir} does not hold it" in report.details
    assert manifest_in_redis(redis_server, settings).pinned is None
    assert optimize(settings).status == "success"


def test_the_number_and_the_time_of_a_version_are_one_reading_of_the_clock(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version's number and its `generated_at` are one reading of the clock.

    That holds however long Redis takes to return the newest version.
    """
    newest_known = VersionWriter.newest_known

    def slowly(writer: VersionWriter) -> int:
        time.sleep(0.01)
        return newest_known(writer)

    monkeypatch.setattr(VersionWriter, "newest_known", slowly)
    first = run_old(settings)
    assert manifest_in_files(settings).generated_at == text_of(version_of(first) / 1000)
    again = rollback(settings, version_of(first))
    assert manifest_in_files(settings).generated_at == text_of(version_of(again) / 1000)
