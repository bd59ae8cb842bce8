"""Kills of a worker's children at random moments of their runs.

This is a module of its own, since it takes minutes and so runs in parallel with the other faults.
"""

from __future__ import annotations

import random
import statistics
import time
from typing import Any, Final

import pytest

from optimizer.snapshots.store import snapshot_store
from tests.reliability.chaos.service import POLL_S, Service, Start
from tests.support.redis_servers import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

LONG_KILLS: Final = 200
SHORT_KILLS: Final = 40
ROLLBACKS: Final = 4


def duration_s(service: Service, client: Any) -> float:
    """Measure for how long a run usually holds its lock."""
    durations = []
    for _ in range(11):
        service.send(force=True)
        service.wait_for_a_run(client)
        began = time.monotonic()
        while client.exists(service.keys.lock):
            time.sleep(POLL_S)
        durations.append(time.monotonic() - began)
    return statistics.median(durations)


def test_a_child_killed_at_random_moments_of_its_runs(
    start: Start, rng: random.Random, request: pytest.FixtureRequest
) -> None:
    """Whenever a worker's children are killed, one of them during a run, the next run publishes in a new child.

    The locks that a killed run leaves are removed at once. They take 10 s to expire, for which other tests wait.
    """
    wanted = LONG_KILLS if request.config.getoption("--long-life") else SHORT_KILLS
    service = start(beats=0, write_every_s=0.05)
    kills = 0
    with service.redis.client as client, service.fault("SIGKILL of a worker's child amid its run", wanted):
        usual_s = duration_s(service, client)
        while kills < wanted:
            token = service.wait_for_a_run(client, force=rng.random() < 0.8)
            time.sleep(rng.uniform(0, usual_s))
            killed = service.kill_children()
            kills += client.get(service.keys.lock) == token  # else the run had ended
            client.delete(service.keys.lock, service.keys.publishing)
            service.wait_for_new_children(killed)
            if rng.random() < 0.5:
                service.wait_for_a_report(client)
    service.check()


def test_rollbacks_and_unpins_among_kills(start: Start, rng: random.Random) -> None:
    """Commands and children of the worker are killed at random moments while old versions are published again.

    No reader sees a torn or mixed version, or a lower number. While a version is pinned no run replaces it; afterwards
    the next run publishes what the input has by then.
    """
    service = start(beats=1, write_every_s=0.1, keep_versions=20)
    with service.redis.client as client, service.fault("SIGKILL of rollback, unpin and children", ROLLBACKS):
        for _ in range(ROLLBACKS):
            wait_until(lambda: len(kept_by(service)) > 2, what="versions to go back to")
            service.command("rollback", rng.choice(kept_by(service)[1:]), kill_after_s=rng.uniform(0.1, 0.8))
            client.delete(service.keys.lock, service.keys.publishing)
            kill_children_amid_a_run(service, client, rng)
            while service.command("rollback", rng.choice(kept_by(service)[1:])) != 0:
                pass  # a run has removed the version meanwhile, or a child's last lock was deleted
            [pinned] = kept_by(service)[:1]
            kill_children_amid_a_run(service, client, rng)
            wait_until(lambda: service.runs()[0].reason == "pinned", what="a tick on the pinned version", limit_s=30)
            assert (service.runs()[0].version, kept_by(service)[0]) == (pinned, pinned)
            service.command("unpin", kill_after_s=rng.uniform(0.1, 0.8))
            client.delete(service.keys.lock, service.keys.publishing)
            service.command("unpin")  # needed if the one that was killed has not unpinned
            service.wait_for_news()
    service.check()


def kept_by(service: Service) -> list[int]:
    """The kept versions, newest first."""
    return [kept.version for kept in snapshot_store(service.settings.output_dir).versions() if not kept.problem]


def kill_children_amid_a_run(service: Service, client: Any, rng: random.Random) -> None:
    """Kill all children of the worker shortly after a tick or a forced run has taken the lock."""
    service.send(force=True)
    service.wait_for_a_run(client)
    time.sleep(rng.uniform(0, 0.05))
    killed = service.kill_children()
    client.delete(service.keys.lock, service.keys.publishing)
    service.wait_for_new_children(killed)
