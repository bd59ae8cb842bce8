"""What the watch sees of a local input, and that it notices each way to replace the input at once."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from optimizer.errors import SourceUnreadable
from optimizer.watch.landing import Seen
from optimizer.watch.local_place import LOOK_S, LocalPlace, directories_of
from tests.support.redis_servers import wait_until

# Less than the time after which files are checked although nothing was announced.
AT_ONCE_S = LOOK_S * 0.8


@pytest.fixture(name="place_of")
def make_place() -> Iterator[Callable[[Path], LocalPlace]]:
    """Yield a function that makes a place whose files have been checked once."""
    stopped = threading.Event()
    places: list[LocalPlace] = []

    def make(pattern: Path) -> LocalPlace:
        places.append(LocalPlace("brain", pattern, stopped))
        places[-1].look()
        return places[-1]

    yield make
    stopped.set()
    for place in places:
        place.close()


def announced(place: LocalPlace, names: set[str], limit_s: float = AT_ONCE_S) -> None:
    """Wait until a change is announced and the place then shows these files."""
    until_s = time.monotonic() + limit_s
    while time.monotonic() < until_s:
        if place.wait() and {Path(path).name for path in place.look()} == names:
            return
    raise AssertionError(f"not announced within {limit_s} s: {names}, there is {place.look()}")


def rename_into(path: Path, content: bytes = b"{}") -> None:
    """Replace a file by rename, as a good engine does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.new")
    partial.write_bytes(content)
    partial.rename(path)


def test_how_a_file_came_to_be_shows(tmp_path: Path, place_of: Callable[[Path], LocalPlace]) -> None:
    """A file that is written in place is the same file in another version, and not whole.

    A file that was renamed into its place is another file, and whole.
    """
    path = tmp_path / "a.json"
    place = place_of(path)
    assert place.look() == {}
    path.touch()
    (empty,) = place.look().values()
    path.write_text("{")
    (begun,) = place.look().values()
    with path.open("a") as file:
        file.write("}")
    (written,) = place.look().values()
    assert [empty.is_empty, begun.is_empty, written.is_empty] == [True, False, False]
    assert empty.file == begun.file == written.file
    assert len({empty.version, begun.version, written.version}) == 3
    assert not any(seen.is_whole for seen in (empty, begun, written))

    partial = tmp_path / "b.json"
    partial.write_text("{}")
    # Longer than a tick of an older kernel's clock of files.
    wait_until(lambda: time.time_ns() - partial.stat().st_mtime_ns > 20_000_000)
    partial.rename(path)
    (renamed,) = place.look().values()
    assert renamed.is_whole
    assert renamed.file != written.file


def test_a_renamed_file_is_whole_whatever_the_clock_of_files_shows(
    tmp_path: Path, place_of: Callable[[Path], LocalPlace]
) -> None:
    """A renamed file is whole even if its times do not show the rename, since it had another name before.

    If it is written to afterwards, it is not whole.
    """
    (tmp_path / "real").mkdir()
    (tmp_path / "in").symlink_to(tmp_path / "real")
    path, partial = tmp_path / "in" / "a.json", tmp_path / "in" / ".a.json.new"
    place = place_of(path)
    shown: set[str] = set()
    for content in ("1", "22", "333"):
        partial.write_text(content)
        written_after_any_rename(partial)
        announced(place, shown)
        partial.rename(path)
        assert only_file(place).is_whole
        announced(place, {"a.json"})

        path.write_text(content + content)
        written_after_any_rename(path)
        announced(place, {"a.json"})
        assert not only_file(place).is_whole
        shown = {"a.json"}


def test_the_inode_number_of_a_deleted_file_says_nothing(
    tmp_path: Path, place_of: Callable[[Path], LocalPlace]
) -> None:
    """A file that is written in place is not whole even if it has the inode number of a deleted file.

    It gets that number from an engine that keeps the old file under another name, and writes in place.
    """
    path, old = tmp_path / "a.json", tmp_path / "a.json.old"
    place = place_of(path)
    for content in ("1", "22", "333", "4444"):
        if path.exists():
            path.rename(old)
        path.write_text(content)
        written_after_any_rename(path)
        announced(place, {"a.json"})
        path.write_text(content + content)
        written_after_any_rename(path)
        assert not only_file(place).is_whole
        announced(place, {"a.json"})

    old.unlink()
    announced(place, {"a.json"})
    path.unlink()
    path.write_text("1")
    written_after_any_rename(path)
    assert not only_file(place).is_whole


