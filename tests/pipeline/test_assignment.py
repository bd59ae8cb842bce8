"""A run's assignment, which says what it has to do, is stored until the run ends.

If the worker of a run dies, the next run finds the assignment and notifies the sender.
"""

from __future__ import annotations

import subprocess
import sys
from typing import cast

import msgspec
import pytest

from optimizer import Settings, optimize
from optimizer.cache.keys import Keys
from optimizer.errors import CacheUnavailable, RunLost, SourceTorn
from optimizer.pipeline.assignment import Assignment, Dispatcher
from optimizer.pipeline.distributed import merge_parts
from optimizer.pipeline.run import run_source
from tests.support.distributed_runs import dispatched, lose_the_lock, must_not_send, run_here, scan_all, tell_nothing
from tests.support.published_state import assert_tidy, once, runs_of, symbols_shown
from tests.support.redis_servers import RedisServer
from tests.support.rolling_files import a_record, local, write_json, write_raw


def test_a_single_file_is_scanned_where_its_run_begins(settings: Settings, redis_server: RedisServer) -> None:
    """A single file is scanned under one lock by the process that begins the run, with an assignment during the scan.

    At the end neither lock nor assignment is left.
    """
    write_json(settings.input, {"TSLA": a_record()})
    keys = Keys(settings.source)
    seen: list[bool] = []

    def check_assignment() -> None:
        with redis_server.client as client:
            lock, stored = client.get(keys.lock), cast("bytes", client.hget(keys.handed, "assignment"))
        assignment = msgspec.json.decode(stored, type=Assignment)
        seen.append((assignment.run_id, assignment.token.encode(), assignment.parts) == ("first", lock, []))
        assert run_here(settings).reason == "already_running"

    report = run_here(settings, "first", progress=once(check_assignment))

    assert seen == [True]
    assert (report.status, report.cache) == ("success", "published")
    assert symbols_shown(settings) == ["TSLA"]
    assert_tidy(settings, redis_server)
    with redis_server.client as client:
        assert client.exists(keys.handed) == 0
    assert run_here(settings).status == "unchanged"


def test_a_scan_that_fails_leaves_no_assignment(settings: Settings, redis_server: RedisServer) -> None:
    """A scan that fails leaves neither an assignment nor the lock, so the next run reports no lost run.

    The sender has already received the error of the scan.
    """
    write_raw(settings.input, b"{")
    for _ in range(2):
        with pytest.raises(SourceTorn):
            run_here(settings, "first")
        with redis_server.client as client:
            assert client.exists(Keys(settings.source).handed, Keys(settings.source).lock) == 0
    assert {report.error for report in runs_of(redis_server, settings.source)} == {"SourceTorn"}


def test_a_lost_run_is_told_and_replaced_by_the_next_tick(parted: Settings, redis_server: RedisServer) -> None:
    """A run that has lost its lock is reported as `RunLost`, and the next tick makes another run.

    Its worker was killed, or there was none. If the lost run is continued after all, it does nothing (`superseded`).
    """
    lost = dispatched(parted)
    outcomes = scan_all(parted, lost)
    lose_the_lock(redis_server, parted)

    next_run = dispatched(parted, force=True)

    assert [(one.status, one.error) for one in runs_of(redis_server, parted.source)] == [("failed", "RunLost")]
    assert merge_parts(parted, lost.token, outcomes).reason == "superseded"
    assert merge_parts(parted, next_run.token, scan_all(parted, next_run)).status == "success"
    assert merge_parts(parted, lost.token, outcomes).reason == "superseded"
    write_json(local(parted.input).parent / "a.json", {"AMD": a_record()})
    dispatched(parted)  # a run that has ended is not reported as lost
    assert [one.error for one in runs_of(redis_server, parted.source) if one.error] == ["RunLost"]


