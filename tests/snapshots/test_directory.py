"""Snapshot sets in a directory: read back whole, and left consistent at whatever moment a writer dies."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import pickle
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import ANY

import msgspec
import pytest

from optimizer.errors import OutputUnreadable, OutputUnwritable, PublishRefused
from optimizer.models import Manifest
from optimizer.snapshots.directory import DirectoryStore
from optimizer.snapshots.format import FILE_NAMES, SnapshotSet, encode_manifest
from optimizer.storage import durable
from tests.support.published_state import as_unprivileged, files_of
from tests.support.snapshot_sets import RECORDS, a_set, write

NAMES = (*FILE_NAMES.values(), "manifest.json")
CONFIRMED = msgspec.structs.replace(a_set(2).manifest, fingerprint="of another input with the same content")


def through_fixed_names(output_dir: Path) -> dict[str, bytes]:
    """Return the files that a reader with only the fixed names sees."""
    return {name: (output_dir / name).read_bytes() for name in NAMES if (output_dir / name).exists()}


def content_of(version: int, directory: Path) -> dict[str, bytes]:
    """Write a version to another directory without interruption, and return its files under the fixed names."""
    write(directory, version)
    return through_fixed_names(directory)


# ---- names and sets


def test_a_set_reads_back_as_it_was_written(tmp_path: Path) -> None:
    """A set is read back as it was written: the whole set, its manifest, some kinds of it, and its index as records."""
    write(tmp_path, 1)

    assert DirectoryStore(tmp_path).read_set() == a_set(1)
    assert DirectoryStore(tmp_path).read_manifest() == a_set(1).manifest
    some = DirectoryStore(tmp_path).read_set(kinds=("bots",))
    assert some is not None
    assert some.payloads == {"bots": a_set(1).payloads["bots"]}
    assert a_set(1).index() == RECORDS


def test_fixed_names_lead_through_one_link(tmp_path: Path) -> None:
    """A new version changes only the link `current`, so all fixed names show the same version at any moment."""
    write(tmp_path, 1)
    links = {name: (tmp_path / name).readlink() for name in NAMES}
    inodes = {name: (tmp_path / name).lstat().st_ino for name in NAMES}

    write(tmp_path, 2)

    assert links == {name: Path("current") / name for name in NAMES}
    assert inodes == {name: (tmp_path / name).lstat().st_ino for name in NAMES}
    assert (tmp_path / "current").readlink() == Path("versions/2")


def test_a_directory_can_be_moved_with_its_snapshots(tmp_path: Path) -> None:
    """A directory that is moved still shows its set, since the links in it are relative."""
    write(tmp_path / "here", 1)
    (tmp_path / "here").rename(tmp_path / "there")

    assert DirectoryStore(tmp_path / "there").read_set() == a_set(1)
    assert set(through_fixed_names(tmp_path / "there")) == set(NAMES)


def test_old_sets_are_swept_to_two(tmp_path: Path) -> None:
    """Two sets are kept: the previous one is for readers that resolved `current` just before it changed."""
    write(tmp_path, *range(1, 8))

    assert sorted(path.name for path in (tmp_path / "versions").iterdir()) == ["6", "7"]


def test_a_file_under_a_fixed_name_is_replaced(tmp_path: Path) -> None:
    """Files that an older program wrote under the fixed names are replaced by the links."""
    for name in NAMES:
        (tmp_path / name).write_text("old")

    write(tmp_path, 1)

    assert through_fixed_names(tmp_path) == content_of(1, tmp_path / "elsewhere")
    assert all((tmp_path / name).is_symlink() for name in NAMES)


@pytest.mark.parametrize("name", [*NAMES, "current"])
def test_a_directory_under_a_name_of_ours_is_an_error(tmp_path: Path, name: str) -> None:
    """A directory under a fixed name or `current` is an error that names it, at every run until it is removed.

    It is never deleted.
    """
    (tmp_path / name / "precious").mkdir(parents=True)

    for version in (1, 2):
        with pytest.raises(OutputUnwritable, match=name):
            write(tmp_path, version)
    assert (tmp_path / name / "precious").is_dir()
    if name != "current":
        with pytest.raises(OutputUnwritable, match=name):
            DirectoryStore(tmp_path).mark_checked()

    (tmp_path / name / "precious").rmdir()
    (tmp_path / name).rmdir()
    write(tmp_path, 3)
    assert DirectoryStore(tmp_path).read_set() == a_set(3)
    assert set(through_fixed_names(tmp_path)) == set(NAMES)


@pytest.mark.parametrize("target", ["/nowhere", "releases/newest", "current", "versions/9"])
def test_a_link_that_is_not_ours_is_replaced(tmp_path: Path, target: str) -> None:
    """A link `current` that is not ours is replaced: wherever it points, the next set becomes current."""
    write(tmp_path, 1)
    (tmp_path / "current").unlink()
    (tmp_path / "current").symlink_to(target)
    assert DirectoryStore(tmp_path).read_manifest() is None

    write(tmp_path, 2)

    assert DirectoryStore(tmp_path).read_set() == a_set(2)


def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    """Other files in the directory are not touched, not even hidden and half-written ones."""
    others = ["rolling_brain.json.gz", ".rolling_brain.json.gz.partial", "notes.txt"]
    for name in others:
        (tmp_path / name).write_text(name)

    write(tmp_path, 1, 2)

    assert [(tmp_path / name).read_text() for name in others] == others


# ---- reading sets that are missing or damaged


def damage(change: Callable[[Path], object], name: str) -> Callable[[Path], object]:
    """Return a function that changes one file of the current set."""
    return lambda output_dir: change((output_dir / name).resolve())


def test_no_set_is_no_set(tmp_path: Path) -> None:
    """An empty or missing directory holds no set, and reading it returns `None`."""
    for directory in (tmp_path, tmp_path / "missing"):
        assert DirectoryStore(directory).read_set() is None
        assert DirectoryStore(directory).read_manifest() is None
        assert DirectoryStore(directory).read_current() is None


@pytest.mark.parametrize(
    "change",
    [
        damage(Path.unlink, FILE_NAMES["bots"]),
        damage(lambda path: path.write_bytes(b""), FILE_NAMES["bots"]),
        damage(lambda path: path.write_bytes(a_set(2).payloads["bots"]), FILE_NAMES["bots"]),
        damage(Path.unlink, "manifest.json"),
        damage(lambda path: path.write_bytes(b"{}"), "manifest.json"),
        damage(lambda path: path.write_bytes(b'{"source": "\xff"}'), "manifest.json"),
        damage(lambda path: path.write_bytes(b'{"x": ' + b"[" * 100_000), "manifest.json"),
        damage(lambda path: path.write_text(path.read_text().replace('"bots"', '"robots"')), "manifest.json"),
    ],
    ids=["gone", "empty", "of another version", "no manifest", "empty manifest", "no UTF-8", "nested", "unnamed"],
)
def test_a_set_that_does_not_match_its_manifest_is_none(tmp_path: Path, change: Callable[[Path], object]) -> None:
    """A set that does not match its manifest is not returned at all, and the next set replaces it."""
    write(tmp_path, 1)
    change(tmp_path)

    assert DirectoryStore(tmp_path).read_set() is None

    write(tmp_path, 2)
    assert DirectoryStore(tmp_path).read_set() == a_set(2)


def test_reading_goes_on_when_a_set_is_swept_under_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that resolved `current` before two later sets were written reads the newest one."""
    write(tmp_path, 1)
    read_bytes = Path.read_bytes
    flips = iter([(2, 3)])

    def read_late(path: Path) -> bytes:
        write(tmp_path, *next(flips, ()))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", read_late)

    assert DirectoryStore(tmp_path).read_set() == a_set(3)


