"""The web for tests: an app with its lifespan in this process, or the command as its users start it."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from starlette.testclient import TestClient

from optimizer import Settings
from optimizer.storage.location import spelled
from optimizer.web import Trigger, create_app
from tests.support.ports import free_port
from tests.support.redis_servers import wait_until

__all__ = ["Events", "WebServer", "asking"]


@contextmanager
def asking(settings: Settings, trigger: Trigger | None = None) -> Iterator[TestClient]:
    """A client of an app that has started."""
    with TestClient(create_app(settings, trigger=trigger), headers={"Accept-Encoding": "gzip"}) as client:
        yield client


class WebServer:
    """A server as a process; leave its `with` block and it is stopped as a supervisor stops it.

    By default it is `rolling-optimizer web`; `command` is for others, as Python's arguments.
    """

    def __init__(
        self,
        directory: Path,
        settings: Settings,
        command: Sequence[str] = ("-m", "optimizer.cli", "web"),
        **variables: str,
    ) -> None:
        self.port = free_port()
        self.log = directory / "web.log"
        environ = os.environ | {
            "ROLLING_INPUT": spelled(settings.input),
            "ROLLING_OUTPUT_DIR": str(settings.output_dir),
            "ROLLING_REDIS_URL": settings.redis_url,
            **variables,
        }
        with self.log.open("wb") as log:
            started = [sys.executable, *command, "--port", str(self.port)]
            self.process = subprocess.Popen(started, env=environ, stdout=log, stderr=subprocess.STDOUT)

    def __enter__(self) -> WebServer:
        wait_until(self._answers, what="the web server")
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> int:
        """Stop it with SIGTERM; return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def get(self, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers in lower case, and the bytes as they came."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)) as connection:
            connection.request("GET", path, headers={name.replace("_", "-"): text for name, text in headers.items()})
            answer = connection.getresponse()
            return answer.status, {name.lower(): text for name, text in answer.getheaders()}, answer.read()

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return self.get("/healthz")[0] == 200
        except OSError:
            return False


class Events:
    """A listener to `/events`; close it, or use it as a context manager."""

    def __init__(self, port: int, last_event_id: int | None = None) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        resume = "" if last_event_id is None else f"Last-Event-ID: {last_event_id}\r\n"
        self.socket.sendall(f"GET /events HTTP/1.1\r\nHost: test\r\n{resume}\r\n".encode())
        self._read = b""

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def versions(self, count: int) -> list[int]:
        """The ids of the first so many messages."""
        while self._read.count(b"\nid: ") < count:
            data = self.socket.recv(65_536)
            assert data, self._read
            self._read += data
        return [int(part.split(b"\n")[0]) for part in self._read.split(b"\nid: ")[1:]]

    def wait_for(self, text: bytes) -> bytes:
        """All that came, once this has."""
        while text not in self._read:
            data = self.socket.recv(65_536)
            assert data, self._read
            self._read += data
        return self._read
