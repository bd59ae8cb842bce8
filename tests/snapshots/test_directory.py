"""Sets of snapshot files: what is in them, and what is left of them wherever their writer dies."""

from __future__ import annotations

import errno
import fcntl
import gzip
import hashlib
import itertools
import json
import os
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
from typing import Any
from unittest.mock import ANY

import pytest

from optimizer.errors import OutputUnreadable, OutputUnwritable, PublishRefused
from optimizer.models import Bot, Position, Record
from optimizer.snapshots.directory import (
    FILE_NAMES,
    KINDS,
    SnapshotSet,
    encode_set,
    mark_checked,
    output_lock,
    read_current,
    read_manifest,
    read_set,
    write_set,
)
from tests.support.published_state import as_nobody, files_of

NAMES = (*FILE_NAMES.values(), "manifest.json")
RECORDS = [Record("ÄÖ", 1.5, 0.9, 100.0), Record('A"/\\', -2.0, 0.25, 1e-7, "bearish", None, 5.0, 1795000000)]
BOTS = [
    Bot(
        name="alpha",
        enabled=True,
        equity=10.5,
        pnl_today=None,
        position_count=1,
        positions=(Position("AAPL", 2.0, 99.5),),
        last_updated="2026-11-01T10:00:00Z",
    )
]


def a_set(version: int) -> SnapshotSet:
    """A set whose every file tells its version."""
    return encode_set(
        source="rolling_brain",
        version=version,
        generated_at=f"2026-11-01T10:00:00.{version:03d}Z",
        fingerprint=f"print-{version}",
        ranked=RECORDS,
        predictions=RECORDS[:1],
        bots=BOTS,
        gzip_level=6,
    )


def write(output_dir: Path, *versions: int) -> None:
    """Write sets one after another, as runs do."""
    for version in versions:
        with output_lock(output_dir) as is_free:
            assert is_free
            write_set(output_dir, a_set(version))


def through_fixed_names(output_dir: Path) -> dict[str, bytes]:
    """What a reader sees that knows nothing but the names."""
    return {name: (output_dir / name).read_bytes() for name in NAMES if (output_dir / name).exists()}


def content_of(version: int, directory: Path) -> dict[str, bytes]:
    """What the fixed names show of a version, by way of a directory where it was written undisturbed."""
    write(directory, version)
    return through_fixed_names(directory)


# ---- content


def test_files_are_gzip_of_compact_json(tmp_path: Path) -> None:
    """The standard library reads them; no white space, UTF-8 as it is, no time in the gzip header."""
    write(tmp_path, 1)

    for kind, name in FILE_NAMES.items():
        data = (tmp_path / name).read_bytes()
        text = gzip.decompress(data).decode()
        value = json.loads(text)
        assert data[4:8] == bytes(4), kind
        assert text == json.dumps(value, separators=(",", ":"), ensure_ascii=False).replace("e-07", "e-7"), kind
        assert value["timestamp"] == "2026-11-01T10:00:00.001Z"


def test_each_file_has_the_shape_that_pages_know(tmp_path: Path) -> None:
    """Names and order of the fields are a contract."""
    write(tmp_path, 1)

    shown = {kind: json.loads(gzip.decompress((tmp_path / name).read_bytes())) for kind, name in FILE_NAMES.items()}
    assert list(shown["predictions"]) == ["predictions", "timestamp", "count"]
    assert shown["predictions"]["count"] == 1
    assert list(shown["predictions"]["predictions"][0].items()) == [
        ("symbol", "ÄÖ"),
        ("prediction", 1.5),
        ("confidence", 0.9),
        ("last_price", 100.0),
        ("sentiment", "neutral"),
        ("target_price", None),
        ("stop_loss", None),
        ("timestamp", None),
    ]
    assert shown["bots"]["bots"] == {
        "alpha": {
            "enabled": True,
            "equity": 10.5,
            "pnl_today": None,
            "positions": 1,
            "last_updated": "2026-11-01T10:00:00Z",
        }
    }
    assert shown["portfolio"]["holdings"] == [{"symbol": "AAPL", "qty": 2.0, "avg": 99.5}]
    assert [record["symbol"] for record in shown["index"]["symbols"]] == ["ÄÖ", 'A"/\\']


