"""Wheels: this package's, as `pip wheel` builds it from a clean copy, and small ones of other programs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

__all__ = ["build_wheel", "copy_sources", "make_environment", "pip", "site_packages", "write_wheel"]

ROOT: Final = Path(__file__).parents[2]


def copy_sources(directory: Path) -> Path:
    """Copy the repository's modules and what builds them, without what was built here in place; return the copy."""
    source = directory / "source"
    source.mkdir(parents=True)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "celeryconfig.py", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    for name in ("optimizer", "tasks"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return source


def build_wheel(source: Path, directory: Path) -> Path:
    """Build the wheel, without the compiled engine, which takes seconds."""
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", str(directory), str(source)],
        env=os.environ | {"BUILD_EXTENSION": "no"},
        capture_output=True,
        check=True,
    )
    (wheel,) = directory.iterdir()
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


def make_environment(directory: Path) -> Path:
    """Make an empty virtual environment, without pip; return its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(directory)], check=True)
    return directory / "bin" / "python"


def site_packages(python: Path) -> Path:
    """Where packages of an environment are."""
    return Path(sysconfig.get_path("purelib", vars={"base": str(python.parents[1])}))


def pip(python: Path, *arguments: str) -> None:
    """Run pip on another environment."""
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), *arguments], check=True, capture_output=True, text=True
    )
