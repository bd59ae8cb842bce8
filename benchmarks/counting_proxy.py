"""A TCP proxy that counts the bytes to and from a server by path: headers, frames and bodies.

What a client or a browser says of its own traffic leaves out headers or what it read from its cache; bytes on a socket
leave out nothing but TCP itself. A connection is one request at a time (HTTP/1.1 without pipelining).
"""

from __future__ import annotations

import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

__all__ = ["CountingProxy", "counting_proxy"]

RECEIVE_BYTES: Final = 1 << 16
_REQUEST: Final = re.compile(rb"(?:GET|POST|HEAD) (\S+) HTTP/1\.1\r\n")


class CountingProxy:
    """The counted bytes, by the path of the request without its query."""

    def __init__(self, server_port: int) -> None:
        self._server = ("127.0.0.1", server_port)
        self._lock = threading.Lock()
        self._bytes: Counter[str] = Counter()
        self._last = time.monotonic()
        self._sockets: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def take(self) -> Counter[str]:
        """Return the bytes by path since the last call."""
        with self._lock:
            taken, self._bytes = self._bytes, Counter()
        return taken

    def wait_quiet(self, quiet_s: float = 0.4) -> None:
        """Wait until no byte has passed for this long."""
        while (rest_s := self._last + quiet_s - time.monotonic()) > 0:
            time.sleep(rest_s)

    def close(self) -> None:
        """Close every connection, and accept no more."""
        for each in (self._listener, *list(self._sockets)):
            _shut(each)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._server)
            except OSError:
                return
            self._sockets |= {client, server}
            path = [""]
            for pair in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._pass, args=(*pair, path), daemon=True).start()

    def _pass(self, origin: socket.socket, target: socket.socket, is_request: bool, path: list[str]) -> None:
        try:
            while data := origin.recv(RECEIVE_BYTES):
                begun = _REQUEST.match(data) if is_request else None
                if begun:
                    path[0] = begun[1].decode().partition("?")[0]
                with self._lock:
                    self._bytes[path[0]] += len(data)
                    self._last = time.monotonic()
                target.sendall(data)
        except OSError:
            pass  # the other direction has closed both
        finally:
            _shut(origin)
            _shut(target)
            self._sockets -= {origin, target}


@contextmanager
def counting_proxy(server_port: int) -> Iterator[CountingProxy]:
    """A proxy that ends with the block."""
    proxy = CountingProxy(server_port)
    try:
        yield proxy
    finally:
        proxy.close()


def _shut(each: socket.socket) -> None:
    with suppress(OSError):  # it may not be connected any more
        each.shutdown(socket.SHUT_RDWR)
    each.close()
