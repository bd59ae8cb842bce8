"""`rolling-optimizer web` as a process: what it prints, and how it ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from optimizer import Settings
from optimizer.storage.location import spelled
from tests.support.published_state import run_old
from tests.support.rolling_files import a_record, write_json
from tests.support.web_apps import WebServer

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-m", "optimizer.cli", "web"]


def test_it_prints_its_address_and_stops_without_a_word(tmp_path: Path, settings: Settings) -> None:
    """The command prints only its address, in one line, and exits with status 0 on SIGTERM as on Ctrl-C."""
    run_old(settings)
    for number in (signal.SIGTERM, signal.SIGINT):
        with WebServer(tmp_path, settings) as web:
            status, headers, _ = web.get("/predictions", Accept_Encoding="gzip")
            assert (status, headers["content-encoding"]) == (200, "gzip")
            assert "server" not in headers
            web.process.send_signal(number)
            assert web.process.wait(20) == 0
        assert web.log.read_text() == f"http://127.0.0.1:{web.port}/\n"


def test_it_starts_without_redis_and_without_a_snapshot(tmp_path: Path, settings_without_redis: Settings) -> None:
    """Without Redis and a snapshot the command starts and serves `/healthz` and the page; `/predictions` is a 503."""
    with WebServer(tmp_path, replace(settings_without_redis, redis_url="redis://127.0.0.1:1/0")) as web:
        assert web.get("/predictions")[0] == 503
        assert web.get("/healthz")[0] == 200
        assert web.get("/")[0] == 200


def test_an_address_in_use_is_one_line() -> None:
    """An address that is in use is named in an error of one line with exit status 1; wrong usage has exit status 2."""
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = subprocess.run([*COMMAND, "--port", port], capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"127.0.0.1:{port}: Address already in use" in done.stderr
    assert done.stderr.count("\n") == 1
    assert subprocess.run([*COMMAND, "--port", "x"], capture_output=True, check=False, timeout=30).returncode == 2


def test_without_the_extra_it_says_what_to_install(settings: Settings) -> None:
    """Without FastAPI the command exits with status 2 and names the extra to install; a run does not need it."""
    write_json(settings.input, {"AAPL": a_record()})
    environ = os.environ | {
        "ROLLING_INPUT": spelled(settings.input),
        "ROLLING_OUTPUT_DIR": str(settings.output_dir),
        "ROLLING_REDIS_URL": settings.redis_url,
    }
    program = "import sys; sys.modules['fastapi'] = None; from optimizer.cli.main import main; main()"
    web, run = (
        subprocess.run(
            [sys.executable, "-c", program, command],
            capture_output=True,
            text=True,
            check=False,
            env=environ,
            timeout=30,
        )
        for command in ("web", "run")
    )
    assert web.returncode == 2
    assert "rolling-optimizer[web]" in web.stderr
    assert (run.returncode, run.stderr) == (0, "")
