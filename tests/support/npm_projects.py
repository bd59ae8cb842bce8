"""Projects of npm that tests use: copied, with the packages of their lock files."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

__all__ = ["install_project"]


def install_project(project: Path, directory: Path) -> Path:
    """Copy a project and install its packages; skip the test where npm is missing, unless CI runs it."""
    if shutil.which("npm") is None:
        if os.environ.get("CI"):
            pytest.fail("npm is missing: apt-get install npm")
        pytest.skip("npm is missing: apt-get install npm")
    shutil.copytree(project, directory, dirs_exist_ok=True)
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)} exits with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return directory
