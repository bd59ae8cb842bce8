"""Server-sent events: one hub a process, any number of listeners, none of which can delay another.

A listener has a queue of a few messages. One that does not read them loses the oldest: each message says which version
is current, so only the newest counts. The last versions are kept for listeners that reconnect (Last-Event-ID).

A listener of changes gets each change once, in order. Messages of a chain may not be lost one by one, so one that does
not read loses all that wait for it, and is told to take the whole (`reset`). The hub knows which version each has been
sent: one that comes with a newer version than this process shows gets nothing until that is passed.

Each listener holds a descriptor for as long as it likes, so a process takes only so many, see `limits.py`.
"""

from __future__ import annotations

import asyncio
import signal
from collections import deque
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final
from weakref import WeakSet

import msgspec
from fastapi import Response
from starlette.types import Receive, Scope, Send

from optimizer.reader.results import CachedVersion
from optimizer.web.limits import RETRY_AFTER_S, listener_limit
from optimizer.web.messages import EMPTY_BLOCK, GZIP_HEADER, ChangeMessages, Message
from optimizer.web.negotiate import takes_gzip
from optimizer.web.problems import is_head, problem

__all__ = ["PING_MESSAGE", "TOO_MANY_LISTENERS", "ChangeStream", "EventStream", "Hub"]

QUEUE_MESSAGES: Final = 16
KEPT_VERSIONS: Final = 120
# Less than the minute after which proxies close a silent connection.
PING_S: Final = 15.0
CHECK_S: Final = 1.0
RECONNECT_MS: Final = 2_000
PING: Final = b": ping\n\n"
RETRY: Final = b"retry: %d\n\n" % RECONNECT_MS
TOO_MANY_LISTENERS: Final = (
    "this process has {} listeners, and descriptors for no more: poll /status, or raise its limit of open files"
)

_HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would collect messages until a buffer is full
    (b"x-content-type-options", b"nosniff"),
]

Queue = asyncio.Queue[bytes | None]
ChangeQueue = asyncio.Queue[Message | None]

PING_MESSAGE: Final = Message(PING)
_RETRY: Final = Message(RETRY)

# The hubs of all sources: the limit of descriptors is a process's.
_hubs: Final[WeakSet[Hub]] = WeakSet()


