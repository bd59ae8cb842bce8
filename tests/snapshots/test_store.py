"""What both kinds of stores have in common, and which one a location gets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from optimizer.models import Manifest
from optimizer.snapshots import directory, object_store
from optimizer.snapshots.format import decode_manifest
from optimizer.snapshots.store import snapshot_store
from optimizer.storage.location import Location, Url
from tests.support.snapshot_sets import a_set, write


@pytest.fixture(params=["directory", "memory"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """A location for sets in a directory, and in a store of this process."""
    return tmp_path / "out" if request.param == "directory" else Url(f"memory://{tmp_path.name}/out")


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The content of every manifest that a store reads."""
    contents: list[bytes] = []

    def noted(data: bytes) -> Manifest | None:
        contents.append(data)
        return decode_manifest(data)

    for module in (directory, object_store):
        monkeypatch.setattr(module, "decode_manifest", noted)
    return contents


def test_a_manifest_that_was_just_read_is_not_read_again(output: Location, decoded: list[bytes]) -> None:
    """Each read of an object store is a request; the payloads are checked against the manifest all the same."""
    write(output, 1)
    store = snapshot_store(output)
    manifest = store.read_manifest()
    assert manifest is not None
    decoded.clear()

    assert store.read_set(manifest=manifest) == a_set(1)
    assert decoded == []
    assert store.read_set() == a_set(1)
    assert len(decoded) == 1

    other = replace(manifest, snapshots=a_set(2).manifest.snapshots)
    assert store.read_set(manifest=other) is None


def test_a_set_that_was_removed_since_its_manifest_was_read_is_the_current_one(output: Location) -> None:
    """The caller's manifest is of a set that two later ones have replaced."""
    write(output, 1)
    store = snapshot_store(output)
    manifest = store.read_manifest()
    write(output, 2, 3)

    assert store.read_set(manifest=manifest) == a_set(3)


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        (
            "import optimizer; optimizer.SnapshotReader('redis://localhost', 's', Path('out'))",
            ["scan", "selection", "pipeline", "source", "storage.object_store", "storage.error_text"],
        ),
        (
            "from optimizer.snapshots.store import snapshot_store; snapshot_store(Path('out'))",
            ["snapshots.object_store", "storage.object_store"],
        ),
        (
            "from optimizer.config.settings import Settings; Settings()",
            ["storage.object_store", "storage.error_text"],
        ),
    ],
    ids=["reader", "store", "settings"],
)
def test_the_code_of_object_stores_is_imported_for_urls_only(statement: str, absent: list[str]) -> None:
    """A process that reads from Redis and a directory loads none of it, and nothing of the scanner."""
    program = f"import sys; from pathlib import Path; {statement}; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    assert "optimizer.storage.location" in modules
    assert not [name for name in absent if f"optimizer.{name}" in modules]
    assert "fsspec" not in modules
