"""Runs whose Redis fails and returns, and runs that overlap: which version is published, and what stays unchanged."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

import optimizer.cache.client
import optimizer.cache.lock
from optimizer import Report, Settings, optimize
from optimizer.cache.clocks import seconds_of
from optimizer.cache.keys import VERSION_KINDS, Keys
from optimizer.errors import PublishRefused, SourceMissing
from optimizer.models import Manifest
from optimizer.snapshots.delta import decode_stored
from optimizer.snapshots.format import encode_manifest
from optimizer.snapshots.store import snapshot_store
from tests.support.published_state import (
    NEW,
    OLD,
    assert_redis_holds_the_files,
    assert_tidy,
    files_of,
    keys_of,
    no_scan,
    once,
    run_next,
    run_old,
    runs_of,
    symbols_shown,
    version_of,
)
from tests.support.redis_servers import RedisServer, wait_until
from tests.support.rolling_files import a_record, local, write_json

# ---- Redis fails and returns


@pytest.fixture
def own_settings(settings_without_redis: Settings, own_redis: RedisServer) -> Settings:
    """Settings for a Redis that the test may kill; it is not up yet."""
    return replace(settings_without_redis, redis_url=own_redis.url)


@pytest.fixture
def short_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a lock that a killed run leaves expire after a second."""
    monkeypatch.setattr(optimizer.cache.lock, "LOCK_TTL_S", 1.0)
    monkeypatch.setattr(optimizer.cache.lock, "LOCK_EXTEND_S", 0.2)


def run_when_free(settings: Settings, **options: Any) -> Report:
    """Do runs until one is not skipped because of the lock of a killed run; return its report."""
    reports: list[Report] = []

    def run() -> bool:
        reports.append(optimize(settings, **options))
        return reports[-1].status != "skipped"

    wait_until(run, what="the lock to expire")
    return reports[-1]


def test_without_redis_files_are_written_and_republished_later(own_settings: Settings, own_redis: RedisServer) -> None:
    """A run without Redis writes the files, succeeds and reports that Redis is down.

    Once Redis is up, the next run publishes the set without a scan.
    """
    first = run_old(own_settings)
    assert first.cache == "down"
    assert symbols_shown(own_settings) == ["MSFT", "AAPL"]
    assert optimize(own_settings, tick=1, progress=no_scan).cache == "down"

    own_redis.start()
    report = optimize(own_settings, progress=no_scan)

    assert (report.status, report.cache, report.version) == ("unchanged", "republished", first.version)
    assert_redis_holds_the_files(own_redis, own_settings)
    assert optimize(own_settings, progress=no_scan).cache == "current"


@pytest.mark.usefixtures("short_lock")
@pytest.mark.parametrize("lose_data", [False, True], ids=["with its data", "empty"])
def test_redis_dies_amid_a_run_and_comes_back(own_settings: Settings, own_redis: RedisServer, lose_data: bool) -> None:
    """A run whose Redis is killed during the scan writes its files; the next run publishes them.

    It makes no difference whether Redis has kept its data.
    """
    own_redis.start()
    run_old(own_settings)
    write_json(own_settings.input, NEW)

    report = optimize(own_settings, progress=once(lambda: own_redis.kill(lose_data=lose_data)))

    assert (report.status, report.cache) == ("success", "down")
    assert symbols_shown(own_settings) == ["NVDA", "MSFT"]
    own_redis.start()
    healed = run_when_free(own_settings, progress=no_scan)
    assert (healed.status, healed.cache, healed.version) == ("unchanged", "republished", report.version)
    assert_redis_holds_the_files(own_redis, own_settings)
    assert_tidy(own_settings, own_redis)


@pytest.mark.usefixtures("short_lock")
@pytest.mark.parametrize("amid_the_scan", [False, True], ids=["at the start", "amid the scan"])
def test_a_redis_that_hangs_does_not_hold_up_a_run(
    own_settings: Settings, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch, amid_the_scan: bool
) -> None:
    """If Redis hangs, a run gives up on it within a few timeouts (less than 12) and writes its files.

    The next run publishes them.
    """
    timeout_s = 0.3
    monkeypatch.setattr(optimizer.cache.client, "WRITER_TIMEOUT_S", timeout_s)
    own_redis.start()
    run_old(own_settings)
    write_json(own_settings.input, NEW)
    if not amid_the_scan:
        own_redis.pause()

    started = time.monotonic()
    report = optimize(own_settings, progress=once(own_redis.pause) if amid_the_scan else None)
    took_s = time.monotonic() - started

    own_redis.resume()
    assert (report.status, report.cache) == ("success", "down")
    assert took_s < 12 * timeout_s
    assert symbols_shown(own_settings) == ["NVDA", "MSFT"]
    assert run_when_free(own_settings, progress=no_scan).cache == "republished"
    assert_redis_holds_the_files(own_redis, own_settings)