def test_a_set_that_was_confirmed_is_young(tmp_path: Path) -> None:
    """The age of a set counts from when a run last wrote or confirmed it."""
    write(tmp_path, 1)
    current = DirectoryStore(tmp_path).read_current()
    assert current is not None
    assert (current.manifest, DirectoryStore(tmp_path).read_current(current)) == (a_set(1).manifest, current)
    assert abs(time.time() - current.checked_s) < 60
    os.utime(tmp_path / "manifest.json", (0, 0))
    assert DirectoryStore(tmp_path).read_current(current) == replace(current, checked_s=0.0, validator=ANY)

    DirectoryStore(tmp_path).mark_checked()

    current = DirectoryStore(tmp_path).read_current()
    assert current is not None
    assert abs(time.time() - current.checked_s) < 60


# ---- one writer at a time


def test_a_directory_is_locked_by_one(tmp_path: Path) -> None:
    """Of two writers the second one does not acquire the lock, which is free again when its holder has released it.

    The lock leaves a file that no other user may open.
    """
    output_dir = tmp_path / "made" / "with its parents"
    with DirectoryStore(output_dir).lock() as first, DirectoryStore(output_dir).lock() as second:
        assert (first, second) == (True, False)
    with DirectoryStore(output_dir).lock() as third:
        assert third
    [path] = output_dir.iterdir()
    assert (path.name, stat.filemode(path.stat().st_mode), path.read_bytes()) == (".lock", "-rw-------", b"")


