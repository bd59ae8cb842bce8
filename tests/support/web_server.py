"""A web server for tests: a thread that serves one file, correctly or with the faults that a test sets."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["Pages", "serving"]

Answer = Callable[["BaseHTTPRequestHandler"], None]


class Pages:
    """The file and the behaviour of the server, which a test may change at any time."""

    def __init__(self) -> None:
        self.data = b""
        self.ranges = True
        self.etag = True
        self.last_modified = ""
        self.length = True
        self.status = 200
        self.headers: dict[str, str] = {}
        self.cut_after: int | None = None  # bytes of a body, after which the connection is closed
        self.amid: Callable[[], None] = lambda: None  # called in the middle of a body
        self.stop = threading.Event()
        self.hangs = False
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.url = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Respond to one GET."""
        self.asked.append((handler.path, dict(handler.headers)))
        if self.hangs:
            self.stop.wait(60)
            return
        data, status, headers = self.data, self.status, dict(self.headers)
        if self.etag:
            headers["ETag"] = f'"{sha256(data).hexdigest()[:16]}"'
        if self.last_modified:
            headers["Last-Modified"] = self.last_modified
        if status == 200 and self.ranges and handler.headers.get("Range") == "bytes=0-0":
            status, headers["Content-Range"] = (206, f"bytes 0-0/{len(data)}") if data else (416, "bytes */0")
            data = data[:1]
        if self.length:
            headers["Content-Length"] = str(len(data))
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        half = len(data) // 2 if self.cut_after is None else self.cut_after
        handler.wfile.write(data[:half])
        if len(data) > 1:
            self.amid()
        if self.cut_after is None:
            handler.wfile.write(data[half:])


@contextmanager
def serving(context: ssl.SSLContext | None = None) -> Iterator[Pages]:
    """Serve on a free port of the loopback until the `with` block ends; yield what a test can change."""
    pages = Pages()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            pages.answer(self)

        def log_message(self, *_: Any) -> None:
            """Be silent."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            """Ignore a client that has disconnected."""

    with Server(("127.0.0.1", 0), Handler) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        pages.url = f"http{'s' if context else ''}://127.0.0.1:{server.server_port}"
        pages.last_modified = formatdate(usegmt=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield pages
        finally:
            pages.stop.set()
            server.shutdown()
            thread.join()