def test_a_full_redis_is_as_good_as_none(own_settings: Settings, own_redis: RedisServer) -> None:
    """If Redis takes no writes because its memory is full, a run still writes its files.

    Once Redis has memory again, the next run publishes them without a scan.
    """
    own_redis.start()
    run_old(own_settings)
    write_json(own_settings.input, NEW)
    with own_redis.client as client:
        client.config_set("maxmemory", 1)
        assert optimize(own_settings).cache == "down"
        client.config_set("maxmemory", 0)

    assert optimize(own_settings, progress=no_scan).cache == "republished"
    assert_redis_holds_the_files(own_redis, own_settings)


@pytest.mark.parametrize("kind", [*VERSION_KINDS, "current"])
def test_a_key_that_was_evicted_is_healed(settings: Settings, redis_server: RedisServer, kind: str) -> None:
    """Whichever key of the current version is gone, the next run puts all of them back, without a scan."""
    first = run_old(settings)
    keys = Keys(settings.source)
    with redis_server.client as client:
        client.delete(keys.current if kind == "current" else keys.payload(version_of(first), kind))

    report = optimize(settings, progress=no_scan)

    assert (report.status, report.cache, report.version) == ("unchanged", "republished", first.version)
    assert_redis_holds_the_files(redis_server, settings)
    assert_tidy(settings, redis_server)


def test_what_was_made_without_cache_is_published_by_the_next_run(
    settings: Settings, redis_server: RedisServer
) -> None:
    """A version that was made without Redis is published by the next run without a scan.

    The change from the version that Redis had is published with it.
    """
    first = run_old(settings)
    write_json(settings.input, NEW)
    second = optimize(settings, use_cache=False)

    report = optimize(settings, progress=no_scan)

    assert (report.status, report.cache, report.version) == ("unchanged", "republished", second.version)
    assert_redis_holds_the_files(redis_server, settings)
    with redis_server.client as client:
        entries = cast("list[tuple[bytes, dict[bytes, bytes]]]", client.xrange(Keys(settings.source).deltas))
    assert [(name.decode(), decode_stored(fields[b"change"]).change.before) for name, fields in entries] == [
        (f"{second.version}-0", first.version)
    ]


# ---- versions in Redis and in the files


def test_a_forced_run_without_redis_is_published_by_the_next(own_settings: Settings, own_redis: RedisServer) -> None:
    """The version of a forced run that did not reach Redis is published by the next run without a scan.

    Its input is one that Redis has not seen, and its version is newer.
    """
    own_redis.start()
    first = run_old(own_settings)
    own_redis.kill()
    forced = run_next(own_settings, force=True)
    assert (forced.status, forced.cache) == ("success", "down")
    assert version_of(forced) > version_of(first)
    own_redis.start()

    report = run_when_free(own_settings, progress=no_scan)

    assert (report.status, report.cache, report.version) == ("unchanged", "republished", forced.version)
    assert_redis_holds_the_files(own_redis, own_settings)


def test_a_newer_version_of_the_same_input_is_current(
    settings: Settings, redis_server: RedisServer, tmp_path: Path
) -> None:
    """A newer version of the same input counts as current if a worker with another output directory made it.

    So neither worker scans because of the other, at any number of ticks.
    """
    run_old(settings)
    elsewhere = replace(settings, output_dir=tmp_path / "elsewhere")
    newest = version_of(optimize(elsewhere, force=True))

    for each in (settings, elsewhere) * 2:
        report = optimize(each, progress=no_scan)
        assert (report.status, report.cache, report.version) == ("unchanged", "current", newest)
    assert_redis_holds_the_files(redis_server, elsewhere)


def _newer_of_another_input(settings: Settings, redis_server: RedisServer, tmp_path: Path) -> None:
    del redis_server
    assert optimize(replace(settings, output_dir=tmp_path / "elsewhere", min_confidence=0.1)).cache == "published"


