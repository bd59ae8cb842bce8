"""Faults of every kind, in a service of real processes whose input changes and whose readers poll all the time.

No fault makes a reader see a torn, mixed or older snapshot or an exception, the service recovers without help, and
nothing is left behind: `Service.check` asserts this at the end of each test. `--chaos-seed` seeds the random choices.
"""

from __future__ import annotations

import os
import random
import re
import resource
import shutil
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, cast

import pytest

from optimizer.models import ChangeCounts, Report
from tests.reliability.chaos.figures import Figures
from tests.reliability.chaos.generations import cut_short, in_place, replaced
from tests.reliability.chaos.service import LOCK_TTL_S, POLL_S, Service, Start
from tests.support.redis_servers import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# A scan that takes about a second: the slow engine, and 40 MB of JSON.
SLOW_SCAN: Final[dict[str, Any]] = {"ROLLING_ENGINE": "ijson", "padding_bytes": 350_000, "write_every_s": 1.0}

# ---- processes that die


def faults_of(service: Service, rng: random.Random) -> dict[str, Callable[[], object]]:
    """Each kind of fault that may be made at any moment, and the function that makes it."""

    def both_beats() -> None:
        service.fleet.end("beat-1", signal.SIGKILL)
        service.restart_beat("beat-2", signal.SIGKILL)
        service.fleet.start_beat("beat-1")

    def hanging_redis() -> None:
        service.redis.pause()
        time.sleep(2)
        service.redis.resume()

    def stopped_child() -> None:
        child = rng.choice(service.fleet.children())
        os.kill(child, signal.SIGSTOP)
        time.sleep(3)
        os.kill(child, signal.SIGCONT)

    def mangled_input() -> None:
        service.engine.manners = (in_place, cut_short, replaced)
        time.sleep(5)
        service.engine.manners = (replaced,)

    def full_disk() -> None:
        pids = [service.fleet.pid("worker"), *service.fleet.children()]
        before = resource.prlimit(pids[0], resource.RLIMIT_FSIZE)
        for pid in pids:
            with suppress(ProcessLookupError):  # a child may have been replaced
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (64, before[1]))
        time.sleep(2)
        for pid in (pids[0], *service.fleet.children()):  # one that was forked meanwhile has the limit too
            with suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, before)

    return {
        "SIGKILL of a worker's child": lambda: os.kill(rng.choice(service.fleet.children()), signal.SIGKILL),
        "SIGSTOP of a worker's child for 3 s": stopped_child,
        "SIGKILL of the worker, started again": lambda: service.restart_worker(signal.SIGKILL),
        "SIGTERM of the worker, started again": lambda: service.restart_worker(signal.SIGTERM),
        "SIGQUIT of the worker, started again": lambda: service.restart_worker(signal.SIGQUIT),
        "SIGKILL of one of two beats, started again": lambda: service.restart_beat("beat-1", signal.SIGKILL),
        "SIGKILL of both beats, started again": both_beats,
        "SIGKILL of Redis, started again": lambda: service.restart_redis(lose_data=False, away_s=rng.uniform(0, 1.5)),
        "SIGKILL of Redis, started again empty": lambda: service.restart_redis(
            lose_data=True, away_s=rng.uniform(0, 1.5)
        ),
        "SIGSTOP of Redis for 2 s": hanging_redis,
        "input rewritten in place, cut short, replaced, for 5 s": mangled_input,
        "files over their size limit (RLIMIT_FSIZE) for 2 s": full_disk,
        "none, for 3 s": lambda: time.sleep(3),
    }


def test_faults_of_all_kinds_in_any_order(start: Start, rng: random.Random, request: pytest.FixtureRequest) -> None:
    """The service survives each kind of fault once, then random kinds until the time is over.

    During all of it the engine publishes updates.
    """
    service = start(with_updates=True)
    faults = faults_of(service, rng)
    kinds = rng.sample(list(faults), len(faults))
    until = time.monotonic() + request.config.getoption("--chaos-s")
    while kinds or time.monotonic() < until:
        kind = kinds.pop() if kinds else rng.choice(list(faults))
        time.sleep(rng.uniform(0, 0.5))
        with service.fault(kind):
            faults[kind]()
    service.check()


def stop_a_run(service: Service, client: Any) -> tuple[bytes, int, list[int]]:
    """SIGSTOP all children during a run; return the run's token, the child that executes it, and all children."""
    while True:
        while client.exists(service.keys.lock):
            time.sleep(POLL_S)  # until the current run has ended
        token = service.wait_for_a_run(client)
        time.sleep(0.05)  # so that it scans
        children = service.fleet.children()
        for child in children:
            os.kill(child, signal.SIGSTOP)
        holders = [child for child in children if service.runs_in(child)]
        if client.get(service.keys.lock) == token and holders:
            return token, holders[0], children
        for child in children:  # the run ended too early
            os.kill(child, signal.SIGCONT)