def test_a_child_that_is_forked_amid_a_run_does_not_keep_the_lock(tmp_path: Path) -> None:
    """A child that is forked during a run does not keep the lock.

    It has a copy of the descriptor, and continues after the run.
    """
    reading, writing = os.pipe()
    with DirectoryStore(tmp_path).lock() as is_acquired:
        assert is_acquired
        child = os.fork()
        if child == 0:
            os.close(writing)
            os.read(reading, 1)  # until the parent closes its end
            os._exit(0)
    try:
        with DirectoryStore(tmp_path).lock() as is_acquired:
            assert is_acquired
    finally:
        os.close(writing)
        os.close(reading)
        os.waitpid(child, 0)


@pytest.fixture
def sticky_directory() -> Iterator[Path]:
    """A directory in which every user may create files, and remove only their own."""
    path = Path(tempfile.mkdtemp(prefix="rolling-"))
    path.chmod(0o1777)
    yield path
    shutil.rmtree(path)


only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")


@only_root
def test_another_user_cannot_hold_up_runs(sticky_directory: Path) -> None:
    """Another user who locks every file and directory that may be opened does not hold up a run.

    Every reader can lock the directory itself, so the lock is a file that other users cannot open.
    """
    write(sticky_directory, 1)
    opened = []
    with as_unprivileged():
        for path in (sticky_directory, *sticky_directory.rglob("*")):
            with suppress(PermissionError):
                opened.append(os.open(path, os.O_RDONLY))
                fcntl.flock(opened[-1], fcntl.LOCK_SH | fcntl.LOCK_NB)

    write(sticky_directory, 2)

    assert len(opened) > 5
    for descriptor in opened:
        os.close(descriptor)
    assert DirectoryStore(sticky_directory).read_set() == a_set(2)


PLANTED: dict[str, Callable[[Path], object]] = {
    "a lock": lambda path: (path / ".lock").touch(0o666),
    "a named pipe": lambda path: os.mkfifo(path / ".lock", 0o666),
    "a link as the lock": lambda path: (path / ".lock").symlink_to(path / "elsewhere"),
    "a directory as the lock": lambda path: (path / ".lock").mkdir(),
    "versions": lambda path: (path / "versions").mkdir(0o777),
    "versions with a set": lambda path: (path / "versions" / "9").mkdir(parents=True),
    "a set": lambda path: (path / "current").symlink_to(path / "elsewhere"),
    "linked versions": lambda path: (path / "versions").symlink_to(path / "elsewhere"),
}


@only_root
@pytest.mark.parametrize("plant", PLANTED.values(), ids=PLANTED.keys())
@pytest.mark.parametrize("confirming", [False, True], ids=["writing", "confirming"])
def test_what_another_user_has_put_in_our_place_is_refused_by_name(
    sticky_directory: Path, plant: Callable[[Path], object], confirming: bool
) -> None:
    """A lock, sets or a link that another user has put in place of ours are refused, and the error names them.

    They are not written into, waited for or removed; a link to a file is not followed.
    """
    victim = sticky_directory / "elsewhere"
    victim.mkdir()
    if confirming:
        write(sticky_directory, 1)
        shutil.rmtree(sticky_directory / "versions")
        (sticky_directory / ".lock").unlink()
        (sticky_directory / "current").unlink()
    with as_unprivileged():
        plant(sticky_directory)
    before = sorted(map(str, sticky_directory.rglob("*")))

    def run() -> None:
        if not confirming:
            write(sticky_directory, 2)
        with DirectoryStore(sticky_directory).lock():
            DirectoryStore(sticky_directory).mark_checked()

    with pytest.raises(OutputUnwritable, match=rf"^{sticky_directory}/(\.lock|versions|current): "):
        run()

    assert set(map(str, sticky_directory.rglob("*"))) - set(before) <= {str(sticky_directory / ".lock")}
    assert list(victim.iterdir()) == []


