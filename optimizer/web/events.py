"""Server-sent events: one hub per process, any number of listeners, none of which can delay another.

A listener has a queue of a few messages. If it does not read them, it loses the oldest ones: each message says which
version is current, so only the newest matters. The last versions are kept for listeners that reconnect (Last-Event-ID).

A listener of changes gets each change once, in order. Single messages of a chain may not be lost, so a listener that
does not read loses all waiting messages, and gets a `reset`: it has to take the whole snapshot. The hub knows which
version each listener has; one whose version is newer than this process's gets nothing until this process has passed it.

Each listener holds a descriptor for an unlimited time, so a process limits their number, see `limits.py`.
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
    (b"x-accel-buffering", b"no"),  # nginx would hold messages back until a buffer is full
    (b"x-content-type-options", b"nosniff"),
]

Queue = asyncio.Queue[bytes | None]
ChangeQueue = asyncio.Queue[Message | None]

PING_MESSAGE: Final = Message(PING)
_RETRY: Final = Message(RETRY)

# The hubs of all sources, since the limit of descriptors is per process.
_hubs: Final[WeakSet[Hub]] = WeakSet()


class Hub:
    """Sends events to the listeners of one source."""

    def __init__(self) -> None:
        _hubs.add(self)
        self._queues: set[Queue] = set()
        self._versions: deque[tuple[int, bytes]] = deque(maxlen=KEPT_VERSIONS)
        # Listeners of changes, and the version that each has; `None` for none.
        self._followers: dict[ChangeQueue, int | None] = {}
        # The last version that was sent to them.
        self.shown: tuple[CachedVersion, ChangeMessages] | None = None
        self._cache_up = True
        self._closed = False
        self._pinging: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._queues) + len(self._followers)

    def open(self) -> None:
        """Start the pings, and the check whether the server is stopping, in this event loop."""
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
        """Send the changes to a version, once, to all listeners of changes that have an older one."""
        is_new = self.shown is None or self.shown[0].version != current.version
        self.shown = (current, messages)
        if is_new:
            made: dict[int | None, list[Message]] = {}  # by version, since most listeners have the same
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
            self.send_status()

    def send_status(self) -> None:
        """Send the state of Redis to all listeners, at which the dashboard requests `/status` again."""
        self._send(self._status())
        if self._followers:
            status = [Message(self._status())]
            for queue in self._followers:
                self._put_changes(queue, status)

    def join(self, last_version: int | None) -> Queue:
        """Add a listener; return its queue, with every version since its last one if known, else the current one."""
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
        """Add a listener of changes; return its queue, with the changes from its version to the current one."""
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
        """Add messages to a queue; if they do not fit, replace its content by a reset."""
        if self._closed:
            return  # it only waits to end
        if queue.qsize() + len(messages) > queue.maxsize:
            _clear(queue)
            messages = [Message(self._status())]
            # For a listener that is ahead, a reset would be a step back, and it has lost no message of a chain.
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
    """Whether uvicorn is about to stop: it waits for open streams, and notifies an app only after they have ended.

    Its signal handler is a method of the server. There is no other sign that works in an app that includes this one.
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
                refused["Connection"] = "close"  # otherwise refused clients would hold descriptors for a while too
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
        except OSError:  # depending on its ASGI version, a server may raise this when the client has gone
            return
        finally:
            self._hub.leave(queue)
            gone.cancel()

    def _headers_for(self, scope: Scope) -> list[tuple[bytes, bytes]]:  # noqa: ARG002 - those of changes depend on it
        return [*_HEADERS]

    def _join(self) -> Queue | ChangeQueue:
        return self._hub.join(self._last_version)

    def encode(self, message: bytes | Message) -> bytes:
        """Return the bytes of a message."""
        assert isinstance(message, bytes)  # noqa: S101 - as its queue has them
        return message


class ChangeStream(EventStream):
    """One listener's stream of changes, gzipped for clients that accept it."""

    _gzip = False
    _begun = False
    _last: int | None = None  # the number of the last message that was sent

    def _headers_for(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        headers = [*_HEADERS, (b"vary", b"accept-encoding")]
        if takes_gzip(b",".join(value for name, value in scope["headers"] if name == b"accept-encoding")):
            self.accept_gzip()
            headers.append((b"content-encoding", b"gzip"))
        return headers

    def accept_gzip(self) -> None:
        """Compress all following messages."""
        self._gzip = True

    def _join(self) -> Queue | ChangeQueue:
        return self._hub.join_changes(self._last_version)

    def encode(self, message: bytes | Message) -> bytes:
        """Return the bytes of the next message of the stream."""
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
    """End a stream; the content of a full queue is dropped as a whole, so that no single message of a chain is lost."""
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
