"""Runs that are stopped while they write, overtaken, and continued: they are refused, and change no file or key."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from optimizer import Settings, optimize
from optimizer.cache.keys import Keys
from optimizer.errors import PublishRefused
from tests.support.published_state import (
    NEW,
    assert_redis_holds_the_files,
    assert_tidy,
    files_of,
    keys_of,
    run_old,
    version_of,
)
from tests.support.redis_servers import RedisServer, wait_until
from tests.support.rolling_files import local, write_json

# A run that stops itself once, when its writer makes or opens a path that ends with the given name.
STOPS_AT = """
import os, signal, sys
from pathlib import Path
from optimizer import Settings, optimize
from optimizer.pipeline.rollback import rollback
from optimizer.snapshots.directory import DirectoryStore

event_of_stop, end_of_name, armed, write = sys.argv[4], sys.argv[5], False, DirectoryStore.write

def hook(event, arguments):
    global armed
    if armed and event == event_of_stop and os.fsdecode(arguments[0]).endswith(end_of_name):
        armed = False
        os.kill(os.getpid(), signal.SIGSTOP)

def stopping(*arguments, **options):
    global armed
    armed = True
    write(*arguments, **options)

sys.addaudithook(hook)
DirectoryStore.write = stopping
settings = Settings(input=Path(sys.argv[1]), output_dir=Path(sys.argv[2]), redis_url=sys.argv[3])
rollback(settings, int(sys.argv[6])) if len(sys.argv) > 6 else optimize(settings)
"""


def is_stopped(process: subprocess.Popen[str]) -> bool:
    """Whether a process of ours was stopped by a signal."""
    pid, status = os.waitpid(process.pid, os.WUNTRACED | os.WNOHANG)
    assert pid == 0 or os.WIFSTOPPED(status), f"the run ended with {status}"
    return pid != 0


@pytest.mark.slow
@pytest.mark.parametrize("work", ["run", "rollback"])
@pytest.mark.parametrize("ahead_s", [0, 86_400], ids=["clock right", "clock behind"])
@pytest.mark.parametrize(
    "stops_at",
    [
        ("os.mkdir", ".partial"),
        ("open", "rolling_optimized.json.gz"),
        ("open", "manifest.json"),
        ("open", ".partial"),  # to sync it
        ("open", "versions"),  # the same, after the first check of the lock has passed
    ],
    ids=["first", "a file", "the last file", "sync", "last sync"],
)
def test_a_run_that_is_stopped_before_its_rename_refuses_when_it_goes_on(
    settings: Settings,
    redis_server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
    *,
    stops_at: tuple[str, str],
    ahead_s: int,
    work: str,
) -> None:
    """A run or rollback that was stopped and overtaken is refused when it continues, and its error gives the reason.

    It leaves the files and keys of the other run unchanged. If the clock is behind the newest version, both runs make
    the same version: the newest plus 1.
    """
    with monkeypatch.context() as patched:
        patched.setattr(time, "time_ns", lambda now=time.time_ns: now() + ahead_s * 10**9)
        newest = version_of(run_old(settings))
    write_json(settings.input, NEW)
    arguments = [str(settings.input), str(settings.output_dir), settings.redis_url, *stops_at]
    if work == "rollback":
        arguments.append(str(newest))
    process = subprocess.Popen([sys.executable, "-c", STOPS_AT, *arguments], stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: is_stopped(process), what="the run to stop itself")
        with redis_server.client as client:
            client.delete(Keys(settings.source).lock, Keys(settings.source).publishing)  # as if they had expired
        overtaking = optimize(settings)
        assert version_of(overtaking) > newest
        files, keys = files_of(local(settings.output_dir)), keys_of(redis_server, settings.source)
        published = {name: value for name, value in keys.items() if b":staged:" not in name}  # by the stopped run
    finally:
        process.send_signal(signal.SIGCONT)
    said = process.communicate(timeout=20)[1]

    assert process.returncode == 1
    assert f"{PublishRefused.__name__}: the lock was lost during the run" in said
    assert files_of(local(settings.output_dir)) == files
    assert keys_of(redis_server, settings.source) == published
    assert_redis_holds_the_files(redis_server, settings)
    assert_tidy(settings)
    assert Path(local(settings.output_dir) / "current").readlink().name == str(overtaking.version)
