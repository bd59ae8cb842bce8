"""Real Redis servers for tests, on free ports of the loopback, that can be killed, paused and started again.

For servers with TLS there is a certificate authority, which uses the `openssl` command.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import redis

from optimizer.cache.client import connect
from optimizer.cli.dev.redis_server import redis_command, redis_executable
from optimizer.errors import CacheUnavailable
from tests.support.ports import free_port

__all__ = ["Authority", "RedisServer", "serves_tls", "wait_until", "written"]


def wait_until(condition: Callable[[], object], *, limit_s: float = 20.0, what: str = "the condition") -> None:
    """Wait for a condition to hold; fail after the limit."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true within {limit_s:g} s")
        time.sleep(0.02)


class RedisServer:
    """One server with its own port and directory; the port stays the same over restarts."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.options: tuple[str, ...] = ()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def client(self) -> redis.Redis:
        """A client of the server itself; close it, or use it as a context manager."""
        return connect(self.url, timeout_s=5.0)

    def start(self, *options: str) -> None:
        """Start the server, and wait until it responds; fail if it ends instead.

        A server that is killed loses nothing: with `appendfsync everysec` it holds writes back for up to two seconds
        while an fsync is in progress, as on a busy disk. The kernel keeps what was written.
        """
        self.options = options
        command = [*redis_command(self.port, self.directory), "--appendfsync", "no", *options]
        if "--cluster-enabled" in options:  # by default its bus is on the port plus 10,000, which may be taken
            command += ["--cluster-port", str(free_port())]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(self._answers, what="redis")

    def kill(self, *, lose_data: bool = False) -> None:
        """Kill the server, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if lose_data:
            shutil.rmtree(self.directory, ignore_errors=True)

    def pause(self) -> None:
        """Suspend the server: it accepts connections, and sends no replies."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Resume a suspended server."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"redis ended with exit status {self._process.returncode}"
        try:
            with self.client as client:
                return bool(client.ping())
        except (redis.RedisError, CacheUnavailable):
            return False


def serves_tls() -> bool:
    """Return whether this machine's server was built with TLS: only then does it report a missing certificate."""
    tried = subprocess.run(
        [redis_executable(), "--port", "0", "--tls-port", str(free_port())], capture_output=True, text=True, check=False
    )
    return "No tls-cert-file" in tried.stdout


class Authority:
    """A certificate authority in a directory, and the certificates that it issues."""

    def __init__(self, directory: Path, name: str) -> None:
        directory.mkdir()
        self._directory = directory
        self.file = directory / "ca.pem"
        self._key = directory / "ca.key"
        usage = ("-addext", "keyUsage=critical,keyCertSign")  # newer Pythons require it
        self._openssl("req", "-x509", "-subj", f"/CN={name}", *usage, "-keyout", self._key, "-out", self.file)

    def certify(self, name: str, subject: str = "IP:127.0.0.1") -> tuple[Path, Path]:
        """Issue a certificate and its key; the subject is the host to which a client has to connect."""
        certificate, key = self._directory / f"{name}.pem", self._directory / f"{name}.key"
        self._openssl(
            *("req", "-x509", "-CA", self.file, "-CAkey", self._key, "-subj", f"/CN={name}"),
            *("-addext", f"subjectAltName={subject}", "-addext", "basicConstraints=critical,CA:FALSE"),
            *("-keyout", key, "-out", certificate),
        )
        return certificate, key

    def server_options(self, *, subject: str = "IP:127.0.0.1", clients: str = "no") -> list[str]:
        """Return the options of a server with a certificate; `clients` says whether clients need certificates too."""
        certificate, key = self.certify("server", subject)
        options = {"cert-file": certificate, "key-file": key, "ca-cert-file": self.file, "auth-clients": clients}
        return [str(word) for name, value in options.items() for word in (f"--tls-{name}", value)]

    def _openssl(self, *arguments: object) -> None:
        command = ["openssl", *map(str, arguments), "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        subprocess.run(command, check=True, capture_output=True)


def written(server: RedisServer) -> bytes:
    """Return everything that was ever written to a server: its append-only file."""
    return b"".join(path.read_bytes() for path in server.directory.rglob("*.aof"))
