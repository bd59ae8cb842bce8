"""The defaults of Flower when it is started as `celery -A tasks flower`."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from optimizer.celery.flower import close_flower
from tests.support.fork_server import spawn
from tests.support.ports import free_port
from tests.support.redis_servers import wait_until

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def test_flower_is_closed_wherever_it_is_started(tmp_path: Path) -> None:
    """`celery -A tasks flower` listens on loopback and makes up a password; an address or a login that is set stays.

    Variables that Kubernetes makes for a service called `flower` are removed.
    """
    environ: dict[str, str] = {}
    close_flower(environ, ["celery", "-A", "tasks", "flower"])
    assert environ["FLOWER_ADDRESS"] == "127.0.0.1"
    assert re.fullmatch(r"admin:\S{16,}", environ["FLOWER_BASIC_AUTH"])

    environ = {"FLOWER_ADDRESS": "0.0.0.0", "FLOWER_BASIC_AUTH": "a:b"}
    close_flower(environ, [])
    assert (environ["FLOWER_ADDRESS"], environ["FLOWER_BASIC_AUTH"]) == ("0.0.0.0", "a:b")

    environ = {}
    close_flower(environ, ["flower", "--basic-auth=a:b"])
    assert "FLOWER_BASIC_AUTH" not in environ

    links = {"FLOWER_SERVICE_HOST": "10.0.0.1", "FLOWER_SERVICE_PORT": "5555", "FLOWER_PORT": "tcp://10.0.0.1:5555"}
    environ = {**links, "OTHER_PORT": "tcp://10.0.0.1:80"}
    close_flower(environ, [])
    assert environ.keys() == {"FLOWER_ADDRESS", "FLOWER_MAX_TASKS", "FLOWER_BASIC_AUTH", "OTHER_PORT"}

    log = tmp_path / "log"
    with log.open("wb") as lines:
        command = [sys.executable, "-m", "celery", "-A", "tasks", "flower", f"--port={free_port()}"]
        flower = spawn(command, os.environ | {"PYTHONPATH": str(ROOT)} | links, tmp_path, lines)
    try:
        wait_until(lambda: "Visit me at" in log.read_text(), limit_s=60, what="Flower")
        assert re.search(r"Visit me at http://127\.0\.0\.1:\d+", log.read_text())
        assert "log in as admin:" in log.read_text()
    finally:
        flower.kill()
        flower.wait()