class Hub:
    """Sends events to the listeners of one source."""

    def __init__(self) -> None:
        _hubs.add(self)
        self._queues: set[Queue] = set()
        self._versions: deque[tuple[int, bytes]] = deque(maxlen=KEPT_VERSIONS)
        # Listeners of changes, and the version that each has been sent; `None` if it has none.
        self._followers: dict[ChangeQueue, int | None] = {}
        # The version that they were last sent.
        self.shown: tuple[CachedVersion, ChangeMessages] | None = None
        self._cache_up = True
        self._closed = False
        self._pinging: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._queues) + len(self._followers)

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
        for follower in self._followers:
            _end(follower)

    def publish(self, version: int, generated_at: str) -> None:
        """Send a version to all listeners, once."""
        if self._versions and self._versions[-1][0] == version:
            return
        data = msgspec.json.encode({"version": version, "generated_at": generated_at})
        message = b"event: version\nid: %d\ndata: %b\n\n" % (version, data)
        self._versions.append((version, message))
        self._send(message)

    def show(self, current: CachedVersion, messages: ChangeMessages) -> None:
        """Send what leads to a version to all listeners of changes that have an older one, once."""
        is_new = self.shown is None or self.shown[0].version != current.version
        self.shown = (current, messages)
        if is_new:
            made: dict[int | None, list[Message]] = {}  # most have the same version
            for queue, version in self._followers.items():
                if version is None or version < current.version:
                    if version not in made:
                        made[version] = messages.since(version, current)
                    self._put_changes(queue, made[version])
                    self._followers[queue] = current.version

    def cache_is(self, *, up: bool) -> None:
        """Send a message to all listeners when Redis goes away or comes back."""
        if up != self._cache_up:
            self._cache_up = up
            self._send(self._status())
            if self._followers:
                status = [Message(self._status())]
                for queue in self._followers:
                    self._put_changes(queue, status)

    def join(self, last_version: int | None) -> Queue:
        """Add a listener; return its queue, with every version since its last one, or else with the current one."""
        versions = [version for version, _ in self._versions]
        first = versions.index(last_version) + 1 if last_version in versions else -1
        missed = [message for _, message in list(self._versions)[first:]]
        queue: Queue = asyncio.Queue(QUEUE_MESSAGES + len(missed))
        for message in (RETRY, *missed):
            _put(queue, message)
        if not self._cache_up:
            _put(queue, self._status())
        if self._closed:
            _put(queue, None)
        self._queues.add(queue)
        return queue

    def join_changes(self, version: int | None) -> ChangeQueue:
        """Add a listener of changes; return its queue, with what leads from its version to the current one."""
        missed: list[Message] = []
        if self.shown is not None:
            current, messages = self.shown
            missed = messages.since(version, current)
            version = current.version if version is None else max(version, current.version)
        queue: ChangeQueue = asyncio.Queue(QUEUE_MESSAGES + len(missed))
        self._followers[queue] = version
        self._put_changes(queue, [_RETRY, *missed])
        if not self._cache_up:
            self._put_changes(queue, [Message(self._status())])
        if self._closed:
            _end(queue)
        return queue

    def leave(self, queue: asyncio.Queue[Any]) -> None:
        """Remove a listener of either kind."""
        self._queues.discard(queue)
        self._followers.pop(queue, None)

    def _status(self) -> bytes:
        return b"event: status\ndata: %b\n\n" % msgspec.json.encode({"cache_up": self._cache_up})

    def _send(self, message: bytes) -> None:
        for queue in self._queues:
            _put(queue, message)

    def _put_changes(self, queue: ChangeQueue, messages: Sequence[Message]) -> None:
        """Add messages to a queue; if it has no place for all, a reset takes the place of all that is in it."""
        if self._closed:
            return  # its end waits there
        if queue.qsize() + len(messages) > queue.maxsize:
            _clear(queue)
            messages = [Message(self._status())]
            # To a listener that is ahead a reset would be a step back, and it has lost nothing of a chain.
            if self.shown is not None and (self._followers[queue] or 0) <= self.shown[0].version:
                messages.insert(0, self.shown[1].reset(self.shown[0]))
        for message in messages:
            queue.put_nowait(message)

    async def _ping(self) -> None:
        while True:
            for _ in range(round(PING_S / CHECK_S)):
                await asyncio.sleep(CHECK_S)
                if _server_ends():
                    self.close()
                    return
            self._send(PING)
            for queue in self._followers:
                if queue.empty():
                    queue.put_nowait(PING_MESSAGE)


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
        headers = self._headers_for(scope)
        if is_head(scope):
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b""})
            return
        most = listener_limit()
        if most is not None and sum(map(len, _hubs)) >= most:
            refused = {"Retry-After": str(RETRY_AFTER_S)}
            if scope["http_version"].startswith("1"):
                refused["Connection"] = "close"  # else those refused would hold as many descriptors for a while
            answer = problem(HTTPStatus.SERVICE_UNAVAILABLE, TOO_MANY_LISTENERS.format(most), refused)
            await answer(scope, receive, send)
            return
        queue = self._join()
        gone = asyncio.ensure_future(_wait_until_gone(receive, queue))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            while (message := await queue.get()) is not None:
                await send({"type": "http.response.body", "body": self.encode(message), "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        except OSError:  # by its own version of ASGI a server may say so when the client has gone
            return
        finally:
            self._hub.leave(queue)
            gone.cancel()

    def _headers_for(self, scope: Scope) -> list[tuple[bytes, bytes]]:  # noqa: ARG002 - those of changes depend on it
        return [*_HEADERS]

    def _join(self) -> Queue | ChangeQueue:
        return self._hub.join(self._last_version)

    def encode(self, message: bytes | Message) -> bytes:
        """The bytes of a message."""
        assert isinstance(message, bytes)  # noqa: S101 - as its queue has them
        return message


class ChangeStream(EventStream):
    """One listener's stream of changes, gzipped for clients that accept it."""

    _gzip = False
    _begun = False
    _last: int | None = None  # the number of the message that was sent last

    def _headers_for(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        headers = [*_HEADERS, (b"vary", b"accept-encoding")]
        if takes_gzip(b",".join(value for name, value in scope["headers"] if name == b"accept-encoding")):
            self.accept_gzip()
            headers.append((b"content-encoding", b"gzip"))
        return headers

    def accept_gzip(self) -> None:
        """Gzip what is sent from now on."""
        self._gzip = True

    def _join(self) -> Queue | ChangeQueue:
        return self._hub.join_changes(self._last_version)

    def encode(self, message: bytes | Message) -> bytes:
        """The bytes of the next message of the stream."""
        assert isinstance(message, Message)  # noqa: S101 - as its queue has them
        if not self._gzip:
            return message.plain
        header, self._begun = b"" if self._begun else GZIP_HEADER, True
        if message is PING_MESSAGE:
            return header + EMPTY_BLOCK
        block, self._last = message.block_after(self._last), message.number
        return header + block


async def _wait_until_gone(receive: Receive, queue: Queue | ChangeQueue) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    _end(queue)


def _end(queue: Queue | ChangeQueue) -> None:
    """End a stream: what waits in a full queue is dropped, all of it, so that none of a chain is missing."""
    if queue.full():
        _clear(queue)
    queue.put_nowait(None)


def _clear(queue: Queue | ChangeQueue) -> None:
    while not queue.empty():
        queue.get_nowait()


def _put(queue: Queue, message: bytes | None) -> None:
    if queue.full():
        queue.get_nowait()
    queue.put_nowait(message)
