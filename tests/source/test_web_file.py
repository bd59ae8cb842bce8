"""An input on a web server gives the same result as the same local file, or an error that names its cause."""

from __future__ import annotations

import gzip
import itertools
import logging
import os
import re
import ssl
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from optimizer.cli.dev.sample import write_sample
from optimizer.config.settings import Settings
from optimizer.errors import RollingError, SourceMissing, SourceTorn, SourceUnreadable
from optimizer.pipeline.run import optimize
from optimizer.source import web_file
from optimizer.source.input_file import InputFile
from optimizer.source.opener import open_input_file
from optimizer.storage.location import Url
from tests.support.ports import free_port
from tests.support.published_state import NEW, OLD, content_of, no_scan, once, symbols_shown
from tests.support.redis_servers import Authority, wait_until
from tests.support.rolling_files import local, write_json
from tests.support.web_server import Pages, serving

SECRET: Final = "S3cr3t-Signature"
QUERY: Final = f"?X-Amz-Credential=AKIA&X-Amz-Signature={SECRET}"


@pytest.fixture
def pages() -> Iterator[Pages]:
    """A server with an empty file."""
    with serving() as server:
        yield server


@pytest.fixture
def web_settings(settings_without_redis: Settings, pages: Pages) -> Settings:
    """Settings with a presigned URL as the input, and outputs in a directory."""
    return replace(settings_without_redis, input=Url(f"{pages.url}/rolling_brain.json.gz{QUERY}"))


def read(url: str) -> bytes:
    """Read the JSON of an input, and check at the end that it has not changed."""
    with open_input_file(Url(url)) as input_file:
        data = b"".join(input_file.chunks(1 << 16))
        input_file.check_unchanged()
        return data


# ---- reading


@pytest.mark.slow
@pytest.mark.parametrize("left_out", [*itertools.product(("", "ranges"), ("", "length"), ("etag", "last_modified"))])
@pytest.mark.parametrize("packed", [True, False], ids=["gzip", "plain"])
def test_a_file_gives_the_snapshots_of_the_same_local_one(
    web_settings: Settings, pages: Pages, tmp_path: Path, left_out: tuple[str, ...], packed: bool
) -> None:
    """A file gives the same snapshots as the local one, and is then unchanged, whichever headers are missing.

    Its size may be unknown before it is read.
    """
    for name in filter(None, left_out):
        setattr(pages, name, "" if name == "last_modified" else False)
    write_sample(tmp_path / "a.json.gz", symbols=60, points=300)
    data = (tmp_path / "a.json.gz").read_bytes()
    pages.data = data if packed else gzip.decompress(data)

    remote = optimize(web_settings, use_cache=False)
    again = optimize(web_settings, use_cache=False, progress=no_scan)
    local_settings = replace(web_settings, input=tmp_path / "a.json.gz", output_dir=tmp_path / "local")
    optimize(local_settings, use_cache=False)

    assert remote.stats is not None
    assert (remote.status, again.status, remote.source) == ("success", "unchanged", "rolling_brain")
    assert remote.stats.input_bytes == len(pages.data)
    content = content_of(web_settings)
    assert content["portfolio"]["holdings"]
    assert content == content_of(local_settings)


def test_a_new_signature_is_no_new_input(web_settings: Settings, pages: Pages, tmp_path: Path) -> None:
    """An input whose URL has a new signature is unchanged: the fingerprint is of the file alone, without the query."""
    pages.data = write_json(tmp_path / "a.json.gz", OLD).read_bytes()
    first = optimize(web_settings, use_cache=False)
    renewed = replace(web_settings, input=Url(f"{pages.url}/rolling_brain.json.gz?X-Amz-Signature=another"))

    assert optimize(renewed, use_cache=False, progress=no_scan).status == "unchanged"
    manifest = (local(web_settings.output_dir) / "manifest.json").read_text()
    assert first.version is not None
    assert SECRET not in manifest
    assert {path for path, _ in pages.asked} == {
        f"/rolling_brain.json.gz{QUERY}",
        "/rolling_brain.json.gz?X-Amz-Signature=another",
    }


