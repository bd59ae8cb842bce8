"""The installed package is typed: a user's program passes `mypy --strict`, and a wrong one does not."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Final

import pytest

from tests.support.installed import Venv, user_environment

pytestmark = pytest.mark.slow

PROGRAM: Final = Path(__file__).parent / "program.py"


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Venv:
    """An environment in which the program could run."""
    return Venv(tmp_path_factory.mktemp("environment") / "venv", f"{wheel}[celery,web]")


def test_every_package_of_the_wheel_says_that_it_is_typed(wheel: Path) -> None:
    """Every package of the wheel contains `py.typed`, without which type checkers ignore its types."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    packages = {name.partition("/")[0] for name in names if name.endswith(".py") and "/" in name}
    assert {f"{package}/py.typed" for package in packages} <= set(names)


def test_a_users_program_passes_mypy_strict(environment: Venv, tmp_path: Path) -> None:
    """A user's program passes `mypy --strict` in its own directory, without a configuration, with nothing silenced."""
    program = PROGRAM.read_text("utf-8")
    assert "type: ignore" not in program
    assert checked(environment, tmp_path, program) == "Success: no issues found in 1 source file\n"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "SnapshotReader.from_env().predictions().value.predictions[0].symbol + 1",
            "Unsupported operand types",
        ),
        ("SnapshotReader.from_env().prediction()", 'has no attribute "prediction"'),
        ("optimizer.web.make_router('settings')", 'incompatible type "str"'),
        ("Settings(interval='30')", 'Unexpected keyword argument "interval"'),
    ],
)
def test_a_wrong_program_does_not(environment: Venv, tmp_path: Path, line: str, said: str) -> None:
    """A wrong line in the program is reported, so mypy has read the package's types and has not ignored them."""
    printed = checked(environment, tmp_path, f"{PROGRAM.read_text('utf-8')}\n\n{line}\n")
    assert said in printed
    assert "Found 1 error in 1 file" in printed


def checked(environment: Venv, directory: Path, program: str) -> str:
    """Return what mypy prints about a program that is beside the packages of an environment."""
    (directory / "program.py").write_text(program, "utf-8")
    cache = environment.python.parents[2] / "cache"  # one for all tests: FastAPI's types take most of the time
    options = ["--strict", "--python-executable", str(environment.python), "--cache-dir", str(cache)]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "program.py"],
        cwd=directory,
        env=user_environment({}),
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr
