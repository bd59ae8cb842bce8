"""The package as its users have it: a wheel, and virtual environments that hold it and nothing of this repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

__all__ = ["CONSTRAINTS", "Venv", "build_wheel", "user_environment"]

ROOT: Final = Path(__file__).parents[2]
CONSTRAINTS: Final = ROOT / "constraints.txt"
_UV: Final = (sys.executable, "-m", "uv")


def build_wheel(directory: Path) -> Path:
    """Build the wheel in a directory, without the kernel, which takes longer to compile than most tests."""
    source = directory / "source"
    source.mkdir()
    for path in ROOT.iterdir():
        if path.name in {"optimizer", "tasks"}:
            shutil.copytree(path, source / path.name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        elif path.suffix in {".toml", ".py", ".md", ".in", ".txt"} or path.name == "LICENSE":
            shutil.copy(path, source)
    subprocess.run(
        [*_UV, "build", "--quiet", "--wheel", "--out-dir", str(directory / "dist"), str(source)],
        env=os.environ | {"BUILD_EXTENSION": "no"},
        check=True,
    )
    return next((directory / "dist").glob("*.whl"))


def user_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """The environment of a user's shell: nothing of this repository, of this Python and of the developer's settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "ROLLING_", "VIRTUAL"))}
    return kept | {"PATH": "/usr/bin:/bin", **variables}


class Venv:
    """A virtual environment with the versions of `constraints.txt`.

    Args:
        directory: Where it is made.
        requirements: What to install into it.
    """

    def __init__(self, directory: Path, *requirements: str) -> None:
        self.python = directory / "bin" / "python"
        subprocess.run([*_UV, "venv", "--quiet", "--python", sys.executable, str(directory)], check=True)
        command = [*_UV, "pip", "install", "--quiet", "--python", str(self.python), "-c", str(CONSTRAINTS)]
        subprocess.run([*command, *requirements], check=True)

    def command(self, *words: str) -> list[str]:
        """The command line of a program of this environment."""
        return [str(self.python.with_name(words[0])), *words[1:]]

    def run(self, *words: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a program to its end, in a directory and with these variables."""
        return subprocess.run(
            self.command(*words), cwd=cwd, env=user_environment(variables), capture_output=True, text=True, check=False
        )
