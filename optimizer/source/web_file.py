"""The bytes of an input file on a web server, read in one response.

In: an `http://` or `https://` URL, whose query may be a signature (presigned S3, SAS). Only GET is used, since a
presigned URL allows nothing else: for one byte, to learn the version (a server may answer with all bytes, which are not
read), and for the whole file, to scan it. Memory is constant.

The whole file comes in one response. Its validator, `ETag` or `Last-Modified`, shows whether it is the version that was
opened; one more request at the end shows whether the server still has that version. A server that sends neither is
refused, since no change could be noticed. Redirects to other hosts are followed: no password is sent that such a host
could learn.

`Accept-Encoding: identity` asks for the file as it is. A server that compresses it anyway sends gzip, which is
inflated as usual; if the file was a gzip file, it is then compressed twice, and the error says so.

Errors: `SourceMissing`, `SourceUnreadable`, `SourceTorn`; none holds the query.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPResponse
from io import RawIOBase
from typing import Any, Final, NamedTuple, cast
from urllib.error import HTTPError
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    UnknownHandler,
)

from optimizer.errors import SourceMissing, SourceTorn, SourceUnreadable
from optimizer.source.compression import HEAD_BYTES
from optimizer.storage.error_text import cause_of
from optimizer.storage.location import Url

__all__ = ["WebFile"]

# For connecting, and for each read. There are no retries here, since the next tick tries again.
ANSWER_TIMEOUT_S: Final = 10
SKIP_BYTES: Final = 1 << 20
_REPLACED: Final = "the file was replaced while it was read; the next run reads the new one"


class _Validator(NamedTuple):
    """A file's version: the validator (RFC 9110 section 8.8), the size, and the time."""

    tag: str
    size_bytes: int | None  # `None` if the server does not send it
    modified_s: float | None = None

    def may_match(self, other: _Validator) -> bool:
        """Whether both may be of one version: a server may send the size with a range and not with the whole file."""
        return self.tag == other.tag and (
            None in {self.size_bytes, other.size_bytes} or self.size_bytes == other.size_bytes
        )

    def __str__(self) -> str:
        return f"{self.tag}-" + ("" if self.size_bytes is None else f"{self.size_bytes:x}")


