"""How `make` calls the installers, checked with programs that stand in for those of `.venv`."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.compose import ROOT


@pytest.mark.parametrize(
    ("variables", "index"),
    [
        ({}, "https://pip.conf/simple"),
        ({"PIP_INDEX_URL": "https://pip/simple"}, "https://pip/simple"),
        ({"PIP_INDEX_URL": "https://pip/simple", "UV_DEFAULT_INDEX": "https://uv/simple"}, "https://uv/simple"),
    ],
    ids=["pip.conf", "pip's variable", "uv's variable"],
)
def test_uv_installs_from_the_index_that_pip_has(tmp_path: Path, variables: dict[str, str], index: str) -> None:
    """`uv` installs from the index that `pip` is configured for, such as a company's, or from `UV_DEFAULT_INDEX`.

    If `uv` fails, `pip` installs the same.
    """
    log = tmp_path / "log"
    programs = {
        "uv": f'echo "uv $UV_DEFAULT_INDEX" >>{log}; exit 1',
        "python": f'case "$*" in *"config get"*) echo https://pip.conf/simple;; *) echo "$*" >>{log};; esac',
        "zensical": "exit 0",
    }
    for name, script in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    inherited = {"MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "PIP_INDEX_URL", "UV_DEFAULT_INDEX"}
    environ = {name: text for name, text in os.environ.items() if name not in inherited}

    subprocess.run(
        ["make", "-o", ".venv/.installed", "docs", f"BIN={tmp_path}"],
        cwd=ROOT,
        env=environ | variables,
        check=True,
        capture_output=True,
    )

    by_uv, by_pip = log.read_text().splitlines()
    assert by_uv == f"uv {index}"
    assert by_pip.startswith("-m pip install ")
    assert by_pip.endswith("-e .[dev,docs]")
