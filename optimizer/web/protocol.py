"""uvicorn's HTTP protocol with limits of size, waiting time, pipelining and the number of connections.

uvicorn limits the size of heads only for h11 (`h11_max_incomplete_event_size`); with httptools it buffers everything.
Here a head or a trailer over 64 KiB is answered by 431, and a connection that keeps the server waiting is closed:
before a head is complete, in a body that is not read, or with a response that the client does not read.
"""

from __future__ import annotations

import asyncio
from collections import deque
from http import HTTPStatus
from typing import Any, Final

import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from optimizer.web.limits import RETRY_AFTER_S, connection_limit
from optimizer.web.problems import MEDIA_TYPE, Problem

__all__ = ["MAX_HEAD_BYTES", "PATIENCE_S", "LimitedProtocol"]

MAX_HEAD_BYTES: Final = 65_536
# Proxies wait as long for clients; a browser's request arrives in one piece.
PATIENCE_S: Final = 15
# The time without any byte of a response sent: on a slow connection a socket takes the next megabyte after 30 s.
UNSENT_PATIENCE_S: Final = 60
# Browsers send one request after the other. One read may contain fourteen thousand of them, at 2 KB each.
MAX_PIPELINED: Final = 64
TOO_LARGE: Final = f"the head of the request is over {MAX_HEAD_BYTES} bytes"
# If there are too many connections, one that has kept the server waiting for this long is closed for a new one.
YIELDS_AFTER_S: Final = 1


class LimitedProtocol(HttpToolsProtocol):
    """One connection. The server calls `check` about once a second."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # Bytes since the last head or piece of a body: an unfinished head, trailers, the framing of chunks.
        self._unparsed_bytes = 0
        self._refusal: tuple[int, str] | None = None
        self._waited_s = 0
        self._unsent = (0, 0)  # bytes of unsent responses, and the requests that wait behind them
        # Requests that the newest one waits for. When a client disconnects, uvicorn notifies only the newest.
        self._earlier: deque[RequestResponseCycle] = deque(maxlen=MAX_PIPELINED + 1)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept the connection. If there are too many, close an idle one, or else answer 503."""
        super().connection_made(transport)
        most = connection_limit()
        if most is None or len(self.connections) <= most:
            return
        for other in self.connections:
            if isinstance(other, LimitedProtocol) and other.yields():
                other.transport.abort()
                return
        self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections; try again")

    def connection_lost(self, exc: Exception | None) -> None:
        """Notify every unanswered request that its client has disconnected."""
        for cycle in self._earlier:
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse received bytes."""
        self._unparsed_bytes += len(data)
        super().data_received(data)
        if self._unparsed_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, TOO_LARGE)

    def on_headers_complete(self) -> None:
        """Begin a request, unless its head is too large or there are too many requests."""
        # The read may contain more than this head, so the size of the head is computed.
        if self._unparsed_bytes > MAX_HEAD_BYTES and _size(self.url, self.headers) > MAX_HEAD_BYTES:
            self._refusal = (HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, TOO_LARGE)
            raise ValueError(TOO_LARGE)
        if len(self.pipeline) >= MAX_PIPELINED:
            self._refusal = (HTTPStatus.BAD_REQUEST, "too many requests at once on one connection")
            raise ValueError(self._refusal[1])
        self._unparsed_bytes = self._waited_s = 0
        before = self.cycle
        super().on_headers_complete()
        if self.pipeline:
            self._earlier.append(before)
            self.flow.resume_reading()  # uvicorn has paused reading, and would not see the client disconnect
        else:
            self._earlier.clear()

    def on_body(self, body: bytes) -> None:
        """Pass on a piece of a body."""
        self._unparsed_bytes = 0
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        """Answer a request that cannot be parsed."""
        self._refuse(*(self._refusal or (HTTPStatus.BAD_REQUEST, msg)))

    def yields(self) -> bool:
        """Whether the connection may be closed to accept another."""
        return self._waited_s >= YIELDS_AFTER_S and not self.transport.is_closing()

    def check(self, seconds: int) -> None:
        """Close the connection if it has kept the server waiting; `seconds` have passed since the last check."""
        unsent = (self.transport.get_write_buffer_size(), len(self.pipeline))
        is_stuck = unsent[0] > 0 and unsent[0] >= self._unsent[0] and unsent[1] == self._unsent[1]
        self._unsent = unsent
        cycle = self.cycle
        # Between requests, within a head, or in a body that the response does not wait for; then one that it waits for.
        is_waiting = cycle is None or cycle.response_complete or (cycle.more_body and not cycle.response_started)
        self._waited_s = self._waited_s + seconds if is_stuck or (is_waiting and not unsent[0]) else 0
        if unsent[0] or self.transport.is_closing():
            if self._waited_s >= UNSENT_PATIENCE_S:
                self.transport.abort()
        elif self._waited_s >= PATIENCE_S:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, f"the request has not come within {PATIENCE_S} s")

    def _refuse(self, status: int, detail: str) -> None:
        """Answer, unless another response has begun, and close the connection."""
        if self.cycle is None or self.cycle.response_complete:
            body = msgspec.json.encode(Problem.of(status, detail))
            headers = [
                *self.server_state.default_headers,
                (b"content-type", MEDIA_TYPE.encode()),
                (b"content-length", b"%d" % len(body)),
                (b"cache-control", b"no-store"),
                (b"connection", b"close"),
            ]
            if status == HTTPStatus.SERVICE_UNAVAILABLE:
                headers.append((b"retry-after", b"%d" % RETRY_AFTER_S))
            lines = b"".join(b"%b: %b\r\n" % header for header in headers)
            self.transport.write(b"%b%b\r\n%b" % (STATUS_LINE[status], lines, body))
        self.transport.close()


def _size(url: bytes, headers: list[tuple[bytes, bytes]]) -> int:
    return len(url) + sum(len(name) + len(value) + 4 for name, value in headers)  # 4: colon, space, CR, LF
