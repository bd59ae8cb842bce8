"""Inflating a file gives its whole content, or an error, and never anything else."""

from __future__ import annotations

import gzip
import itertools
import os
import struct
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
from optimizer.errors import NoRecords, SourceError, SourceTorn, SourceUnreadable
from optimizer.pipeline.run import optimize
from optimizer.scan.decoder import Item
from optimizer.source.opener import open_input_file
from optimizer.storage.zstandard import zstd
from tests.support.engines import scan
from tests.support.examples import examples
from tests.support.large_inputs import scan_file
from tests.support.rolling_files import local, write_raw

pytestmark = pytest.mark.usefixtures("engine")

CHUNK_BYTES = 64 * 1024
JSON = b'{"AAPL":{"prediction":1,"confidence":0.9,"last_price":3,"history":[1,2,{"note":"\\"]"}]}}'
FEXTRA, FNAME, FCOMMENT, FHCRC = 4, 8, 16, 2


def zstd_bytes(data: bytes, **options: int) -> bytes:
    """One zstd frame, with a checksum; its length is not in the header."""
    parameters: dict[int, int] = {zstd.CompressionParameter[name]: value for name, value in options.items()}
    compressor = zstd.ZstdCompressor(options={zstd.CompressionParameter.checksum_flag: 1} | parameters)
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
    """The JSON of a file with these bytes."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, name)
        path.write_bytes(data)
        with open_input_file(path) as input_file:
            chunks = list(input_file.chunks(CHUNK_BYTES))
            input_file.check_unchanged()
    assert all(0 < len(chunk) <= CHUNK_BYTES for chunk in chunks)
    return b"".join(chunks)


def outcome(data: bytes, path: Path) -> list[Item] | SourceError:
    """The items, or the error, of a scan of a file with these bytes."""
    path.write_bytes(data)
    try:
        with open_input_file(path) as input_file:
            return list(scan(input_file.chunks(CHUNK_BYTES), max_record_bytes=1 << 20))
    except SourceError as error:
        return error


class TestFormats:
    """Compression is recognised by magic bytes."""

    @pytest.mark.parametrize("name", ["rolling.json.gz", "rolling.json", "rolling.zst", "rolling", "rolling.zip"])
    @pytest.mark.parametrize("packed", [gzip.compress(JSON), zstd_bytes(JSON), JSON], ids=["gzip", "zstd", "plain"])
    def test_the_name_says_nothing(self, name: str, packed: bytes) -> None:
        """Gzip, zstd and plain JSON are distinguished by content alone."""
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
        """Gzip is inflated to the same bytes as by the standard library.

        The file has any number of members with any headers, empty ones too, and zero padding between and after them.
        """
        members = [(b'["', 0, 6, 0), *members]  # so that it does not begin like another format
        packed = b"".join(
            gzip_member(data, flags=flags, level=level) + bytes(zeros) for data, flags, level, zeros in members
        )

        assert inflate(packed) == gzip.decompress(packed) == b"".join(data for data, _, _, _ in members)

    @given(st.lists(st.integers(0, len(JSON)), max_size=6), st.sampled_from([0, 3]))
    def test_members_may_end_anywhere(self, places: list[int], zeros: int) -> None:
        """A record that is divided over several gzip members, or zstd frames, is whole again."""
        edges = [0, *sorted(places), len(JSON)]
        pieces = [JSON[begin:end] for begin, end in itertools.pairwise(edges)]

        assert inflate(b"".join(gzip.compress(piece) + bytes(zeros) for piece in pieces)) == JSON
        assert inflate(b"".join(zstd_bytes(piece) for piece in pieces)) == JSON

    @pytest.mark.parametrize("pack", [gzip.compress, zstd_bytes, bytes], ids=["gzip", "zstd", "plain"])
    def test_large_files(self, pack: Callable[[bytes], bytes]) -> None:
        """Megabytes that compress badly, well, and badly again are returned in chunks of bounded size."""
        data = b'["' + os.urandom(700_000) + bytes(5_000_000) + os.urandom(700_000)

        assert inflate(pack(data)) == data

    def test_chunks_can_be_read_again(self, tmp_path: Path) -> None:
        """Each call of `chunks` begins at the beginning of the file, also after an abandoned iteration."""
        with open_input_file(write_raw(tmp_path / "a.json.gz", JSON * 10_000)) as input_file:
            first = next(input_file.chunks(CHUNK_BYTES))
            assert input_file.position_bytes > 0

            assert b"".join(input_file.chunks(CHUNK_BYTES)) == JSON * 10_000
            assert first == (JSON * 10_000)[: len(first)]
            assert input_file.position_bytes == input_file.size_bytes == (tmp_path / "a.json.gz").stat().st_size

    @pytest.mark.parametrize(
        "packed",
        [b"", gzip.compress(b""), zstd_bytes(b""), gzip.compress(b"") * 3],
        ids=["empty", "gzip", "zstd", "three gzip members"],
    )
    def test_nothing_at_all(self, packed: bytes, settings_without_redis: Settings) -> None:
        """An empty file, or nothing compressed, gives no bytes; a run reports that there is no record."""
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
    """A file that is cut short or damaged gives an error, or its original content, never anything else."""

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
        """Any changed byte is an error, or harmless, like the time and system in a header."""
        packed = DAMAGED[kind]
        whole = outcome(packed, tmp_path / "a")
        errors = 0
        for place in range(len(packed)):
            for mask in (1, 2, 4, 8, 16, 32, 64, 128, 255):
                damaged = bytearray(packed)
                damaged[place] ^= mask
                result = outcome(bytes(damaged), tmp_path / "a")
                errors += isinstance(result, SourceError)
                assert isinstance(result, SourceError) or result == whole, (place, mask)

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
        """A damaged file is `SourceTorn`, with the check that failed and the number of bytes of JSON before it."""
        with pytest.raises(SourceTorn, match=rf"after [0-9,]+ bytes of JSON.*{message}"):
            inflate(packed)

    def test_a_bad_checksum_is_told_after_the_data(self, tmp_path: Path) -> None:
        """A bad checksum is reported after all chunks but the last, so a caller must not publish before the end."""
        path = tmp_path / "a.json.gz"
        packed = gzip.compress(JSON * 20_000)
        path.write_bytes(packed[:-8] + bytes(4) + packed[-4:])
        with open_input_file(path) as input_file:
            chunks = input_file.chunks(CHUNK_BYTES)
            taken = b"".join(itertools.islice(chunks, len(JSON) * 20_000 // CHUNK_BYTES))
            assert len(taken) > 1_000_000
            with pytest.raises(SourceTorn, match="CRC"):
                list(chunks)

    @pytest.mark.parametrize("log", [22, 23, 24, 27])
    def test_windows_of_zstd_are_bounded(self, log: int) -> None:
        """A zstd window of 8 MiB is supported; a frame that needs more is refused, and the error says what to do."""
        packed = zstd_bytes(b"[" + b" " * 100, window_log=log)

        if log <= 23:
            assert inflate(packed) == b"[" + b" " * 100
        else:
            with pytest.raises(SourceUnreadable, match="window is over 8 MiB; compress without --long"):
                inflate(packed)


def _bomb(path: Path, filler: bytes, megabytes: int, opening: bytes, closing: bytes) -> Path:
    """Write a gzip file of one block repeated, about a thousandth of its content's size; return its path."""
    block = filler * (1_000_000 // len(filler))
    with igzip.open(path, "wb", compresslevel=1) as file:  # type: ignore[no-untyped-call]
        file.write(opening)
        for _ in range(megabytes):
            file.write(block)
        file.write(closing)
    return path


@pytest.mark.slow
class TestBombs:
    """Small files that inflate to a thousand times their size take constant memory; measured in separate processes."""

    def test_spaces(self, tmp_path: Path) -> None:
        """100 MB of white space, far more than may be held, are skipped, and the record after them counts."""
        path = _bomb(tmp_path / "a.json.gz", b" ", 100, b"{", JSON[1:])
        assert path.stat().st_size < 1_000_000

        measured = scan_file(path)

        assert measured.items == ["AAPL"]
        assert measured.growth_mb < 20

    def test_zero_bytes(self, tmp_path: Path) -> None:
        """A gigabyte of zeros is malformed after the first megabyte, and most of it is never inflated."""
        measured = scan_file(_bomb(tmp_path / "a.json.gz", b"\0", 1_000, b"", b""))

        assert measured.items == [
            "SourceMalformed: malformed JSON at byte 0: a number or literal of more than 1,048,576 bytes"
        ]
        assert measured.growth_mb < 20

    def test_members_without_end(self, tmp_path: Path) -> None:
        """100,000 gzip members of one byte each, a record, and 10 MB of zero padding are read as one stream."""
        path = tmp_path / "a.json.gz"
        path.write_bytes(gzip.compress(b" ") * 100_000 + gzip.compress(JSON) + bytes(10_000_000))

        measured = scan_file(path)

        assert measured.items == ["AAPL"]
        assert measured.growth_mb < 20