@only_root
def test_sets_of_another_user_are_not_swept(tmp_path: Path) -> None:
    """Directories of another user among the versions are not removed, whatever their names."""
    write(tmp_path, 5)
    for name in ("1", "2", "3.00.partial"):
        (tmp_path / "versions" / name).mkdir()
    os.chown(tmp_path / "versions" / "1", 65534, 65534)

    write(tmp_path, 6)

    assert sorted(path.name for path in (tmp_path / "versions").iterdir()) == ["1", "5", "6"]


@only_root
@pytest.mark.parametrize("owner", ["us", "the directory's owner"])
def test_what_the_owner_of_the_directory_made_is_trusted(sticky_directory: Path, owner: str) -> None:
    """Files of the directory's owner are trusted, since the owner can do anything there anyway.

    So a volume on which all files belong to the owner works.
    """
    write(sticky_directory, 1)
    for path in (sticky_directory, *sticky_directory.rglob("*")):
        os.chown(path, 65534, 65534, follow_symlinks=False)
    sticky_directory.chmod(0o755)
    if owner == "us":
        with as_unprivileged():
            write(sticky_directory, 2)
    else:
        write(sticky_directory, 2)
    assert DirectoryStore(sticky_directory).read_set() == a_set(2)


@only_root
@pytest.mark.parametrize(
    "name", ["current", "versions", "versions/1", "current/manifest.json", "current/bots_snapshot.json.gz"]
)
def test_a_set_that_may_not_be_read_is_not_taken_for_none(sticky_directory: Path, name: str) -> None:
    """A set that may not be read is an error with the path and the reason, not a missing set.

    A umask of 077 makes such a set, for example.
    """
    write(sticky_directory, 1)
    path = sticky_directory / name
    (sticky_directory if name == "current" else path).chmod(0o700 if path.is_dir() else 0o600)

    with as_unprivileged():
        if "bots" not in name:
            with pytest.raises(OutputUnreadable, match=f"^permission denied: {sticky_directory}/"):
                DirectoryStore(sticky_directory).read_manifest()
        with pytest.raises(OutputUnreadable, match=f"^permission denied: {sticky_directory}/"):
            DirectoryStore(sticky_directory).read_set()


def test_a_file_system_without_locks_is_an_error_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without locks is `OutputUnwritable`.

    NFS without its lock daemon returns ENOLCK, which means neither free nor taken.
    """

    def no_locks(_descriptor: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)

    with pytest.raises(OutputUnwritable, match="No locks available"), DirectoryStore(tmp_path).lock():
        pass


# ---- a writer that dies


class Death:
    """End this process, as a power cut would, just before its nth call that changes the file system."""

    CALLS = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "open", "fsync")

    def __init__(self, nth: int) -> None:
        self._left = nth
        self._fsync = os.fsync
        os.fsync = self._fsync_or_die  # type: ignore[assignment]  # it is called with descriptors only
        sys.addaudithook(self._watch)

    def _watch(self, event: str, _arguments: tuple[Any, ...]) -> None:
        if event in self.CALLS:
            self._left -= 1
            if self._left < 0:
                os._exit(9)

    def _fsync_or_die(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        if self._left == 0 and stat.S_ISREG(status.st_mode):
            os.ftruncate(descriptor, status.st_size // 2)  # what is not synced may be lost
        self._watch("fsync", ())
        self._fsync(descriptor)


class Written(NamedTuple):
    """What a dying writer writes: made in one process, since igzip's bytes may differ in another."""

    new: SnapshotSet
    confirmed: Manifest


def write_set_3(store: DirectoryStore, written: Written) -> None:
    """Write set 3, as a publish of a new version does."""
    store.write(written.new)


def replace_manifest_2(store: DirectoryStore, written: Written) -> None:
    """Replace the manifest of set 2, as a publish of equal content does."""
    store.replace_manifest(written.confirmed)


def die_everywhere_in_a_process(root: Path, work: Callable[[DirectoryStore, Written], None]) -> None:
    """Call `die_everywhere` in a separate process, since it forks."""
    (root / "written").write_bytes(pickle.dumps(Written(a_set(3), CONFIRMED)))
    code = f"import sys, pathlib, {__name__} as t; t.die_everywhere(pathlib.Path(sys.argv[1]), t.{work.__name__})"
    subprocess.run([sys.executable, "-c", code, str(root)], check=True)