def test_the_manifest_tells_the_truth(tmp_path: Path) -> None:
    """Digest, length and number of entries are those of each file as it lies on the disk."""
    write(tmp_path, 7)

    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert (manifest["source"], manifest["version"], manifest["fingerprint"]) == ("rolling_brain", 7, "print-7")
    assert manifest["generated_at"] == "2026-11-01T10:00:00.007Z"
    for kind, count in zip(KINDS, (1, 1, 1, 2), strict=True):
        data = (tmp_path / FILE_NAMES[kind]).read_bytes()
        assert manifest["snapshots"][kind] == {
            "file": FILE_NAMES[kind],
            "sha256": hashlib.sha256(data).hexdigest(),
            "bytes": len(data),
            "count": count,
        }


def test_equal_content_is_equal_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made at another time, a set of the same content has the same digests."""
    first = a_set(1)
    monkeypatch.setattr(time, "time", lambda: 4_000_000_000.0)

    assert a_set(1) == first
    assert a_set(2) != first


def test_a_set_reads_back_as_it_was_written(tmp_path: Path) -> None:
    """All of it, some kinds of it, and its index as records."""
    write(tmp_path, 1)

    assert read_set(tmp_path) == a_set(1)
    assert read_manifest(tmp_path) == a_set(1).manifest
    some = read_set(tmp_path, kinds=("bots",))
    assert some is not None
    assert some.payloads == {"bots": a_set(1).payloads["bots"]}
    assert a_set(1).index() == RECORDS


# ---- names and sets


def test_fixed_names_lead_through_one_link(tmp_path: Path) -> None:
    """Only `current` changes; so all names show the same version at any moment."""
    write(tmp_path, 1)
    links = {name: (tmp_path / name).readlink() for name in NAMES}
    inodes = {name: (tmp_path / name).lstat().st_ino for name in NAMES}

    write(tmp_path, 2)

    assert links == {name: Path("current") / name for name in NAMES}
    assert inodes == {name: (tmp_path / name).lstat().st_ino for name in NAMES}
    assert (tmp_path / "current").readlink() == Path("versions/2")


def test_a_directory_can_be_moved_with_its_snapshots(tmp_path: Path) -> None:
    """Links are relative."""
    write(tmp_path / "here", 1)
    (tmp_path / "here").rename(tmp_path / "there")

    assert read_set(tmp_path / "there") == a_set(1)
    assert set(through_fixed_names(tmp_path / "there")) == set(NAMES)


def test_old_sets_are_swept_to_two(tmp_path: Path) -> None:
    """The one before stays for who resolved `current` just before the flip."""
    write(tmp_path, *range(1, 8))

    assert sorted(path.name for path in (tmp_path / "versions").iterdir()) == ["6", "7"]


def test_a_file_under_a_fixed_name_is_replaced(tmp_path: Path) -> None:
    """An older program wrote files there; they make room for the links."""
    for name in NAMES:
        (tmp_path / name).write_text("old")

    write(tmp_path, 1)

    assert through_fixed_names(tmp_path) == content_of(1, tmp_path / "elsewhere")
    assert all((tmp_path / name).is_symlink() for name in NAMES)


@pytest.mark.parametrize("name", [*NAMES, "current"])
def test_a_directory_under_a_name_of_ours_is_an_error(tmp_path: Path, name: str) -> None:
    """It is nobody's to delete; the message names it, at every run until it is gone."""
    (tmp_path / name / "precious").mkdir(parents=True)

    for version in (1, 2):
        with pytest.raises(OutputUnwritable, match=name):
            write(tmp_path, version)
    assert (tmp_path / name / "precious").is_dir()
    if name != "current":
        with pytest.raises(OutputUnwritable, match=name):
            mark_checked(tmp_path)

    (tmp_path / name / "precious").rmdir()
    (tmp_path / name).rmdir()
    write(tmp_path, 3)
    assert read_set(tmp_path) == a_set(3)
    assert set(through_fixed_names(tmp_path)) == set(NAMES)


@pytest.mark.parametrize("target", ["/nowhere", "releases/newest", "current", "versions/9"])
def test_a_link_that_is_not_ours_is_replaced(tmp_path: Path, target: str) -> None:
    """Wherever `current` leads, the next set is current."""
    write(tmp_path, 1)
    (tmp_path / "current").unlink()
    (tmp_path / "current").symlink_to(target)
    assert read_manifest(tmp_path) is None

    write(tmp_path, 2)

    assert read_set(tmp_path) == a_set(2)


