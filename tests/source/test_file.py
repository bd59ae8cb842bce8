"""The input file: what comes out is the whole content, or an error, and never anything else."""

from __future__ import annotations

import gzip
import io
import itertools
import os
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from isal import igzip

from optimizer.config.settings import Settings
from optimizer.errors import NoRecords, SourceError, SourceMissing, SourceTorn, SourceUnreadable
from optimizer.pipeline.run import optimize
from optimizer.scan.decoder import Item
from optimizer.source.file import Source
from tests.support.engines import scan
from tests.support.examples import examples
from tests.support.large_inputs import scan_file
from tests.support.rolling_files import a_record, local, touch_later, write_json, write_raw

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

pytestmark = pytest.mark.usefixtures("engine")

CHUNK_BYTES = 64 * 1024
JSON = b'{"AAPL":{"prediction":1,"confidence":0.9,"last_price":3,"history":[1,2,{"note":"\\"]"}]}}'
FEXTRA, FNAME, FCOMMENT, FHCRC = 4, 8, 16, 2


def zstd_bytes(data: bytes, **options: int) -> bytes:
    """One zstd frame, with a checksum; its length is not in the header."""
    found: dict[int, int] = {zstd.CompressionParameter[name]: value for name, value in options.items()}
    compressor = zstd.ZstdCompressor(options={zstd.CompressionParameter.checksum_flag: 1} | found)
    return compressor.compress(data) + compressor.flush()


def gzip_member(data: bytes, *, flags: int = 0, level: int = 6) -> bytes:
    """One gzip member with optional parts in its header, by RFC 1952."""
    header = struct.pack("<BBBBIBB", 0x1F, 0x8B, 8, flags, 0, 0, 255)
    header += struct.pack("<H", 5) + b"ab\x01\x00\xff" if flags & FEXTRA else b""
    header += b"rolling_brain.json\0" if flags & FNAME else b""
    header += b"a comment\0" if flags & FCOMMENT else b""
    header += struct.pack("<H", zlib.crc32(header) & 0xFFFF) if flags & FHCRC else b""
    packer = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS)
    return header + packer.compress(data) + packer.flush() + struct.pack("<II", zlib.crc32(data), len(data))


