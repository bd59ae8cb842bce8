"""A proxy between a run or a reader and its Redis that delays or loses replies, or closes the connection."""

from __future__ import annotations

import select
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.redis_servers import RedisServer

__all__ = ["LossyProxy"]


class LossyProxy:
    """A TCP proxy of a Redis that can delay replies, lose one, or close for good.

    It loses the reply to a message with a given word, or the reply after a number of messages; it closes at a given
    word.
    """

    def __init__(self, server: RedisServer) -> None:
        self._target = ("127.0.0.1", server.port)
        self.lose_reply_to = b""
        self.lose_reply_in: int | None = None  # after this many messages
        self.cut_before = b""
        self.is_cut = False
        self.delay_s = 0.0

    @contextmanager
    def open(self) -> Iterator[str]:
        """Accept connections until the `with` block ends; yield the proxy's URL."""
        proxy = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                if not proxy.is_cut:
                    with socket.create_connection(proxy._target) as upstream:
                        proxy._relay(self.request, upstream)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True

        with Server(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.02,))
            thread.start()
            try:
                yield f"redis://127.0.0.1:{server.server_address[1]}/0"
            finally:
                server.shutdown()
                thread.join()

    def _relay(self, client: socket.socket, upstream: socket.socket) -> None:
        while True:
            ready, _, _ = select.select([client, upstream], [], [])
            source = ready[0]
            data = source.recv(1 << 20)
            if not data:
                return
            if source is upstream:
                time.sleep(self.delay_s)
                client.sendall(data)
                continue
            if self.cut_before and self.cut_before in data:
                upstream.sendall(data[: data.index(self.cut_before)])
                self.is_cut = True
                return
            upstream.sendall(data)
            if self.lose_reply_in is not None:
                self.lose_reply_in -= 1
            if (self.lose_reply_to and self.lose_reply_to in data) or self.lose_reply_in == -1:
                self.lose_reply_to = b""
                upstream.recv(1)
                return
