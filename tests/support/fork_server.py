"""A process that has imported what Celery's processes import of other projects, and forks each of them.

To import Celery's command line with its plugins, redis-py and OpenTelemetry takes longer than all that most tests do
with a worker. `python -m` of a child begins where these imports have been made: with its own arguments, environment,
working directory, session and output, and with no module of this project imported yet.

    python -P -m tests.support.fork_server FD        until its socket is closed

What the interpreter or a library may read when it starts cannot be given to a child: `can_fork` says no, and the
process is to be started as usual. Linux alone has what this needs: process descriptors, a signal when the parent ends.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
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
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, Final

__all__ = ["ForkServer", "Forked", "can_fork", "fork_server", "run", "spawn"]

# The first imports nearly all; the others are imported by a worker, a beat and Flower once they run.
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
    "ijson",
    "isal.igzip_threaded",
    "msgspec",
    "redis.sentinel",
)
MODULES: Final = frozenset({"celery", "optimizer.cli"})
OWN_POOLS: Final = frozenset({"gevent", "eventlet"})  # they patch the standard library before anything is imported
# What nothing reads when it is imported, and PYTHONPATH and PYTHONUNBUFFERED, which are done here. A child whose
# environment differs in anything else could read it differently from a process that was started with it.
READ_LATER: Final = re.compile(r"ROLLING_|FLOWER_|PYTEST_|C_FORCE_ROOT$|PYTHONPATH$|PYTHONUNBUFFERED$")
AT_START: Final = dict(os.environ)  # a test may change it before the server is started
PR_SET_PDEATHSIG: Final = 1
MESSAGE_BYTES: Final = 1 << 18

_libc: Final = ctypes.CDLL(None) if sys.platform == "linux" else None


def can_fork(command: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Whether a process would be the same if it was forked."""
    return (
        _libc is not None
        and _parsed(command) is not None
        and not OWN_POOLS & set(command)
        and all(READ_LATER.match(name) for name, _ in environ.items() ^ AT_START.items())
    )


def _parsed(command: Sequence[str]) -> dict[str, Any] | None:
    """What a command of Python runs: a module, code or a script; or None for another command."""
    match command:
        case [sys.executable, "-P", "-m", module, *arguments] if module in MODULES:
            return {"module": module, "arguments": arguments, "is_safe_path": True}
        case [sys.executable, "-m", module, *arguments] if module in MODULES:
            return {"module": module, "arguments": arguments, "is_safe_path": False}
        case [sys.executable, "-c", code, *arguments]:
            return {"code": code, "arguments": arguments, "is_safe_path": False}
        case [sys.executable, script, *arguments] if script.endswith(".py"):
            return {"script": script, "arguments": arguments, "is_safe_path": False}
    return None


