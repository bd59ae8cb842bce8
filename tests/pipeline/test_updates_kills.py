"""Drains, and the writing of the files after them, killed before their steps: real processes, files and Redis.

A step makes a file or directory, opens it for writing, renames, links or removes it, or sends a command to Redis.
"""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from optimizer import Settings, optimize
from optimizer.cache.keys import Keys
from optimizer.models import Record
from optimizer.pipeline.updates import enqueue
from optimizer.snapshots.store import snapshot_store
from tests.support.published_state import assert_redis_holds_the_files, assert_tidy, no_scan, run_old
from tests.support.redis_servers import RedisServer

# For each step number that it reads, forks a child that drains the queue, writes the files, and kills itself before
# that step; prints how the child ended.
DIES_AT = """
import sys
from pathlib import Path
import optimizer.pipeline.drain
from optimizer import Settings
from tests.support.forked_deaths import die_at_steps

optimizer.pipeline.drain.FILES_FOLLOW_S = -1.0
settings = Settings(input=Path(sys.argv[1]), output_dir=Path(sys.argv[2]), redis_url=sys.argv[3])
die_at_steps(lambda _: optimizer.pipeline.drain.apply_updates(settings))
"""


# Every fourth step is tried, from one that `--chaos-seed` chooses: all of them take some 20 s.
STRIDE = 4


def shown_by(settings: Settings) -> tuple[int, set[str]]:
    """The version in the files, and the symbols in its index, which has to be whole."""
    stored = snapshot_store(settings.output_dir).read_set()
    assert stored is not None
    return stored.manifest.version, {record.symbol for record in stored.decode_index().symbols}


@pytest.mark.slow
def test_killed_before_any_step_nothing_is_lost(
    settings: Settings, redis_server: RedisServer, rng: random.Random
) -> None:
    """If a drain is killed before any of its steps, its entry still waits or is shown, by a version that only rises.

    The next tick makes files and Redis equal.
    """
    run_old(settings)
    keys = Keys(settings.source)
    arguments = [str(each) for each in (settings.input, settings.output_dir, settings.redis_url)]
    outcomes, calls, step, is_killed = set(), 0, rng.randrange(STRIDE), True
    with (
        subprocess.Popen(
            [sys.executable, "-c", DIES_AT, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process,
        redis_server.client as client,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        while is_killed:
            calls, step = calls + 1, step + STRIDE
            in_files, symbols = shown_by(settings)
            assert symbols == {"AAPL", "MSFT", *(f"S{number}" for number in range(max(1, calls - 5), calls))}
            removed = [f"S{calls - 5}"] if calls > 5 else []
            enqueue(settings, [Record(f"S{calls}", 1.0, 0.9, 1.0)], removed)

            process.stdin.write(f"{step}\n")
            process.stdin.flush()
            status = int(process.stdout.readline())
            assert status in (0, -9)
            is_killed = status != 0

            waits = client.llen(keys.queue)
            version = int(client.hget(keys.current, "version") or 0)
            written, _ = shown_by(settings)
            assert in_files <= written <= version
            outcomes.add((waits, version > in_files, written > in_files))
            assert all(client.ttl(name) > 0 for name in client.keys("*:staged:*"))
            client.delete(keys.lock, keys.publishing, keys.draining)  # as if they had expired
            assert optimize(settings, progress=no_scan).status == "unchanged"
            if waits:
                optimize(settings, progress=no_scan)  # the first run has drained the queue; the files follow
            assert client.llen(keys.queue) == 0
            assert_redis_holds_the_files(redis_server, settings)
            assert_tidy(settings)

    assert outcomes == {(1, False, False), (0, True, False), (0, True, True)}
    assert step > 40
