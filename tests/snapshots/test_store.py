"""What directories and object stores of sets have in common, and which of the two a location gets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
from msgspec.structs import replace

from optimizer.models import Manifest
from optimizer.snapshots import directory, object_store
from optimizer.snapshots.format import KeptVersion, decode_manifest, encode_manifest
from optimizer.snapshots.store import snapshot_store
from optimizer.storage.location import Location, Url
from tests.support.snapshot_sets import a_set, write


@pytest.fixture(params=["directory", "memory"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """A location for sets: a directory, and a store in the memory of this process."""
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
    """`read_set` does not read the manifest again if it is given, since each read of an object store is a request.

    The payloads are checked against that manifest all the same.
    """
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
    """`read_set` returns the current set if the set of the given manifest was removed since.

    Two later sets have replaced it.
    """
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
    """A process that uses Redis and a directory imports no code of object stores, and a reader none of the scanner."""
    program = f"import sys; from pathlib import Path; {statement}; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    assert "optimizer.storage.location" in modules
    assert not [name for name in absent if f"optimizer.{name}" in modules]
    assert "fsspec" not in modules


# ---- kept sets


@pytest.mark.parametrize("keep", [2, 4])
def test_as_many_sets_are_kept_as_asked_for(output: Location, keep: int) -> None:
    """The newest sets are kept, as many as `keep` says; they are listed newest first, and each can be read."""
    write(output, 1, 2, 3, 4, 5, 6, keep=keep)
    store = snapshot_store(output)
    versions = list(range(6, 6 - keep, -1))
    assert store.versions() == [KeptVersion(version, a_set(version).manifest) for version in versions]
    for kept in store.versions():
        assert store.read_set(manifest=kept.manifest) == a_set(kept.version)


def test_fewer_sets_are_kept_once_fewer_are_asked_for(output: Location) -> None:
    """After `keep` was reduced, the next set that is written removes the older ones."""
    write(output, 1, 2, 3, 4, 5, keep=5)
    write(output, 6, keep=2)
    assert [kept.version for kept in snapshot_store(output).versions()] == [6, 5]


def test_without_a_current_set_nothing_is_kept(output: Location) -> None:
    """Without a current set no kept sets are listed: if the location does not exist, or a first writer has died."""
    assert snapshot_store(output).versions() == []
    put(output, "versions/1/manifest.json", encode_manifest(a_set(1).manifest))
    assert snapshot_store(output).versions() == []


def test_a_set_that_never_became_current_is_not_listed(output: Location) -> None:
    """A set that is newer than the current one is not listed: its writer died or is still writing."""
    write(output, 1, 2)
    for name, data in objects_of(output, 2).items():
        put(output, f"versions/3/{name}", data)
    assert [kept.version for kept in snapshot_store(output).versions()] == [2, 1]


@pytest.mark.parametrize(
    ("name", "data", "problem"),
    [
        ("bots_snapshot.json.gz", None, "bots_snapshot.json.gz is missing"),
        ("symbols_index.json.gz", b"12345", "symbols_index.json.gz has 5 of {size} bytes"),
        ("manifest.json", None, "manifest.json is missing or damaged"),
        ("manifest.json", b"{", "manifest.json is missing or damaged"),
        ("manifest.json", encode_manifest(a_set(1).manifest), "manifest.json is missing or damaged"),
        (
            "manifest.json",
            encode_manifest(replace(a_set(2).manifest, snapshots={})),
            "the manifest lacks rolling_optimized.json.gz",
        ),
    ],
    ids=["file missing", "file short", "manifest missing", "manifest torn", "manifest of another", "manifest empty"],
)
def test_damaged_sets_are_told(output: Location, name: str, data: bytes | None, problem: str) -> None:
    """Damage of a kept set is reported, as far as it shows without reading the payloads.

    The other sets are listed without a problem.
    """
    write(output, 1, 2, 3, keep=3)
    size = len(objects_of(output, 2)["symbols_index.json.gz"])
    put(output, f"versions/2/{name}", data)
    third, second, first = snapshot_store(output).versions()
    assert (third.problem, first.problem) == ("", "")
    assert (second.version, second.problem) == (2, problem.format(size=f"{size:,}"))
    assert (second.manifest is None) == problem.startswith("manifest.json")


def test_a_manifest_that_was_replaced_is_listed(output: Location) -> None:
    """A replaced manifest is listed for the current set, and the set before it keeps its own."""
    write(output, 1, 2)
    store = snapshot_store(output)
    manifest = replace(a_set(2).manifest, fingerprint="another input")
    with store.lock():
        store.replace_manifest(manifest)
    assert [kept.manifest for kept in store.versions()] == [manifest, a_set(1).manifest]


def objects_of(output: Location, version: int) -> dict[str, bytes]:
    """Return the files of a set, by name."""
    files = fsspec.filesystem("memory" if isinstance(output, Url) else "file")
    return {name.rsplit("/", 1)[1]: files.cat_file(name) for name in files.find(f"{output}/versions/{version}")}


def put(output: Location, name: str, data: bytes | None) -> None:
    """Write a file below a location, or remove it."""
    files = fsspec.filesystem("memory" if isinstance(output, Url) else "file")
    path = f"{output}/{name}"
    if data is None:
        files.rm_file(path)
    else:
        files.makedirs(path.rpartition("/")[0], exist_ok=True)
        files.pipe_file(path, data)
