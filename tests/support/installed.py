"""The package as users install it: a wheel, and virtual environments with it and nothing else of this repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

__all__ = ["CONSTRAINTS", "Venv", "build_wheel", "copy_sources", "user_environment", "write_wheel"]

ROOT: Final = Path(__file__).parents[2]
CONSTRAINTS: Final = ROOT / "constraints.txt"
_UV: Final = (sys.executable, "-m", "uv")


def copy_sources(directory: Path) -> Path:
    """Copy the repository's modules and build files, without files built in place; return the copy."""
    source = directory / "source"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "celeryconfig.py", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    for name in ("optimizer", "tasks"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return source


def build_wheel(source: Path) -> Path:
    """Build the wheel beside a copy of the sources, without the kernel, whose build takes longer than most tests."""
    directory = source.with_name("dist")
    subprocess.run(
        [*_UV, "build", "--quiet", "--wheel", "--out-dir", str(directory), str(source)],
        env=os.environ | {"BUILD_EXTENSION": "no"},
        check=True,
    )
    (wheel,) = directory.glob("*.whl")
    return wheel


def write_wheel(directory: Path, name: str, files: Mapping[str, str]) -> Path:
    """Write the wheel of another program, with these files at its top level."""
    info = f"{name}-1.0.dist-info"
    files = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    wheel = directory / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
        archive.writestr(f"{info}/RECORD", record)
    return wheel


def user_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """The environment of a user's shell, with nothing of this repository, this Python and the developer's settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "ROLLING_", "VIRTUAL"))}
    return kept | {"PATH": "/usr/bin:/bin", **variables}


class Venv:
    """A virtual environment.

    Args:
        directory: The directory in which it is made.
        requirements: What to install into it, in the versions of `constraints.txt` (or options of uv); nothing, if
            none are named.
    """

    def __init__(self, directory: Path, *requirements: str) -> None:
        self.python = directory / "bin" / "python"
        subprocess.run([*_UV, "venv", "--quiet", "--python", sys.executable, str(directory)], check=True)
        if requirements:
            command = [*_UV, "pip", "install", "--quiet", "--python", str(self.python), "-c", str(CONSTRAINTS)]
            subprocess.run([*command, *requirements], check=True)

    @property
    def packages(self) -> Path:
        """The environment's directory of packages."""
        (packages,) = self.python.parents[1].glob("lib/python3.*/site-packages")
        return packages

    def pip(self, *arguments: str) -> None:
        """Run pip itself, which is not in the environment."""
        command = [sys.executable, "-m", "pip", "--python", str(self.python), *arguments]
        # Most modules that pip would compile are never imported by a test, and no test needs its check for a newer pip.
        environ = os.environ | {"PIP_NO_COMPILE": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        subprocess.run(command, env=environ, check=True, capture_output=True, text=True)

    def command(self, *words: str) -> list[str]:
        """The command line of a program of this environment."""
        return [str(self.python.with_name(words[0])), *words[1:]]

    def run(self, *words: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a program to its end, in a directory and with these variables."""
        return subprocess.run(
            self.command(*words), cwd=cwd, env=user_environment(variables), capture_output=True, text=True, check=False
        )