def test_a_child_that_is_stopped_past_its_lock_publishes_nothing(start: Start) -> None:
    """After a child was stopped during its run, another child takes over once the lock has expired.

    When the stopped child continues, its run fails with `PublishRefused`.
    """
    service = start(interval_s=1.5, **SLOW_SCAN)  # so that each tick has something to scan
    with service.redis.client as client, service.fault("SIGSTOP of a worker's child amid its run, past its lock"):
        token, holder, children = stop_a_run(service, client)
        for child in set(children) - {holder}:
            os.kill(child, signal.SIGCONT)
        began = time.monotonic()
        wait_until(lambda: client.get(service.keys.lock) not in (None, token), what="another run to have the lock")
        assert time.monotonic() - began > LOCK_TTL_S - 4  # the lock is extended every 3 s
        service.wait_for_news()
        said = len(service.fleet.lines)
        os.kill(holder, signal.SIGCONT)
        service.fleet.wait_for_line("PublishRefused", since=said, limit_s=60)
    service.check()


def made(service: Service) -> list[Report]:
    """Return the runs so far, newest first, except those skipped because another one was in progress."""
    return [run for run in service.runs() if run.status != "skipped"]


@pytest.mark.parametrize("variables", [{}, {"REMAP_SIGTERM": "SIGQUIT"}], ids=["warm", "soft"])
def test_a_worker_that_is_told_to_end_amid_a_scan_finishes_it(
    start: Start, variables: dict[str, str], request: pytest.FixtureRequest
) -> None:
    """A worker that gets SIGTERM during a scan publishes that run, releases its lock, and begins no other run.

    A soft shutdown (SIGTERM taken for SIGQUIT) then waits for the rest of its 20 s.
    """
    if variables and not request.config.getoption("--long-life"):
        pytest.skip("takes half a minute, in `make chaos`")
    service = start(beats=0, **SLOW_SCAN, **variables)
    kind = f"SIGTERM of the worker amid a scan{', taken for SIGQUIT' if variables else ''}"
    with service.redis.client as client, service.fault(kind):
        service.wait_for_a_run(client, force=True)
        wait_until(lambda: service.is_scanning(client), what="its scan to have begun")
        before = made(service)
        service.fleet.end("worker", signal.SIGTERM)
        assert [run.status for run in made(service)] == ["success", *(run.status for run in before)]
        assert client.get(service.keys.lock) is None
        service.fleet.start_worker()
    service.check()


# ---- the disk, the clock, the broker