def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    """Other files in the directory, hidden and half-written ones too, belong to somebody."""
    others = ["rolling_brain.json.gz", ".rolling_brain.json.gz.partial", "notes.txt"]
    for name in others:
        (tmp_path / name).write_text(name)

    write(tmp_path, 1, 2)

    assert [(tmp_path / name).read_text() for name in others] == others


# ---- reading what is not whole


def damage(change: Callable[[Path], object], name: str) -> Callable[[Path], object]:
    """Change one file of the current set."""
    return lambda output_dir: change((output_dir / name).resolve())


def test_no_set_is_no_set(tmp_path: Path) -> None:
    """An empty directory, and one that is not there, hold nothing, and for ever so long."""
    for directory in (tmp_path, tmp_path / "missing"):
        assert read_set(directory) is None
        assert read_manifest(directory) is None
        assert read_current(directory) is None


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
    """Nothing is shown rather than something wrong, and the next set heals."""
    write(tmp_path, 1)
    change(tmp_path)

    assert read_set(tmp_path) is None

    write(tmp_path, 2)
    assert read_set(tmp_path) == a_set(2)


def test_reading_goes_on_when_a_set_is_swept_under_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who resolved `current` and then slept through two flips reads the newest."""
    write(tmp_path, 1)
    read_bytes = Path.read_bytes
    flips = iter([(2, 3)])

    def read_late(path: Path) -> bytes:
        write(tmp_path, *next(flips, ()))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", read_late)

    assert read_set(tmp_path) == a_set(3)


def test_a_set_that_was_confirmed_is_young(tmp_path: Path) -> None:
    """Its age counts from when a run last made or confirmed it."""
    write(tmp_path, 1)
    found = read_current(tmp_path)
    assert found is not None
    assert (found.manifest, read_current(tmp_path, found)) == (a_set(1).manifest, found)
    assert abs(time.time() - found.checked_s) < 60
    os.utime(tmp_path / "manifest.json", (0, 0))
    assert read_current(tmp_path, found) == replace(found, checked_s=0.0, mark=ANY)

    mark_checked(tmp_path)

    found = read_current(tmp_path)
    assert found is not None
    assert abs(time.time() - found.checked_s) < 60


# ---- one writer at a time


def test_a_directory_is_locked_by_one(tmp_path: Path) -> None:
    """The second is told so; the lock ends with its holder, and leaves a file that no other user may open."""
    output_dir = tmp_path / "made" / "with its parents"
    with output_lock(output_dir) as first, output_lock(output_dir) as second:
        assert (first, second) == (True, False)
    with output_lock(output_dir) as third:
        assert third
    [path] = output_dir.iterdir()
    assert (path.name, stat.filemode(path.stat().st_mode), path.read_bytes()) == (".lock", "-rw-------", b"")


@pytest.fixture
def sticky_directory() -> Iterator[Path]:
    """A directory where every user may make files, and remove none of the others'."""
    path = Path(tempfile.mkdtemp(prefix="rolling-"))
    path.chmod(0o1777)
    yield path
    shutil.rmtree(path)


only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")


@only_root
def test_another_user_cannot_hold_up_runs(sticky_directory: Path) -> None:
    """The directory can be locked by whoever may read it, so that is not the lock; the lock cannot be opened."""
    write(sticky_directory, 1)
    opened = []
    with as_nobody():
        for path in (sticky_directory, *sticky_directory.rglob("*")):
            with suppress(PermissionError):
                opened.append(os.open(path, os.O_RDONLY))
                fcntl.flock(opened[-1], fcntl.LOCK_SH | fcntl.LOCK_NB)

    write(sticky_directory, 2)

    assert len(opened) > 5
    for descriptor in opened:
        os.close(descriptor)
    assert read_set(sticky_directory) == a_set(2)


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
    """Nothing is written into it, waited for or swept; a link to a file is not followed."""
    victim = sticky_directory / "elsewhere"
    victim.mkdir()
    if confirming:
        write(sticky_directory, 1)
        shutil.rmtree(sticky_directory / "versions")
        (sticky_directory / ".lock").unlink()
        (sticky_directory / "current").unlink()
    with as_nobody():
        plant(sticky_directory)
    before = sorted(map(str, sticky_directory.rglob("*")))

    def run() -> None:
        if not confirming:
            write(sticky_directory, 2)
        with output_lock(sticky_directory):
            mark_checked(sticky_directory)

    with pytest.raises(OutputUnwritable, match=rf"^{sticky_directory}/(\.lock|versions|current): "):
        run()

    assert set(map(str, sticky_directory.rglob("*"))) - set(before) <= {str(sticky_directory / ".lock")}
    assert list(victim.iterdir()) == []


