"""Responses that are made once a version and sent many times: header lists and bodies as bytes.

A `Prepared` response has up to three representations, plain, in gzip and in zstd, each with its own strong ETag, since
the bytes differ. The one in zstd is made at the first request that accepts it. Values that change within a version
(age, staleness, origin) are added when it is sent.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Final

from fastapi import Response
from starlette.types import Receive, Scope, Send

from optimizer.web.encoding import compress_quickly
from optimizer.web.negotiate import GZIP, ZSTD, choose_encoding, is_not_modified_since, matches_etag
from optimizer.web.problems import is_head

__all__ = ["Headers", "Prepared", "ResponseCache", "Sending"]

Headers = list[tuple[bytes, bytes]]

# The total size of the responses in one cache, in all forms, since clients choose what they request.
CACHED_BYTES: Final = 4 * 1024 * 1024

# A 304 repeats the other headers of a 200 (RFC 9110, 15.4.5).
NOT_IN_304: Final = frozenset({b"content-type", b"content-length", b"content-encoding"})


class _Representation:
    """One form of a response: its body, its ETag, and the headers of a 200 and of a 304."""

    __slots__ = ("body", "etag", "headers", "headers_304")

    def __init__(self, body: bytes, etag: str, headers: Headers) -> None:
        self.body = body
        self.etag = f'"{etag}"'.encode()
        self.headers = [*headers, (b"etag", self.etag), (b"content-length", str(len(body)).encode())]
        self.headers_304 = [item for item in self.headers if item[0] not in NOT_IN_304]


class Prepared:
    """An ASGI application that sends one response.

    Args:
        plain: The uncompressed body.
        etag: The ETag of the uncompressed body.
        headers: The headers common to all forms, names in lower case.
        gz: The gzipped body, for clients that accept it.
        gz_etag: The ETag of the gzipped body.
        zstd_etag: The ETag of the body in zstd; empty if it is not sent in zstd.
        last_modified_s: Seconds since the epoch, for If-Modified-Since; `None` if that is not supported.
        per_request_headers: Makes the headers that change within a version.
    """

    __slots__ = ("_gz", "_headers", "_last_modified_s", "_per_request_headers", "_plain", "_zstd", "_zstd_etag")

    def __init__(
        self,
        plain: bytes,
        etag: str,
        headers: Headers,
        *,
        per_request_headers: Callable[[], Headers],
        gz: bytes | None = None,
        gz_etag: str = "",
        zstd_etag: str = "",
        last_modified_s: int | None = None,
    ) -> None:
        self._per_request_headers = per_request_headers
        self._last_modified_s = last_modified_s
        self._headers = headers
        self._zstd_etag = zstd_etag
        self._plain = _Representation(plain, etag, headers)
        self._gz = self._plain
        if gz is not None:
            self._gz = _Representation(gz, gz_etag, [*headers, (b"content-encoding", b"gzip")])
        self._zstd: _Representation | None = None

    @property
    def size(self) -> int:
        """The size of its bodies in bytes; the one in zstd, made or not, counts as much as the one in gzip."""
        gz = 0 if self._gz is self._plain else len(self._gz.body)
        return len(self._plain.body) + gz + (gz if self._zstd_etag else 0)

    def _form(self, accept_encoding: bytes) -> _Representation:
        encoding = choose_encoding(accept_encoding, zstd=self._zstd_etag != "")
        if encoding != ZSTD:
            return self._gz if encoding == GZIP else self._plain
        if self._zstd is None:
            body = compress_quickly(self._plain.body, ZSTD)
            self._zstd = _Representation(body, self._zstd_etag, [*self._headers, (b"content-encoding", b"zstd")])
        return self._zstd

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Send the form that the client accepts, or a 304 if the client has it."""
        accept_encoding = if_none_match = if_modified_since = b""
        for name, value in scope["headers"]:
            if name == b"accept-encoding":
                accept_encoding = accept_encoding + b"," + value if accept_encoding else value
            elif name == b"if-none-match":
                if_none_match = if_none_match + b"," + value if if_none_match else value
            elif name == b"if-modified-since":
                if_modified_since = value
        form = self._form(accept_encoding)
        if if_none_match:
            has_it = matches_etag(if_none_match, form.etag)
        else:
            has_it = (
                if_modified_since != b""
                and self._last_modified_s is not None
                and is_not_modified_since(if_modified_since, self._last_modified_s)
            )
        # A new list and message each time, since middlewares of an app that mounts this one may change them.
        if has_it:
            await send(
                {
                    "type": "http.response.start",
                    "status": 304,
                    "headers": [*form.headers_304, *self._per_request_headers()],
                }
            )
            await send({"type": "http.response.body", "body": b""})
            return
        await send(
            {"type": "http.response.start", "status": 200, "headers": [*form.headers, *self._per_request_headers()]}
        )
        body = b"" if is_head(scope) else form.body
        await send({"type": "http.response.body", "body": body})


class ResponseCache:
    """Responses that were made on demand, by request; the oldest are evicted if there are too many.

    Args:
        most: The largest number of responses. All bodies together have at most 4 MiB, unless there is only one.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._by_request: OrderedDict[Hashable, Prepared] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, request: Hashable) -> Prepared | None:
        """Return the cached response, if there is one; any thread may call."""
        return self._by_request.get(request)

    def store(self, request: Hashable, response: Prepared) -> None:
        """Cache a response; any thread may call."""
        with self._lock:
            before = self._by_request.pop(request, None)
            self._bytes += response.size - (0 if before is None else before.size)
            self._by_request[request] = response
            while len(self._by_request) > self._most or (self._bytes > CACHED_BYTES and len(self._by_request) > 1):
                self._bytes -= self._by_request.popitem(last=False)[1].size

    def clear(self) -> None:
        """Drop all responses."""
        with self._lock:
            self._by_request.clear()
            self._bytes = 0


class Sending(Response):
    """A prepared response for one request: FastAPI adds background tasks to responses."""

    def __init__(self, prepared: Prepared) -> None:
        super().__init__()
        self._prepared = prepared

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response, then run its background tasks."""
        await self._prepared(scope, receive, send)
        if self.background is not None:
            await self.background()
