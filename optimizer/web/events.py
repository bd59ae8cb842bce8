"""Server-sent events: one hub a process, any number of listeners, none of which can delay another.

A listener has a queue of a few messages. One that does not read them loses the oldest: each message says which version
is current, so only the newest counts. The last versions are kept for listeners that reconnect (Last-Event-ID).

Each listener holds a descriptor for as long as it likes, so a process takes only so many, see `limits.py`.
"""

from __future__ import annotations

import asyncio
import signal
from collections import deque
from http import HTTPStatus
from typing import Final
from weakref import WeakSet

import msgspec
from fastapi import Response
from starlette.types import Receive, Scope, Send

from optimizer.web.limits import RETRY_AFTER_S, listener_limit
from optimizer.web.problems import is_head, problem

__all__ = ["TOO_MANY_LISTENERS", "EventStream", "Hub"]

QUEUE_MESSAGES: Final = 16
KEPT_VERSIONS: Final = 120
# Less than the minute after which proxies close a silent connection.
PING_S: Final = 15.0
CHECK_S: Final = 1.0
RECONNECT_MS: Final = 2_000
TOO_MANY_LISTENERS: Final = (
    "this process has {} listeners, and descriptors for no more: poll /status, or raise its limit of open files"
)

_HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would collect messages until a buffer is full
    (b"x-content-type-options", b"nosniff"),
]

# The hubs of all sources: the limit of descriptors is a process's.
_hubs: Final[WeakSet[Hub]] = WeakSet()


class Hub:
    """Sends events to the listeners of one source."""

    def __init__(self) -> None:
        _hubs.add(self)
        self._queues: set[asyncio.Queue[bytes | None]] = set()
        self._versions: deque[tuple[int, bytes]] = deque(maxlen=KEPT_VERSIONS)
        self._cache_up = True
        self._closed = False
        self._pinging: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._queues)

    def open(self) -> None:
        """Begin to ping, and to check whether the server stops, in this event loop."""
        self._closed = False
        self._pinging = asyncio.get_running_loop().create_task(self._ping())

    def close(self) -> None:
        """End every stream, so that a server can stop; browsers reconnect."""
        self._closed = True
        if self._pinging is not None:
            self._pinging.cancel()
            self._pinging = None
        for queue in self._queues:
            _put(queue, None)

    def publish(self, version: int, generated_at: str) -> None:
        """Send a version to all listeners, once."""
        if self._versions and self._versions[-1][0] == version:
            return
        data = msgspec.json.encode({"version": version, "generated_at": generated_at})
        message = b"event: version\nid: %d\ndata: %b\n\n" % (version, data)
        self._versions.append((version, message))
        self._send(message)

    def cache_is(self, *, up: bool) -> None:
        """Send a message to all listeners when Redis goes away or comes back."""
        if up != self._cache_up:
            self._cache_up = up
            self._send(self._status())

    def join(self, last_version: int | None) -> asyncio.Queue[bytes | None]:
        """Add a listener; return its queue, with every version since its last one, or else with the current one."""
        versions = [version for version, _ in self._versions]
        first = versions.index(last_version) + 1 if last_version in versions else -1
        missed = [message for _, message in list(self._versions)[first:]]
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(QUEUE_MESSAGES + len(missed))
        for message in (b"retry: %d\n\n" % RECONNECT_MS, *missed):
            _put(queue, message)
        if not self._cache_up:
            _put(queue, self._status())
        if self._closed:
            _put(queue, None)
        self._queues.add(queue)
        return queue

    def leave(self, queue: asyncio.Queue[bytes | None]) -> None:
        """Remove a listener."""
        self._queues.discard(queue)

    def _status(self) -> bytes:
        return b"event: status\ndata: %b\n\n" % msgspec.json.encode({"cache_up": self._cache_up})

    def _send(self, message: bytes) -> None:
        for queue in self._queues:
            _put(queue, message)

    async def _ping(self) -> None:
        while True:
            for _ in range(round(PING_S / CHECK_S)):
                await asyncio.sleep(CHECK_S)
                if _server_ends():
                    self.close()
                    return
            self._send(b": ping\n\n")


def _server_ends() -> bool:
    """Whether uvicorn is about to stop: it waits for open streams, and notifies an app only once they have ended.

    Its handler of signals is a method of the server. An app around ours, or one that mounts us, has no other sign.
    """
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return bool(getattr(server, "should_exit", False))


class EventStream(Response):
    """One listener's stream, until the client or the hub closes it."""

    media_type = "text/event-stream"

    def __init__(self, hub: Hub, last_version: int | None) -> None:
        super().__init__()
        self._hub = hub
        self._last_version = last_version

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the messages of the queue until the client disconnects."""
        if is_head(scope):
            await send({"type": "http.response.start", "status": 200, "headers": [*_HEADERS]})
            await send({"type": "http.response.body", "body": b""})
            return
        most = listener_limit()
        if most is not None and sum(map(len, _hubs)) >= most:
            headers = {"Retry-After": str(RETRY_AFTER_S)}
            if scope["http_version"].startswith("1"):
                headers["Connection"] = "close"  # else those refused would hold as many descriptors for a while
            answer = problem(HTTPStatus.SERVICE_UNAVAILABLE, TOO_MANY_LISTENERS.format(most), headers)
            await answer(scope, receive, send)
            return
        queue = self._hub.join(self._last_version)
        gone = asyncio.ensure_future(_wait_until_gone(receive, queue))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": [*_HEADERS]})
            while (message := await queue.get()) is not None:
                await send({"type": "http.response.body", "body": message, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        except OSError:  # by its own version of ASGI a server may say so when the client has gone
            return
        finally:
            self._hub.leave(queue)
            gone.cancel()


async def _wait_until_gone(receive: Receive, queue: asyncio.Queue[bytes | None]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    _put(queue, None)


def _put(queue: asyncio.Queue[bytes | None], message: bytes | None) -> None:
    if queue.full():
        queue.get_nowait()
    queue.put_nowait(message)
