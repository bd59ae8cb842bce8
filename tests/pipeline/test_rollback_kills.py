"""Rollbacks and unpins that are killed before each of their steps: real processes, files and Redis.

A step makes a file or directory, opens it for writing, renames, links or removes it, or sends a command to Redis.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Literal

import msgspec
import pytest

from optimizer import Settings, optimize
from optimizer.cache.keys import ORIGINS, Keys
from optimizer.models import Manifest
from optimizer.pipeline.rollback import rollback, unpin
from optimizer.snapshots.store import snapshot_store
from tests.support.published_state import (
    NEW,
    assert_redis_holds_the_files,
    assert_tidy,
    no_scan,
    run_old,
    version_of,
)
from tests.support.readers import Open
from tests.support.redis_servers import RedisServer
from tests.support.rolling_files import write_json

pytestmark = pytest.mark.slow

# Makes rollbacks, or unpins for the version 0, each in a forked process that kills itself before the given step.
DIES_AT = """
import sys
from pathlib import Path
from optimizer import Settings
from optimizer.pipeline.rollback import rollback, unpin
from tests.support.forked_deaths import die_at_steps

settings = Settings(input=Path(sys.argv[1]), output_dir=Path(sys.argv[2]), redis_url=sys.argv[3], keep_versions=4)
die_at_steps(lambda version: rollback(settings, *version) if version != [0] else unpin(settings))
"""


class Killed:
    """A process that makes rollbacks and unpins, each killed before a given step; it ends with its `with` block."""

    def __init__(self, settings: Settings) -> None:
        arguments = [str(each) for each in (settings.input, settings.output_dir, settings.redis_url)]
        command = [sys.executable, "-c", DIES_AT, *arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Killed:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=20)
        assert self._process.returncode == 0

    def before(self, step: int, version: int) -> bool:
        """Make a rollback, or an unpin for the version 0; return whether it was killed before this step."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{step} {version}\n")
        self._process.stdin.flush()
        status = int(self._process.stdout.readline())
        assert status in (0, -signal.SIGKILL)
        return status != 0


def shown_by(settings: Settings, server: RedisServer) -> tuple[Manifest, Manifest]:
    """The manifests of the files and of Redis, after readers have read each version whole."""
    with server.client as client:
        in_redis = msgspec.json.decode(client.hget(Keys(settings.source).current, "manifest"), type=Manifest)
    in_files = snapshot_store(settings.output_dir).read_set()
    assert in_files is not None
    for origin in ORIGINS:
        with ExitStack() as stack:
            whole = Open(stack, "threads")(settings, origin).snapshot()
            assert whole.version == (in_redis if origin == "redis" else in_files.manifest).version
    return in_files.manifest, in_redis


@pytest.fixture
def killed(settings: Settings) -> Iterator[Killed]:
    """A process that makes killed rollbacks and unpins with these settings."""
    with Killed(settings) as killed:
        yield killed


@pytest.mark.parametrize("action", ["rollback", "unpin"])
def test_killed_before_any_step_it_was_not_made_or_the_next_tick_completes_it(
    settings: Settings, redis_server: RedisServer, killed: Killed, action: Literal["rollback", "unpin"]
) -> None:
    """A rollback or unpin that is killed before any of its steps was not made, or the next tick completes it.

    The files decide: the tick makes Redis show what they show, and the pin is in both or in neither of them.
    """
    settings = replace(settings, keep_versions=4)
    old = version_of(run_old(settings))
    write_json(settings.input, NEW)
    new = version_of(optimize(settings))
    if action == "unpin":
        rollback(settings, new)
    outcomes = set()
    newest = 0
    step = 0
    is_killed = True
    while is_killed:
        step += 1
        before, _ = shown_by(settings, redis_server)
        is_killed = killed.before(step, old if action == "rollback" else 0)

        in_files, in_redis = shown_by(settings, redis_server)
        is_made = in_files != before
        outcomes.add((is_made, in_redis != before))
        assert in_redis in (before, in_files)
        assert (in_files.pinned is None) == (is_made == (action == "unpin"))
        with redis_server.client as client:
            client.delete(Keys(settings.source).lock, Keys(settings.source).publishing)  # as if they had expired
        report = optimize(settings, progress=no_scan)
        outcome = "unchanged" if in_files.pinned is None else "skipped"
        assert (report.status, report.version) == (outcome, in_files.version)
        assert shown_by(settings, redis_server) == (in_files, in_files)
        assert_redis_holds_the_files(redis_server, settings)
        assert_tidy(settings)
        assert in_files.version >= newest
        newest = in_files.version

        if is_made and action == "rollback":  # start again: publish the new input
            unpin(settings)
            optimize(settings, force=True)
        elif is_made:
            rollback(settings, in_files.version)
        old = next(
            (kept.version for kept in snapshot_store(settings.output_dir).versions() if is_old(kept.manifest)), 0
        )

    assert outcomes == {(False, False), (True, False), (True, True)}
    assert step > 20


def is_old(manifest: Manifest | None) -> bool:
    """Whether a version was made from the first input."""
    return manifest is not None and manifest.snapshots["portfolio"].count == 1
