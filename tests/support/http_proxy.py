"""A proxy in front of a web server that refuses, cuts, holds or repeats responses, as a test requires."""

from __future__ import annotations

import re
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = ["HttpProxy"]

BAD_GATEWAY = b"HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n<h1>502</h1>"
HOLD_S = 30.0


class HttpProxy:
    """A proxy that forwards one request per connection. A test may set its faults at any time.

    Attributes:
        asked: The paths of the requests, with their queries.
        answered: The path and the status of each complete response of the server.
        refuses: Paths to which the proxy responds with a 502 in HTML.
        drops: Paths whose connections are closed without a response.
        repeats: Paths that get their oldest response again, as from a process or a cache that lags.
        forgets: Paths that are requested as by a client with version 1, so that the server has no changes for it.
        mutes: Whether the messages of streams are dropped, as by a proxy that buffers them.
        passes: An event; while it is cleared, complete responses are held.
        port: The port of the server behind the proxy.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = ""
        self.asked: list[str] = []
        self.answered: list[tuple[str, int]] = []
        self.heads: list[bytes] = []
        self.refuses: set[str] = set()
        self.drops: set[str] = set()
        self.repeats: set[str] = set()
        self.forgets: set[str] = set()
        self.mutes = False
        self.passes = threading.Event()
        self.passes.set()
        self._oldest: dict[str, bytes] = {}
        self._streams: set[socket.socket] = set()

    @contextmanager
    def open(self) -> Iterator[HttpProxy]:
        """Listen on a free port of the loopback until the `with` block ends."""
        proxy = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with suppress(OSError):
                    proxy._answer(self.request)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            request_queue_size = 64

        with Server(("127.0.0.1", 0), Handler) as server:
            self.url = f"http://127.0.0.1:{server.server_address[1]}/"
            thread = threading.Thread(target=server.serve_forever, args=(0.02,))
            thread.start()
            try:
                yield self
            finally:
                self.passes.set()
                self.cut_streams()
                server.shutdown()
                thread.join()

    def mend(self) -> None:
        """End all faults."""
        for paths in (self.refuses, self.drops, self.repeats, self.forgets):
            paths.clear()
        self.mutes = False
        self.passes.set()

    def cut_streams(self) -> None:
        """Close the connections of all streams that are open."""
        for client in list(self._streams):
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def requests_to(self, path: str) -> list[str]:
        """The requested addresses with this path, whatever their query."""
        return [address for address in self.asked if address.partition("?")[0] == path]

    def _answer(self, client: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            data = client.recv(65_536)
            if not data:
                return
            head += data
        request, _, headers = head.partition(b"\r\n")
        address = request.split(b" ")[1].decode()
        path = address.partition("?")[0]
        self.asked.append(address)
        self.heads.append(head)
        if path in self.drops:
            return
        if path in self.refuses:
            client.sendall(BAD_GATEWAY)
            return
        if path in self.repeats and path in self._oldest:
            client.sendall(self._oldest[path])
            return
        if path in self.forgets:
            request = re.sub(rb"since=\d+", b"since=1", request)
        kept = [line for line in headers.split(b"\r\n") if not line.lower().startswith(b"connection:")]
        with socket.create_connection(("127.0.0.1", self.port)) as upstream:
            upstream.sendall(b"\r\n".join([request, b"Connection: close", *kept]))
            if path == "/events":
                self._relay_stream(client, upstream)
                return
            answer = b"".join(iter(lambda: upstream.recv(65_536), b""))
        if answer:
            self.answered.append((path, int(answer.split(b" ", 2)[1])))
        if b" 200 " in answer[:20]:
            self._oldest.setdefault(path, answer)
        self.passes.wait(HOLD_S)
        client.sendall(answer)

    def _relay_stream(self, client: socket.socket, upstream: socket.socket) -> None:
        self._streams.add(client)
        leaving = threading.Thread(target=_close_with, args=(client, upstream), daemon=True)
        leaving.start()
        try:
            while data := upstream.recv(65_536):
                if not self.mutes:
                    client.sendall(data)
        finally:
            self._streams.discard(client)
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)


def _close_with(client: socket.socket, upstream: socket.socket) -> None:
    """Close the connection to the server when the client has closed its own."""
    with suppress(OSError):
        while client.recv(1_024):
            pass
    with suppress(OSError):
        upstream.shutdown(socket.SHUT_RDWR)