def test_a_replaced_file_is_scanned(web_settings: Settings, pages: Pages, tmp_path: Path) -> None:
    """A replaced file is scanned, since its validator has changed."""
    pages.data = write_json(tmp_path / "a.json.gz", OLD).read_bytes()
    optimize(web_settings, use_cache=False)
    pages.data = write_json(tmp_path / "b.json.gz", NEW).read_bytes()
    assert optimize(web_settings, use_cache=False).status == "success"
    assert symbols_shown(web_settings) == ["NVDA", "MSFT"]


@pytest.mark.parametrize("when", ["before", "amid"])
def test_a_file_that_is_replaced_is_torn(web_settings: Settings, pages: Pages, tmp_path: Path, when: str) -> None:
    """A file that is replaced before or during its reading is torn, and the next run reads the new file."""
    pages.data = write_json(tmp_path / "a.json.gz", OLD).read_bytes()
    new = write_json(tmp_path / "b.json.gz", NEW).read_bytes()
    if when == "before":
        with open_input_file(web_settings.input) as input_file:
            pages.data = new
            with pytest.raises(SourceTorn, match="was replaced"):
                list(input_file.chunks(1 << 16))
    else:
        replace_it = once(lambda: setattr(pages, "data", new))
        pages.amid = lambda: replace_it(0, 0)
        with pytest.raises(SourceTorn, match=rf"{re.escape(pages.url)}/rolling_brain.json.gz\?\*\*\*: .*replaced"):
            optimize(web_settings, use_cache=False)
    assert optimize(web_settings, use_cache=False).status == "success"


def test_an_empty_file_has_no_first_byte(pages: Pages) -> None:
    """An empty file is read: the server responds to the range with 416, and then the whole file is requested."""
    assert read(f"{pages.url}/a.json") == b""
    version = ["bytes=0-0", None]  # the version is asked before and after the content
    assert [headers.get("Range") for _, headers in pages.asked] == [*version, None, *version]


def test_what_a_server_compresses_is_inflated(pages: Pages) -> None:
    """What a server compresses, or labels as gzip, is read as gzip; the error for double compression names it.

    Requests ask for `identity`, so a server should not compress.
    """
    pages.headers["Content-Encoding"] = "gzip"
    pages.data = gzip.compress(b"[1]")
    assert read(f"{pages.url}/a.json") == b"[1]"
    assert {headers["Accept-Encoding"] for _, headers in pages.asked} == {"identity"}

    pages.data = gzip.compress(gzip.compress(b"[1]"))
    with pytest.raises(SourceUnreadable, match="gzip inside gzip: it was compressed twice"):
        read(f"{pages.url}/a.json.gz")


def test_redirects_are_followed_and_learn_nothing(pages: Pages) -> None:
    """A redirect is followed, and the other host receives neither the query nor a header with a login."""
    with serving() as other:
        other.data = b"[1]"
        pages.status, pages.headers = 302, {"Location": f"{other.url}/b.json"}
        assert read(f"{pages.url}/a.json{QUERY}") == b"[1]"
        assert other.asked
        assert SECRET not in str(other.asked)
        assert "Authorization" not in str(other.asked)


def test_an_iterator_may_be_begun_again(pages: Pages) -> None:
    """Chunks can be read again from the beginning after an abandoned iteration, as with a local file."""
    pages.data = gzip.compress(b"[" + b"1," * 400_000 + b"1]", 0)
    with open_input_file(Url(f"{pages.url}/a.json.gz")) as input_file:
        first = next(input_file.chunks(1 << 16))
        assert 0 < input_file.position_bytes <= input_file.size_bytes == len(pages.data)
        whole = b"".join(input_file.chunks(1 << 16))
    assert whole.startswith(first)
    assert whole == gzip.decompress(pages.data)


def test_bytes_after_the_gzip_are_found(pages: Pages) -> None:
    """Bytes after the end of the gzip data are an error with their position.

    The file is requested twice more: to find where the gzip data ends, and to show what follows.
    """
    packed = gzip.compress(os.urandom(40_000).hex().encode())
    pages.data = packed + b"\n"
    with pytest.raises(SourceTorn, match=rf"gzip data ends at byte {len(packed):,} of the file"):
        read(f"{pages.url}/a.json.gz")
    assert [headers.get("Range") for _, headers in pages.asked] == ["bytes=0-0", None, None, None]


# ---- failures


def refused(_: Pages) -> str:
    """The URL of a port without a listener."""
    return f"http://127.0.0.1:{free_port()}"


