"""The refresher: how it is started and ended, in threads, after a fork and after a bug."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import cast

import pytest

import optimizer.reader.redis_store
from optimizer import Settings, SnapshotReader, optimize
from optimizer.models import Origin
from optimizer.reader.follower import Follower
from optimizer.reader.results import CachedVersion
from tests.support.published_state import NEW, run_next, run_old, version_of
from tests.support.readers import READS, Open, shows
from tests.support.redis_servers import RedisServer, wait_until
from tests.support.rolling_files import write_json


@pytest.mark.parametrize("origin", ["redis", "files"])
def test_a_new_version_is_seen_by_itself(settings: Settings, open_reader: Open, origin: Origin) -> None:
    """Soon after a publish every read shows the new version, without a call of `refresh`."""
    run_old(settings)
    reader = open_reader(settings, origin)
    for read in READS.values():
        read(reader)
    write_json(settings.input, NEW)

    version = version_of(optimize(settings))

    wait_until(lambda: reader.predictions().version == version, limit_s=5, what="the new version")
    assert {read(reader).version for read in READS.values()} == {version}
    assert [record.symbol for record in reader.top(5).value] == ["NVDA", "MSFT"]
    assert reader.symbol("AAPL").value is None


def test_a_reader_is_made_of_the_environment(settings: Settings) -> None:
    """A reader can be made from the environment variables that a worker uses."""
    run_old(settings)
    environ = {"ROLLING_REDIS_URL": settings.redis_url, "ROLLING_OUTPUT_DIR": str(settings.output_dir)}

    with closing(SnapshotReader.from_env(environ)) as reader:
        assert reader.manifest().origin == "redis"


def _refreshers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "rolling-reader"]


def test_many_threads_begin_with_one_look(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """When 16 threads begin to read at the same time, the process does one refresh and starts one refresher."""
    run_old(settings)
    before = set(_refreshers())  # of readers that other tests have left to the garbage collector
    refreshes: list[int] = []
    refresh = Follower.refresh

    def counted(self: Follower, **options: bool) -> None:
        refreshes.append(1)
        refresh(self, **options)

    monkeypatch.setattr(Follower, "refresh", counted)
    monkeypatch.setattr(optimizer.reader.redis_store, "POLL_S", 60.0)
    with closing(SnapshotReader.from_settings(settings)) as reader, ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda _: reader.predictions(), range(200)))
        refreshers = set(_refreshers()) - before

    assert len({id(answer.value) for answer in answers}) == 1
    assert (len(refreshes), len(refreshers)) == (1, 1)


def test_a_reader_that_is_garbage_ends_its_thread(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread of a reader that is garbage ends, also without a call of `close`."""
    monkeypatch.setattr(optimizer.reader.redis_store, "POLL_S", 0.05)
    run_old(settings)
    before = set(_refreshers())
    reader = SnapshotReader.from_settings(settings)
    reader.predictions()
    (thread,) = set(_refreshers()) - before
    del reader
    gc.collect()
    thread.join(5)
    assert not thread.is_alive()


def test_a_closed_reader_may_be_used_again(own_settings: Settings, own_redis: RedisServer, open_reader: Open) -> None:
    """Closing ends the reader's thread and its connections, also if it is done twice.

    When a closed reader is used again it still has the version that it held, and shows the next one.
    """
    version = version_of(run_old(own_settings))
    before = set(_refreshers())
    reader = open_reader(own_settings, "redis")
    with own_redis.client as client:
        connections = len(cast("list[object]", client.client_list()))
        assert reader.predictions().origin == "redis"
        for _ in range(2):
            reader.close()
            assert set(_refreshers()) <= before
            wait_until(
                lambda: len(cast("list[object]", client.client_list())) == connections,
                what="the end of its connections",
            )
        client.flushall()
    assert (reader.predictions().version, reader.predictions().origin) == (version, "redis")
    following = version_of(run_next(own_settings))
    wait_until(partial(shows, reader, following), limit_s=5, what="the next version")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # it is what the test provokes
def test_a_reader_whose_refresher_has_died_begins_anew(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug in what a refresh calls ends the thread.

    Reads raise the error as long as the bug is there; afterwards the next read starts another thread.
    """
    monkeypatch.setattr(optimizer.reader.redis_store, "POLL_S", 0.05)
    first = version_of(run_old(settings))
    fails = False

    def prepare(_cached: CachedVersion) -> None:
        if fails:
            raise ZeroDivisionError

    with closing(SnapshotReader.from_settings(settings)) as reader:
        reader.follower.prepare = prepare
        assert reader.predictions().version == first
        fails = True
        run_next(settings)
        wait_until(lambda: not reader.is_started(), what="the end of the thread")
        with pytest.raises(ZeroDivisionError):
            reader.predictions()
        fails = False
        second = version_of(run_next(settings))
        assert reader.predictions().version == second
        third = version_of(run_next(settings))
        wait_until(partial(shows, reader, third), limit_s=5, what="the new version")


FORK_PROGRAM = """
import os, signal, sys, threading
from optimizer import SnapshotReader, Settings
from tests.support.published_state import run_next
settings = Settings.from_env(os.environ)
reader = SnapshotReader.from_settings(settings)
first = reader.predictions().version
stop = threading.Event()
def read_on():
    while not stop.is_set():
        reader.symbol("MISSING"); reader.refresh()
readers = [threading.Thread(target=read_on) for _ in range(4)]
for thread in readers: thread.start()
children = []
for _ in range(8):
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # a child that hangs is not to stay behind
        for _ in range(50):
            assert reader.predictions().version >= first
            assert reader.symbol("MISSING").value is None
        import time
        deadline = time.monotonic() + 10
        def arrived():  # for a moment amid the publish, the files alone have it
            return reader.predictions().version > first and reader.predictions().origin == "redis"
        while not arrived() and time.monotonic() < deadline: time.sleep(0.02)
        os._exit(0 if arrived() else 3)
    children.append(child)
stop.set()
for thread in readers: thread.join()
run_next(settings)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
reader.close()
print(codes)
"""


def test_a_forked_child_reads_on_by_itself(settings: Settings) -> None:
    """Eight children that are forked while four threads read each show the version in memory, and soon the next one."""
    run_old(settings)
    environ = {
        "ROLLING_INPUT": str(settings.input),
        "ROLLING_OUTPUT_DIR": str(settings.output_dir),
        "ROLLING_REDIS_URL": settings.redis_url,
    }
    done = subprocess.run(
        [sys.executable, "-c", FORK_PROGRAM],
        env=os.environ | environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.stdout, done.returncode) == (f"{[0] * 8}\n", 0), done.stderr


def test_a_process_has_two_connections(settings: Settings, own_redis: RedisServer, open_reader: Open) -> None:
    """A reader has two connections, one for the channel and one for requests; lookups one after another add none."""
    own_redis.start()
    own = replace(settings, redis_url=own_redis.url)
    run_old(own)
    with own_redis.client as client:
        before = len(cast("list[object]", client.client_list()))  # this one, and what the run has kept
    reader = open_reader(own)
    reader.predictions()
    for _ in range(20):
        reader.refresh()
        assert reader.symbol("MISSING").value is None
        assert len(reader.runs()) == 1
    with own_redis.client as client:
        assert len(cast("list[object]", client.client_list())) == before + 2