def _same_version_of_other_content(settings: Settings, redis_server: RedisServer, _tmp_path: Path) -> None:
    with redis_server.client as client:
        key = Keys(settings.source).current
        manifest = msgspec.json.decode(cast("bytes", client.hget(key, "manifest")), type=Manifest)
        entries = manifest.snapshots | {"bots": msgspec.structs.replace(manifest.snapshots["bots"], sha256="0" * 64)}
        other = msgspec.structs.replace(manifest, fingerprint="another", snapshots=entries)
        client.hset(key, "manifest", encode_manifest(other))


def _newer_and_not_whole(settings: Settings, redis_server: RedisServer, tmp_path: Path) -> None:
    newest = version_of(optimize(replace(settings, output_dir=tmp_path / "elsewhere"), force=True))
    with redis_server.client as client:
        client.delete(Keys(settings.source).payload(newest, "bots"))


def _newer_of_another_type(settings: Settings, redis_server: RedisServer, tmp_path: Path) -> None:
    newest = version_of(optimize(replace(settings, output_dir=tmp_path / "elsewhere"), force=True))
    with redis_server.client as client:
        client.delete(Keys(settings.source).payload(newest, "symbols"))
        client.set(Keys(settings.source).payload(newest, "symbols"), b"")


def _newer_that_expires(settings: Settings, redis_server: RedisServer, tmp_path: Path) -> None:
    newest = version_of(optimize(replace(settings, output_dir=tmp_path / "elsewhere"), force=True))
    with redis_server.client as client:
        client.expire(Keys(settings.source).payload(newest, "ranking"), 1_000)


def _pointer_lost_after_a_newer_one(settings: Settings, redis_server: RedisServer, tmp_path: Path) -> None:
    optimize(replace(settings, output_dir=tmp_path / "elsewhere", top_symbols_limit=1))
    with redis_server.client as client:
        assert client.xlen(Keys(settings.source).deltas) == 1  # which names the newer version
        client.delete(Keys(settings.source).current)


def _pointer_lost_after_a_newer_one_without_a_delta(
    settings: Settings, redis_server: RedisServer, tmp_path: Path
) -> None:
    with redis_server.client as client:
        client.flushdb()  # so there is no change that leads to the newer version
        optimize(replace(settings, output_dir=tmp_path / "elsewhere", top_symbols_limit=1))
        assert client.xlen(Keys(settings.source).deltas) == 0
        client.delete(Keys(settings.source).current)


@pytest.mark.parametrize(
    "make",
    [
        _newer_of_another_input,
        _same_version_of_other_content,
        _newer_and_not_whole,
        _newer_of_another_type,
        _newer_that_expires,
        _pointer_lost_after_a_newer_one,
        _pointer_lost_after_a_newer_one_without_a_delta,
    ],
)
def test_what_redis_shows_is_not_replaced_by_an_older_version(
    settings: Settings,
    redis_server: RedisServer,
    tmp_path: Path,
    make: Callable[[Settings, RedisServer, Path], None],
) -> None:
    """If Redis has shown another version or content than the files, a run makes a version newer than both.

    It scans the input, though that is unchanged, and the next tick finds the new version current.
    """
    first = run_old(settings)
    make(settings, redis_server, tmp_path)
    with redis_server.client as client:
        known = [int(cast("bytes", client.hget(Keys(settings.source).current, "version") or 0))]
        known += [int(name.split(b"-")[0]) for name, _ in cast("Any", client.xrange(Keys(settings.source).deltas))]

    report = optimize(settings)

    assert (report.status, report.cache) == ("success", "published")
    assert version_of(report) > max(version_of(first), *known)
    assert_redis_holds_the_files(redis_server, settings)
    assert optimize(settings, progress=no_scan).cache == "current"


@pytest.mark.parametrize("allows", ["+time", "-time"])
def test_a_confirmation_is_dated_by_redis_or_where_that_is_forbidden_by_the_worker(
    settings: Settings, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, allows: str
) -> None:
    """A confirmation is dated by the clock of Redis, though the worker's clock is an hour ahead.

    If the ACL of Redis forbids TIME, as one of an earlier release does, the worker dates it itself.
    """
    now_s = time.time
    monkeypatch.setattr(time, "time", lambda: now_s() + 3_600)
    with redis_server.client as client:
        client.execute_command("ACL", "SETUSER", "old", "on", ">made-up", "~*", "&*", "+@all", allows)
        try:
            old = replace(settings, redis_url=settings.redis_url.replace("://", "://old:made-up@"))
            assert run_old(old).cache == "published"
            assert optimize(old).cache == "current"
            checked_at = cast("bytes", client.hget(Keys(settings.source).current, "checked_at")).decode()
        finally:
            client.execute_command("ACL", "DELUSER", "old")
    assert abs(seconds_of(checked_at) - (now_s() if allows == "+time" else time.time())) < 60


