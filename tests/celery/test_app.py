"""The Celery app in processes of ours and of other programs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}


def test_a_program_that_we_are_part_of_is_not_ended_by_names_that_begin_like_ours() -> None:
    """Not by its own, even one that looks misspelt, nor by those of Kubernetes: a reader, a router, a sender."""
    code = "import optimizer, optimizer.web, tasks.sender, tasks.rolling; optimizer.SnapshotReader.from_env().close()"
    others = {"ROLLING_WINDOW": "20", "ROLLING_INPT": "x", "ROLLING_REDIS_PORT": "tcp://10.0.0.1:6379"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=ENVIRONMENT | others, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("ROLLING_WINDOW is not a setting") == 1
    assert "REDIS_PORT" not in done.stderr


def test_the_broker_is_ours_whatever_another_program_has_set_for_its_celery() -> None:
    """A backend's `CELERY_BROKER_URL` may be in the same environment."""
    code = "from tasks import app; print(app.connection_for_read().host, app.connection().host, app.backend.url)"
    theirs = dict.fromkeys(("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND"), "redis://theirs:1/7")
    environ = ENVIRONMENT | theirs | {"ROLLING_BROKER_URL": "redis://ours:2/3"}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["ours:2", "ours:2", "redis://ours:2/3"]
