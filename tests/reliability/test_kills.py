"""Kills of a worker's children at random moments of their runs.

A module of its own, since it takes minutes: so it runs beside the other faults.
"""

from __future__ import annotations

import random
import statistics
import time
from typing import Any, Final

import pytest

from tests.reliability.chaos.service import POLL_S, Service, Start

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

KILLS: Final = 200


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


def test_a_child_killed_at_200_random_moments_of_its_runs(start: Start, rng: random.Random) -> None:
    """Each time the children of a real worker die, one of them amid a run, and the next run, in a new one, publishes.

    What stays of the run's lock is removed at once, which else takes 10 s to expire; other tests wait for it.
    """
    service = start(beats=0, write_every_s=0.05)
    kills = 0
    with service.redis.client as client, service.fault("SIGKILL of a worker's child amid its run", KILLS):
        usual_s = duration_s(service, client)
        while kills < KILLS:
            token = service.wait_for_a_run(client, force=rng.random() < 0.8)
            time.sleep(rng.uniform(0, usual_s))
            killed = service.kill_children()
            kills += client.get(service.keys.lock) == token  # else the run was through
            client.delete(service.keys.lock)
            service.wait_for_new_children(killed)
            if rng.random() < 0.5:
                service.wait_for_a_report(client)
    service.check()
