"""The input as a file of a web server: the same `Source`, read in one answer.

In: an `http://` or `https://` URL, whose query may be a signature (presigned S3, SAS). Out: what `Source` gives, in
constant memory. Nothing is asked of the server but GET, since a presigned URL allows nothing else: of one byte for a
look, which a server may answer with all of them (they are not read), and of everything for a scan.

The one answer to the scan is of one file, unless the server mixes them; that it is the one which was looked at, and is
still there at the end, its `ETag` says, or `Last-Modified`. A server that sends neither is refused: no change could be
noticed. No password is sent: redirects to other hosts are followed, and learn nothing.

`Accept-Encoding: identity` asks for the file as it is. A server that compresses all the same sends gzip, which is
inflated as any; where it was a gzip file, that is compressed twice and named so.

Errors: `SourceMissing`, `SourceUnreadable`, `SourceTorn`; none holds the query.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
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
from optimizer.source.file import Source
from optimizer.storage.error_text import cause_of
from optimizer.storage.location import Url

__all__ = ["WebSource"]

# For a connection, and for each read. The next tick is the better retry.
ANSWER_TIMEOUT_S: Final = 10
SKIP_BYTES: Final = 1 << 20
_REPLACED: Final = "the file was replaced while it was read; the next run reads the new one"


class _Mark(NamedTuple):
    """What tells one version of a file from another."""

    tag: str
    size_bytes: int | None  # some servers do not say

    def is_that_of(self, other: _Mark) -> bool:
        """Whether both may be of the same version: a server may know the size of a range, and not of the whole."""
        return self.tag == other.tag and (None in {self.size_bytes, other.size_bytes} or self == other)

    def __str__(self) -> str:
        return f"{self.tag}-" + ("" if self.size_bytes is None else f"{self.size_bytes:x}")


class WebSource(Source):
    """A file of a web server, as it was when it was looked at."""

    path: Url

    def __init__(self, url: Url) -> None:
        self.path = url
        self._mark = _look(url)
        self.fingerprint = str(self._mark)
        self._file = _Body(url, self._mark)

    @property
    def size_bytes(self) -> int:
        """Bytes of the file; where the server does not say, those that were read so far."""
        return self._file.tell() if self._mark.size_bytes is None else self._mark.size_bytes

    def check_unchanged(self) -> None:
        """Check that the server still has the file that was looked at.

        Raises:
            SourceTorn: It is another, or gone.
            SourceUnreadable: The server does not say.
        """
        try:
            now = str(_look(self.path))
        except SourceMissing:
            now = "gone"
        if now != self.fingerprint:
            raise SourceTorn(f"{self.path}: {_REPLACED} ({self.fingerprint} before, {now} now)")


class _Body(RawIOBase):
    """The bytes of the file, by a GET that is sent with the first read; every failure is an `OSError`."""

    def __init__(self, url: Url, mark: _Mark) -> None:
        self._url = url
        self._mark = mark
        self._response: HTTPResponse | None = None
        self._begin_anew()

    def _begin_anew(self) -> None:
        if self._response is not None:
            self._response.close()
        self._response = None
        self._place = 0
        self._received = 0
        self._head = b""  # what is looked at before the decompressor is chosen, and then read again

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        if self._place < self._received:
            data = self._head[self._place : self._place + len(buffer)]
        else:
            data = self._receive(len(buffer))
        self._place += len(data)
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0, /) -> int:  # noqa: ARG002 - only from the beginning
        if offset < self._place:
            if self._received == len(self._head):
                self._place = 0
            else:
                self._begin_anew()
        while self._place < offset and self.read(min(SKIP_BYTES, offset - self._place)):
            pass
        return self._place

    def tell(self) -> int:
        return self._place

    def close(self) -> None:
        self._begin_anew()
        super().close()

    def _receive(self, size: int) -> bytes:
        if self._response is None:
            self._response = _get(self._url)
            if not self._mark.is_that_of(_mark(self._url, self._response)):
                raise SourceTorn(_REPLACED)
        try:
            data = self._response.read(size)
        except (OSError, HTTPException) as error:
            raise OSError(cause_of(error, web_host=_host(self._url))) from None
        if len(self._head) == self._received and self._received + len(data) <= HEAD_BYTES:
            self._head += data
        self._received += len(data)
        length = self._mark.size_bytes
        if not data and length is not None and self._received < length:  # `read` does not notice
            raise OSError(f"the server closed the connection after {self._received:,} of {length:,} bytes")
        return data


def _look(url: Url) -> _Mark:
    """Ask for one byte; what the server tells besides is of the whole file."""
    try:
        response = _get(url, Range="bytes=0-0")
    except _EmptyError:
        response = _get(url)
    with response:
        return _mark(url, response)


class _EmptyError(Exception):
    """There is no first byte."""


def _get(url: Url, **headers: str) -> HTTPResponse:
    request = Request(  # noqa: S310 - of a scheme that `check_url` allows
        url.text, headers={"Accept-Encoding": "identity", "User-Agent": "rolling-optimizer"} | headers
    )
    with _answers(url, ranged="Range" in headers):
        return cast("HTTPResponse", _opener().open(request, timeout=ANSWER_TIMEOUT_S))


def _opener() -> OpenerDirector:
    """Like urllib's own, without the handlers of files, FTP and data; proxies are those of the environment."""
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
def _answers(url: Url, *, ranged: bool) -> Iterator[None]:
    """Errors in our own words. The library's are not chained: a traceback would show them."""
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


def _mark(url: Url, response: HTTPResponse) -> _Mark:
    headers = response.headers
    tag = headers.get("ETag", "").strip('"') or headers.get("Last-Modified", "")
    if not tag:
        raise SourceUnreadable(
            f"{url}: the server sends neither ETag nor Last-Modified, so a change could not be noticed; let it send one"
        )
    total = headers.get("Content-Range", "").rpartition("/")[2] if response.status == 206 else headers["Content-Length"]
    return _Mark(tag, int(total) if total and total.isascii() and total.isdecimal() else None)
