"""Thousands of fast ticks by a real worker, beat and web, during which memory, descriptors and keys do not grow."""

from __future__ import annotations

import random
import statistics
import threading
import time
import urllib.request
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, cast

import celery
import pytest

from optimizer import Settings
from tests.reliability.chaos.figures import Figures
from tests.reliability.chaos.service import TASK, Service
from tests.support.fleet import Fleet
from tests.support.redis_servers import RedisServer
from tests.support.rolling_files import a_record, write_json

pytestmark = [pytest.mark.slow, pytest.mark.no_fork, pytest.mark.timeout(1_200)]

SHORT_TICKS: Final = 300
LONG_TICKS: Final = 3_000
DRIFT_MB: Final = 2.0
DRIFT_DESCRIPTORS: Final = 2
SAMPLES: Final = 60
DISPATCHED_RUNS: Final = 60  # an `Ignore` that is not freed takes 0.2 MB; the garbage collector runs after 60 of them
OLD_VERSION_S: Final = 120


def memory_mb(pid: int) -> float:
    """A process's own memory, without the pages that it shares with its parent."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no such line")


def descriptors(pid: int) -> int:
    """How many files and sockets a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


class Clients:
    """A client that sends requests to the web all the time, and one that listens to its events."""

    def __init__(self, address: str) -> None:
        self.answers = self.events = 0
        self._address = address
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._ask, self._listen)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Send no more requests; the listener ends with the next event."""
        self._ended.set()
        for thread in self._threads:
            thread.join(20)

    def _ask(self) -> None:
        paths = ("/predictions", "/page", "/status", "/predictions/S001", "/metrics", "/runs", "/bots")
        while not self._ended.wait(0.05):
            path = paths[self.answers % len(paths)]
            with urllib.request.urlopen(self._address + path, timeout=20) as response:
                response.read()
                self.answers += 1

    def _listen(self) -> None:
        with urllib.request.urlopen(self._address + "/events", timeout=20) as response:
            for line in response:
                self.events += line.startswith(b"event: version")
                if self._ended.is_set():
                    return


def test_a_long_life_at_speed(
    tmp_path: Path, own_redis: RedisServer, rng: random.Random, figures: Figures, request: pytest.FixtureRequest
) -> None:
    """Neither memory, descriptors nor lasting keys grow after the first third of the samples, which is the warm-up."""
    ticks = LONG_TICKS if request.config.getoption("--long-life") else SHORT_TICKS
    with Service(tmp_path, own_redis, rng, figures, interval_s=0.1, write_every_s=0.15) as service:
        service.start(beats=1)
        clients = Clients(service.fleet.start_web())
        began = time.monotonic()
        seen: dict[str, list[tuple[float, int]]] = {"beat": [], "web": [], "worker": []}
        keys: list[tuple[int, float]] = []
        with own_redis.client as client:
            for sample in range(SAMPLES):
                while made(service, client) < ticks * (sample + 1) / SAMPLES:
                    assert time.monotonic() - began < 0.5 * ticks + 60, "ticks are too slow"
                    time.sleep(0.1)
                watch(service, seen)
                keys.append(redis_state(client, service))
            results = check_expiry(client)
        clients.stop()
        seconds = time.monotonic() - began
        service.check()

    figures.lines.append(
        f"{ticks:,} ticks in {seconds:.0f} s; the web gave {clients.answers:,} answers, {clients.events:,} events"
    )
    grown: dict[str, tuple[float, float]] = {}
    for name, samples in sorted(seen.items()):
        if len(samples) < SAMPLES // 4:
            continue  # a child that was replaced soon, or has just been started
        name = "child" if name.startswith("child") else name  # noqa: PLW2901 - its process id is not needed
        memory, held = drift([mb for mb, _ in samples]), drift([float(count) for _, count in samples])
        grown[name] = (max(memory, grown.get(name, (memory, held))[0]), max(held, grown.get(name, (memory, held))[1]))
        figures.lines.append(
            f"{name}: {statistics.median(mb for mb, _ in samples):.1f} MB, drift {memory:+.2f} MB; "
            f"{samples[-1][1]} descriptors, drift {held:+.0f}; {len(samples)} samples"
        )
    lasting = [count for count, _ in keys]
    figures.lines.append(f"Redis: {lasting[-1]} keys without expiry, {results:,} results, all with one")
    if seconds > 2 * OLD_VERSION_S:  # by then as many old versions expire as are added
        redis_mb = [mb for _, mb in keys]
        figures.lines.append(
            f"Redis, what never expires but reports: {redis_mb[-1]:.2f} MB, drift {drift(redis_mb):+.2f} MB"
        )
        assert drift(redis_mb) < DRIFT_MB, redis_mb
    assert clients.events > ticks / 10
    assert max(lasting[-SAMPLES // 3 :]) <= max(lasting[: SAMPLES // 3]), lasting
    assert all(memory < DRIFT_MB and held <= DRIFT_DESCRIPTORS for memory, held in grown.values()), seen


def test_a_child_that_sends_parts_does_not_grow(tmp_path: Path, settings: Settings) -> None:
    """The memory of a child that begins runs of many parts does not grow.

    The task that begins such a run ends by an `Ignore`, of which nothing may stay in memory.
    """
    for name in "ab":
        write_json(tmp_path / "parts" / f"{name}.json.gz", {f"S{name}": a_record()})
    parted = replace(settings, input=tmp_path / "parts" / "*.json.gz", source="parted")
    samples: list[float] = []
    with Fleet(tmp_path, parted, ROLLING_SOURCE="parted") as fleet:
        fleet.start_worker("--concurrency", "1")
        with celery.Celery(broker=parted.broker_url, set_as_current=False) as client:
            for _ in range(DISPATCHED_RUNS):
                said = len(fleet.lines)
                sent = client.send_task(TASK, kwargs={"force": True}, queue="rolling.parted").id
                fleet.wait_for_line(rf"merge_rolling_parts\[{sent}\] succeeded", since=said)
                samples.append(memory_mb(fleet.children()[0]))
    assert drift(samples) < DRIFT_MB, samples


def made(service: Service, client: Any) -> int:
    """How many runs there have been."""
    return cast("int", client.xinfo_stream(service.keys.runs)["entries-added"])


def watch(service: Service, seen: dict[str, list[tuple[float, int]]]) -> None:
    """Add a sample of every process."""
    fleet = service.fleet
    pids = {"worker": fleet.pid("worker"), "beat": fleet.pid("beat-1"), "web": fleet.pid("web")}
    pids |= {f"child {pid}": pid for pid in fleet.children()}
    for name, pid in pids.items():
        with suppress(FileNotFoundError, ProcessLookupError):  # a child that has just been replaced
            seen.setdefault(name, []).append((memory_mb(pid), descriptors(pid)))


def drift(samples: list[float]) -> float:
    """How much higher the median of the last third is than the median of the middle third."""
    third = len(samples) // 3
    return statistics.median(samples[-third:]) - statistics.median(samples[third : 2 * third])


def redis_state(client: Any, service: Service) -> tuple[int, float]:
    """Return how many keys never expire and are no messages, and their memory in MB without the reports (of a day).

    Keys that expire (results, old versions) are left out: there are as many as the last minutes have made.
    """
    everything = list(client.scan_iter(count=1_000))
    with client.pipeline(transaction=False) as pipeline:
        for key in everything:
            pipeline.ttl(key)
        expiries_s = pipeline.execute()
        on_their_way = (b"rolling.", b"unacked")  # messages
        lasting = [
            key
            for key, expires_s in zip(everything, expiries_s, strict=True)
            if expires_s == -1 and not key.startswith(on_their_way)
        ]
        for key in lasting:
            if key.decode() != service.keys.runs:
                pipeline.memory_usage(key)
        sizes = pipeline.execute()
    return len(lasting), sum(size or 0 for size in sizes) / 1e6


def check_expiry(client: Any) -> int:
    """Check that every result expires within its 15 minutes; return how many results there are."""
    results = list(client.scan_iter("celery-task-meta-*", count=1_000))
    with client.pipeline(transaction=False) as pipeline:
        for key in results:
            pipeline.ttl(key)
        assert all(0 < expires_s <= 900 or expires_s == -2 for expires_s in pipeline.execute())
    return len(results)