def inflate(data: bytes, name: str = "rolling.json.gz") -> bytes:
    """What comes out of a file with these bytes."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, name)
        path.write_bytes(data)
        with Source(path) as source:
            chunks = list(source.chunks(CHUNK_BYTES))
            source.check_unchanged()
    assert all(0 < len(chunk) <= CHUNK_BYTES for chunk in chunks)
    return b"".join(chunks)


def outcome(data: bytes, path: Path) -> list[Item] | SourceError:
    """What a scan of a file with these bytes finds."""
    path.write_bytes(data)
    try:
        with Source(path) as source:
            return list(scan(source.chunks(CHUNK_BYTES), max_record_bytes=1 << 20))
    except SourceError as error:
        return error


class TestFormats:
    """Compression is found by magic bytes."""

    @pytest.mark.parametrize("name", ["rolling.json.gz", "rolling.json", "rolling.zst", "rolling", "rolling.zip"])
    @pytest.mark.parametrize("packed", [gzip.compress(JSON), zstd_bytes(JSON), JSON], ids=["gzip", "zstd", "plain"])
    def test_the_name_says_nothing(self, name: str, packed: bytes) -> None:
        """Gzip, zstd and plain JSON are told apart by content alone."""
        assert inflate(packed, name) == JSON

    @hypothesis_settings(max_examples=examples(200))
    @given(
        st.lists(
            st.tuples(
                st.binary(max_size=60),
                st.sampled_from([0, FEXTRA, FNAME, FCOMMENT, FHCRC, FEXTRA | FNAME | FCOMMENT | FHCRC, 1]),
                st.integers(0, 9),
                st.sampled_from([0, 0, 1, 7, 600]),
            ),
            min_size=1,
            max_size=5,
        )
    )
    def test_gzip_is_that_of_the_standard_library(self, members: list[tuple[bytes, int, int, int]]) -> None:
        """Any number of members with any headers, empty ones too, with zero padding between and after them."""
        members = [(b'["', 0, 6, 0), *members]  # what begins as another format is named instead
        packed = b"".join(
            gzip_member(data, flags=flags, level=level) + bytes(zeros) for data, flags, level, zeros in members
        )

        assert inflate(packed) == gzip.decompress(packed) == b"".join(data for data, _, _, _ in members)

    @given(st.lists(st.integers(0, len(JSON)), max_size=6), st.sampled_from([0, 3]))
    def test_members_may_end_anywhere(self, places: list[int], zeros: int) -> None:
        """Records that are cut between two members are whole again."""
        edges = [0, *sorted(places), len(JSON)]
        pieces = [JSON[begin:end] for begin, end in itertools.pairwise(edges)]

        assert inflate(b"".join(gzip.compress(piece) + bytes(zeros) for piece in pieces)) == JSON
        assert inflate(b"".join(zstd_bytes(piece) for piece in pieces)) == JSON

    @pytest.mark.parametrize("pack", [gzip.compress, zstd_bytes, bytes], ids=["gzip", "zstd", "plain"])
    def test_large_files(self, pack: Callable[[bytes], bytes]) -> None:
        """Megabytes that compress badly, well, and badly again come out in chunks of bounded size."""
        data = b'["' + os.urandom(700_000) + bytes(5_000_000) + os.urandom(700_000)

        assert inflate(pack(data)) == data

    def test_chunks_can_be_read_again(self, tmp_path: Path) -> None:
        """Each call begins at the beginning, also after an iteration that was given up."""
        with Source(write_raw(tmp_path / "a.json.gz", JSON * 10_000)) as source:
            first = next(source.chunks(CHUNK_BYTES))
            assert source.position_bytes > 0

            assert b"".join(source.chunks(CHUNK_BYTES)) == JSON * 10_000
            assert first == (JSON * 10_000)[: len(first)]
            assert source.position_bytes == source.size_bytes == (tmp_path / "a.json.gz").stat().st_size

    @pytest.mark.parametrize(
        "packed",
        [b"", gzip.compress(b""), zstd_bytes(b""), gzip.compress(b"") * 3],
        ids=["empty", "gzip", "zstd", "three gzip members"],
    )
    def test_nothing_at_all(self, packed: bytes, settings_without_redis: Settings) -> None:
        """An empty file, or one of nothing packed, gives no bytes; a run says that there is no record."""
        assert inflate(packed) == b""

        local(settings_without_redis.input).write_bytes(packed)
        said = rf"is empty \({len(packed)} bytes, 0 of JSON\): 0 records seen, .*still being written"
        with pytest.raises(NoRecords, match=said):
            optimize(settings_without_redis, use_cache=False)


DAMAGED = {
    "gzip": gzip.compress(JSON, mtime=0),
    "gzip of two members": gzip.compress(JSON[:40], mtime=0) + gzip.compress(JSON[40:], mtime=0),
    "gzip with a full header": gzip_member(JSON, flags=FEXTRA | FNAME | FCOMMENT | FHCRC),
    "stored gzip": gzip.compress(JSON, 0, mtime=0),
    "zstd": zstd_bytes(JSON),
    "zstd of two frames": zstd_bytes(JSON[:40]) + zstd_bytes(JSON[40:]),
}


class TestDamage:
    """A file that is cut short or damaged gives an error, or what it held before, never anything else."""

    @pytest.mark.parametrize("kind", DAMAGED)
    def test_cut_short_anywhere(self, kind: str, tmp_path: Path) -> None:
        """Every proper prefix of a file is an error."""
        packed = DAMAGED[kind]
        whole = outcome(packed, tmp_path / "a")
        assert isinstance(whole, list)
        assert len(whole) == 1

        for end in range(1, len(packed)):
            assert isinstance(outcome(packed[:end], tmp_path / "a"), SourceError), end

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", DAMAGED)
    def test_every_byte_is_guarded(self, kind: str, tmp_path: Path) -> None:
        """Any change of a byte is an error, or harmless, as in a header's time and system."""
        packed = DAMAGED[kind]
        whole = outcome(packed, tmp_path / "a")
        errors = 0
        for place in range(len(packed)):
            for mask in (1, 2, 4, 8, 16, 32, 64, 128, 255):
                damaged = bytearray(packed)
                damaged[place] ^= mask
                found = outcome(bytes(damaged), tmp_path / "a")
                errors += isinstance(found, SourceError)
                assert isinstance(found, SourceError) or found == whole, (place, mask)

        assert errors > 0.75 * 9 * len(packed)

    @pytest.mark.parametrize(
        ("packed", "message"),
        [
            (DAMAGED["gzip"][:-8] + b"\0\0\0\0" + DAMAGED["gzip"][-4:], "check failed.*CRC"),
            (DAMAGED["gzip"][:-4] + b"\0\0\0\0", "check failed.*length"),
            (DAMAGED["gzip"][:-1], "ends early"),
            (DAMAGED["gzip"][:-8], "ends early"),
            (
                DAMAGED["gzip"] + b"trailing junk",
                r"gzip data ends at byte \d+ .*no gzip: b'trailing junk'",
            ),
            (
                DAMAGED["gzip"] + bytes(100) + b"trailing junk",
                r"gzip data ends at byte \d+ .*no gzip: b'trailing junk'",
            ),
            (DAMAGED["gzip"] + DAMAGED["gzip"][:20], "ends early"),
            (DAMAGED["gzip"] + DAMAGED["gzip"][:-8] + bytes(8), "check failed"),
            (b"\x1f\x8b\x07" + DAMAGED["gzip"][3:], "check failed"),
            (b"\x1f\x8b\x08\x08" + bytes(6) + b"endless name" * 100_000, "is damaged.*header"),
            (DAMAGED["zstd"][:-4] + b"\0\0\0\0", "is damaged.*checksum"),
            (DAMAGED["zstd"][:-1], "ends early"),
            (
                DAMAGED["zstd"] + b"trailing junk",
                r"zstd data ends at byte \d+ .*no zstd: b'trailing junk'",
            ),
            (DAMAGED["gzip"] + b"\n", rf"ends at byte {len(DAMAGED['gzip'])} of the file, .* is no gzip: b'\\n'"),
            (DAMAGED["gzip of two members"] + b"\0\0x", "ends at byte [0-9]+ of the file, .* is no gzip: b'x'"),
            (DAMAGED["gzip"] + b"\x1f", "ends early"),
            (DAMAGED["gzip"] + bytes(3) + b"\x1f\x8b", "ends early"),
            (DAMAGED["zstd"] + b"\x28", "ends early"),
            (DAMAGED["zstd of two frames"] + b"\n", r"zstd data ends at byte \d+ of the file, .* no zstd: b'\\n'"),
        ],
    )
    def test_what_is_wrong_is_told(self, packed: bytes, message: str) -> None:
        """A torn file is `SourceTorn`, with what failed and after how many bytes of JSON."""
        with pytest.raises(SourceTorn, match=rf"after [0-9,]+ bytes of JSON.*{message}"):
            inflate(packed)

    def test_a_bad_checksum_is_told_after_the_data(self, tmp_path: Path) -> None:
        """All but the last chunk come before the error: whoever takes them must wait for the end."""
        path = tmp_path / "a.json.gz"
        packed = gzip.compress(JSON * 20_000)
        path.write_bytes(packed[:-8] + bytes(4) + packed[-4:])
        with Source(path) as source:
            chunks = source.chunks(CHUNK_BYTES)
            taken = b"".join(itertools.islice(chunks, len(JSON) * 20_000 // CHUNK_BYTES))
            assert len(taken) > 1_000_000
            with pytest.raises(SourceTorn, match="CRC"):
                list(chunks)

    @pytest.mark.parametrize("log", [22, 23, 24, 27])
    def test_windows_of_zstd_are_bounded(self, log: int) -> None:
        """8 MiB are read; a frame that asks for more is refused with what to do."""
        packed = zstd_bytes(b"[" + b" " * 100, window_log=log)

        if log <= 23:
            assert inflate(packed) == b"[" + b" " * 100
        else:
            with pytest.raises(SourceUnreadable, match="window is over 8 MiB; compress without --long"):
                inflate(packed)


class TestOpen:
    """What cannot be opened says why."""

    @pytest.mark.parametrize("name", ["missing.json", "no/such/directory/a.json", "dangling"])
    def test_missing(self, tmp_path: Path, name: str) -> None:
        """No such file, or a link to none: `SourceMissing`, with the setting that names it."""
        (tmp_path / "dangling").symlink_to("nowhere")

        with pytest.raises(SourceMissing, match=f"{name} not found; set ROLLING_INPUT"):
            Source(tmp_path / name)

    @pytest.mark.parametrize("kind", ["directory", "fifo", "device", "below a file"])
    def test_not_a_file(self, tmp_path: Path, kind: str) -> None:
        """A directory, a pipe without a writer and a device are refused at once."""
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
            Source(path)

    def test_a_link_is_followed(self, tmp_path: Path) -> None:
        """The file behind it is read."""
        write_raw(tmp_path / "a.json", JSON)
        (tmp_path / "link").symlink_to("a.json")

        with Source(tmp_path / "link") as source:
            assert b"".join(source.chunks(CHUNK_BYTES)) == JSON

    def test_no_permission(self) -> None:
        """A file of somebody else's is `SourceUnreadable`: tried as another user where we are root."""
        script = (
            "import os, sys\nfrom pathlib import Path\nfrom optimizer.source.file import Source\n"
            "from optimizer.errors import SourceUnreadable\n"
            "os.getuid() or os.setuid(65534)\n"
            "Source(Path(sys.argv[1], 'ours'))\n"
            "try:\n    Source(Path(sys.argv[1], 'theirs'))\n"
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
        """An error of the system while reading is `SourceUnreadable`, with the path."""
        with pytest.raises(SourceUnreadable, match="/proc/self/mem cannot be read: Input/output error"):
            Source(Path("/proc/self/mem"))

    def test_nothing_is_left_open(self, tmp_path: Path) -> None:
        """Neither a source that was left nor one that was refused keeps a descriptor."""
        path = write_raw(tmp_path / "a.json.gz", JSON)
        os.mkfifo(tmp_path / "fifo")
        with Source(path) as first:
            lowest = first._descriptor
            next(first.chunks(CHUNK_BYTES))
        for refused in (tmp_path, tmp_path / "fifo"):
            with pytest.raises(SourceUnreadable):
                Source(refused)

        with Source(path) as again:
            assert again._descriptor == lowest


def _large(byte: bytes) -> bytes:
    """Several chunks of JSON, that compress badly enough to be several reads."""
    return b'{"AAPL":{"note":"' + os.urandom(3 * CHUNK_BYTES).hex().encode() + byte + b'"}}'


class TestChanges:
    """Who writes in place tears the file; who replaces it by rename does not."""

    @pytest.fixture(params=["a.json", "a.json.gz"])
    def path(self, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
        """A file of several chunks, last written long ago."""
        path = write_raw(tmp_path / request.param, _large(b"1"))
        os.utime(path, (1_700_000_000, 1_700_000_000))
        return path

    def _read_while(self, path: Path, change: Callable[[], object]) -> bytes:
        """Read a chunk, make the change, read the rest, and check."""
        with Source(path) as source:
            chunks = source.chunks(CHUNK_BYTES)
            first = next(chunks)
            change()
            rest = b"".join(chunks)
            source.check_unchanged()
        return first + rest

    def test_replaced_by_rename(self, path: Path) -> None:
        """The old content is read to its end; the next one to open it reads the new."""
        old, new = self._content(path), _large(b"2")

        assert self._read_while(path, lambda: write_raw(path, new)) == old
        assert self._content(path) == new

    def test_deleted(self, path: Path) -> None:
        """A file that is deleted stays whole under its reader."""
        old = self._content(path)

        assert self._read_while(path, path.unlink) == old

    @pytest.mark.parametrize("what", ["append", "truncate", "empty", "rewrite", "touch"])
    def test_written_in_place(self, path: Path, what: str) -> None:
        """Appended to, cut short, emptied, written over with as many bytes, or only touched: torn."""
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
        """The message has both sizes and the remedy, whatever came out of the decompressor first."""
        with Source(path) as source:
            before = source.size_bytes
            with path.open("ab") as file:
                file.write(b"more")
            with pytest.raises(SourceTorn, match=f"{before:,} bytes before, {before + 4:,} now.*rename"):
                source.check_unchanged()

    def test_a_run_says_torn_whatever_else_is_wrong(self, settings_without_redis: Settings) -> None:
        """Damage in a file that is being written to is reported as that, and nothing is published.

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
        with Source(path) as source:
            return b"".join(source.chunks(CHUNK_BYTES))


class TestFingerprint:
    """Equal for a file that nobody wrote to, another one for any other."""

    def test_it_stays(self, tmp_path: Path) -> None:
        """Opened again, or by another name of the same file."""
        path = write_raw(tmp_path / "a.json.gz", JSON)
        (tmp_path / "link").symlink_to(path)

        assert len({self._of(path), self._of(path), self._of(tmp_path / "link")}) == 1

    def test_it_changes(self, tmp_path: Path) -> None:
        """With the content, the length, the time and the inode."""
        path = write_raw(tmp_path / "a.json.gz", JSON)
        found = [self._of(path)]
        stamp = path.stat().st_mtime_ns
        touch_later(path)
        found.append(self._of(path))
        with path.open("r+b") as file:
            file.seek(-8, io.SEEK_END)
            file.write(b"\0" * 8)
        os.utime(path, ns=(stamp, stamp))
        found.append(self._of(path))
        (tmp_path / "copy").write_bytes(path.read_bytes())
        os.utime(tmp_path / "copy", ns=(stamp, stamp))
        found.append(self._of(tmp_path / "copy"))
        path.write_bytes(path.read_bytes()[:-20])
        os.utime(path, ns=(stamp, stamp))
        found.append(self._of(path))

        assert len(set(found)) == len(found)

    @pytest.mark.parametrize("size", range(10))
    def test_files_shorter_than_a_trailer(self, tmp_path: Path, size: int) -> None:
        """A few bytes have a fingerprint too."""
        (tmp_path / "a").write_bytes(b"x" * size)

        assert self._of(tmp_path / "a").endswith(f"-{(b'x' * min(size, 8)).hex()}")

    def _of(self, path: Path) -> str:
        with Source(path) as source:
            return source.fingerprint


def _bomb(path: Path, filler: bytes, megabytes: int, opening: bytes, closing: bytes) -> Path:
    """Gzip of one thing repeated: about a thousandth of its size."""
    block = filler * (1_000_000 // len(filler))
    with igzip.open(path, "wb", compresslevel=1) as file:  # type: ignore[no-untyped-call]
        file.write(opening)
        for _ in range(megabytes):
            file.write(block)
        file.write(closing)
    return path


@pytest.mark.slow
class TestBombs:
    """Small files that inflate to a gigabyte: constant memory, each in a process of its own."""

    def test_spaces(self, tmp_path: Path) -> None:
        """A gigabyte of white space is read through, and the record after it counts."""
        path = _bomb(tmp_path / "a.json.gz", b" ", 1_000, b"{", JSON[1:])
        assert path.stat().st_size < 10_000_000

        measured = scan_file(path)

        assert measured.found == ["AAPL"]
        assert measured.growth_mb < 20

    def test_zero_bytes(self, tmp_path: Path) -> None:
        """A gigabyte of zeros is malformed after the first megabyte, and most of it is never inflated."""
        measured = scan_file(_bomb(tmp_path / "a.json.gz", b"\0", 1_000, b"", b""))

        assert measured.found == [
            "SourceMalformed: malformed JSON at byte 0: a number or literal of more than 1,048,576 bytes"
        ]
        assert measured.growth_mb < 20

    def test_members_without_end(self, tmp_path: Path) -> None:
        """A hundred thousand members of a byte each are one stream."""
        path = tmp_path / "a.json.gz"
        path.write_bytes(gzip.compress(b" ") * 100_000 + gzip.compress(JSON) + bytes(10_000_000))

        measured = scan_file(path)

        assert measured.found == ["AAPL"]
        assert measured.growth_mb < 20


class TestWhere:
    """What is not a file, and where a relative path was looked for."""

    def test_it_is_told_with_what_to_set(self, tmp_path: Path) -> None:
        """A pattern is what most people mean by it."""
        with pytest.raises(SourceUnreadable, match=rf"is a directory; set ROLLING_INPUT to .* or to {tmp_path}/\*"):
            Source(tmp_path)

    def test_where_a_relative_path_was_looked_for(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A worker often runs in another directory than thought."""
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SourceMissing, match=f"data/a.json not found in {tmp_path}; set ROLLING_INPUT"):
            Source(Path("data/a.json"))