@only_root
def test_sets_of_another_user_are_not_swept(tmp_path: Path) -> None:
    """Whatever they are named."""
    write(tmp_path, 5)
    for name in ("1", "2", "3.00.partial"):
        (tmp_path / "versions" / name).mkdir()
    os.chown(tmp_path / "versions" / "1", 65534, 65534)

    write(tmp_path, 6)

    assert sorted(path.name for path in (tmp_path / "versions").iterdir()) == ["1", "5", "6"]


@only_root
@pytest.mark.parametrize("owner", ["us", "the directory's owner"])
def test_what_the_owner_of_the_directory_made_is_trusted(sticky_directory: Path, owner: str) -> None:
    """They can do anything there: so a volume whose files all show as theirs works."""
    write(sticky_directory, 1)
    for path in (sticky_directory, *sticky_directory.rglob("*")):
        os.chown(path, 65534, 65534, follow_symlinks=False)
    sticky_directory.chmod(0o755)
    if owner == "us":
        with as_nobody():
            write(sticky_directory, 2)
    else:
        write(sticky_directory, 2)
    assert read_set(sticky_directory) == a_set(2)


@only_root
@pytest.mark.parametrize(
    "name", ["current", "versions", "versions/1", "current/manifest.json", "current/bots_snapshot.json.gz"]
)
def test_a_set_that_may_not_be_read_is_not_taken_for_none(sticky_directory: Path, name: str) -> None:
    """As a umask of 077 leaves it: the path is named, and the reason."""
    write(sticky_directory, 1)
    path = sticky_directory / name
    (sticky_directory if name == "current" else path).chmod(0o700 if path.is_dir() else 0o600)

    with as_nobody():
        if "bots" not in name:
            with pytest.raises(OutputUnreadable, match=f"^permission denied: {sticky_directory}/"):
                read_manifest(sticky_directory)
        with pytest.raises(OutputUnreadable, match=f"^permission denied: {sticky_directory}/"):
            read_set(sticky_directory)


def test_a_file_system_without_locks_is_an_error_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS without its lock daemon says ENOLCK, which is neither free nor taken."""

    def no_locks(_descriptor: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)

    with pytest.raises(OutputUnwritable, match="No locks available"), output_lock(tmp_path):
        pass


# ---- a writer that dies


class Death:
    """Ends this process, as a power cut would, just before its nth call that changes the file system."""

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


def die_everywhere(root: Path) -> None:
    """In directories 0, 1, 2...: make what the caller's template holds, then write set 3 and die at that call.

    It runs in a process of its own, since it forks.
    """
    for nth in itertools.count():
        directory = root / str(nth)
        subprocess.run(["cp", "-a", str(root / "template"), str(directory)], check=True)
        child = os.fork()
        if child == 0:
            try:
                Death(nth)
                write_set(directory, a_set(3))
                os._exit(0)
            finally:
                os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status != 9:
            sys.exit(status)


@pytest.mark.slow
@pytest.mark.parametrize("template", ["empty", "one set", "two sets", "dead writers' leftovers", "files of old"])
def test_wherever_a_writer_dies_readers_see_one_set_whole(tmp_path: Path, template: str) -> None:
    """The old set or the new one, never a part or a mixture; and the next writer leaves no trace of the dead one."""
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
    old_set = read_set(tmp_path / "template")
    new, next_one = content_of(3, tmp_path / "new"), content_of(4, tmp_path / "next")

    code = "import sys, pathlib, tests.snapshots.test_directory as t; t.die_everywhere(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)

    seen = []
    deaths = sorted((path for path in tmp_path.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name))
    for directory in deaths:
        current = read_set(directory)
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
            mark_checked(directory)  # what a run over the unchanged input does
            assert through_fixed_names(directory) == new
            assert len(list((directory / "versions").iterdir())) <= 2
        write(directory, 4)
        assert through_fixed_names(directory) == next_one
        assert read_set(directory) == a_set(4)
        assert not [path for path in directory.rglob("*") if "partial" in path.name]
        kept = {str(version) for version in (*before, 3, 4)}
        assert {path.name for path in (directory / "versions").iterdir()} <= kept
        assert len(list((directory / "versions").iterdir())) <= 2
    assert len(deaths) > 20  # there are so many calls
    assert seen == sorted(seen)
    assert {0, 3} == set(seen)


def test_a_failure_leaves_no_partial_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the writer can still clean up, it does, whatever ended it."""
    write(tmp_path, 1)
    before = files_of(tmp_path)

    def interrupted(_descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, 2)

    assert files_of(tmp_path) == before
    assert [path.name for path in (tmp_path / "versions").iterdir()] == ["1"]