def test_a_scan_of_a_single_file_that_was_killed_is_told(settings: Settings, redis_server: RedisServer) -> None:
    """If a process ends during the scan of a single file, the next run reports `RunLost` and notifies the sender.

    The whole worker may be gone, and then nothing else informs the sender.
    """
    write_json(settings.input, {"TSLA": a_record()})
    program = (
        "import os, sys; from pathlib import Path; from optimizer import Settings\n"
        "from optimizer.pipeline.assignment import Dispatcher; from optimizer.pipeline.run import run_source\n"
        "settings = Settings(input=Path(sys.argv[1]), output_dir=Path(sys.argv[2]), redis_url=sys.argv[3])\n"
        "run_source(settings, Dispatcher('first', print, print), progress=lambda *_: os._exit(9))"
    )
    paths = [str(settings.input), str(settings.output_dir), settings.redis_url]
    assert subprocess.run([sys.executable, "-c", program, *paths], check=False, timeout=60).returncode == 9
    lose_the_lock(redis_server, settings)

    notified: list[str] = []
    report = run_source(settings, Dispatcher("second", must_not_send, lambda run_id, _error: notified.append(run_id)))

    assert notified == ["first"]
    assert report is not None
    assert report.status == "success"
    assert [one.error for one in runs_of(redis_server, settings.source)] == [None, "RunLost"]


def test_a_run_that_cannot_be_sent_fails_and_leaves_nothing(parted: Settings, redis_server: RedisServer) -> None:
    """A run whose parts cannot be sent fails with the broker's error, and leaves neither an assignment nor the lock.

    The broker may be another Redis than the cache, and away.
    """

    def fail(_assignment: Assignment) -> None:
        raise CacheUnavailable("the broker cannot be reached")

    with pytest.raises(CacheUnavailable):
        run_source(parted, Dispatcher("", fail, tell_nothing))

    assert [one.error for one in runs_of(redis_server, parted.source)] == ["CacheUnavailable"]
    assert_tidy(parted, redis_server)
    with redis_server.client as client:
        assert client.exists(Keys(parted.source).handed) == 0


def test_the_sender_of_a_lost_run_is_told(parted: Settings, redis_server: RedisServer) -> None:
    """The next run notifies the sender of a lost run, by the id that the sender knows."""
    notified: list[tuple[str, str]] = []

    def tell_lost(run_id: str, error: RunLost) -> None:
        notified.append((run_id, str(error)))

    for run_id in ("first", "second"):
        run_source(parted, Dispatcher(run_id, lambda _: None, tell_lost))
        lose_the_lock(redis_server, parted)
    assert [run_id for run_id, _ in notified] == ["first"]
    assert "has not come back" in notified[0][1]


def test_a_run_that_cannot_tell_the_sender_leaves_the_lost_run_to_the_next(
    parted: Settings, redis_server: RedisServer
) -> None:
    """A run that cannot notify senders leaves a lost run to the next one that can.

    The command line cannot, since it has no result backend.
    """
    dispatched(parted, "first")
    lose_the_lock(redis_server, parted)
    assert optimize(parted).status == "success"
    notified: list[str] = []
    run_source(parted, Dispatcher("second", must_not_send, lambda run_id, _error: notified.append(run_id)))
    assert notified == ["first"]


@pytest.mark.parametrize(
    "damage", [b"{", b"\xff", b"[]", b'{"x": ' + b"[" * 100_000], ids=["cut", "bytes", "list", "nested"]
)
def test_a_run_whose_assignment_is_damaged_is_superseded(
    parted: Settings, redis_server: RedisServer, damage: bytes
) -> None:
    """A run whose assignment is damaged does nothing (`superseded`), since it is not known what it had to do.

    The next tick reports it as lost and makes the run again.
    """
    assignment = dispatched(parted)
    outcomes = scan_all(parted, assignment)
    with redis_server.client as client:
        client.hset(Keys(parted.source).handed, "assignment", damage)

        assert merge_parts(parted, assignment.token, outcomes).reason == "superseded"

        assert not client.exists(Keys(parted.source).handed)
        dispatched(parted, force=True)
        client.hset(Keys(parted.source).handed, "assignment", damage)
        client.delete(Keys(parted.source).lock)
    assignment = dispatched(parted, force=True)
    assert merge_parts(parted, assignment.token, scan_all(parted, assignment)).status == "success"
    assert [report.error for report in runs_of(redis_server, parted.source)][1] == "RunLost"
