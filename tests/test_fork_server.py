"""A process that the tests fork prints the same, and ends in the same way, as a process that users start."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.command import command_line
from tests.support.compose import ROOT
from tests.support.fork_server import ForkingStack, can_fork, forbid, run, spawn
from tests.support.redis_servers import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")

CLOSED: Final = "redis://127.0.0.1:1/0"
STATE: Final = """
import __main__, json, os, signal, sys, time
print(json.dumps([sys.argv, sys.path, os.getcwd(), sorted(os.environ.items()), time.tzname, sys.stdin.read()]))
print(sorted(os.listdir("/proc/self/fd")), os.getppid() == os.getpgrp(), signal.getsignal(signal.SIGINT))
print(sys.stdout.encoding, sys.stdout.errors, sys.stdout.write_through, sys.stdout.line_buffering)
print(__name__, sorted(name for name in vars(__main__) if not name.startswith("__")))
print("an error", file=sys.stderr)
"""
COMMANDS: Final = {
    "config": command_line("config"),
    "run": command_line("run", "--no-cache"),
    "bad option": command_line("run", "--top", "0"),
    "help": command_line("status", "-h"),
    "celery": [sys.executable, "-m", "celery", "-A", "tasks", "inspect", "--list"],
    "celery -P": [sys.executable, "-P", "-m", "celery", "-A", "optimizer.celery.standalone", "worker", "--none"],
    "code": [sys.executable, "-c", STATE, "one", "two"],
    "script": [sys.executable, "state.py", "one"],
    "error": [sys.executable, "-c", "import atexit; atexit.register(print, 'end'); 1 / 0"],
    "status": [sys.executable, "-c", "import sys; sys.exit(3)"],
    "signal": [sys.executable, "-c", "import os; print('lost'); os.kill(os.getpid(), 9)"],
    "unbuffered": [sys.executable, "-c", "import os, sys; sys.stdout.write('kept'); os.kill(os.getpid(), 15)"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_process_that_is_forked_does_what_a_started_one_does(tmp_path: Path, name: str) -> None:
    """A forked process has the output, errors and exit status of one started in the same directory and environment."""
    (tmp_path / "state.py").write_text(STATE)
    environ = os.environ | {"PYTHONPATH": str(ROOT), "ROLLING_INPUT": "none.json", "ROLLING_REDIS_URL": CLOSED}
    environ |= {"TZ": "Asia/Tokyo"} | ({"PYTHONUNBUFFERED": "1"} if name == "unbuffered" else {})
    assert can_fork(COMMANDS[name], environ)

    forked = run(COMMANDS[name], environ, tmp_path)
    forbid(is_forbidden=True)
    started = run(COMMANDS[name], environ, tmp_path)
    forbid(is_forbidden=False)

    errors = re.sub(r'  File "[^"]*/fork_server.py", line .*\n    .*\n( *\^+\n)?', "", forked.stderr)  # in a traceback
    assert (forked.returncode, forked.stdout, errors) == (started.returncode, started.stdout, started.stderr)


def test_what_reads_its_environment_early_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process is started, not forked, if something is read at its start that a fork cannot change.

    This is a variable that a library or Python may read at its start, another Python, or a pool that patches the
    standard library.
    """
    command = command_line("status")
    assert can_fork(command, os.environ | {"ROLLING_INPUT": "x"})
    for other in ({"PYTHONHASHSEED": "1"}, {"OTEL_SDK_DISABLED": "true"}, {"LANG": "C.other"}):
        assert not can_fork(command, os.environ | other)
    assert not can_fork(["/usr/bin/python3", *command[1:]], os.environ)
    assert not can_fork([sys.executable, "-m", "celery", "worker", "-P", "gevent"], os.environ)
    monkeypatch.setattr("tests.support.fork_server._libc", None)
    assert not can_fork(command, os.environ)


@pytest.mark.no_fork
def test_a_marked_test_starts_its_processes() -> None:
    """In a test marked `no_fork`, no process is forked: all are started, as users start them."""
    assert not can_fork(command_line("status"), os.environ)


def test_a_forked_process_can_be_signalled_and_waited_for(tmp_path: Path) -> None:
    """A forked process leads its own session; after SIGTERM, `wait` and `poll` return the status of that signal."""
    with (tmp_path / "log").open("wb") as log:
        process = spawn([sys.executable, "-c", "import time; time.sleep(60)"], os.environ, tmp_path, log)
    assert process.poll() is None
    assert os.getsid(process.pid) == process.pid
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)
    process.terminate()
    assert process.wait(20) == process.poll() == -signal.SIGTERM
    process.kill()  # has no effect on a process that has ended


def test_a_forked_process_ends_with_the_one_that_asked_for_it(tmp_path: Path) -> None:
    """A forked process ends with the process that requested it, even if that is killed and cannot end it."""
    program = f"""
import os, sys, time
from tests.support.fork_server import spawn
with open("log", "wb") as log:
    process = spawn([{sys.executable!r}, "-c", "import time; time.sleep(60)"], os.environ, ".", log)
print(process.pid, type(process).__name__, flush=True)
time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=-1
    ) as asking:
        assert asking.stdout is not None
        pid, kind = asking.stdout.readline().split()
        assert kind == b"Forked"
        asking.kill()
    wait_until(lambda: not Path(f"/proc/{int(pid)}").exists(), what="its end")


def test_a_stack_forks_behind_a_change_of_directory(tmp_path: Path) -> None:
    """A stack forks a process behind `env -C DIRECTORY` too, and reads its lines as soon as they are printed."""
    lines: list[Any] = []
    program = "import os, time; print(os.getcwd()); time.sleep(60)"
    with ForkingStack(lambda *line: lines.append(line), tmp_path) as stack:
        stack.start("here", ["env", "-C", str(tmp_path), sys.executable, "-c", program])
        wait_until(lambda: bool(lines), what="its line")
        assert type(stack._processes["here"]).__name__ == "Forked"
    assert lines == [("here", str(tmp_path))]
