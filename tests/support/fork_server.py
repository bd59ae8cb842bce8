"""A server process that has imported the commands and Celery, and forks the processes that tests start.

These imports take longer than all that most tests do with a process. A child begins where the imports have been made,
with its own arguments, environment, working directory, session and output. All processes of a test run share one
server: the first process that needs it starts it, and it ends with the run.

A child cannot be given what the interpreter or a library may read when it starts: then `can_fork` returns false, and
the process is started as usual. So are the processes of a test that is marked `no_fork`: tests of what a process shows
in `/proc`, of its memory, its imports and its start. Only Linux has what this needs: process descriptors, and a signal
when the parent ends.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import io
import json
import os
import re
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from types import ModuleType
from typing import IO, Any, Final, cast

from optimizer.cli.dev.stack import Stack

__all__ = ["Forked", "ForkingStack", "can_fork", "forbid", "fork", "run", "spawn"]

# The first module imports nearly all of Celery; a worker, a beat and Flower import its other modules once they run.
PRELOADED: Final = (
    "celery.bin.celery",
    "celery.apps.beat",
    "celery.apps.worker",
    "celery.backends.redis",
    "celery.concurrency.prefork",
    "celery.worker.autoscale",
    "celery.worker.components",
    "celery.worker.consumer",
    "celery.worker.strategy",
    "kombu.transport.redis",
    "flower.app",
    "flower.urls",
    "redis.sentinel",
    "optimizer.web.serve",
)
MODULES: Final = frozenset({"celery", "optimizer.cli"})
OWN_POOLS: Final = frozenset({"gevent", "eventlet"})  # they patch the standard library before anything is imported
# Variables that no module reads when it is imported, or that this module applies itself. If a child's environment
# differs in any other variable, its imports could differ from the imports of a process that was started with it.
READ_LATER: Final = re.compile(
    "ROLLING_|FLOWER_|PYTEST_|AWS_|FSSPEC_|(C_FORCE_ROOT|NO_COLOR|TZ|PYTHONPATH|PYTHONUNBUFFERED)$"
)
AT_START: Final = dict(os.environ)  # a test may change it before the server is started
# The server ends with this process: the pytest that starts all other processes, since they inherit the variable.
SESSION: Final = os.environ.setdefault("PYTEST_FORK_SERVER", str(os.getpid()))
ADDRESS: Final = f"\0rolling-optimizer-tests-{SESSION}"
PR_SET_PDEATHSIG: Final = 1
MESSAGE_BYTES: Final = 1 << 18

_libc: Final = ctypes.CDLL(None) if sys.platform == "linux" else None
_is_forbidden = False


def forbid(*, is_forbidden: bool) -> None:
    """From now on, start every process as usual, or fork where `can_fork` allows it."""
    global _is_forbidden  # noqa: PLW0603 - of one test at a time
    _is_forbidden = is_forbidden


def can_fork(command: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Whether a process would be the same if it was forked."""
    return (
        _libc is not None
        and not _is_forbidden
        and _parsed(command) is not None
        and not OWN_POOLS & set(command)
        and all(READ_LATER.match(name) for name, _ in environ.items() ^ AT_START.items())
    )


def _parsed(command: Sequence[str]) -> dict[str, Any] | None:
    """Return what a command of Python runs (a module, code or a script); None for another command."""
    match command:
        case [sys.executable, "-P", "-m", module, *arguments] if module in MODULES:
            return {"module": module, "arguments": arguments, "is_safe_path": True}
        case [sys.executable, "-m", module, *arguments] if module in MODULES:
            return {"module": module, "arguments": arguments}
        case [sys.executable, "-c", code, *arguments]:
            return {"code": code, "arguments": arguments}
        case [sys.executable, script, *arguments] if script.endswith(".py"):
            return {"script": script, "arguments": arguments}
    return None