def only_file(place: LocalPlace) -> Seen:
    """The only file of a place."""
    (seen,) = place.look().values()
    return seen


def written_after_any_rename(path: Path) -> None:
    """Set the modification time of a file an hour ahead, so that its times show no rename after the last write."""
    later_ns = time.time_ns() + 3_600_000_000_000
    os.utime(path, ns=(later_ns, later_ns))


def test_a_directory_that_appears_later_is_noticed(tmp_path: Path, place_of: Callable[[Path], LocalPlace]) -> None:
    """Directories that appear later are noticed, several levels at once, and again after they were deleted."""
    path = tmp_path / "deep" / "down" / "a.json"
    place = place_of(path)
    assert directories_of(path) == (frozenset([str(tmp_path)]), False)
    for _ in range(3):
        rename_into(path)
        announced(place, {"a.json"}, limit_s=AT_ONCE_S + LOOK_S)  # it may be made before its directory is watched
        rename_into(path, b"[]")
        announced(place, {"a.json"})
        shutil.rmtree(tmp_path / "deep")
        announced(place, set())
        assert directories_of(path) == (frozenset([str(tmp_path)]), False)


@pytest.mark.parametrize("made_as", ["in", "new"])
def test_a_directory_that_was_replaced_is_watched(
    tmp_path: Path, place_of: Callable[[Path], LocalPlace], made_as: str
) -> None:
    """If a directory is renamed away and there is another one under its name, files in that one are noticed.

    It is made under that name, or is renamed to it with the file in it.
    """
    path = tmp_path / "in" / "a.json"
    rename_into(path)
    place = place_of(path)
    (tmp_path / "in").rename(tmp_path / "old")
    rename_into(tmp_path / made_as / "a.json")
    (tmp_path / made_as).rename(tmp_path / "in")
    wait_until(lambda: place.wait() and "a.json" in str(place.look()), limit_s=5)
    for _ in range(2):
        place.look()
    rename_into(path, b"[]")
    announced(place, {"a.json"})


def test_a_link_that_leads_elsewhere_is_followed(tmp_path: Path, place_of: Callable[[Path], LocalPlace]) -> None:
    """If the input is a link, replacing the file to which it leads or the link itself is noticed as a new version."""
    for day in ("monday", "tuesday"):
        rename_into(tmp_path / day / "a.json", day.encode())
    link = tmp_path / "in" / "a.json"
    link.parent.mkdir()
    link.symlink_to(tmp_path / "monday" / "a.json")
    place = place_of(link)
    versions = [place.look()[str(link)].version]

    rename_into(tmp_path / "monday" / "a.json", b"written again")
    announced(place, {"a.json"})
    versions.append(place.look()[str(link)].version)

    (tmp_path / "in" / "new").symlink_to(tmp_path / "tuesday" / "a.json")
    (tmp_path / "in" / "new").rename(link)
    announced(place, {"a.json"})
    versions.append(place.look()[str(link)].version)
    assert len(set(versions)) == 3


@pytest.mark.parametrize("name", ["a.json", "*.json", "deep/a.json", "deep/*.json"])
def test_a_link_among_the_directories_is_followed(
    tmp_path: Path, place_of: Callable[[Path], LocalPlace], name: str
) -> None:
    """A new link in place of any link on the way to the input is noticed as a new version.

    Here `current` leads by way of another link to a directory for each release, and each of the two is replaced.
    """
    days = [tmp_path / "days" / day for day in ("monday", "tuesday", "wednesday")]
    for day in days:
        rename_into((day / name).with_name("a.json"), str(day).encode())
    current, link = tmp_path / "in" / "current", tmp_path / "links" / "day"
    for made, target in ((link, days[0]), (current, Path("../links/day"))):
        made.parent.mkdir()
        made.symlink_to(target)
    place = place_of(current / name)
    versions = {only_file(place).version}
    for replaced, target in ((link, days[1]), (current, days[2])):
        replaced.with_name("new").symlink_to(target)
        replaced.with_name("new").rename(replaced)
        announced(place, {"a.json"})
        versions.add(only_file(place).version)
    assert len(versions) == 3