def test_nothing_that_is_not_ours_is_swept(tmp_path: Path) -> None:
    """A directory of somebody else's among the versions stays, whatever its name."""
    for name in ("mine", "2024"):
        (tmp_path / "versions" / name).mkdir(parents=True)
        (tmp_path / "versions" / name / "kept.txt").touch()
    (tmp_path / "versions" / "link").symlink_to(tmp_path)

    write(tmp_path, 1, 2, 3)

    assert (tmp_path / "versions" / "mine" / "kept.txt").exists()
    assert (tmp_path / "versions" / "2024" / "kept.txt").exists()
    assert {path.name for path in (tmp_path / "versions").iterdir()} == {"mine", "2024", "link", "2", "3"}


def test_a_linked_versions_directory_is_refused(tmp_path: Path) -> None:
    """What it leads to is somebody else's, and is not touched."""
    victim = tmp_path / "victim"
    (victim / "123").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "versions").symlink_to(victim)

    with pytest.raises(OutputUnwritable, match="versions: is a link"):
        write(tmp_path / "out", 1)

    assert [path.name for path in victim.iterdir()] == ["123"]


@pytest.mark.parametrize("name", ["current", "manifest.json", "rolling_optimized.json.gz"])
def test_a_directory_in_the_place_of_a_link_is_named_before_anything_is_written(tmp_path: Path, name: str) -> None:
    """So that 'the old snapshots are as they were' is true."""
    (tmp_path / name).mkdir()

    with pytest.raises(OutputUnwritable, match=f"{name}: is a directory"):
        write(tmp_path, 1)

    assert {path.name for path in tmp_path.iterdir()} == {name, ".lock"}


def test_a_set_that_the_fence_refuses_leaves_no_trace(tmp_path: Path) -> None:
    """Whoever has lost its right to publish finds out when the set is on the disk, and before anybody sees it."""
    write(tmp_path, 1)

    def refuse() -> None:
        assert len(list((tmp_path / "versions").glob("2.*/manifest.json"))) == 1
        raise PublishRefused("the lock was lost")

    with pytest.raises(PublishRefused, match="the lock was lost"):
        write_set(tmp_path, a_set(2), fence=refuse)

    assert (tmp_path / "current").readlink().name == "1"
    assert [path.name for path in (tmp_path / "versions").iterdir()] == ["1"]


def test_an_older_set_never_replaces_a_newer_one(tmp_path: Path) -> None:
    """A run that was paused, without a Redis to ask for its lock, finds the newer set in the files."""
    write(tmp_path, 3)

    with pytest.raises(PublishRefused, match=r"version 2 was not published: .* holds version 3"):
        write_set(tmp_path, a_set(2))

    assert (tmp_path / "current").readlink().name == "3"


def test_a_set_never_replaces_one_that_its_run_did_not_know(tmp_path: Path) -> None:
    """Though its number is higher: it may have been made of an older input."""
    write(tmp_path, 1)
    write(tmp_path, 2)

    with pytest.raises(PublishRefused, match=r"version 3 was not published: .* holds version 2 by now"):
        write_set(tmp_path, a_set(3), replaced=1)

    assert (tmp_path / "current").readlink().name == "2"
    write_set(tmp_path, a_set(3), replaced=2)
    assert (tmp_path / "current").readlink().name == "3"
