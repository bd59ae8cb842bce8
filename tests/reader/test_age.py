"""The age of a version and when it is stale, whichever clock dates its confirmation."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

import optimizer.reader.redis_store
from optimizer import Settings, Snapshot, SnapshotReader, optimize
from optimizer.cache.clocks import seconds_of, text_of
from optimizer.cache.keys import Keys
from optimizer.cache.pointer import Pointer, pointer_fields
from optimizer.models import Origin
from tests.support.published_state import run_old, version_of
from tests.support.readers import READS, Open
from tests.support.redis_servers import RedisServer, wait_until
from tests.support.rolling_files import local

pytestmark = pytest.mark.slow  # seconds of waiting for threads, Redis and event loops


@pytest.mark.parametrize("origin", ["redis", "files"])
def test_what_no_run_has_confirmed_for_three_intervals_is_stale(
    settings: Settings, open_reader: Open, origin: Origin
) -> None:
    """Every read of a version that no run has confirmed for three intervals is stale, and has its age.

    A run that finds the input unchanged makes it fresh again.
    """
    fast = replace(settings, interval_s=0.5)
    run_old(fast)
    reader = open_reader(fast, origin)
    assert not read_any(reader).stale

    wait_until(lambda: read_any(reader).stale, limit_s=5, what="staleness")
    for read in READS.values():
        assert read(reader).stale
        assert 1.5 < read(reader).age_s < 60

    assert optimize(fast).status == "unchanged"
    reader.refresh()
    assert not any(read(reader).stale for read in READS.values())


def read_any(reader: SnapshotReader) -> Snapshot[Any]:
    """Read the predictions, as an example of all reads."""
    return reader.predictions()


def test_age_is_told_from_files_too(own_settings: Settings, own_redis: RedisServer, open_reader: Open) -> None:
    """If Redis is down, a reader shows the version of the files with its age: an old snapshot is better than none."""
    run_old(own_settings)
    own_redis.kill()

    state = open_reader(own_settings).manifest()

    assert state.origin == "files"
    assert 0 <= state.age_s < 60


@pytest.mark.parametrize("ahead_s", [120.0, -120.0, 86_400.0])
def test_an_age_is_by_the_clock_of_redis(
    settings: Settings, redis_server: RedisServer, open_reader: Open, monkeypatch: pytest.MonkeyPatch, ahead_s: float
) -> None:
    """Ages are measured by the clock of Redis if the clocks of worker and reader are two minutes or a day off.

    A confirmation just made is fresh, and one of two minutes ago is stale.
    """
    with monkeypatch.context() as worker:
        worker.setattr(time, "time", lambda now=time.time: now() + ahead_s)
        run_old(settings)
        assert optimize(settings).cache == "current"
    key = Keys(settings.source).current
    with redis_server.client as client, monkeypatch.context() as patched:
        checked_at = cast("bytes", client.hget(key, "checked_at")).decode()
        assert abs(seconds_of(checked_at) - time.time()) < 60
        clock = SimpleNamespace(time=lambda: time.time() + ahead_s, monotonic=time.monotonic)
        patched.setattr(optimizer.reader.redis_store, "time", clock)
        state = open_reader(settings, "redis").manifest()
        assert (state.stale, state.checked_at) == (False, checked_at)
        assert state.age_s < 60

        client.hset(key, "checked_at", text_of(time.time() - 120))
        state = open_reader(settings, "redis").manifest()
        assert state.stale
        assert 119 < state.age_s < 180


def test_a_confirmation_in_the_future_is_stale_until_the_next(
    settings: Settings, redis_server: RedisServer, open_reader: Open
) -> None:
    """A confirmation that is a day in the future is stale, and the next one is fresh.

    A worker of an earlier release whose clock is ahead makes such confirmations; readers notice when it dies, and when
    it works.
    """
    run_old(settings)
    key = Keys(settings.source).current
    with redis_server.client as client:
        client.hset(key, "checked_at", text_of(time.time() + 86_400))
        reader = open_reader(settings, "redis")
        assert reader.manifest().stale

        client.hset(key, "checked_at", text_of(time.time() + 86_430))
        reader.refresh()
        assert not reader.manifest().stale


def test_files_from_the_future_are_stale_until_they_are_confirmed(settings: Settings, open_reader: Open) -> None:
    """Files that are dated an hour ahead, as by the clock of a file server, are stale until the next confirmation."""
    run_old(settings, use_cache=False)
    os.utime(local(settings.output_dir) / "manifest.json", (time.time() + 3_600, time.time() + 3_600))
    reader = open_reader(settings, "files")
    assert reader.manifest().stale

    os.utime(local(settings.output_dir) / "manifest.json", (time.time() + 3_630, time.time() + 3_630))
    reader.refresh()
    state = reader.manifest()
    assert not state.stale
    assert state.age_s < 60


def test_an_older_version_of_the_same_input_that_is_confirmed_keeps_what_is_held_fresh(
    settings: Settings, redis_server: RedisServer, open_reader: Open
) -> None:
    """If Redis shows an older version of the same input, its confirmation keeps the newer version in memory fresh.

    The input is still the one from which the version in memory was made.
    """
    fast = replace(settings, interval_s=0.3)
    run_old(fast)
    reader = open_reader(fast)
    forced = version_of(optimize(fast, force=True))
    with redis_server.client as client:
        pointer = Pointer.from_hash(cast("Any", client.hgetall(Keys(fast.source).current)))
    assert pointer is not None
    older = msgspec.structs.replace(pointer.manifest, version=7)
    reader.refresh()
    wait_until(lambda: reader.manifest().stale, what="staleness")
    shutil.rmtree(local(fast.output_dir))
    with redis_server.client as client:
        checked_at = text_of(time.time())
        client.hset(Keys(fast.source).current, mapping=cast("Any", pointer_fields(older, checked_at)))
        reader.refresh()

    state = reader.manifest()
    assert (state.version, state.checked_at, state.stale) == (forced, checked_at, False)
