"""The `rolling-optimizer` command as its users type it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.compose import ROOT

__all__ = ["rolling_optimizer"]


def rolling_optimizer(directory: Path, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a directory."""
    return subprocess.run(
        [sys.executable, "-m", "optimizer.cli", *map(str, arguments)],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