class Forked:
    """A forked process, with the members of `subprocess.Popen` that tests use.

    It gets SIGTERM when the process that requested it, or the server, ends.

    Attributes:
        args: Its command.
        pid: Its process id.
        returncode: As in `subprocess.Popen`; None while it runs, as far as `poll` and `wait` have seen.
        stdout: Its output and its errors, unless they go elsewhere.
    """

    def __init__(self, command: Sequence[str], stdout: IO[bytes] | None, server: socket.socket) -> None:
        self.args = command
        self.stdout = stdout
        self.returncode: int | None = None
        self._server = server
        self.pid = int(server.recv(MESSAGE_BYTES))

    def poll(self) -> int | None:
        """Return its exit status, None while it runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; return its exit status, negative for a signal.

        Raises:
            subprocess.TimeoutExpired: It has not ended within `timeout` seconds.
        """
        if self.returncode is None:
            ended = select.poll()
            ended.register(self._server, select.POLLIN | select.POLLHUP)
            if not ended.poll(None if timeout is None else timeout * 1000):
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            with self._server as server:
                self.returncode = int(server.recv(MESSAGE_BYTES) or -signal.SIGKILL)  # the server was killed
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, if it runs."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM, if it runs."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL, if it runs."""
        self.send_signal(signal.SIGKILL)


class ForkingStack(Stack):
    """A stack that forks a process where `can_fork` allows it, also behind `env -C DIRECTORY`."""

    def _spawn(self, command: list[str], environ: dict[str, str]) -> subprocess.Popen[bytes]:
        directory, python = ".", command
        if command[:2] == ["env", "-C"]:
            directory, *python = command[2:]
        if not can_fork(python, environ):
            return super()._spawn(command, environ)
        ours, theirs = os.pipe()
        try:
            forked = fork(python, environ, directory, (theirs, theirs), os.fdopen(ours, "rb", buffering=0))
        finally:
            os.close(theirs)
        return cast("subprocess.Popen[bytes]", forked)


def spawn(
    command: Sequence[str],
    environ: Mapping[str, str],
    directory: Path | str,
    output: IO[Any],
    errors: IO[Any] | None = None,
) -> Forked | subprocess.Popen[bytes]:
    """Start a process, forked if that makes no difference; output and errors go to files, by default to the same."""
    errors = errors or output
    if can_fork(command, environ):
        return fork(command, environ, directory, (output.fileno(), errors.fileno()))
    return subprocess.Popen(command, cwd=directory, env=environ, stdin=subprocess.DEVNULL, stdout=output, stderr=errors)


def run(
    command: Sequence[str], environ: Mapping[str, str], directory: Path, timeout_s: float = 120.0
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, forked if that makes no difference; return its exit status and what it printed.

    Raises:
        subprocess.TimeoutExpired: It was killed after `timeout_s`.
    """
    with TemporaryFile() as out, TemporaryFile() as errors:
        process = spawn(command, environ, directory, out, errors)
        try:
            status = process.wait(timeout_s)
        finally:
            process.kill()
            process.wait()
        out.seek(0)
        errors.seek(0)
        return subprocess.CompletedProcess(command, status, out.read().decode(), errors.read().decode())


def fork(
    command: Sequence[str],
    environ: Mapping[str, str],
    directory: Path | str,
    printed_to: tuple[int, int],
    stdout: IO[bytes] | None = None,
) -> Forked:
    """Start a process that `can_fork` allows, with its whole environment; nothing is read from its standard input.

    `printed_to` are the descriptors of its output and of its errors; `stdout` is a file from which these can be read.
    """
    request = {**(_parsed(command) or {}), "environ": dict(environ), "directory": str(Path(directory).absolute())}
    server = _connection()
    socket.send_fds(server, [json.dumps(request).encode()], printed_to)
    return Forked(command, stdout, server)


