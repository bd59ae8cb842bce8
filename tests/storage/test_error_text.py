"""Errors of libraries are explained: the cause, what to check, and no secrets of URLs."""

from __future__ import annotations

import re
import socket
import ssl
import urllib.error
from http.client import RemoteDisconnected
from typing import Any

import aiohttp
import botocore.exceptions as boto
import pytest
import yarl
from aiohttp.client_reqrep import ConnectionKey, RequestInfo
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from optimizer.storage.error_text import cause_of

URL = "https://u:SECRET@host:8443/a.json?X-Amz-Signature=SECRET&b=SECRET"
KEY = ConnectionKey("host", 8443, is_ssl=True, ssl=True, proxy=None, proxy_auth=None, proxy_headers_hash=None)
INFO = RequestInfo(yarl.URL(URL), "GET", CIMultiDictProxy(CIMultiDict()))


def beneath(outer: BaseException, inner: BaseException) -> BaseException:
    """Return `outer` as if it had been raised from `inner`."""
    outer.__cause__ = inner
    return outer


def s3_error(code: str, status: int) -> boto.ClientError:
    """An error response of S3, with the URL in its text."""
    answer: Any = {"Error": {"Code": code, "Message": URL}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return boto.ClientError(answer, "GetObject")


ERRORS: list[tuple[BaseException, str]] = [
    (
        urllib.error.URLError(ConnectionRefusedError(111, URL)),
        "connection refused by the server: nothing listens there",
    ),
    (aiohttp.ClientConnectorError(KEY, ConnectionRefusedError(111, URL)), "connection refused by host:8443: "),
    (aiohttp.ClientConnectorDNSError(KEY, socket.gaierror(-2, "Name unknown")), "host:8443 has no address .DNS: Name"),
    (boto.EndpointConnectionError(endpoint_url=URL, error=ConnectionRefusedError()), "refused by host:8443: "),
    (boto.EndpointConnectionError(endpoint_url=URL, error=socket.gaierror(-2, "x")), "host:8443 has no address"),
    (boto.ConnectTimeoutError(endpoint_url=URL), "no answer from host:8443 in time"),
    (boto.ReadTimeoutError(endpoint_url=URL), "no answer from host:8443 in time"),
    (boto.SSLError(endpoint_url=URL, error=ssl.SSLError(1, "wrong version")), "TLS with host:8443 failed"),
    (TimeoutError(), "no answer from the server in time"),
    (RemoteDisconnected(URL), "the server closed the connection"),
    (
        aiohttp.ClientResponseError(INFO, (), status=403, message=URL),
        "access denied .403 Forbidden.; check .*credentials",
    ),
    (
        beneath(PermissionError(URL), s3_error("AccessDenied", 403)),
        "access denied .403 AccessDenied.; check .*credentials",
    ),
    (beneath(OSError(16, URL), s3_error("SlowDown", 503)), "the server answers 503 SlowDown; it is the server's own"),
    (beneath(FileNotFoundError(URL), s3_error("NoSuchBucket", 404)), "not there .404 NoSuchBucket."),
    (s3_error("599", 599), "the server answers 599;"),
    (OSError(URL), r"https://[*]{3}@host:8443/a.json\?[*]{3}; check the network"),
    (ValueError(f"cannot use URL('{URL}') there"), "cannot use URL"),
    (ValueError("/a.json?X-Amz-Signature=SECRET was refused"), r"/a.json\?[*]{3} was refused"),
    (OSError(), "no answer in time; check the network"),
    (
        beneath(OSError(URL), beneath(ValueError(URL), urllib.error.URLError(ConnectionRefusedError(111, URL)))),
        "connection refused by the server: nothing listens there",
    ),
    (beneath(OSError(URL), beneath(ValueError(URL), s3_error("AccessDenied", 403))), "access denied .403 AccessDenied"),
]


@pytest.mark.parametrize(("error", "said"), ERRORS, ids=[type(error).__name__ for error, _ in ERRORS])
def test_each_has_its_cause_and_no_secret(error: BaseException, said: str) -> None:
    """An error of urllib, aiohttp, botocore or s3fs, gives a line with its cause and no secret.

    The cause may be chained at any depth.
    """
    text = cause_of(error)
    assert re.match(f".*{said}", text), text
    assert "SECRET" not in text
    assert "\n" not in text


@given(st.text(max_size=20), st.text(max_size=20))
def test_whatever_stands_round_a_url(before: str, after: str) -> None:
    """Query and login of a URL are removed from the text of an unknown error, whatever text surrounds the URL."""
    assert "SECRET" not in cause_of(ValueError(f"{before} {URL} {after}"))
