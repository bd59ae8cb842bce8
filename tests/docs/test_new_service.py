"""The page on a new service: its files and commands work in an empty directory, with the wheel as from an index."""

from __future__ import annotations

import os
import signal
import subprocess
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from tests.support.installed import CONSTRAINTS, user_environment
from tests.support.pages import ROOT, blocks
from tests.support.ports import free_port
from tests.support.redis_servers import RedisServer, wait_until

PAGE: Final = ROOT / "docs/integrate/new-service.md"
# Commands that run until the end, and what they print once they are up.
SERVICES: Final = {
    "celery -A optimizer.celery.standalone worker": "ready.",
    "celery -A optimizer.celery.standalone beat": "beat: Starting",
    "uvicorn": "Uvicorn running",
}


@pytest.mark.slow
def test_from_an_empty_directory_to_a_running_service(tmp_path: Path, wheel: Path, redis_server: RedisServer) -> None:
    """The blocks of the page work in its order: files are written, commands exit with 0, and services start.

    The services run until the end of the page.
    """
    service = tmp_path / "service"
    service.mkdir()
    port = str(free_port())
    # pip finds the wheel and its dependencies by these variables, as in an index.
    environ = user_environment(
        {
            "PATH": os.environ["PATH"],
            "PIP_FIND_LINKS": str(wheel.parent),
            "PIP_CONSTRAINT": str(CONSTRAINTS),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_NO_COMPILE": "1",  # most modules that it would compile are never imported here
        }
    )
    running: list[tuple[str, subprocess.Popen[bytes], Path]] = []
    started = 0
    try:
        for block in blocks(PAGE):
            text = block.text.replace("redis://localhost:6379/0", redis_server.url).replace("8000", port)
            if block.marker == "file":
                (service / block.argument).write_text(text, "utf-8")
                continue
            log = tmp_path / f"{block.line}.log"
            with log.open("wb") as output:
                process = subprocess.Popen(
                    ["bash", "-euc", text],
                    cwd=service,
                    env=environ | {"PYTHONUNBUFFERED": "1"},
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            ready = next((ready for words, ready in SERVICES.items() if words in text), None)
            if ready is None:
                assert process.wait(120) == 0, f"{block}:\n{log.read_text()}"
                continue
            running.append((ready, process, log))
            started += 1
            wait_until(partial(has_printed, log, ready, process), limit_s=60, what=f"{block} to print {ready!r}")
            assert process.poll() is None, f"{block}:\n{log.read_text()}"
        assert started == len(SERVICES)
        for _ready, process, log in running:
            assert process.poll() is None, log.read_text()
    finally:
        for _ready, process, _log in reversed(running):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(60)


def has_printed(log: Path, text: str, process: subprocess.Popen[bytes]) -> bool:
    """Return whether a process has printed a text, or has ended."""
    return text in log.read_text() or process.poll() is not None