def die_everywhere(root: Path, work: Callable[[DirectoryStore, Written], None]) -> None:
    """For n = 0, 1, 2...: copy the template to the directory n, do the work there in a child, and die at its call n.

    Stop when a child has done the work without dying.
    """
    written = pickle.loads((root / "written").read_bytes())
    for nth in itertools.count():
        directory = root / str(nth)
        subprocess.run(["cp", "-a", str(root / "template"), str(directory)], check=True)
        child = os.fork()
        if child == 0:
            try:
                Death(nth)
                work(DirectoryStore(directory), written)
                os._exit(0)
            finally:
                os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status != 9:
            sys.exit(status)


@pytest.mark.slow
@pytest.mark.parametrize("template", ["empty", "one set", "two sets", "dead writers' leftovers", "files of old"])
def test_wherever_a_writer_dies_readers_see_one_set_whole(tmp_path: Path, template: str) -> None:
    """At whatever call a writer dies, readers see the old set or the new one, never a part or a mixture.

    The next writer removes all that is left.
    """
    before = {"empty": (), "one set": (1,), "two sets": (1, 2)}.get(template, (1, 2))
    (tmp_path / "template").mkdir()
    if template == "files of old":
        before = ()
        for name in NAMES:
            (tmp_path / "template" / name).write_text("old")
    write(tmp_path / "template", *before)
    if template == "dead writers' leftovers":
        (tmp_path / "template" / "versions" / "8").mkdir()
        (tmp_path / "template" / "versions" / "9").mkdir()
        (tmp_path / "template" / "versions" / "9.0a1b.partial").mkdir()
        (tmp_path / "template" / ".current.partial").symlink_to("versions/9")
    old = through_fixed_names(tmp_path / "template")
    old_set = DirectoryStore(tmp_path / "template").read_set()
    new, next_one = content_of(3, tmp_path / "new"), content_of(4, tmp_path / "next")

    die_everywhere_in_a_process(tmp_path, write_set_3)

    seen = []
    deaths = sorted((path for path in tmp_path.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name))
    for directory in deaths:
        current = DirectoryStore(directory).read_set()
        assert current in (old_set, a_set(3)), directory.name
        seen.append(3 if current == a_set(3) else 0)
        shown = through_fixed_names(directory)
        if template == "files of old":
            assert all(data in (b"old", new[name]) for name, data in shown.items())
            assert set(shown) == set(NAMES)
        elif template == "empty":
            assert shown.items() <= new.items()
        else:
            assert shown == (new if current == a_set(3) else old)

        if current == a_set(3):
            DirectoryStore(directory).mark_checked()  # what a run over the unchanged input does
            assert through_fixed_names(directory) == new
            assert len(list((directory / "versions").iterdir())) <= 2
        write(directory, 4)
        assert through_fixed_names(directory) == next_one
        assert DirectoryStore(directory).read_set() == a_set(4)
        assert not [path for path in directory.rglob("*") if "partial" in path.name]
        kept = {str(version) for version in (*before, 3, 4)}
        assert {path.name for path in (directory / "versions").iterdir()} <= kept
        assert len(list((directory / "versions").iterdir())) <= 2
    assert len(deaths) > 20  # there are so many calls
    assert seen == sorted(seen)
    assert {0, 3} == set(seen)


# ---- another manifest for the current set


def test_a_manifest_is_replaced_and_its_set_is_young(tmp_path: Path) -> None:
    """Replacing the manifest makes its set young again, and keeps payloads and links.

    A reader of the fixed name sees the new manifest, and knows that it is another file.
    """
    write(tmp_path, 1, 2)
    before = DirectoryStore(tmp_path).read_current()
    os.utime(tmp_path / "manifest.json", (0, 0))
    inodes = {path: path.lstat().st_ino for path in tmp_path.rglob("*") if path.name != "manifest.json"}

    DirectoryStore(tmp_path).replace_manifest(CONFIRMED)

    current = DirectoryStore(tmp_path).read_current(before)
    assert current is not None
    assert current.manifest == CONFIRMED
    assert abs(time.time() - current.checked_s) < 60
    assert DirectoryStore(tmp_path).read_set() == replace(a_set(2), manifest=CONFIRMED)
    assert through_fixed_names(tmp_path)["manifest.json"] == encode_manifest(CONFIRMED)
    assert inodes == {path: path.lstat().st_ino for path in tmp_path.rglob("*") if path.name != "manifest.json"}