def _connection() -> socket.socket:
    """Return a connection to the server; start the server unless another process has done so."""
    while True:
        server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MESSAGE_BYTES)
        try:
            server.connect(ADDRESS)
        except ConnectionRefusedError:
            server.close()
        else:
            return server
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            try:
                listener.bind(ADDRESS)
            except OSError:  # another process has bound it, and will listen in a moment
                time.sleep(0.01)
                continue
            listener.listen(64)
            subprocess.Popen(
                [sys.executable, "-P", __file__, str(listener.fileno())],
                cwd="/",
                env={name: text for name, text in AT_START.items() if name != "PYTHONPATH"}
                | {"PYTEST_FORK_SERVER": SESSION},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[listener.fileno()],
                start_new_session=True,
            ).returncode = 0  # it may outlive this process, which does not wait for it


@dataclass
class _Child:
    """A forked process as the server sees it, with its process descriptor and the connection of its requester."""

    pid: int
    ended: int
    asked: socket.socket


def _serve(listener: socket.socket, session: int) -> dict[str, Any]:
    """Fork for each request until the session's process ends; return the request in the child."""
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(session, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                child = key.data
                if key.fileobj is listener:
                    asked, _ = listener.accept()
                    data, printed_to, _, _ = socket.recv_fds(asked, MESSAGE_BYTES, 2)
                    pid = os.fork()
                    if pid == 0:
                        os.setsid()
                        with suppress(ConnectionError):
                            asked.send(b"%d" % os.getpid())  # now that it can be signalled as a group
                        others = [other.data.asked for other in selector.get_map().values() if other.data]
                        for each in (listener, asked, *others):
                            each.detach()  # otherwise it would close a later descriptor with its number
                        return {"printed_to": printed_to, **json.loads(data)}
                    for descriptor in printed_to:
                        os.close(descriptor)
                    child = _Child(pid, os.pidfd_open(pid), asked)
                    selector.register(child.ended, selectors.EVENT_READ, child)
                    selector.register(asked, selectors.EVENT_READ, child)
                elif key.fd == session:
                    os._exit(0)
                elif key.fd == child.ended:
                    selector.unregister(child.ended)
                    os.close(child.ended)
                    code = os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])
                    if child.asked.fileno() >= 0:
                        selector.unregister(child.asked)
                        with child.asked, suppress(ConnectionError):
                            child.asked.send(b"%d" % code)
                elif child.asked.fileno() >= 0:  # the requester has ended, or has closed the connection
                    selector.unregister(child.asked)
                    child.asked.close()
                    os.kill(child.pid, signal.SIGTERM)


def _become(request: Mapping[str, Any]) -> None:
    """Take over the output, environment and directory that the request names; keep no descriptor of the server."""
    assert _libc is not None
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    for number, descriptor in enumerate(request["printed_to"], 1):
        os.dup2(descriptor, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.environ.clear()
    os.environ.update(request["environ"])
    os.chdir(request["directory"])
    time.tzset()
    if os.environ.get("PYTHONUNBUFFERED"):
        raw = io.FileIO(1, "w", closefd=False)
        sys.stdout = sys.__stdout__ = io.TextIOWrapper(  # type: ignore[misc]
            cast("Any", raw), sys.stdout.encoding, sys.stdout.errors, write_through=True
        )


def main() -> None:
    """Import the modules, then fork until the session ends; in each child, continue as a new Python would."""
    session = os.pidfd_open(int(SESSION))
    for name in (*PRELOADED, *importlib.import_module("optimizer.cli.commands").MODULES.values()):
        importlib.import_module(name)
    installed = list(sys.path)
    gc.collect()
    gc.freeze()  # also for the children: a collection over all that is imported takes 0.3 s at their end
    request = _serve(socket.socket(fileno=int(sys.argv[1])), session)
    _become(request)
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    first = [] if request.get("is_safe_path") else [str(Path.cwd())]
    sys.argv[:] = ["-c", *request["arguments"]]
    if script := request.get("script"):
        sys.argv[0], first = script, [str(Path(script).parent.absolute())]
    elif "code" in request:
        first = [""]
    sys.path[:] = [*first, *paths, *installed]
    if script:
        runpy.run_path(script, run_name="__main__")
    elif "code" in request:
        sys.modules["__main__"] = program = ModuleType("__main__")
        exec(compile(request["code"], "<string>", "exec"), program.__dict__)
    else:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