def test_patterns(tmp_path: Path, place_of: Callable[[Path], LocalPlace]) -> None:
    """New files and new directories that a pattern matches are noticed, and deleted files too.

    A directory whose name begins with a dot is not matched.
    """
    place = place_of(tmp_path / "in" / "*" / "part-*.json")
    for number, directory in enumerate(("x", "y")):
        rename_into(tmp_path / "in" / directory / f"part-{number}.json")
        names = {f"part-{one}.json" for one in range(number + 1)}
        announced(place, names, limit_s=AT_ONCE_S + LOOK_S)
    assert directories_of(tmp_path / "in" / "*" / "part-*.json") == (
        frozenset(str(path) for path in (tmp_path / "in", tmp_path / "in" / "x", tmp_path / "in" / "y")),
        False,
    )
    rename_into(tmp_path / "in" / ".z" / "part-3.json")
    rename_into(tmp_path / "in" / "y" / "part-2.json")
    announced(place, {"part-0.json", "part-1.json", "part-2.json"})
    (tmp_path / "in" / "x" / "part-0.json").unlink()
    announced(place, {"part-1.json", "part-2.json"})


def test_a_pattern_of_any_depth(tmp_path: Path, place_of: Callable[[Path], LocalPlace]) -> None:
    """A pattern with `**` is watched with all directories below it.

    Snapshots there are not parts, and neither are files whose names begin with a dot.
    """
    rename_into(tmp_path / "in" / "a.json.gz")
    pattern = tmp_path / "in" / "**" / "*.json.gz"
    place = place_of(pattern)
    assert directories_of(pattern) == (frozenset([str(tmp_path / "in")]), True)
    rename_into(tmp_path / "in" / "deep" / "down" / "b.json.gz")
    announced(place, {"a.json.gz", "b.json.gz"}, limit_s=AT_ONCE_S + LOOK_S)
    rename_into(tmp_path / "in" / "deep" / ".c.json.gz")
    rename_into(tmp_path / "in" / "deep" / "bots_snapshot.json.gz")
    announced(place, {"a.json.gz", "b.json.gz"})


def test_a_name_that_looks_like_a_pattern(tmp_path: Path, place_of: Callable[[Path], LocalPlace]) -> None:
    """`brain[1].json` is one file, and not a pattern, if a file of that name exists."""
    path = tmp_path / "brain[1].json"
    rename_into(path)
    place = place_of(path)
    rename_into(path, b"[]")
    announced(place, {"brain[1].json"})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may search every directory")
def test_a_directory_that_may_not_be_searched(tmp_path: Path, place_of: Callable[[Path], LocalPlace]) -> None:
    """If a directory may not be searched, the error names the file and the reason."""
    rename_into(tmp_path / "in" / "a.json")
    (tmp_path / "in").chmod(0)
    try:
        with pytest.raises(SourceUnreadable, match=r"in/a\.json cannot be looked at: Permission denied"):
            place_of(tmp_path / "in" / "a.json")
    finally:
        (tmp_path / "in").chmod(0o755)


def test_links_in_a_circle(tmp_path: Path, place_of: Callable[[Path], LocalPlace]) -> None:
    """Links in a circle, as the file or as its directory, are an error with its cause.

    A pattern in such a directory finds no file.
    """
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for path in (tmp_path / "a", tmp_path / "a" / "c.json"):
        with pytest.raises(SourceUnreadable, match="cannot be looked at: Too many levels of symbolic links"):
            place_of(path)
    assert place_of(tmp_path / "a" / "*.json").look() == {}


def test_a_name_that_no_file_system_takes(tmp_path: Path, place_of: Callable[[Path], LocalPlace]) -> None:
    """A file name that is too long is an error with its cause, and not taken for an absent file."""
    with pytest.raises(SourceUnreadable, match="cannot be looked at: File name too long"):
        place_of(tmp_path / ("a" * 300))


def test_without_announcements_it_is_looked_at_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If the kernel has no watch left, the input is still checked; one warning names the directory and the cause."""

    def refuse(*_: object, **__: object) -> Iterator[set[object]]:
        yield from map(refuse_one, [0])

    def refuse_one(_: object) -> set[object]:
        raise OSError(28, "OS file watch limit reached")

    monkeypatch.setattr("optimizer.watch.local_place.watch", refuse)
    place = LocalPlace("brain", tmp_path / "a.json", threading.Event())
    assert place.look() == {}
    rename_into(tmp_path / "a.json")
    assert not place.wait()
    assert len(place.look()) == 1
    (record,) = caplog.records
    assert str(tmp_path) in record.getMessage()
    assert "limit reached" in record.getMessage()
