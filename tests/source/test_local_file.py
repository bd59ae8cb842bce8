"""A local file: why it cannot be opened, when its fingerprint changes, and whether it changed while it was read."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from optimizer.config.settings import Settings
from optimizer.errors import SourceMissing, SourceTorn, SourceUnreadable
from optimizer.pipeline.run import optimize
from optimizer.source.input_file import InputFile
from optimizer.source.local_file import LocalFile
from optimizer.source.opener import open_input_file
from tests.support.redis_servers import wait_until
from tests.support.rolling_files import a_record, local, touch_later, write_json, write_raw

pytestmark = pytest.mark.usefixtures("engine")

CHUNK_BYTES = 64 * 1024
JSON = b'{"AAPL":{"prediction":1,"confidence":0.9,"last_price":3,"history":[1,2,{"note":"\\"]"}]}}'


class TestOpen:
    """The error says why a file cannot be opened."""

    @pytest.mark.parametrize("name", ["missing.json", "no/such/directory/a.json", "dangling"])
    def test_missing(self, tmp_path: Path, name: str) -> None:
        """A file that does not exist, or a dangling link, is `SourceMissing`, with the setting that names it."""
        (tmp_path / "dangling").symlink_to("nowhere")

        with pytest.raises(SourceMissing, match=f"{name} not found; set ROLLING_INPUT"):
            open_input_file(tmp_path / name)

    @pytest.mark.parametrize("kind", ["directory", "fifo", "device", "below a file"])
    def test_not_a_file(self, tmp_path: Path, kind: str) -> None:
        """A directory, a pipe without a writer, a device and a path below a file are refused at once."""
        path = tmp_path / kind
        if kind == "directory":
            path.mkdir()
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "device":
            path.symlink_to("/dev/zero")
        else:
            path.write_bytes(b"")
            path /= "a.json"

        with pytest.raises(SourceUnreadable, match=str(path)):
            open_input_file(path)

    def test_a_link_is_followed(self, tmp_path: Path) -> None:
        """The file to which a link points is read."""
        write_raw(tmp_path / "a.json", JSON)
        (tmp_path / "link").symlink_to("a.json")

        with open_input_file(tmp_path / "link") as input_file:
            assert b"".join(input_file.chunks(CHUNK_BYTES)) == JSON

    def test_no_permission(self) -> None:
        """A file without read permission is `SourceUnreadable`; a test that runs as root opens it as another user."""
        script = (
            "import os, sys\nfrom pathlib import Path\nfrom optimizer.source.local_file import LocalFile\n"
            "from optimizer.errors import SourceUnreadable\n"
            "os.getuid() or os.setuid(65534)\n"
            "LocalFile(Path(sys.argv[1], 'ours'))\n"
            "try:\n    LocalFile(Path(sys.argv[1], 'theirs'))\n"
            "except SourceUnreadable as error:\n    print(error)\n"
        )
        with tempfile.TemporaryDirectory() as directory:
            Path(directory).chmod(0o755)
            for name, mode in (("ours", 0o644), ("theirs", 0)):
                Path(directory, name).write_bytes(JSON)
                Path(directory, name).chmod(mode)

            done = subprocess.run([sys.executable, "-c", script, directory], capture_output=True, text=True, check=True)

        assert done.stdout == f"{directory}/theirs cannot be opened: Permission denied\n"

    @pytest.mark.skipif(sys.platform != "linux", reason="needs a file of /proc that cannot be read")
    def test_a_disk_that_fails(self) -> None:
        """A system error while reading is `SourceUnreadable`, with the path."""
        with pytest.raises(SourceUnreadable, match="/proc/self/mem cannot be read: Input/output error"):
            open_input_file(Path("/proc/self/mem"))

    def test_nothing_is_left_open(self, tmp_path: Path) -> None:
        """Neither a closed input nor a refused one keeps a descriptor."""
        path = write_raw(tmp_path / "a.json.gz", JSON)
        os.mkfifo(tmp_path / "fifo")
        stored = LocalFile(path)
        with InputFile(stored) as first:
            lowest = stored.fileno()
            next(first.chunks(CHUNK_BYTES))
        for refused in (tmp_path, tmp_path / "fifo"):
            with pytest.raises(SourceUnreadable):
                open_input_file(refused)

        with LocalFile(path) as again:
            assert again.fileno() == lowest


class TestWhere:
    """The error says what is there instead of a file, and where a relative path was looked for."""

    def test_it_is_told_with_what_to_set(self, tmp_path: Path) -> None:
        """The error for a directory names the setting, and the pattern that was probably meant."""
        with pytest.raises(SourceUnreadable, match=rf"is a directory; set ROLLING_INPUT to .* or to {tmp_path}/\*"):
            open_input_file(tmp_path)

    def test_where_a_relative_path_was_looked_for(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The error for a relative path names the working directory.

        A worker often runs in another directory than its operator thinks.
        """
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SourceMissing, match=f"data/a.json not found in {tmp_path}; set ROLLING_INPUT"):
            open_input_file(Path("data/a.json"))


