"""Responses that are not cached: values as JSON, and errors as RFC 9457 problem details.

Only the errors of this package's routes are handled: an app that includes them keeps its own error handlers.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import unquote

import msgspec
from fastapi import Request, Response
from fastapi.datastructures import Default, DefaultPlaceholder
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from fastapi.utils import generate_unique_id
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from optimizer.errors import CacheUnavailable, SnapshotMissing
from optimizer.log import SourceLog
from optimizer.models import Value
from optimizer.web.encoding import SHORTEST_BYTES, compress_quickly
from optimizer.web.limits import RETRY_AFTER_S
from optimizer.web.negotiate import IDENTITY, ZSTD, choose_encoding, matches_etag

__all__ = [
    "MEDIA_TYPE",
    "NO_SNAPSHOT",
    "TOO_MANY_UNAUTHORIZED",
    "UNAUTHORIZED",
    "ChangesGone",
    "PartMissing",
    "Problem",
    "ProblemRoute",
    "SymbolRoute",
    "compressed_response",
    "explain",
    "is_head",
    "json_response",
    "problem",
    "unavailable",
]

MEDIA_TYPE: Final = "application/problem+json"
# Python 3.13 has other phrases; responses do not depend on the Python that serves them.
TITLES: Final = {413: "Request Entity Too Large", 422: "Unprocessable Entity"}
HEAD_KEY: Final = "optimizer.web.head"
SLASH_KEY: Final = "optimizer.web.slash"
NO_SNAPSHOT: Final = (
    "no snapshot can be read, neither from Redis nor from the files; /status says what is "
    "wrong, and this server's log where it has looked"
)
NO_BROKER: Final = (
    "no run can be sent or followed now: the broker does not answer, or what it holds is none of ours; this server's "
    "log says which"
)
UNAUTHORIZED: Final = "a run needs the header 'Authorization: Bearer TOKEN' with the token of ROLLING_TRIGGER_TOKEN"
TOO_MANY_UNAUTHORIZED: Final = "too many requests with a wrong token; one with the right token is answered at once"

_HEADERS: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}

_log = SourceLog(__name__)
_logged: Final[deque[str]] = deque(maxlen=16)


class Problem(Value, frozen=True):
    """The body of every error. `type` is always `about:blank`, since the status tells the kind of problem."""

    type: str
    title: str
    status: int
    detail: str

    @staticmethod
    def of(status: int, detail: str) -> Problem:
        """Make the problem of a response with this status."""
        return Problem("about:blank", TITLES.get(status) or HTTPStatus(status).phrase, status, detail)


class ChangesGone(Problem, frozen=True):
    """The body of a 410: the current version, the oldest one from which changes are held, and the path of the snapshot.

    `oldest` is null if no changes are held. `snapshot` is relative to the requested path.
    """

    version: int
    oldest: int | None
    snapshot: str


def json_response(value: msgspec.Struct, status: int = HTTPStatus.OK) -> Response:
    """Make a response with a value."""
    return Response(msgspec.json.encode(value), status, _HEADERS, "application/json")


def compressed_response(value: msgspec.Struct, request: Request, *, revalidated: bool = False) -> Response:
    """Make a response with a value that may be long, compressed for a client that accepts it.

    Args:
        value: The value.
        request: The request, whose headers say what the client accepts and has.
        revalidated: Whether a client may keep it, and gets a 304 as long as it is unchanged.
    """
    body, headers = msgspec.json.encode(value), {**_HEADERS, "Vary": "accept-encoding"}
    etag = hashlib.sha256(body).hexdigest()[:32]
    encoding = choose_encoding(_header(request, "accept-encoding"))
    if encoding != IDENTITY and len(body) >= SHORTEST_BYTES:
        body = compress_quickly(body, encoding)
        headers["Content-Encoding"] = name = "zstd" if encoding == ZSTD else "gzip"
        etag = f"{etag}-{name}"
    if revalidated:
        headers |= {"Cache-Control": "no-cache", "ETag": f'"{etag}"'}
        if matches_etag(_header(request, "if-none-match"), headers["ETag"].encode()):
            headers.pop("Content-Encoding", None)
            return Response(None, HTTPStatus.NOT_MODIFIED, headers)
    return Response(body, HTTPStatus.OK, headers, "application/json")


def _header(request: Request, name: str) -> bytes:
    return ",".join(request.headers.getlist(name)).encode("latin-1")


def problem(
    status: int, detail: str, headers: Mapping[str, str] | None = None, members: Mapping[str, object] | None = None
) -> Response:
    """Make a response with problem details, and further members if there are any."""
    body = msgspec.json.encode(msgspec.structs.asdict(Problem.of(status, detail)) | dict(members or {}))
    return Response(body, status, {**_HEADERS, **(headers or {})}, MEDIA_TYPE)


class PartMissing(SnapshotMissing):
    """A part of a snapshot is missing; the message, which clients may see, names no address and no path."""


def explain(error: Exception) -> Response | None:
    """Return the response to an error that a route may raise; `None` for others, which are bugs."""
    if isinstance(error, RequestValidationError):
        wrong = (f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        return problem(HTTPStatus.UNPROCESSABLE_ENTITY, "; ".join(wrong))
    if isinstance(error, SnapshotMissing | CacheUnavailable):
        return unavailable(error)
    if isinstance(error, HTTPException):
        return problem(error.status_code, error.detail, error.headers)
    return None


def unavailable(
    error: SnapshotMissing | CacheUnavailable, members: Mapping[str, object] | None = None, *, detail: str = ""
) -> Response:
    """Make a 503 that says what to do; the message, with addresses and paths, goes to the log, equal ones once.

    Args:
        error: Why there is nothing to send.
        members: Further members of the problem.
        detail: What is wrong, if the caller knows it.
    """
    if isinstance(error, PartMissing):
        detail = str(error)
    else:
        detail = detail or (NO_SNAPSHOT if isinstance(error, SnapshotMissing) else NO_BROKER)
        if str(error) not in _logged:
            _logged.append(str(error))
            _log.warning("a request was answered with 503", error=error)
    return problem(HTTPStatus.SERVICE_UNAVAILABLE, detail, {"Retry-After": str(RETRY_AFTER_S)}, members)


class ProblemRoute(APIRoute):
    """A route whose errors are problem details, and which answers HEAD if it answers GET.

    Its path with a trailing slash is a 404. In an app that redirects slashes, as FastAPI's do by default, the router
    would redirect to the host in the client's request.

    Its operation id is the prefix under which it is included and its name, `api_bots`, so that it is short and unique,
    unless the app sets a `generate_unique_id_function`.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        default = options.get("generate_unique_id_function")
        if isinstance(default, DefaultPlaceholder) and default.value is generate_unique_id:
            options["generate_unique_id_function"] = Default(partial(_operation_id, path))
        super().__init__(path, endpoint, **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler with these errors."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            # FastAPI would take the last one.
            if twice := self._given_twice(request):
                return problem(HTTPStatus.UNPROCESSABLE_ENTITY, f"query.{twice}: It has to be given once")
            try:
                return await handler(request)
            except (RequestValidationError, HTTPException, SnapshotMissing, CacheUnavailable) as error:
                answer = explain(error)
                if answer is None:
                    raise
                return answer

        return handle

    def _given_twice(self, request: Request) -> str | None:
        if b"&" not in request.scope["query_string"]:
            return None
        given = Counter(name for name, _ in request.query_params.multi_items())
        return next((field.alias for field in self.dependant.query_params if given[field.alias] > 1), None)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match a HEAD as a GET, and a path with a trailing slash if no other route does."""
        match, child_scope = super().matches(_as_get(scope))
        if match is Match.NONE and scope["type"] == "http" and scope["path"].endswith("/"):
            match, child_scope = super().matches({**_as_get(scope), "path": scope["path"].rstrip("/")})
            if match is not Match.NONE:
                return Match.PARTIAL, {**child_scope, SLASH_KEY: True}
        return match, child_scope

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a HEAD as a GET; the server omits the body."""
        if SLASH_KEY in scope:
            await problem(HTTPStatus.NOT_FOUND, "there is such a path without the slash at its end")(
                scope, receive, send
            )
            return
        try:
            await super().handle(_as_get(scope), receive, send)
        except HTTPException as error:
            if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED and self.methods == {"GET"}:
                error.headers = {"Allow": "GET, HEAD"}
            raise


class SymbolRoute(ProblemRoute):
    """A route with `{symbol:path}` in its path, at the end or not: slashes in a symbol are written as `%2F`.

    A path with an unencoded slash in the symbol, or with no symbol, matches only if no other route of the app does,
    whichever was included first: `/predictions/history/AAPL` may be a route of the app.
    """

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match in full if the symbol is one segment of the undecoded path."""
        match, child_scope = super().matches(scope)
        if match is Match.FULL:
            symbol = child_scope["path_params"]["symbol"]
            after = self.path_format.rpartition("{symbol}")[2].split("/")[1:]
            if not symbol or (("/" in symbol or after) and not _ends_in([symbol, *after], scope)):
                match = Match.PARTIAL
        return match, child_scope


def _ends_in(segments: list[str], scope: Scope) -> bool:
    """Whether these are the last segments of the undecoded path.

    Some servers do not pass the undecoded path: then every slash counts as a separator.
    """
    raw_path: bytes = scope.get("raw_path") or b""
    if not raw_path:
        return "/" not in segments[0]
    return [unquote(segment.decode("latin-1")) for segment in raw_path.split(b"/")[-len(segments) :]] == segments


def _operation_id(path: str, route: APIRoute) -> str:
    """Return the prefix under which a route is included, and the route's name."""
    return re.sub(r"\W+", "_", f"{route.path.removesuffix(path)}_{route.name}").strip("_")


def is_head(scope: Scope) -> bool:
    """Whether only the headers are requested, also if a route sees the HEAD as a GET."""
    return scope["method"] == "HEAD" or HEAD_KEY in scope


def _as_get(scope: Scope) -> Scope:
    if scope["type"] != "http" or scope["method"] != "HEAD":
        return scope
    return {**scope, "method": "GET", HEAD_KEY: True}
