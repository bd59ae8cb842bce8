"""Responses in zstd: which clients get them, what they contain, and that they cost nothing without such a client."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

import optimizer.web.prepared
from optimizer import Settings, optimize
from optimizer.cli.dev.sample import write_sample
from optimizer.snapshots.format import FILE_NAMES
from optimizer.storage.zstandard import zstd
from optimizer.web.encoding import SHORTEST_BYTES, compress_quickly
from optimizer.web.negotiate import ZSTD
from optimizer.web.prepared import Prepared
from tests.support.browser import Watched, Web
from tests.support.redis_servers import wait_until
from tests.support.rolling_files import local
from tests.support.web_apps import WebServer, asking

WHOLE = {"/predictions": "predictions", "/bots": "bots", "/portfolio": "portfolio"}
LONG = [*WHOLE, "/page", "/snapshot", "/predictions.csv", "/history", "/runs"]
BROWSER = "gzip, deflate, br, zstd"


@pytest.fixture
def sample(settings: Settings) -> Settings:
    """A source of two versions, whose responses are all long enough to be compressed."""
    for seed in (1, 2):
        write_sample(local(settings.input), symbols=40, points=1, seed=seed)
        optimize(settings)
    return settings


def raw(client: TestClient, path: str, encoding: str, method: str = "GET", **headers: str) -> tuple[Any, bytes]:
    """Send a request; return the response and its body as it was sent."""
    sent = {"Accept-Encoding": encoding, **{name.replace("_", "-"): text for name, text in headers.items()}}
    with client.stream(method, path, headers=sent) as response:
        return response, b"".join(response.iter_raw())


def test_each_coding_has_the_same_content_and_an_etag_of_its_own(sample: Settings) -> None:
    """A client that names zstd gets zstd, another one that accepts gzip gets gzip, and any other gets the plain body.

    The content is the same, and each encoding has an ETag of its own and `Vary`, so that caches can distinguish them.
    """
    with asking(sample) as client:
        for path in LONG:
            of_zstd, packed = raw(client, path, BROWSER)
            of_gzip, gz = raw(client, path, "gzip, deflate, br")
            of_plain, plain = raw(client, path, "identity")

            assert of_zstd.headers["Content-Encoding"] == "zstd", path
            assert of_gzip.headers["Content-Encoding"] == "gzip", path
            assert "Content-Encoding" not in of_plain.headers, path
            assert zstd.decompress(packed) == gzip.decompress(gz) == plain, path
            assert len(plain) > SHORTEST_BYTES, path
            assert len(packed) < len(plain), path
            for response, body in ((of_zstd, packed), (of_gzip, gz), (of_plain, plain)):
                assert response.headers["Content-Length"] == str(len(body)), path
                assert "accept-encoding" in response.headers["Vary"].lower(), path
            assert len({response.headers["ETag"] for response in (of_zstd, of_gzip, of_plain)}) == 3, path


@pytest.mark.parametrize("path", [*WHOLE, "/page", "/snapshot"])
def test_a_client_that_has_it_in_zstd_is_told_so(sample: Settings, path: str) -> None:
    """A request with the ETag of the encoding that would be sent is a 304 with that ETag.

    A request with the ETag of another encoding is a 200.
    """
    with asking(sample) as client:
        etags = {coding: raw(client, path, coding)[0].headers["ETag"] for coding in ("zstd", "gzip", "identity")}
        for coding, etag in etags.items():
            response, body = raw(client, path, coding, If_None_Match=etag)
            assert (response.status_code, body, response.headers["ETag"]) == (304, b"", etag)
            assert "Content-Encoding" not in response.headers
            for other in etags.keys() - {coding}:
                assert raw(client, path, other, If_None_Match=etag)[0].status_code == 200
        assert raw(client, path, "zstd", If_None_Match=", ".join(etags.values()))[0].status_code == 304


@pytest.mark.parametrize("path", ["/predictions", "/page"])
def test_a_head_has_the_headers_of_the_coding(sample: Settings, path: str) -> None:
    """A HEAD request has the headers of the zstd response to GET, and no body."""
    with asking(sample) as client:
        whole, body = raw(client, path, "zstd")
        head, nothing = raw(client, path, "zstd", method="HEAD")
    names = ("ETag", "Content-Encoding", "Content-Length", "Vary")
    assert [head.headers[name] for name in names] == [whole.headers[name] for name in names]
    assert (nothing, head.headers["Content-Length"]) == (b"", str(len(body)))


def test_the_stored_gzip_stays_what_it_was(sample: Settings) -> None:
    """A client that accepts gzip gets the bytes of the file, also after another client has received zstd."""
    with asking(sample) as client:
        for path, kind in WHOLE.items():
            raw(client, path, "zstd")
            stored = (local(sample.output_dir) / FILE_NAMES[kind]).read_bytes()
            assert raw(client, path, "gzip")[1] == stored


def test_short_bodies_and_records_are_sent_as_they_are(sample: Settings) -> None:
    """A single record and any body below 512 bytes are not compressed, since that saves less than a packet."""
    with asking(sample) as client:
        symbol = client.get("/predictions?limit=1").json()["predictions"][0]["symbol"]
        for path in (f"/predictions/{symbol}", "/healthz"):
            assert "Content-Encoding" not in raw(client, path, BROWSER)[0].headers


def test_zstd_is_made_at_the_first_request_and_once_a_version(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A body is compressed with zstd at the first request that names zstd, once for each version.

    Without such a request it costs nothing.
    """
    made: list[int] = []

    def count(body: bytes, encoding: int) -> bytes:
        made.append(encoding)
        return compress_quickly(body, encoding)

    monkeypatch.setattr(optimizer.web.prepared, "compress_quickly", count)
    write_sample(local(settings.input), symbols=40, points=1)
    optimize(settings)
    with asking(settings) as client:
        for encoding in ("gzip", "identity", "*", "gzip;q=1, zstd;q=0.5"):
            raw(client, "/predictions", encoding)
        assert made == []
        first = [raw(client, "/predictions", BROWSER)[1] for _ in range(3)]
        assert made == [ZSTD]
        version = client.get("/status").json()["version"]
        write_sample(local(settings.input), symbols=40, points=1, seed=2)
        newer = optimize(settings).version
        assert newer is not None
        assert newer > version
        wait_until(lambda: client.get("/status").json()["version"] == newer, what="the new version")
        second = raw(client, "/predictions", BROWSER)[1]
    assert len(set(first)) == 1
    assert second != first[0]
    assert made == [ZSTD, ZSTD]