def test_a_full_disk(start: Start, tmp_path: Path) -> None:
    """While the disk is full, runs fail with `OutputUnwritable` and the old snapshots stay.

    Once the disk has space again, the next tick publishes.
    """
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        if os.environ.get("CI"):
            raise AssertionError(mounted.stderr)
        pytest.skip("only root may mount a small disk")
    try:
        service = start(output_dir=disk / "snapshots")
        with service.fault("disk full for 3 s"):
            said = len(service.fleet.lines)
            with (disk / "filler").open("wb", buffering=0) as filler:

                def fill_until_a_run_fails() -> bool:
                    # Again and again: a run that fails removes what it has written, which is space for the next run.
                    with suppress(OSError):
                        while filler.write(bytes(4096)) == 4096:
                            pass
                    return any(
                        re.search("OutputUnwritable.*No space left", line) for line in service.fleet.lines[said:]
                    )

                wait_until(fill_until_a_run_fails, what="a run that fails by name")
            time.sleep(3)
            (disk / "filler").unlink()
        service.check()
        service.__exit__()
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_workers_clock_that_jumps(
    start: Start, tmp_path: Path, rng: random.Random, request: pytest.FixtureRequest
) -> None:
    """Versions rise, and no reader shows an older one again, if the worker's clock is set ahead or back by days."""
    library, offset = tmp_path / "clock.so", tmp_path / "offset"
    offset.write_bytes(bytes(8))
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    source = str(Path(__file__).parent / "chaos" / "clock.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), source, "-ldl"], check=True)
    service = start(beats=0, worker_variables={"LD_PRELOAD": str(library), "CLOCK_OFFSET": str(offset)})

    more = 20 if request.config.getoption("--long-life") else 3
    steps_s = [86_400.0, -86_400.0, 0.0, *(rng.uniform(-1, 1) * 10 ** rng.uniform(-1, 6) for _ in range(more))]
    for step_s in steps_s:
        with service.fault("clock of the worker set ahead or back"), offset.open("r+b") as file:
            file.write(struct.pack("=q", round(step_s * 1e9)))
    service.check()
    # Equal content keeps its version.
    made = [report for report in reversed(service.runs("success")) if report.changes != ChangeCounts()]
    versions = [report.version or 0 for report in made]
    assert versions == sorted(set(versions))
    assert max(versions) > (time.time() + 80_000) * 1_000


def test_redis_is_away_for_long(start: Start, request: pytest.FixtureRequest, figures: Figures) -> None:
    """Worker and beats wait while Redis is away, and runs publish again within 10 s after it is back."""
    away_s = 60.0 if request.config.getoption("--long-life") else 20.0
    service = start(interval_s=1.0)
    with service.fault(f"Redis away for {away_s:g} s"):
        service.restart_redis(lose_data=False, away_s=away_s)
        back = time.monotonic()
        service.wait_for_news()
        again_s = time.monotonic() - back
        assert again_s < 10
    figures.lines.append(f"Redis away for {away_s:g} s: published again after {again_s:.1f} s, with an interval of 1 s")
    before = len(service.runs())
    time.sleep(5)
    assert len(service.runs()) - before >= 3  # on time: five ticks, or a little less
    service.check()


# ---- ticks and messages that come twice


def test_two_beats_and_runs_by_hand_publish_each_change_once(start: Start, rng: random.Random) -> None:
    """With two beats and runs sent by hand, versions rise, and each version and each generation is published once.

    The first message makes the run.
    """
    service = start()
    with service.redis.client as client, client.pubsub(ignore_subscribe_messages=True) as channel:
        channel.psubscribe("rolling:*:published")
        assert channel.get_message(timeout=5) is None
        ended = threading.Event()

        def press() -> None:
            while not ended.wait(rng.uniform(0, 0.2)):
                service.send()

        by_hand = [threading.Thread(target=press) for _ in range(2)]
        for thread in by_hand:
            thread.start()
        time.sleep(6)
        ended.set()
        for thread in by_hand:
            thread.join()
        service.check()
        published = []
        while message := channel.get_message(timeout=0.5):
            published.append(int(message["data"]))
        made = [
            report
            for report in service.runs()
            if report.cache in ("published", "republished") and report.changes != ChangeCounts()  # no equal content
        ]
    assert len(published) > 10
    assert published == sorted(set(published))
    assert sorted(report.version or 0 for report in made)[-len(published) :] == published
    generations = [service.pollers.versions[v] for v in published if v in service.pollers.versions]
    assert len(generations) > 10
    assert generations == sorted(set(generations))


def test_beats_that_die_cost_a_tick_at_most(start: Start) -> None:
    """If one of two beats dies, and then both and one is started again, at most one tick is missed at a time.

    The beat that is left after the first death misses none.
    """
    service = start(interval_s=2.5, ROLLING_STARTUP_DELAY_S="0.1")
    time.sleep(3)
    service.fleet.end("beat-1", signal.SIGKILL)
    made = len(service.runs())
    wait_until(lambda: len(service.runs()) >= made + 3, what="three runs by the other beat")
    service.fleet.end("beat-2", signal.SIGKILL)
    alone = [at for at, _ in service.timed_runs()[made + 1 :]]  # the dead beat may have sent the first
    assert max(after - before for before, after in pairwise(alone)) < 1.5 * 2.5
    service.fleet.start_beat("beat-1")
    time.sleep(6)
    times = [at for at, _ in service.timed_runs()]
    assert max(after - before for before, after in pairwise(times)) < 2 * 2.5 + 0.5
    service.fleet.start_beat("beat-2")
    service.check()


def test_a_message_that_is_delivered_twice_publishes_once(start: Start) -> None:
    """A message that is delivered twice publishes once: the other run is `unchanged`, or `skipped` during the first."""
    service = start(beats=0)
    service.fleet.end("worker", signal.SIGTERM)
    service.engine.stop()
    queue = f"rolling.{service.settings.source}"
    with service.redis.client as client:
        service.send()
        [message] = cast("list[bytes]", client.lrange(queue, 0, -1))
        client.lpush(queue, message)
        before = len(service.runs())
        service.fleet.start_worker()
        wait_until(lambda: len(service.runs()) >= before + 2, what="two runs")
    statuses = {report.status for report in service.runs()[:2]}
    assert "success" in statuses
    assert statuses & {"unchanged", "skipped"}
    service.check()