@pytest.mark.parametrize("forced", [False, True])
def test_the_version_of_the_files_expires_though_all_that_names_it_is_lost(
    settings: Settings, redis_server: RedisServer, forced: bool
) -> None:
    """The old version's values get an expiry though all keys that name that version are lost.

    Otherwise they would stay in Redis for ever.
    """
    old = version_of(run_old(settings))
    keys = Keys(settings.source)
    with redis_server.client as client:
        client.delete(keys.current, keys.flipped, keys.deltas)
        write_json(settings.input, NEW)
        assert optimize(settings, force=forced).cache == "published"
        assert all(client.ttl(keys.payload(old, kind)) > 0 for kind in VERSION_KINDS)


# ---- a run that began before the newest version was made


@pytest.mark.parametrize("shares_files", [True, False], ids=["same files", "other files"])
def test_a_run_that_began_without_redis_does_not_replace_what_came_meanwhile(
    own_settings: Settings, own_redis: RedisServer, tmp_path: Path, shares_files: bool
) -> None:
    """A run that began without Redis is refused if another run publishes a newer input before its end.

    Redis returns during the scan. Nothing of the older input is shown, with the same output directory and with another.
    """
    run_old(own_settings)  # Redis is not up yet
    files = files_of(local(own_settings.output_dir))
    overtaking = own_settings if shares_files else replace(own_settings, output_dir=tmp_path / "elsewhere")
    reports: list[Report] = []

    def overtake() -> None:
        own_redis.start()
        write_json(own_settings.input, NEW)
        reports.append(optimize(overtaking))

    with pytest.raises(PublishRefused, match=f"version {'[0-9]*'} by now"):
        optimize(own_settings, force=True, progress=once(overtake))

    assert reports[0].cache == "published"
    assert_redis_holds_the_files(own_redis, overtaking)
    if not shares_files:
        assert files_of(local(own_settings.output_dir)) == files
    assert symbols_shown(overtaking) == ["NVDA", "MSFT"]
    assert_tidy(own_settings, own_redis)
    assert optimize(own_settings).status in ("success", "unchanged")
    assert symbols_shown(own_settings) == ["NVDA", "MSFT"]


def test_a_redis_that_refuses_writes_does_not_stop_files_of_ones_own(
    settings: Settings, redis_server: RedisServer, tmp_path: Path
) -> None:
    """If Redis refuses writes, a worker still writes the files of its own directory.

    The version in Redis was there before the run began, however new it is beside these files.
    """
    run_old(settings)
    elsewhere = replace(settings, output_dir=tmp_path / "elsewhere")
    with redis_server.client as client:
        client.config_set("min-replicas-to-write", 1)
        try:
            for _ in range(2):
                assert optimize(elsewhere, force=True).cache == "down"
                assert symbols_shown(elsewhere) == ["MSFT", "AAPL"]
        finally:
            client.config_set("min-replicas-to-write", 0)


def test_a_run_without_cache_leaves_redis_alone(settings: Settings, redis_server: RedisServer) -> None:
    """With `use_cache=False` not even a connection to Redis is made, by a run that writes, confirms or fails."""
    with redis_server.client as client:
        before = client.info("stats")["total_connections_received"]

        assert run_old(settings, use_cache=False).cache == "off"
        assert optimize(settings, use_cache=False, tick=1).cache == "off"
        local(settings.input).unlink()
        with pytest.raises(SourceMissing):
            optimize(settings, use_cache=False)

        assert client.info("stats")["total_connections_received"] == before
        assert client.keys() == []


# ---- one at a time


def test_a_second_run_for_a_source_is_skipped(settings: Settings, redis_server: RedisServer, tmp_path: Path) -> None:
    """During a run, runs of the same source on another host with its own directory are skipped and write nothing.

    That holds for a run by hand and for a forced tick.
    """
    elsewhere = replace(settings, output_dir=tmp_path / "elsewhere")
    others: list[Report] = []
    write_json(settings.input, OLD)

    def run_elsewhere() -> None:
        others.append(optimize(elsewhere, progress=no_scan))
        others.append(optimize(elsewhere, tick=7, force=True, progress=no_scan))

    report = optimize(settings, progress=once(run_elsewhere))

    assert report.status == "success"
    assert [(other.status, other.reason) for other in others] == [("skipped", "already_running")] * 2
    assert files_of(local(elsewhere.output_dir)) == {}
    assert runs_of(redis_server, settings.source) == [report, *reversed(others)]
    assert optimize(elsewhere).status == "success"