@pytest.mark.parametrize("versions", [(1,), (2, 3), (2, 3, 4)])
def test_a_manifest_replaces_none_of_another_version(tmp_path: Path, versions: tuple[int, ...]) -> None:
    """Replacing a manifest is refused if another run has published another version since.

    That version may be older, or newer, or so much newer that the set of this manifest is gone.
    """
    write(tmp_path, *versions)
    before = files_of(tmp_path)

    with pytest.raises(
        PublishRefused, match=f"manifest of version 2 was not replaced: {tmp_path} holds version {versions[-1]} by now"
    ):
        DirectoryStore(tmp_path).replace_manifest(CONFIRMED)

    assert files_of(tmp_path) == before


def test_a_manifest_replaces_none_of_other_files(tmp_path: Path) -> None:
    """Replacing a manifest is refused if the current set has the same version but other files.

    Two hosts with a directory each may have made the same version.
    """
    write(tmp_path, 2)
    other = msgspec.structs.replace(CONFIRMED, snapshots=a_set(3).manifest.snapshots)

    with pytest.raises(PublishRefused, match="holds version 2 by now"):
        DirectoryStore(tmp_path).replace_manifest(other)

    assert DirectoryStore(tmp_path).read_set() == a_set(2)


def test_a_damaged_manifest_is_not_replaced(tmp_path: Path) -> None:
    """Replacing a manifest is refused if the current one is damaged; the next run makes a new set."""
    write(tmp_path, 2)
    (tmp_path / "versions" / "2" / "manifest.json").write_bytes(b"{")

    with pytest.raises(PublishRefused, match="holds no usable set by now"):
        DirectoryStore(tmp_path).replace_manifest(CONFIRMED)


def test_a_manifest_that_before_commit_refuses_leaves_no_trace(tmp_path: Path) -> None:
    """If `before_commit` refuses a manifest, the directory is as before.

    It is called when the manifest is on the disk, before any reader sees it; so a run that lost its lock is refused.
    """
    write(tmp_path, 2)
    before = files_of(tmp_path)

    def refuse() -> None:
        assert len(list((tmp_path / "versions").glob("2.*/manifest.json"))) == 1
        raise PublishRefused("the lock was lost")

    with pytest.raises(PublishRefused, match="the lock was lost"):
        DirectoryStore(tmp_path).replace_manifest(CONFIRMED, before_commit=refuse)

    assert files_of(tmp_path) == before
    assert [path.name for path in (tmp_path / "versions").iterdir()] == ["2"]


def test_a_manifest_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is an error with the path, and the old manifest stays."""
    write(tmp_path, 2)
    before = files_of(tmp_path)

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputUnwritable, match=f"No space left.*ROLLING_OUTPUT_DIR={tmp_path}"):
        DirectoryStore(tmp_path).replace_manifest(CONFIRMED)

    assert files_of(tmp_path) == before
    assert [path.name for path in (tmp_path / "versions").iterdir()] == ["2"]


@pytest.mark.slow
def test_wherever_a_writer_dies_one_of_two_manifests_is_whole(tmp_path: Path) -> None:
    """At whatever call a writer dies, readers see the same files with the old manifest or the new one.

    The next writer removes all that is left.
    """
    write(tmp_path / "template", 1, 2)
    old, new = a_set(2), replace(a_set(2), manifest=CONFIRMED)

    die_everywhere_in_a_process(tmp_path, replace_manifest_2)

    seen: list[bool] = []
    left: set[bool] = set()
    deaths = sorted((path for path in tmp_path.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name))
    for directory in deaths:
        current = DirectoryStore(directory).read_set()
        assert current in (old, new), directory.name
        assert through_fixed_names(directory)["manifest.json"] == encode_manifest(current.manifest)
        seen.append(current == new)
        left.update(path.name.partition(".")[2] != "" for path in (directory / "versions").iterdir())

        DirectoryStore(directory).mark_checked()  # what a run over the unchanged input does
        assert DirectoryStore(directory).read_set() == current
        assert {path.name for path in (directory / "versions").iterdir()} == {"1", "2"}
    assert len(deaths) > 8  # there are so many calls
    assert seen == sorted(seen)
    assert left == {False, True} == set(seen)


def test_a_failure_leaves_no_partial_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After any exception, the writer removes its partial set, and the old one stays."""
    write(tmp_path, 1)
    before = files_of(tmp_path)

    def interrupted(_descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, 2)

    assert files_of(tmp_path) == before
    assert [path.name for path in (tmp_path / "versions").iterdir()] == ["1"]


