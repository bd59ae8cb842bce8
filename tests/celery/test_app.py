"""The Celery app, in its own processes and in those of other programs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def test_a_program_that_imports_the_package_is_not_ended_by_variables_with_the_same_prefix() -> None:
    """A program that imports the package is not ended by variables that begin with `ROLLING_` and are no settings.

    This holds for readers, routers and senders, and for variables of the program's own, misspelt ones, and those of
    Kubernetes. One of the program's own is warned of once, one of Kubernetes not at all.
    """
    code = "import optimizer, optimizer.web, tasks.sender, tasks.rolling; optimizer.SnapshotReader.from_env().close()"
    others = {"ROLLING_WINDOW": "20", "ROLLING_INPT": "x", "ROLLING_REDIS_PORT": "tcp://10.0.0.1:6379"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)} | others, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("ROLLING_WINDOW is not a setting") == 1
    assert "REDIS_PORT" not in done.stderr


def test_the_variables_of_another_celery_program_do_not_change_the_broker() -> None:
    """The broker and the results are at `ROLLING_BROKER_URL`, even if a backend's `CELERY_BROKER_URL` is set too."""
    code = "from tasks import app; print(app.connection_for_read().host, app.connection().host, app.backend.url)"
    theirs = dict.fromkeys(("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND"), "redis://theirs:1/7")
    environ = os.environ | {"PYTHONPATH": str(ROOT)} | theirs | {"ROLLING_BROKER_URL": "redis://ours:2/3"}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["ours:2", "ours:2", "redis://ours:2/3"]