class WebFile(RawIOBase):
    """A file on a web server, in the version that was opened; a `ByteReader`.

    The first read sends the GET request for its bytes; every failure of a read is an `OSError`.
    """

    _offset: int
    _received: int
    _head: bytes

    def __init__(self, url: Url) -> None:
        self.path = url
        self._response: HTTPResponse | None = None
        self._restart()
        self._validator = _ask_validator(url)
        self.fingerprint = str(self._validator)

    @property
    def size_bytes(self) -> int:
        """The size of the file; if the server does not send it, the number of bytes read so far."""
        return self._offset if self._validator.size_bytes is None else self._validator.size_bytes

    @property
    def modified_s(self) -> float | None:
        """The server's `Last-Modified`, in seconds since the epoch; `None` if it sends none."""
        return self._validator.modified_s

    landed_s = modified_s

    def check_unchanged(self) -> None:
        """Check that the server still has the version that was opened.

        Raises:
            SourceTorn: It has another, or none.
            SourceUnreadable: The server does not answer.
        """
        try:
            now = str(_ask_validator(self.path))
        except SourceMissing:
            now = "gone"
        if now != self.fingerprint:
            raise SourceTorn(f"{self.path}: {_REPLACED} ({self.fingerprint} before, {now} now)")

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Read at most `len(buffer)` bytes into a buffer."""
        if self._offset < self._received:
            data = self._head[self._offset : self._offset + len(buffer)]
        else:
            data = self._receive(len(buffer))
        self._offset += len(data)
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0, /) -> int:  # noqa: ARG002 - only from the beginning
        """Go to an offset: backwards within the first bytes, or by a new request; forwards by reading."""
        if offset < self._offset:
            if self._received == len(self._head):
                self._offset = 0
            else:
                self._restart()
        while self._offset < offset and self.read(min(SKIP_BYTES, offset - self._offset)):
            pass
        return self._offset

    def tell(self) -> int:
        """The offset of the next byte."""
        return self._offset

    def close(self) -> None:
        """Close the connection."""
        self._restart()
        super().close()

    def _restart(self) -> None:
        """Drop the response: the next read asks for the file from its beginning."""
        if self._response is not None:
            self._response.close()
        self._response = None
        self._offset = 0
        self._received = 0
        self._head = b""  # the first bytes, which are read twice: to choose the decompressor, and to inflate

    def _receive(self, size: int) -> bytes:
        if self._response is None:
            self._response = _get(self.path)
            if not self._validator.may_match(_validator(self.path, self._response)):
                raise SourceTorn(_REPLACED)
        try:
            data = self._response.read(size)
        except (OSError, HTTPException) as error:
            raise OSError(cause_of(error, web_host=_host(self.path))) from None
        if len(self._head) == self._received and self._received + len(data) <= HEAD_BYTES:
            self._head += data
        self._received += len(data)
        length = self._validator.size_bytes
        if not data and length is not None and self._received < length:  # `read` does not detect this
            raise OSError(f"the server closed the connection after {self._received:,} of {length:,} bytes")
        return data


def _ask_validator(url: Url) -> _Validator:
    """Request one byte; the headers of the response describe the whole file."""
    try:
        response = _get(url, Range="bytes=0-0")
    except _EmptyError:
        response = _get(url)
    with response:
        return _validator(url, response)


class _EmptyError(Exception):
    """The file is empty, so its first byte cannot be read."""


def _get(url: Url, **headers: str) -> HTTPResponse:
    request = Request(  # noqa: S310 - of a scheme that `check_url` allows
        url.text, headers={"Accept-Encoding": "identity", "User-Agent": "rolling-optimizer"} | headers
    )
    with _translated_errors(url, ranged="Range" in headers):
        return cast("HTTPResponse", _opener().open(request, timeout=ANSWER_TIMEOUT_S))


def _opener() -> OpenerDirector:
    """Return an opener like urllib's, without file, FTP and data URLs; proxies are those of the environment."""
    opener = OpenerDirector()
    for handler in (
        ProxyHandler,
        HTTPHandler,
        HTTPSHandler,
        HTTPRedirectHandler,
        HTTPErrorProcessor,
        HTTPDefaultErrorHandler,
        UnknownHandler,
    ):
        opener.add_handler(handler())
    return opener


@contextmanager
def _translated_errors(url: Url, *, ranged: bool) -> Iterator[None]:
    """Turn urllib's errors into `SourceError`s, unchained: a traceback would show the URL that they quote."""
    try:
        yield
    except HTTPError as error:
        error.close()
        if error.code == 416 and ranged:
            raise _EmptyError from None
        if error.code in (404, 410):
            raise SourceMissing(
                f"{url} not found: the server answers {error.code}; set ROLLING_INPUT to the prediction engine's file"
            ) from None
        raise SourceUnreadable(f"{url}: {cause_of(error, web_host=_host(url))}") from None
    except (OSError, HTTPException) as error:
        raise SourceUnreadable(f"{url}: {cause_of(error, web_host=_host(url))}") from None


def _host(url: Url) -> str:
    host = url.path.partition("/")[0]
    return host if re.search(r":\d+$", host) else host + {"http": ":80", "https": ":443"}[url.scheme]


def _validator(url: Url, response: HTTPResponse) -> _Validator:
    headers = response.headers
    tag = headers.get("ETag", "").strip('"') or headers.get("Last-Modified", "")
    if not tag:
        raise SourceUnreadable(
            f"{url}: the server sends neither ETag nor Last-Modified, so a change could not be noticed; let it send one"
        )
    total = headers.get("Content-Range", "").rpartition("/")[2] if response.status == 206 else headers["Content-Length"]
    size_bytes = int(total) if total and total.isascii() and total.isdecimal() else None
    return _Validator(tag, size_bytes, _time_of(headers.get("Last-Modified", "")))


def _time_of(text: str) -> float | None:
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()  # HTTP dates are in UTC
