"""Explain why a store or a web server did not answer a request: one translation for the errors of all libraries.

urllib, aiohttp, botocore and fsspec quote URLs in their messages, with any secrets in them. So a message is made from
the error's class, its status and the operating system's error that caused it. The error's own text is used, redacted,
only if the error is unknown.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterator
from http import HTTPStatus
from http.client import IncompleteRead
from typing import Any, Final
from urllib.parse import urlsplit

from optimizer.storage.location import redact_url

__all__ = ["cause_of"]

NETWORK: Final = "check the network and {address}"
REFUSED: Final = "check {address} and {credentials}"
UNTRUSTED: Final = "trust its authority by SSL_CERT_FILE, or correct {address}"
TROUBLE: Final = "it is the server's own trouble, and the next run tries again"
OTHER: Final = "check the network, {address} and {credentials}"

_STORE: Final = {
    "address": "the store's address (AWS_ENDPOINT_URL where it is not Amazon's)",
    "credentials": "the credentials in its environment variables or files",
}
_WEB: Final = {"address": "the address", "credentials": "whether the signature or token in its query has expired"}

# Tried in this order: a special case comes before the general one.
_KNOWN: Final[tuple[tuple[tuple[type[BaseException], ...], str, str], ...]] = (
    ((socket.gaierror,), "the name of {place} has no address (DNS: {error.strerror})", NETWORK),
    ((ConnectionRefusedError,), "connection refused by {place}: nothing listens there", NETWORK),
    (
        (ssl.SSLCertVerificationError,),
        "TLS: the certificate of {place} is not valid: {error.verify_message}",
        UNTRUSTED,
    ),
    ((ssl.SSLError,), "TLS with {place} failed: {error.strerror}", NETWORK),
    ((TimeoutError,), "no answer from {place} in time", NETWORK),
    ((ConnectionError, IncompleteRead), "{place} closed the connection", NETWORK),
)


def cause_of(error: BaseException, *, web_host: str = "") -> str:
    """Describe on one line what went wrong and what to check, without the secrets of a URL.

    Args:
        error: The exception of a library.
        web_host: Host and port of a web server; empty for a store, whose host and port are taken from the error.
    """
    chain = list(_chain(error))
    place = web_host or next(filter(None, map(_place, chain)), "the server")
    known = next(filter(None, (_known(one, place) for one in chain)), None)
    cause, advice = known or (_redacted(str(error)) or "no answer in time", OTHER)
    return f"{cause}; {advice.format(**(_WEB if web_host else _STORE))}"


def _known(error: BaseException, place: str) -> tuple[str, str] | None:
    status = _status(error)
    if status is not None:
        return _of_status(*status)
    for classes, cause, advice in _KNOWN:
        if isinstance(error, classes) or (TimeoutError in classes and "Timeout" in type(error).__name__):
            return cause.format(place=place, error=error), advice
    return None


def _of_status(number: int, code: str) -> tuple[str, str]:
    name = code if code and not code.isdecimal() else HTTPStatus(number).phrase if number in _PHRASES else ""
    shown = f"{number} {name}".rstrip()
    if number in (401, 403, 407):
        return f"access denied ({shown})", REFUSED
    if number in (404, 410):
        return f"not there ({shown})", OTHER
    if number == 429 or number >= 500:
        return f"the server answers {shown}", TROUBLE
    if 300 <= number < 400:
        return f"the server redirects in a way that cannot be followed ({shown})", OTHER
    return f"the server answers {shown}", OTHER


_PHRASES: Final = frozenset(HTTPStatus)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes: attributes of urllib's, aiohttp's and botocore's errors, causes and contexts."""
    seen: set[int] = set()
    waiting: list[Any] = [error]
    while waiting:
        one = waiting.pop(0)
        if not isinstance(one, BaseException) or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        options = getattr(one, "kwargs", None)
        waiting += [getattr(one, "reason", None), getattr(one, "os_error", None), one.__cause__, one.__context__]
        waiting += [options.get("error")] if isinstance(options, dict) else []


def _status(error: BaseException) -> tuple[int, str] | None:
    """Return the HTTP status of an error, and the code that S3 adds; `None` if the error has no status."""
    response = getattr(error, "response", None)  # botocore's
    if isinstance(response, dict):
        number = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return (number, str(response.get("Error", {}).get("Code", ""))) if isinstance(number, int) else None
    numbers = (getattr(error, name, None) for name in ("status", "code", "status_code"))  # aiohttp deprecates `code`
    number = next((one for one in numbers if isinstance(one, int) and 100 <= one <= 599), None)
    return None if number is None else (number, "")


def _place(error: BaseException) -> str | None:
    """Return the host and port that a connection error names."""
    options = getattr(error, "kwargs", None)
    if isinstance(options, dict) and isinstance(options.get("endpoint_url"), str):
        return urlsplit(options["endpoint_url"]).netloc.rpartition("@")[2] or None
    host, port = getattr(error, "host", None), getattr(error, "port", None)
    return f"{host}:{port}" if isinstance(host, str) and port else None


def _redacted(text: str) -> str:
    """Return the text of an unknown error on one line, without queries and logins."""
    text = re.sub(r"\S*://\S*", lambda match: redact_url(match.group()), " ".join(text.split()))
    return re.sub(r"\?[^\s*]\S*", "?***", text)
