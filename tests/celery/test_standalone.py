"""The stand-alone app beside other programs, whose modules may have the names of this repository's own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from optimizer import Settings
from tests.support.compose import ROOT
from tests.support.foreign_app import ForeignApp

pytestmark = pytest.mark.slow


def test_the_flower_of_another_app_stays_as_it_is(tmp_path: Path, settings: Settings) -> None:
    """Flower of another app gets neither a password nor an address from us, even if that app imports ours."""
    with ForeignApp(tmp_path / "proj", settings, f'broker_url = "{settings.redis_url}"', PYTHONPATH=str(ROOT)) as app:
        module = app.directory / "proj.py"
        module.write_text("import optimizer.celery.standalone, tasks.rolling, tasks.sender\n" + module.read_text())
        app.start_flower("--address=127.0.0.1")
        app.wait_for_line("Visit me at")
        assert "log in as admin" not in app.text


def test_the_flower_of_the_module_is_closed(tmp_path: Path, settings: Settings) -> None:
    """Flower of `optimizer.celery.standalone` listens on loopback with a login, as `celery -A tasks` does."""
    with ForeignApp(tmp_path / "proj", settings, "") as app:
        app.start_flower(module="optimizer.celery.standalone")
        assert "127.0.0.1" in app.wait_for_line("Visit me at")
        assert "log in as admin:" in app.text


def test_the_deployment_reads_its_own_settings_and_keeps_the_tasks_of_old(tmp_path: Path) -> None:
    """`celery -A tasks` uses the assignments in `celeryconfig.py`; `tasks.rolling` and `tasks.sender` can be imported.

    The import neither configures the app nor makes it the current one.
    """
    (tmp_path / "celeryconfig.py").write_text((ROOT / "celeryconfig.py").read_text() + "\nworker_concurrency = 7\n")
    code = """
from tasks import app
from tasks.rolling import TASK_NAME, merge_rolling_parts, optimize_rolling_data, scan_rolling_part, update_predictions
from tasks.sender import CelerySender
import celery
assert not app.configured and celery.current_app.main == "default"
print(app.conf.worker_concurrency, optimize_rolling_data.name, scan_rolling_part.name, merge_rolling_parts.name,
      update_predictions.name)
"""
    environ = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environ, capture_output=True, text=True, check=True
    )
    names = [
        "tasks.optimize_rolling_data",
        "tasks.scan_rolling_part",
        "tasks.merge_rolling_parts",
        "tasks.update_predictions",
    ]
    assert done.stdout.split() == ["7", *names]


@pytest.mark.parametrize("program", ["worker", "beat"])
def test_celery_of_the_module_refuses_a_bad_variable_in_one_line(tmp_path: Path, program: str) -> None:
    """`celery -A optimizer.celery.standalone` with a bad variable exits with 1 and one line, like `celery -A tasks`."""
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "optimizer.celery.standalone", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "ROLLING_GZIP_LEVEL": "11"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("SettingsInvalid: ROLLING_GZIP_LEVEL=11 is not between 1 and 9")
    assert "Traceback" not in done.stderr
