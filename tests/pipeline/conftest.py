"""Fixtures: a source with two parts, and a directory for processes of other users."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from optimizer import Settings
from tests.support.rolling_files import a_record, local, write_json


@pytest.fixture
def parted(settings: Settings) -> Settings:
    """Settings of a source with two parts."""
    directory = local(settings.input).parent / "parts"
    write_json(directory / "a.json", {"AAPL": a_record()})
    write_json(directory / "b.json", {"MSFT": a_record(confidence=0.9)})
    return replace(settings, input=directory / "*.json", source="parted")


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that every user may read, all the way from the root; pytest's own are for one user only."""
    path = Path(tempfile.mkdtemp(prefix="rolling-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)
