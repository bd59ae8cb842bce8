"""The `rolling-optimizer` command, forked rather than started: that saves half a second of imports each time.

A fork server has imported every command and runs nothing else, so it has no threads, connections or settings. A command
is a process of its own with its own directory, environment, standard streams and session, and ends as Python ends.
Tests of imports, memory and of the start itself start Python; so do those of the documentation and of deployments.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import IO, Final

__all__ = ["ForkedCommand"]

ROOT: Final = Path(__file__).parents[2]
MESSAGE_BYTES: Final = 1 << 17


class ForkedCommand:
    """A command that runs, with the part of the interface of `subprocess.Popen` that tests use.

    Args:
        arguments: Of `rolling-optimizer`.
        directory: Its working directory; by default this process's.
        environ: Its environment.
        stdout: A file with a descriptor; nothing is read from stdin.
        stderr: The same; by default `stdout`.
    """

    def __init__(
        self,
        *arguments: object,
        directory: Path | None = None,
        environ: Mapping[str, str],
        stdout: IO[bytes],
        stderr: IO[bytes] | None = None,
    ) -> None:
        given = [list(map(str, arguments)), str((directory or Path()).absolute()), dict(environ)]
        self._server = _server()
        self.pid = self._server.start(pickle.dumps(given), [stdout.fileno(), (stderr or stdout).fileno()])

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while the command runs."""
        return self._server.status(self.pid, 0)

    def wait(self, timeout: float) -> int:
        """Wait for the end, and return the exit status.

        Raises:
            subprocess.TimeoutExpired: It runs on.
        """
        status = self._server.status(self.pid, timeout)
        if status is None:
            raise subprocess.TimeoutExpired("rolling-optimizer", timeout)
        return status

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL, unless it has ended."""
        self.send_signal(signal.SIGKILL)


class _Server:
    """The fork server of this process, from its side."""

    def __init__(self) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                cwd=ROOT,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._lock = threading.Lock()
        self._statuses: dict[int, int] = {}
        atexit.register(self._stop)

    def start(self, given: bytes, descriptors: list[int]) -> int:
        with self._lock:
            socket.send_fds(self._channel, [given], descriptors)
            while True:
                pid, status = self._receive()
                if status is None:
                    return pid

    def status(self, pid: int, timeout_s: float) -> int | None:
        until_s = time.monotonic() + timeout_s
        while True:
            with self._lock:
                while pid not in self._statuses and select.select([self._channel], [], [], 0)[0]:
                    self._receive()
                if pid in self._statuses:
                    return self._statuses[pid]
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                return None
            select.select([self._channel], [], [], min(left_s, 0.05))  # another thread may take what comes

    def _receive(self) -> tuple[int, int | None]:
        """Take a message: a process has started, or ended with a status."""
        data = self._channel.recv(MESSAGE_BYTES)
        assert data, "the fork server has ended"
        pid, status = pickle.loads(data)
        if status is not None:
            self._statuses[pid] = status
        return pid, status

    def _stop(self) -> None:
        self._channel.close()
        self._process.wait(20)


@cache
def _server() -> _Server:
    return _Server()


def _serve(channel: socket.socket) -> list[str] | None:
    """Fork for each message until the other side closes; return the arguments, in a process that is to run them."""
    running: dict[int, int] = {}  # descriptors of processes, which are readable once they have ended
    while True:
        for descriptor in select.select([channel.fileno(), *running], [], [])[0]:
            if descriptor in running:
                pid = running.pop(descriptor)
                os.close(descriptor)
                _, status = os.waitpid(pid, 0)
                channel.send(pickle.dumps((pid, os.waitstatus_to_exitcode(status))))
                continue
            data, streams, _, _ = socket.recv_fds(channel, MESSAGE_BYTES, 2)
            if not data:
                return None
            pid = os.fork()
            if pid == 0:
                channel.close()
                for other in running:
                    os.close(other)
                return _become(*pickle.loads(data), *streams)
            for stream in streams:
                os.close(stream)
            running[os.pidfd_open(pid)] = pid
            channel.send(pickle.dumps((pid, None)))


def _become(arguments: list[str], directory: str, environ: dict[str, str], stdout: int, stderr: int) -> list[str]:
    """Take over what a new process has from the one that starts it."""
    os.setsid()
    _end_with_server()
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environ)
    time.tzset()
    sys.path[:0] = ["", *filter(None, environ.get("PYTHONPATH", "").split(os.pathsep))]
    for stream, number in ((stdout, 1), (stderr, 2)):
        os.dup2(stream, number)
        os.close(stream)
    if environ.get("PYTHONUNBUFFERED"):
        sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]
    return arguments


def _end_with_server() -> None:
    """Ask for SIGTERM when the fork server dies, so that no command outlives the tests."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


if __name__ == "__main__":
    import gc
    import importlib

    from optimizer.cli.commands import MODULES
    from optimizer.cli.main import main
    from optimizer.web import serve as _web  # noqa: F401 - what the commands import when they run

    for _module in MODULES.values():
        importlib.import_module(_module)
    gc.freeze()
    with socket.socket(fileno=int(sys.argv[1])) as _channel:
        _arguments = _serve(_channel)
    if _arguments is not None:
        sys.argv[1:] = _arguments
        main()