def unknown_name(_: Pages) -> str:
    """A URL whose host name is reserved for not existing."""
    return "http://nothing.invalid"


def answering(status: int) -> Callable[[Pages], str]:
    """Make the server respond with a status, and with a body that quotes the query."""

    def prepare(pages: Pages) -> str:
        pages.status, pages.data = status, f"no {QUERY}".encode()
        return pages.url

    return prepare


def hanging(pages: Pages) -> str:
    """Make the server accept connections and never respond."""
    pages.hangs = True
    return pages.url


def cut(pages: Pages) -> str:
    """Make the server close the connection after 50,000 of 200,000 bytes."""
    pages.data, pages.cut_after = os.urandom(100_000).hex().encode(), 50_000
    return pages.url


def unmarked(pages: Pages) -> str:
    """Make the server send no header that distinguishes one version from another."""
    pages.data, pages.etag, pages.last_modified = b"[1]", False, ""
    return pages.url


def redirecting(location: str) -> Callable[[Pages], str]:
    """Make the server redirect to a location, or to itself if that is empty."""

    def prepare(pages: Pages) -> str:
        pages.status = 302
        pages.headers["Location"] = location or f"{pages.url}/a.json{QUERY}"
        return pages.url

    return prepare


def holding(data: bytes) -> Callable[[Pages], str]:
    """Make the server send these bytes as the file."""

    def prepare(pages: Pages) -> str:
        pages.data = data
        return pages.url

    return prepare


def not_http(pages: Pages) -> str:
    """Make the server send a header that is too long for HTTP, as another kind of server may."""
    pages.headers["Bad"] = "x\r\nno colon at all" + "y" * 70_000
    return pages.url