def _large(byte: bytes) -> bytes:
    """Several chunks of JSON that compress badly, so that they take several reads."""
    return b'{"AAPL":{"note":"' + os.urandom(3 * CHUNK_BYTES).hex().encode() + byte + b'"}}'


class TestChanges:
    """Writing in place tears the file; replacing it by rename does not."""

    @pytest.fixture(params=["a.json", "a.json.gz"])
    def path(self, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
        """A file of several chunks, last written long ago."""
        path = write_raw(tmp_path / request.param, _large(b"1"))
        os.utime(path, (1_700_000_000, 1_700_000_000))
        return path

    def _read_while(self, path: Path, change: Callable[[], object]) -> bytes:
        """Read a chunk, make the change, read the rest, and check."""
        with open_input_file(path) as input_file:
            chunks = input_file.chunks(CHUNK_BYTES)
            first = next(chunks)
            change()
            rest = b"".join(chunks)
            input_file.check_unchanged()
        return first + rest

    def test_replaced_by_rename(self, path: Path) -> None:
        """The old content is read to its end; the next open reads the new content."""
        old, new = self._content(path), _large(b"2")

        assert self._read_while(path, lambda: write_raw(path, new)) == old
        assert self._content(path) == new

    def test_deleted(self, path: Path) -> None:
        """A file that is deleted while it is read is still read whole."""
        old = self._content(path)

        assert self._read_while(path, path.unlink) == old

    @pytest.mark.parametrize("what", ["append", "truncate", "empty", "rewrite", "touch"])
    def test_written_in_place(self, path: Path, what: str) -> None:
        """A file that is appended to, truncated, emptied, overwritten or touched while it is read is torn.

        Overwriting it with as many bytes, and only touching it, count too.
        """
        packed = path.read_bytes()

        def change() -> None:
            with path.open("r+b") as file:
                if what == "append":
                    file.seek(0, io.SEEK_END)
                    file.write(b" ")
                elif what == "truncate":
                    file.truncate(len(packed) - 10)
                elif what == "empty":
                    file.truncate(0)
                elif what == "rewrite":
                    file.write(packed)
            if what == "touch":
                touch_later(path)

        with pytest.raises(SourceTorn):
            self._read_while(path, change)

    def test_what_to_do_is_told(self, path: Path) -> None:
        """The error for a file that was written to has both sizes, and the remedy, which is to rename a new file."""
        with open_input_file(path) as input_file:
            before = input_file.size_bytes
            with path.open("ab") as file:
                file.write(b"more")
            with pytest.raises(SourceTorn, match=f"{before:,} bytes before, {before + 4:,} now.*rename"):
                input_file.check_unchanged()

    def test_a_run_says_torn_whatever_else_is_wrong(self, settings_without_redis: Settings) -> None:
        """A file that is written to during a run is `SourceTorn`, whatever damage is read, and nothing is published.

        Given snapshots of a good file,
        When the next one is written in place while a run reads it, and so is malformed in the middle,
        Then the run fails with `SourceTorn`, and the snapshots stay.
        """
        settings = settings_without_redis
        write_json(settings.input, {"AAPL": a_record()})
        optimize(settings, use_cache=False)
        shown = (local(settings.output_dir) / "rolling_optimized.json.gz").read_bytes()
        path = write_raw(settings.input, _large(b"1"))

        def overwrite(_read: int, _size: int) -> None:
            with path.open("r+b") as file:
                file.seek(path.stat().st_size // 2)
                file.write(bytes(100_000))

        with pytest.raises(SourceTorn, match="was written to while it was read"):
            optimize(settings, use_cache=False, progress=overwrite)
        assert (local(settings.output_dir) / "rolling_optimized.json.gz").read_bytes() == shown

    def _content(self, path: Path) -> bytes:
        with open_input_file(path) as input_file:
            return b"".join(input_file.chunks(CHUNK_BYTES))


class TestTimes:
    """The times at which a file was last written to, and at which it landed at its path."""

    @pytest.mark.parametrize("put", [Path.rename, lambda path, place: place.hardlink_to(path)], ids=["rename", "link"])
    def test_a_rename_is_later_than_the_last_write(self, tmp_path: Path, put: Callable[[Path, Path], object]) -> None:
        """A file landed when it was renamed or linked to its path, which is after the last write to it.

        Both times are of the opened file, even if it is replaced later.
        """
        path = write_raw(tmp_path / "a.json", JSON)
        os.utime(path, (1_700_000_000, 1_700_000_000.25))
        written_s = path.stat().st_ctime
        wait_until(lambda: write_raw(tmp_path / "other", b"").stat().st_ctime > written_s, what="a later time")
        put(path, tmp_path / "b.json")
        stat = (tmp_path / "b.json").stat()
        assert stat.st_ctime > written_s

        with open_input_file(tmp_path / "b.json") as input_file:
            write_raw(tmp_path / "b.json", JSON)
            assert (input_file.modified_s, input_file.landed_s) == (1_700_000_000.25, stat.st_ctime)

    def test_it_never_lands_before_it_was_written(self, tmp_path: Path) -> None:
        """A file whose `mtime` is later than its `ctime` landed at its `mtime`.

        This happens after a clock was set back, or if a copy has kept the time.
        """
        path = write_raw(tmp_path / "a.json", JSON)
        touch_later(path)

        with open_input_file(path) as input_file:
            assert input_file.landed_s == input_file.modified_s == path.stat().st_mtime


class TestFingerprint:
    """The fingerprint is equal for an unchanged file, and different for any other."""

    def test_it_stays(self, tmp_path: Path) -> None:
        """The fingerprint is the same when the file is opened again, or by another name."""
        path = write_raw(tmp_path / "a.json.gz", JSON)
        (tmp_path / "link").symlink_to(path)

        assert len({self._of(path), self._of(path), self._of(tmp_path / "link")}) == 1

    def test_it_changes(self, tmp_path: Path) -> None:
        """The fingerprint changes with the content, the length, the time and the inode."""
        path = write_raw(tmp_path / "a.json.gz", JSON)
        fingerprints = [self._of(path)]
        stamp = path.stat().st_mtime_ns
        touch_later(path)
        fingerprints.append(self._of(path))
        with path.open("r+b") as file:
            file.seek(-8, io.SEEK_END)
            file.write(b"\0" * 8)
        os.utime(path, ns=(stamp, stamp))
        fingerprints.append(self._of(path))
        (tmp_path / "copy").write_bytes(path.read_bytes())
        os.utime(tmp_path / "copy", ns=(stamp, stamp))
        fingerprints.append(self._of(tmp_path / "copy"))
        path.write_bytes(path.read_bytes()[:-20])
        os.utime(path, ns=(stamp, stamp))
        fingerprints.append(self._of(path))

        assert len(set(fingerprints)) == len(fingerprints)

    @pytest.mark.parametrize("size", range(10))
    def test_files_shorter_than_a_trailer(self, tmp_path: Path, size: int) -> None:
        """A file that is shorter than gzip's trailer of 8 bytes has a fingerprint too, which ends with its bytes."""
        (tmp_path / "a").write_bytes(b"x" * size)

        assert self._of(tmp_path / "a").endswith(f"-{(b'x' * min(size, 8)).hex()}")

    def _of(self, path: Path) -> str:
        with open_input_file(path) as input_file:
            return input_file.fingerprint