class Forked:
    """A process that was forked; with those members of `subprocess.Popen` that a stack uses.

    Attributes:
        args: Its command.
        pid: Its process id.
        returncode: As in `subprocess.Popen`; None while it runs, as far as `poll` and `wait` have seen.
        stdout: What it prints, its errors among it, unless that goes elsewhere.
    """

    def __init__(self, command: Sequence[str], stdout: IO[bytes] | None, status: IO[bytes]) -> None:
        self.args = command
        self.stdout = stdout
        self.returncode: int | None = None
        self._status = status
        self.pid = int(status.readline())

    def poll(self) -> int | None:
        """Return its exit status, None while it runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; return its exit status.

        Raises:
            subprocess.TimeoutExpired: It has not ended within so many seconds.
        """
        if self.returncode is None:
            ended = select.poll()
            ended.register(self._status, select.POLLIN | select.POLLHUP)
            if not ended.poll(None if timeout is None else timeout * 1000):
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            with self._status as status:
                self.returncode = int(status.readline() or -signal.SIGKILL)  # the server was killed, and all with it
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, if it runs."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """The process that forks, started with the first request; it ends with this process."""

    def __init__(self) -> None:
        self._pid = 0
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(
        self,
        command: Sequence[str],
        environ: Mapping[str, str],
        directory: Path | str = ".",
        printed_to: tuple[int, int] | None = None,
    ) -> Forked:
        """Start a process that `can_fork` allows.

        Args:
            command: The process's command.
            environ: Its whole environment.
            directory: Its working directory.
            printed_to: The descriptors of its output and of its errors; without them `stdout` has both.
        """
        request = {**(_parsed(command) or {}), "environ": dict(environ), "directory": str(Path(directory).absolute())}
        with ExitStack() as stack:

            def pipe() -> tuple[IO[bytes], int]:
                ours, theirs = os.pipe()
                stack.callback(os.close, theirs)
                return os.fdopen(ours, "rb", buffering=0), theirs

            told, status = pipe()
            stdout = None
            if printed_to is None:
                stdout, printed = pipe()
                printed_to = printed, printed
            socket.send_fds(self._connected(), [json.dumps(request).encode()], [status, *printed_to])
        return Forked(command, stdout, told)

    def _connected(self) -> socket.socket:
        if self._socket is None or self._pid != os.getpid():
            self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MESSAGE_BYTES)
            self._pid = os.getpid()
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", __file__, str(theirs.fileno())],
                    cwd="/",
                    env={name: text for name, text in AT_START.items() if name != "PYTHONPATH"}
                    | {"PYTHONUNBUFFERED": "1"},
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
            atexit.register(self._stop)
        return self._socket

    def _stop(self) -> None:
        if self._pid == os.getpid() and self._socket is not None and self._process is not None:
            self._socket.close()
            self._process.wait()


fork_server: Final = ForkServer()


def spawn(
    command: Sequence[str], environ: Mapping[str, str], directory: Path, output: IO[Any]
) -> Forked | subprocess.Popen[bytes]:
    """Start a process that prints into a file, forked if that makes no difference."""
    if can_fork(command, environ):
        return fork_server.start(command, environ, directory, (output.fileno(), output.fileno()))
    return subprocess.Popen(command, cwd=directory, env=environ, stdout=output, stderr=subprocess.STDOUT)


def run(
    command: Sequence[str], environ: Mapping[str, str], directory: Path, timeout_s: float = 120.0
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, forked if that makes no difference; return its exit status and what it printed.

    Raises:
        subprocess.TimeoutExpired: It was killed after so many seconds.
    """
    with TemporaryFile() as out, TemporaryFile() as errors:
        if can_fork(command, environ):
            process = fork_server.start(command, environ, directory, (out.fileno(), errors.fileno()))
            try:
                status = process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise
        else:
            status = subprocess.run(
                command, cwd=directory, env=environ, stdout=out, stderr=errors, timeout=timeout_s, check=False
            ).returncode
        out.seek(0)
        errors.seek(0)
        return subprocess.CompletedProcess(command, status, out.read().decode(), errors.read().decode())


def serve(requests: socket.socket) -> dict[str, Any]:
    """Fork for each request, and tell the end of each child; return the request in the child."""
    ends: dict[int, tuple[int, int]] = {}  # by the child's descriptor: its process id, and who is told
    with selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is not requests:
                    selector.unregister(key.fileobj)
                    os.close(key.fd)
                    pid, status = ends.pop(key.fd)
                    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                    with suppress(BrokenPipeError), os.fdopen(status, "wb") as file:
                        file.write(b"%d\n" % code)
                    continue
                data, descriptors, _, _ = socket.recv_fds(requests, MESSAGE_BYTES, 3)
                if not data:
                    os._exit(0)
                status, *printed_to = descriptors
                pid = os.fork()
                if pid == 0:
                    return {"printed_to": printed_to, **json.loads(data)}
                for descriptor in printed_to:
                    os.close(descriptor)
                os.write(status, b"%d\n" % pid)
                ended = os.pidfd_open(pid)
                ends[ended] = pid, status
                selector.register(ended, selectors.EVENT_READ)


def _become(out: int, errors: int) -> None:
    """Give a child a session, and its output; leave it no descriptor of the server's."""
    os.setsid()
    assert _libc is not None
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    os.dup2(out, 1)
    os.dup2(errors, 2)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))


def main() -> None:
    """Import, then fork until the socket is closed; go on as `python -m` in each child."""
    for name in PRELOADED:
        importlib.import_module(name)
    before = list(sys.path)
    gc.collect()
    gc.freeze()
    with socket.socket(fileno=int(sys.argv[1])) as requests:
        request = serve(requests)
    _become(*request["printed_to"])
    gc.unfreeze()
    os.environ.clear()
    os.environ.update(request["environ"])
    os.chdir(request["directory"])
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.argv[1:] = request["arguments"]
    first = [] if request["is_safe_path"] else [str(Path.cwd())]
    if script := request.get("script"):
        sys.argv[0], first = script, [str(Path(script).parent.absolute())]
    sys.path[:] = [*first, *paths, *before]
    if script:
        runpy.run_path(script, run_name="__main__")
    elif "code" in request:
        sys.argv[0] = "-c"
        exec(compile(request["code"], "<string>", "exec"), {"__name__": "__main__"})
    else:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
