"""Types for TypeScript, which a generator from npm makes of the description of an app that includes the router."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from fastapi import FastAPI
from pydantic import BaseModel

import optimizer.web
from optimizer import Settings
from tests.support.npm_projects import install_project

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parent / "typescript"
STATIC = Path(optimizer.web.__file__).parent / "static"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a page, and with the compiler and the generator in the versions of the lock file."""
    return install_project(PROJECT, tmp_path_factory.mktemp("typescript"))


def run(directory: Path, *command: str) -> None:
    """Run a command, and fail with what it prints."""
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)} exits with {done.returncode}:\n{done.stdout}\n{done.stderr}"


def test_a_page_compiles_against_the_generated_types(project: Path) -> None:
    """`components["schemas"]["Record"]` has the fields of a record, and code that does not fit it does not compile."""
    app = FastAPI()
    app.include_router(optimizer.web.make_router(Settings()), prefix="/api")
    (project / "openapi.json").write_text(json.dumps(app.openapi()))

    run(project, "node_modules/.bin/openapi-typescript", "openapi.json", "--output", "schema.d.ts")
    run(project, "node_modules/.bin/tsc", "--strict", "--noEmit", "--target", "es2022", "page.ts")


def test_types_are_made_of_an_app_that_has_a_record_of_its_own(project: Path) -> None:
    """If the app has a `Record` of its own, both have longer names, and every reference leads to its type."""

    class Record(BaseModel):
        id: int

    app = FastAPI()
    for name in ("brain", "intraday"):
        app.include_router(optimizer.web.make_router(Settings(source=name)), prefix=f"/{name}")
    app.get("/theirs", response_model=list[Record])(list)
    (project / "openapi.json").write_text(json.dumps(app.openapi()))
    (project / "both.ts").write_text(
        'import type { components, operations } from "./schema";\n'
        'type Ours = components["schemas"]["optimizer__models__Record"];\n'
        'type Answer = operations["intraday_prediction"]["responses"][200]["content"]["application/json"];\n'
        "export const same = (record: Ours): Answer => record;\n"
    )

    run(project, "node_modules/.bin/openapi-typescript", "openapi.json", "--output", "schema.d.ts")
    run(project, "node_modules/.bin/tsc", "--strict", "--noEmit", "--target", "es2022", "both.ts")


def test_a_page_compiles_against_the_types_of_follow_js(project: Path) -> None:
    """The types of `follow.js` fit the description's in both directions, and the module has all that they declare."""
    app = FastAPI()
    app.include_router(optimizer.web.make_router(Settings()))
    (project / "openapi.json").write_text(json.dumps(app.openapi()))
    for name in ("follow.js", "follow.d.ts"):
        shutil.copy(STATIC / name, project)

    run(project, "node_modules/.bin/openapi-typescript", "openapi.json", "--output", "schema.d.ts")
    strict = ("--strict", "--exactOptionalPropertyTypes", "--noUncheckedIndexedAccess")
    libraries = ("--target", "es2022", "--module", "nodenext", "--lib", "es2022,dom,dom.iterable")
    run(project, "node_modules/.bin/tsc", *strict, *libraries, "--noEmit", "following.ts")
    # What is declared is there when the module is loaded.
    run(project, "node_modules/.bin/tsc", *libraries, "--outDir", "out", "declared.mts")
    shutil.copy(STATIC / "follow.js", project / "out")
    (project / "out" / "package.json").write_text('{"type": "module"}')
    run(project, "node", "out/declared.mjs")
