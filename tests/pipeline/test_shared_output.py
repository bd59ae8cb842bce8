"""Workers whose output directories are not shared are warned of that, and no other workers are."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from optimizer import Report, Settings, optimize
from optimizer.cache.keys import Keys
from optimizer.cli.report import describe
from optimizer.pipeline import session
from optimizer.snapshots.marker import MARKER_NAME, Marker
from tests.support.published_state import OLD, run_old, runs_of
from tests.support.redis_servers import RedisServer
from tests.support.rolling_files import local, write_json
from tests.support.s3_server import S3Server


@pytest.fixture(autouse=True)
def _new_process() -> Iterator[None]:
    """Forget the warnings that were logged, so that each test is like a process: a warning is logged once in each."""
    session._log_not_shared.cache_clear()
    yield
    session._log_not_shared.cache_clear()


@pytest.fixture
def other(settings: Settings, tmp_path: Path) -> Settings:
    """Settings of a worker of the same source with another output directory."""
    return replace(settings, output_dir=tmp_path / "other")


def marker_of(settings: Settings) -> Path:
    """The marker of an output directory."""
    return local(settings.output_dir) / MARKER_NAME


def named(server: RedisServer, settings: Settings) -> str:
    """The id of the output directory that Redis names, empty for none."""
    with server.client as client:
        value = client.get(Keys(settings.source).output)
    return value.decode() if isinstance(value, bytes) else ""


def test_the_first_run_gives_the_directory_an_id_that_redis_names(
    settings: Settings, redis_server: RedisServer
) -> None:
    """The first run gives the directory an id, which Redis names; the key expires, and each run renews it."""
    assert run_old(settings).warning is None
    output_id = marker_of(settings).read_text()
    with redis_server.client as client:
        client.pexpire(Keys(settings.source).output, 1_000)
        assert optimize(settings).warning is None
        assert client.pttl(Keys(settings.source).output) > 200_000

    assert len(output_id) == 32
    assert named(redis_server, settings) == marker_of(settings).read_text() == output_id


def test_a_worker_with_another_directory_is_noticed(
    settings: Settings, other: Settings, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Once a worker uses another directory, the worker with the old one warns in each report and once in its log.

    The run itself is otherwise as usual.
    """
    run_old(settings)
    second, third, fourth, fifth = [optimize(one) for one in (other, settings, settings, other)]

    assert [report.warning is None for report in (second, third, fourth, fifth)] == [True, False, False, True]
    assert third.status == "unchanged"
    said = f"the output directory of this worker is not the one that others use: {settings.output_dir} on "
    assert (third.warning or "").startswith(said)
    assert f"\n  warning: {said}" in describe(third)
    assert [one.warning for one in runs_of(redis_server, settings.source)].count(third.warning) == 2
    messages = [message for message in caplog.messages if "is not the one that others use" in message]
    assert messages == [f"[RollingOptimizer] {settings.source}: {third.warning}"]


def test_it_is_over_when_the_others_are_gone(settings: Settings, other: Settings, redis_server: RedisServer) -> None:
    """The warning ends when the id in Redis expires, as it does when no run writes to the other directory any more."""
    run_old(settings)
    optimize(other)
    assert optimize(settings).warning is not None
    with redis_server.client as client:
        client.delete(Keys(settings.source).output)  # as the expiry does

    assert optimize(settings).warning is None
    assert named(redis_server, settings) == marker_of(settings).read_text()


def all_is_well(*reports: Report) -> bool:
    """Whether none of the runs warns."""
    return all(report.warning is None for report in reports)


def test_a_redis_that_lost_its_data_is_no_reason(settings: Settings, redis_server: RedisServer) -> None:
    """No run warns after Redis has lost its data; the next run names the directory there again."""
    run_old(settings)
    with redis_server.client as client:
        client.flushall()

    assert all_is_well(optimize(settings), optimize(settings))
    assert named(redis_server, settings) == marker_of(settings).read_text()


def test_directories_that_are_not_shared_are_noticed_after_redis_lost_its_data(
    settings: Settings, other: Settings, redis_server: RedisServer
) -> None:
    """After Redis has lost its data, the first run names its own directory, and the worker with the other one warns."""
    run_old(settings)
    optimize(other)
    with redis_server.client as client:
        client.flushall()

    assert optimize(settings).warning is None
    assert optimize(other).warning is not None


def test_a_directory_that_was_deleted_is_no_reason(settings: Settings, redis_server: RedisServer) -> None:
    """No run warns after the directory was deleted: it is new and gets a new id.

    Other workers that share the directory see its new id.
    """
    run_old(settings)
    before = named(redis_server, settings)
    shutil.rmtree(local(settings.output_dir))

    assert all_is_well(optimize(settings), optimize(settings))
    assert before != named(redis_server, settings) == marker_of(settings).read_text()


def test_a_directory_that_was_moved_or_replaced_by_a_new_one_is_no_reason(
    settings: Settings, other: Settings, redis_server: RedisServer
) -> None:
    """No run warns after the directory was moved, which takes the marker along, or after a setting names a new one."""
    run_old(settings)
    local(settings.output_dir).rename(local(other.output_dir))
    assert all_is_well(optimize(other))
    again = replace(other, output_dir=local(other.output_dir).parent / "third")

    assert all_is_well(optimize(again), optimize(again))
    assert named(redis_server, settings) == marker_of(again).read_text()


def test_runs_without_redis_are_no_reason(settings: Settings, other: Settings, redis_server: RedisServer) -> None:
    """Runs without a cache, or while Redis is away, do not warn and give the directory no id.

    The next run with Redis gives it one.
    """
    write_json(settings.input, OLD)
    away = replace(settings, redis_url="redis://127.0.0.1:1/0")
    assert all_is_well(optimize(settings, use_cache=False), optimize(away))
    assert not marker_of(settings).exists()

    assert all_is_well(optimize(settings), optimize(away), optimize(settings))
    assert all_is_well(optimize(other, use_cache=False))
    assert named(redis_server, settings) == marker_of(settings).read_text()


def test_a_run_that_died_between_redis_and_the_marker_is_no_reason(
    settings: Settings, redis_server: RedisServer
) -> None:
    """No run warns if Redis names an id that no directory has, as after a run that died between Redis and the marker.

    The directory gets another id.
    """
    run_old(settings)
    with redis_server.client as client:
        client.set(Keys(settings.source).output, "0" * 32, px=60_000)
    marker_of(settings).unlink()

    assert all_is_well(optimize(settings), optimize(settings))
    assert named(redis_server, settings) == marker_of(settings).read_text()


def test_a_marker_that_is_seen_late_is_no_reason(
    settings: Settings, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No run warns if a marker is seen late, as over NFS.

    The first read finds none, and creating it fails because there is one; Redis then names its id.
    """
    run_old(settings)
    before = marker_of(settings).read_text()
    real, looks = Marker.read, iter([""])
    monkeypatch.setattr(Marker, "read", lambda self: next(looks, real(self)))

    assert all_is_well(optimize(settings), optimize(settings))
    assert named(redis_server, settings) == marker_of(settings).read_text() == before


@pytest.mark.parametrize("what", ["nothing", "half", "a directory", "a link", "a pipe"])
def test_a_marker_that_cannot_be_used_is_no_reason(settings: Settings, redis_server: RedisServer, what: str) -> None:
    """A marker that cannot be used is replaced where that is possible, and no run warns or fails because of it."""
    run_old(settings)
    marker = marker_of(settings)
    marker.unlink()
    if what == "a directory":
        marker.mkdir()
    elif what == "a link":
        marker.symlink_to("/dev/zero")
    elif what == "a pipe":
        os.mkfifo(marker)
    else:
        marker.write_text("" if what == "nothing" else "0" * 16)

    reports = optimize(settings), optimize(settings)
    assert [report.status for report in reports] == ["unchanged"] * 2
    assert all_is_well(*reports)
    assert what == "a directory" or named(redis_server, settings) == marker.read_text()


def test_a_damaged_key_is_no_reason(settings: Settings, redis_server: RedisServer) -> None:
    """A key of the id that has another type, or never expires, is repaired without a warning."""
    run_old(settings)
    with redis_server.client as client:
        client.delete(Keys(settings.source).output)
        client.hset(Keys(settings.source).output, "a", "b")
        assert all_is_well(optimize(settings))
        client.set(Keys(settings.source).output, b"\xff")
        assert all_is_well(optimize(settings))

    assert named(redis_server, settings) == marker_of(settings).read_text()


@pytest.mark.slow
def test_an_object_store_needs_no_marker(settings: Settings, redis_server: RedisServer, s3: S3Server) -> None:
    """An object store gets no marker and no id in Redis, since all workers write to the same URL."""
    stored = replace(settings, output_dir=s3.bucket / "marked")
    write_json(stored.input, OLD)

    assert all_is_well(optimize(stored), optimize(stored))
    assert named(redis_server, stored) == ""
    assert MARKER_NAME not in s3.names(s3.bucket / "marked")
