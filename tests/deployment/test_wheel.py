"""The content of the wheel: what it has to hold, and nothing else."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from tests.support.installed import build_wheel, copy_sources

LEFT_OUT = {".c", ".h", ".so"}  # sources of the extension, and the library that is built in place


@pytest.mark.slow
def test_the_wheel_holds_the_modules_and_their_data(tmp_path: Path) -> None:
    """The wheel holds all modules, types and pages of the dashboard, in folders of any depth, and no C sources.

    Of this repository's top level it holds the package alone: other programs have modules called `tasks` and
    `celeryconfig` too.
    """
    source = copy_sources(tmp_path)
    nested = source / "optimizer" / "web" / "static" / "a" / "b"
    nested.mkdir(parents=True)
    (nested / "nested.js").touch()

    wheel = build_wheel(source)

    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = [path for path in (source / "optimizer").rglob("*") if path.is_file()]
    expected = {str(path.relative_to(source)) for path in files if path.suffix not in LEFT_OUT}
    assert held == expected
    assert {"optimizer/py.typed", "optimizer/scan/_prune.pyi", "optimizer/web/static/a/b/nested.js"} <= held