def test_a_second_run_in_a_directory_is_skipped(settings_without_redis: Settings) -> None:
    """Without Redis the output directory itself is locked, so a second run there is skipped."""
    others: list[Report] = []
    write_json(settings_without_redis.input, OLD)

    def run_again() -> None:
        others.append(optimize(settings_without_redis, use_cache=False, progress=no_scan))

    report = optimize(settings_without_redis, use_cache=False, progress=once(run_again))

    assert report.status == "success"
    assert [(other.status, other.reason) for other in others] == [("skipped", "already_running")]


@pytest.mark.parametrize("new_owner", [None, "another run's token"], ids=["expired", "overtaken"])
def test_a_run_that_lost_its_lock_publishes_nothing(
    settings: Settings, redis_server: RedisServer, new_owner: str | None
) -> None:
    """A run whose lock has expired, or is held by another run, is refused, and files and Redis stay unchanged.

    The other run's lock is not released.
    """
    run_old(settings)
    files, keys = files_of(local(settings.output_dir)), keys_of(redis_server, settings.source)
    lock = Keys(settings.source).lock
    write_json(settings.input, NEW)

    with redis_server.client as client:

        def lose_the_lock() -> None:
            client.delete(lock)
            if new_owner is not None:
                client.set(lock, new_owner)

        with pytest.raises(PublishRefused, match="lock was lost"):
            optimize(settings, progress=once(lose_the_lock))

        assert client.get(lock) == (None if new_owner is None else new_owner.encode())
        client.delete(lock)
    assert files_of(local(settings.output_dir)) == files
    assert keys_of(redis_server, settings.source) == keys
    assert runs_of(redis_server, settings.source)[0].error == "PublishRefused"
    assert optimize(settings).cache == "published"
    assert_redis_holds_the_files(redis_server, settings)


def test_a_run_does_not_overwrite_what_was_published_meanwhile(settings: Settings, redis_server: RedisServer) -> None:
    """A run is refused if another version has been published since it began.

    The pointer is changed only from the version from which the run started.
    """
    run_old(settings)
    current = Keys(settings.source).current
    write_json(settings.input, NEW)

    with redis_server.client as client:
        with pytest.raises(PublishRefused, match="version 4 was published meanwhile"):
            optimize(settings, progress=once(lambda: client.hset(current, "version", 4)))

        assert client.hget(current, "version") == b"4"


def test_a_worker_that_was_killed_blocks_no_other_for_long(settings: Settings, redis_server: RedisServer) -> None:
    """After a worker was killed, runs are skipped until its lock in Redis expires, within 10 s; then they succeed.

    The kernel releases its lock on the directory at once.
    """
    run_old(settings)
    files = files_of(local(settings.output_dir))
    write_json(settings.input, NEW)
    dying = (
        "import os, signal, sys; from pathlib import Path; from optimizer import Settings, optimize\n"
        "settings = Settings(input=Path(sys.argv[1]), output_dir=Path(sys.argv[2]), redis_url=sys.argv[3])\n"
        "optimize(settings, progress=lambda done, total: os.kill(os.getpid(), signal.SIGKILL))\n"
    )
    arguments = [str(settings.input), str(settings.output_dir), settings.redis_url]
    died = subprocess.run([sys.executable, "-c", dying, *arguments], check=False)

    assert died.returncode == -9
    assert files_of(local(settings.output_dir)) == files
    assert optimize(settings).reason == "already_running"
    with redis_server.client as client:
        assert 0 < client.pttl(Keys(settings.source).lock) <= 10_000
        client.pexpire(Keys(settings.source).lock, 100)  # instead of waiting for 10 s
    assert run_when_free(settings).status == "success"
    assert symbols_shown(settings) == ["NVDA", "MSFT"]


def test_a_stopped_run_that_has_lost_its_lock_does_not_hold_up_the_others(settings: Settings) -> None:
    """A lock on the directory alone, which a stopped process still holds, does not block runs with Redis.

    Which run may work is decided by Redis; a run without Redis is skipped.
    """
    write_json(settings.input, {"AAPL": a_record()})
    with snapshot_store(settings.output_dir).lock() as is_free:
        assert is_free
        assert optimize(settings).status == "success"
        assert optimize(replace(settings, min_confidence=0.1), use_cache=False).reason == "already_running"
