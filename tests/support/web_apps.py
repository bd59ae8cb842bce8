"""The web for tests: an app with its lifespan in this process, the command as users start it, listeners to events."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

from starlette.testclient import TestClient

from optimizer import Settings
from optimizer.storage.location import spelled
from optimizer.web import Trigger, create_app
from tests.support.fork_server import spawn
from tests.support.ports import free_port
from tests.support.redis_servers import wait_until

__all__ = ["ChangeEvents", "Events", "WebServer", "asking"]

WEB: Final = ("-m", "optimizer.cli", "web")


@contextmanager
def asking(settings: Settings, trigger: Trigger | None = None) -> Iterator[TestClient]:
    """Start an app in this process; yield a client of it that accepts gzip."""
    with TestClient(create_app(settings, trigger=trigger), headers={"Accept-Encoding": "gzip"}) as client:
        yield client


class WebServer:
    """A server as a process, which is stopped as a supervisor stops it when its `with` block ends.

    By default it is `rolling-optimizer web`; `command` has the arguments of Python for another server.
    """

    def __init__(
        self,
        directory: Path,
        settings: Settings,
        command: Sequence[str] = WEB,
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
            self.process = spawn(started, environ, ".", log)

    def __enter__(self) -> WebServer:
        try:
            wait_until(self._answers, what="the web server")
        except BaseException:
            self.process.kill()
            self.process.wait(20)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> int:
        """Stop it with SIGTERM; return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def get(self, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
        """Request a path; return the status, the headers with names in lower case, and the body as received."""
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
    """A listener to `/events`; close its socket, or use it as a context manager."""

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
        """Wait for this many messages with an id; return the ids received."""
        while self._read.count(b"\nid: ") < count:
            data = self.socket.recv(65_536)
            assert data, self._read
            self._read += data
        return [int(part.split(b"\n")[0]) for part in self._read.split(b"\nid: ")[1:]]

    def wait_for(self, text: bytes) -> bytes:
        """Wait until this text has been received; return everything received."""
        while text not in self._read:
            data = self.socket.recv(65_536)
            assert data, self._read
            self._read += data
        return self._read


class ChangeEvents:
    """A listener to `/events?data=changes`, which inflates each piece when it is received, as browsers do."""

    def __init__(
        self, port: int, *, since: int | None = None, last_event_id: int | None = None, gzip: bool = True
    ) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        headers = {"Accept-Encoding": "gzip"} if gzip else {}
        if last_event_id is not None:
            headers["Last-Event-ID"] = str(last_event_id)
        path = "/events?data=changes" + ("" if since is None else f"&since={since}")
        self._connection.request("GET", path, headers=headers)
        self.response = self._connection.getresponse()
        self._inflate = zlib.decompressobj(31) if gzip else None
        self._text = b""

    def __enter__(self) -> ChangeEvents:
        return self

    def __exit__(self, *_: object) -> None:
        self.response.close()
        self._connection.close()

    def messages(self, count: int, *, event: str = "") -> list[tuple[str, int | None, Any]]:
        """Wait for this many messages, of one event or of all; return event, id and data of each received."""
        while len(found := [message for message in self._parse() if event in ("", message[0])]) < count:
            data = self.response.read1(65_536)
            assert data, self._text
            self._text += data if self._inflate is None else self._inflate.decompress(data)
        return found

    def _parse(self) -> Iterator[tuple[str, int | None, Any]]:
        for part in self._text.split(b"\n\n")[:-1]:
            fields = dict(line.split(b": ", 1) for line in part.split(b"\n"))
            if b"event" in fields:
                number = int(fields[b"id"]) if b"id" in fields else None
                yield fields[b"event"].decode(), number, json.loads(fields[b"data"])