def test_what_is_held_counts_zstd_before_it_is_made() -> None:
    """The size limit counts a zstd response before it is made, so clients cannot raise a process's memory above it."""
    plain, gz = bytes(range(256)) * 40, bytes(100)
    without = Prepared(plain, "a", [], gz=gz, gz_etag="b", per_request_headers=list)
    with_zstd = Prepared(plain, "a", [], gz=gz, gz_etag="b", zstd_etag="c", per_request_headers=list)
    alone = Prepared(plain, "a", [], per_request_headers=list)
    assert (alone.size, without.size, with_zstd.size) == (len(plain), len(plain) + 100, len(plain) + 200)


@pytest.mark.slow
def test_a_browser_takes_zstd(web: Web, settings: Settings, watch: Callable[..., Watched]) -> None:
    """Chromium accepts zstd on a secure origin, which loopback is, and its page gets the content that was published."""
    write_sample(local(settings.input), symbols=40, points=1)
    optimize(settings)
    watched = watch(web.url)
    with watched.page.expect_response(re.compile("/snapshot$")) as of_dashboard:
        page = watched.open()
    assert of_dashboard.value.headers["content-encoding"] == "zstd"

    with page.expect_response(re.compile("/predictions$")) as caught:
        shown = page.evaluate("async () => (await fetch('/predictions')).json()")

    response = caught.value
    assert "zstd" in response.request.all_headers()["accept-encoding"]
    assert response.headers["content-encoding"] == "zstd"
    stored = gzip.decompress((local(settings.output_dir) / FILE_NAMES["predictions"]).read_bytes())
    assert shown == json.loads(stored)
    again = page.evaluate("async () => (await fetch('/predictions')).json()")
    assert again == shown


@pytest.mark.slow
def test_curl_decodes_it(tmp_path: Path, sample: Settings) -> None:
    """`curl --compressed` requests and decodes zstd if curl is built with it, as Debian's is."""
    curl = shutil.which("curl")
    if curl is None or " zstd" not in subprocess.run([curl, "-V"], capture_output=True, text=True, check=True).stdout:
        pytest.skip("no curl with zstd")
    with WebServer(tmp_path, sample) as web:
        address = f"http://127.0.0.1:{web.port}/predictions"
        done = subprocess.run([curl, "-s", "--compressed", "-D-", address], capture_output=True, check=True)
        head, _, body = done.stdout.partition(b"\r\n\r\n")
        assert b"content-encoding: zstd" in head.lower()
        assert json.loads(body) == json.loads(web.get("/predictions")[2])
