"""The Flask app of the documentation, under gunicorn: forked workers that share a module."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from optimizer import Settings, optimize
from tests.support.pages import ROOT, blocks
from tests.support.ports import free_port
from tests.support.published_state import NEW, run_old, version_of
from tests.support.redis_servers import wait_until
from tests.support.rolling_files import a_record, local, write_json

pytestmark = pytest.mark.slow

PROGRAM = next(block.text for block in blocks(ROOT / "docs/integrate/flask.md") if block.argument == "shop.py")
# A header that names the worker, and a parent that reads before it forks if a variable is set.
PROBE = """
import os
app.after_request(lambda response: (response.headers.set("X-Worker", str(os.getpid())), response)[1])
if os.environ.get("READS_BEFORE_FORK"):
    reader.predictions()
"""


class Server:
    """gunicorn with two workers."""

    def __init__(self, port: int) -> None:
        self.port = port

    def get(self, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
        """Send a request; return the status, the headers in lower case, and the body as it was sent."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)) as connection:
            connection.request("GET", path, headers={name.replace("_", "-"): text for name, text in headers.items()})
            answer = connection.getresponse()
            return answer.status, {name.lower(): text for name, text in answer.getheaders()}, answer.read()

    def workers_that(self, path: str, body: bytes) -> set[str]:
        """Send 20 requests; return the workers whose response contains this text."""
        answers = [self.get(path) for _ in range(20)]
        return {headers["x-worker"] for _status, headers, text in answers if body in text}


@contextmanager
def serving(directory: Path, settings: Settings, *options: str, **variables: str) -> Iterator[Server]:
    """Run the app as a process under gunicorn, wait until it responds, and stop it at the end of the block."""
    (directory / "shop.py").write_text(PROGRAM + PROBE)
    server = Server(free_port())
    environ = os.environ | {"ROLLING_REDIS_URL": settings.redis_url, "ROLLING_OUTPUT_DIR": str(settings.output_dir)}
    command = [sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{server.port}", "--workers", "2", *options]
    log = directory / "gunicorn.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "shop:app"], cwd=directory, env=environ | variables, stdout=output, stderr=subprocess.STDOUT
        )

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return server.get("/nowhere")[0] == 404
        except OSError:
            return False

    try:
        wait_until(answers, limit_s=30, what="gunicorn")
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, log.read_text()


def test_pages_and_json_come_with_etags(tmp_path: Path, settings: Settings) -> None:
    """A client that accepts gzip gets the stored bytes, and one that has the current response gets a 304.

    Before the first snapshot a request is a 503 with `Retry-After`.
    """
    with serving(tmp_path, settings) as server:
        status, headers, body = server.get("/api/best")
        assert (status, headers["retry-after"], json.loads(body)) == (503, "5", {"error": "there is no snapshot yet"})
        write_json(settings.input, {"AAPL": a_record(), "a/b": a_record(confidence=0.1)})
        version = version_of(optimize(settings))
        wait_until(lambda: len(server.workers_that("/", b"Version %d" % version)) == 2, limit_s=10, what="both workers")

        stored = (local(settings.output_dir) / "rolling_optimized.json.gz").read_bytes()
        _, headers, body = server.get("/api/predictions", Accept_Encoding="gzip")
        assert (body, headers["content-encoding"], headers["vary"]) == (stored, "gzip", "Accept-Encoding")
        _, plain_headers, plain = server.get("/api/predictions")
        assert (plain, "content-encoding" in plain_headers) == (gzip.decompress(stored), False)
        assert plain_headers["etag"] != headers["etag"]
        assert json.loads(server.get("/api/best")[2]) == json.loads(plain)["predictions"]
        assert json.loads(server.get("/api/predictions/a/b")[2])["symbol"] == "a/b"
        assert server.get("/api/predictions/NO")[0] == 404
        for path in ("/", "/api/best", "/api/predictions"):
            etag = server.get(path)[1]["etag"]
            assert server.get(path, If_None_Match=etag)[0::2] == (304, b""), path
            assert server.get(path, If_None_Match='"other"')[0] == 200, path


@pytest.mark.parametrize("reads", ["", "yes"])
def test_workers_that_inherit_the_reader_follow_by_themselves(tmp_path: Path, settings: Settings, reads: str) -> None:
    """With `--preload` each worker shows the next version under another ETag, whether or not the parent has read."""
    old = version_of(run_old(settings))
    with serving(tmp_path, settings, "--preload", "--threads", "4", READS_BEFORE_FORK=reads) as server:
        wait_until(lambda: len(server.workers_that("/", b"Version %d" % old)) == 2, limit_s=10, what="both workers")
        etag = server.get("/api/best")[1]["etag"]
        write_json(settings.input, NEW)
        new = version_of(optimize(settings))
        wait_until(lambda: len(server.workers_that("/", b"Version %d" % new)) == 2, limit_s=10, what="both workers")
        status, _, body = server.get("/api/best", If_None_Match=etag)
        assert (status, [record["symbol"] for record in json.loads(body)]) == (200, ["NVDA", "MSFT"])
