"""The wheel: what it holds, and that it holds nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LEFT_OUT = {".c", ".h", ".so"}  # sources of the extension, and what is built here in place


@pytest.mark.slow
def test_the_wheel_holds_the_modules_and_their_data(tmp_path: Path) -> None:
    """All modules, types and pages of the dashboard, in folders of any depth; no C sources.

    Of this repository's top level the package alone: other programs have modules called `tasks` and `celeryconfig` too.
    """
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "celeryconfig.py", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    for name in ("optimizer", "tasks"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    nested = source / "optimizer" / "web" / "static" / "a" / "b"
    nested.mkdir(parents=True)
    (nested / "nested.js").touch()

    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", str(tmp_path / "dist"), str(source)],
        env=os.environ | {"BUILD_EXTENSION": "no"},
        capture_output=True,
        check=True,
    )

    (wheel,) = (tmp_path / "dist").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = [path for path in (source / "optimizer").rglob("*") if path.is_file()]
    expected = {str(path.relative_to(source)) for path in files if path.suffix not in LEFT_OUT}
    assert held == expected
    assert {"optimizer/py.typed", "optimizer/scan/_prune.pyi", "optimizer/web/static/a/b/nested.js"} <= held