def test_a_failure_names_no_temporary_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error names a file by the path at which users will find it.

    A set is written under a temporary name first.
    """

    def full(path: Path, _data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(durable, "write_file", full)
    with pytest.raises(OutputUnwritable) as raised:
        write(tmp_path, 2)
    assert str(raised.value).startswith(f"{tmp_path}/versions/2/rolling_optimized.json.gz: No space left on device")
    assert ".partial" not in str(raised.value)


def test_nothing_that_is_not_ours_is_swept(tmp_path: Path) -> None:
    """A directory or a link among the versions that we did not make stays, whatever its name."""
    for name in ("mine", "2024"):
        (tmp_path / "versions" / name).mkdir(parents=True)
        (tmp_path / "versions" / name / "kept.txt").touch()
    (tmp_path / "versions" / "link").symlink_to(tmp_path)

    write(tmp_path, 1, 2, 3)

    assert (tmp_path / "versions" / "mine" / "kept.txt").exists()
    assert (tmp_path / "versions" / "2024" / "kept.txt").exists()
    assert {path.name for path in (tmp_path / "versions").iterdir()} == {"mine", "2024", "link", "2", "3"}


def test_a_linked_versions_directory_is_refused(tmp_path: Path) -> None:
    """A link in place of the directory `versions` is refused, and the directory that it points to is not touched."""
    victim = tmp_path / "victim"
    (victim / "123").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "versions").symlink_to(victim)

    with pytest.raises(OutputUnwritable, match="versions: is a link"):
        write(tmp_path / "out", 1)

    assert [path.name for path in victim.iterdir()] == ["123"]


@pytest.mark.parametrize("name", ["current", "manifest.json", "rolling_optimized.json.gz"])
def test_a_directory_in_the_place_of_a_link_is_named_before_anything_is_written(tmp_path: Path, name: str) -> None:
    """A directory in the place of a link is an error before anything is written.

    So the message 'the old snapshots are as they were' is true.
    """
    (tmp_path / name).mkdir()

    with pytest.raises(OutputUnwritable, match=f"{name}: is a directory"):
        write(tmp_path, 1)

    assert {path.name for path in tmp_path.iterdir()} == {name, ".lock"}


def test_a_set_that_before_commit_refuses_leaves_no_trace(tmp_path: Path) -> None:
    """If `before_commit` refuses a set, the old one stays current and nothing of the new one is left.

    It is called when the set is on the disk, before any reader sees it; so a run that lost its lock is refused.
    """
    write(tmp_path, 1)

    def refuse() -> None:
        assert len(list((tmp_path / "versions").glob("2.*/manifest.json"))) == 1
        raise PublishRefused("the lock was lost")

    with pytest.raises(PublishRefused, match="the lock was lost"):
        DirectoryStore(tmp_path).write(a_set(2), before_commit=refuse)

    assert (tmp_path / "current").readlink().name == "1"
    assert [path.name for path in (tmp_path / "versions").iterdir()] == ["1"]


def test_an_older_set_never_replaces_a_newer_one(tmp_path: Path) -> None:
    """A set is refused if the files have a newer one.

    So a paused run is refused even without Redis to check its lock.
    """
    write(tmp_path, 3)

    with pytest.raises(PublishRefused, match=r"version 2 was not published: .* holds version 3"):
        DirectoryStore(tmp_path).write(a_set(2))

    assert (tmp_path / "current").readlink().name == "3"


def test_a_set_never_replaces_one_that_its_run_did_not_know(tmp_path: Path) -> None:
    """A set is refused if the current one is not the one that its run knew.

    This holds even if its number is higher, since it may be made from an older input.
    """
    write(tmp_path, 1)
    write(tmp_path, 2)

    with pytest.raises(PublishRefused, match=r"version 3 was not published: .* holds version 2 by now"):
        DirectoryStore(tmp_path).write(a_set(3), replaced=1)

    assert (tmp_path / "current").readlink().name == "2"
    DirectoryStore(tmp_path).write(a_set(3), replaced=2)
    assert (tmp_path / "current").readlink().name == "3"