FAILURES: dict[str, tuple[Callable[[Pages], str], type[RollingError], str]] = {
    "refused": (
        refused,
        SourceUnreadable,
        r"connection refused by 127.0.0.1:\d+: nothing listens there; check the netw",
    ),
    "dns": (unknown_name, SourceUnreadable, "the name of nothing.invalid:80 has no address .DNS: "),
    "401": (answering(401), SourceUnreadable, "access denied .401 Unauthorized.; check .* has expired"),
    "403": (answering(403), SourceUnreadable, "access denied .403 Forbidden.; check .* has expired"),
    "404": (answering(404), SourceMissing, "not found: the server answers 404; set ROLLING_INPUT"),
    "410": (answering(410), SourceMissing, "not found: the server answers 410"),
    "416": (answering(416), SourceUnreadable, "the server answers 416"),
    "418": (answering(418), SourceUnreadable, "the server answers 418"),
    "429": (answering(429), SourceUnreadable, "the server answers 429 Too Many Requests; it is the server's own"),
    "500": (answering(500), SourceUnreadable, "the server answers 500 Internal Server Error; .*next run tries again"),
    "503": (answering(503), SourceUnreadable, "the server answers 503 Service Unavailable"),
    "599": (answering(599), SourceUnreadable, "the server answers 599;"),
    "hanging": (hanging, SourceUnreadable, r"no answer from 127.0.0.1:\d+ in time"),
    "cut": (cut, SourceUnreadable, "the server closed the connection after 50,000 of 200,000 bytes"),
    "unmarked": (unmarked, SourceUnreadable, "sends neither ETag nor Last-Modified, so a change could not be noticed"),
    "loop": (redirecting(""), SourceUnreadable, "redirects in a way that cannot be followed .302 Found."),
    "to a file": (redirecting("file:///etc/passwd"), SourceUnreadable, "redirects in a way that cannot be followed"),
    "not http": (not_http, SourceUnreadable, "got more than 65536 bytes"),
    "torn": (holding(gzip.compress(b"[1]")[:-9]), SourceTorn, "ends early"),
    "malformed": (holding(b'{"A":tru}'), RollingError, "byte|no usable record"),
    "page": (holding(b"<html>"), SourceUnreadable, "it is HTML or XML, which is not read; it may be the error page"),
    "empty": (holding(b""), RollingError, "is empty"),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_each_failure_has_its_cause_and_no_secret(
    web_settings: Settings,
    pages: Pages,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each failure is an error that names its cause, and shows no secret of the URL.

    No secret is in the message, in the traceback of all chained errors, or in the logs at DEBUG.
    """
    monkeypatch.setattr(web_file, "ANSWER_TIMEOUT_S", 1)
    caplog.set_level(logging.DEBUG)
    prepare, error, said = FAILURES[kind]
    url = f"{prepare(pages)}/a.json{QUERY}"

    with pytest.raises(error, match=said) as caught:
        optimize(replace(web_settings, input=Url(url)), use_cache=False)

    assert f"{url.partition('?')[0]}?***" in str(caught.value)
    shown = "".join(traceback.format_exception(caught.value)) + caplog.text + repr(caught.value.__dict__)
    assert SECRET not in shown
    assert "AKIA" not in shown


@pytest.mark.parametrize(
    ("which", "said"),
    [
        ("stranger", r"TLS: the certificate of 127.0.0.1:\d+ is not valid: .*; trust its authority by SSL_CERT_FILE"),
        ("other host", r"TLS: the certificate of localhost:\d+ is not valid: Hostname mismatch"),
        ("no TLS", r"TLS with 127.0.0.1:\d+ failed: "),
        ("trusted", ""),
    ],
)
def test_tls_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str, said: str) -> None:
    """Certificates are checked with the system's authorities, or with SSL_CERT_FILE."""
    authority = Authority(tmp_path / "ca", "the authority")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.certify("server"))
    if which != "stranger":
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    with serving(None if which == "no TLS" else context) as pages:
        pages.data = b"[1]"
        url = pages.url.replace("http:", "https:")
        url = url.replace("127.0.0.1", "localhost") if which == "other host" else url
        if not said:
            assert read(f"{url}/a.json{QUERY}") == b"[1]"
            return
        with pytest.raises(SourceUnreadable, match=said) as caught:
            read(f"{url}/a.json{QUERY}")
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_runs_leave_nothing_open(web_settings: Settings, pages: Pages, tmp_path: Path) -> None:
    """No connection stays open after a check, a scan or a failure."""
    pages.data = write_json(tmp_path / "a.json.gz", OLD).read_bytes()

    def sockets() -> int:
        count = 0
        for entry in Path("/proc/self/fd").iterdir():
            with suppress(OSError):  # the descriptor of this listing is closed by then
                count += str(entry.readlink()).startswith("socket:")
        return count

    before = sockets()
    for _ in range(5):
        optimize(web_settings, use_cache=False, force=True)
        optimize(web_settings, use_cache=False)
        pages.status = 500
        with pytest.raises(SourceUnreadable):
            optimize(web_settings, use_cache=False)
        pages.status = 200
    wait_until(lambda: sockets() <= before, what="the server to close its side")


@pytest.mark.parametrize(
    "text",
    ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"],
    ids=["now", "RFC 850", "asctime"],
)
def test_its_time_is_what_the_server_says(pages: Pages, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`Last-Modified` is read in each form that a server may send (RFC 9110 section 5.6.7).

    All are in UTC, in whatever time zone this machine is.
    """
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    pages.data, pages.last_modified = b"[1]", text
    try:
        with open_input_file(Url(f"{pages.url}/a.json")) as file:
            assert file.modified_s == file.landed_s == 784_111_777
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("text", ["", "yesterday", "Sun, 31 Feb 1994 08:49:37 GMT", "Sun, 06 Nov 99999 08:49:37 GMT"])
def test_a_time_that_cannot_be_read_is_unknown(pages: Pages, text: str) -> None:
    """If `Last-Modified` is missing or no valid date, the time is unknown, and the file is still read."""
    pages.data, pages.last_modified = b"[1]", text
    with open_input_file(Url(f"{pages.url}/a.json")) as file:
        assert (file.modified_s, file.landed_s) == (None, None)
        assert b"".join(file.chunks(1 << 16)) == b"[1]"


def test_it_is_an_input_file(pages: Pages) -> None:
    """A file on a web server is an `InputFile` with a location, a size and a position, like any other."""
    pages.data = b"[1]"
    url = Url(f"{pages.url}/a.json")
    with open_input_file(url) as file:
        assert isinstance(file, InputFile)
        assert (file.path, file.size_bytes, file.position_bytes) == (url, 3, 0)
        assert b"".join(file.chunks(1 << 16)) == b"[1]"
        assert file.position_bytes == 3
