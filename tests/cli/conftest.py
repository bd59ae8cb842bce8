"""A directory in which commands run without settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.rolling_files import a_record, write_json


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A directory with an input where the settings expect it by default."""
    records = {f"S{number}": a_record(confidence=number / 10) for number in range(11)}
    write_json(tmp_path / "data" / "rolling_brain.json.gz", records)
    return tmp_path
