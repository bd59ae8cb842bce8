"""The pytest fixture of `optimizer.testing`, as docs/readers.md shows it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.pages import ROOT, blocks

PAGE = ROOT / "docs/readers.md"
MARK = "tests/testing/test_fixtures.py::test_the_tests_of_the_page_pass"


@pytest.mark.slow
def test_the_tests_of_the_page_pass(tmp_path: Path) -> None:
    """The tests in docs/readers.md pass, each in its own file beside the page's `conftest.py`.

    With another price in the first test, pytest fails.
    """
    shown = [block.text for block in blocks(PAGE) if block.argument == MARK]
    conftest, *tests = shown
    (tmp_path / "conftest.py").write_text(conftest)
    for number, text in enumerate(tests):
        (tmp_path / f"test_page_{number}.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{sum(text.count('def test_') for text in tests)} passed" in done.stdout

    changed = tests[0].replace("101.5", "99.5", 1)
    assert changed != tests[0]
    (tmp_path / "test_page_0.py").write_text(changed)
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1, done.stdout
