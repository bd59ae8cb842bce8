"""Formats are recognised by their first bytes: errors name unsupported ones, and what may be JSON is parsed."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import pickle
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.errors import SourceTorn, SourceUnreadable
from optimizer.storage.zstandard import zstd
from tests.source.test_inflate import DAMAGED, JSON, inflate, outcome, zstd_bytes


def tar_of(data: bytes) -> bytes:
    """A tar archive of one file."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        info = tarfile.TarInfo("rolling_brain.json")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return packed.getvalue()


def zip_of(data: bytes) -> bytes:
    """A zip archive of one file."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rolling_brain.json", data)
    return packed.getvalue()


PAGE = b"<!DOCTYPE html>\n<html><head><title>502 Bad Gateway</title></head><body>502</body></html>\n"
# Files of other formats, each made by the format's own library if it is installed, and the error that names them.
OTHERS: dict[str, tuple[bytes, str]] = {
    "bz2": (bz2.compress(JSON), "it is bzip2, which is not read; decompress it, or compress it with gzip or zstd"),
    "xz": (lzma.compress(JSON), "it is xz, "),
    "lzma": (lzma.compress(JSON, format=lzma.FORMAT_ALONE), "it is lzma, "),
    "lzip": (b"LZIP\x01\x0c" + os.urandom(30), "it is lzip, "),
    "lzop": (b"\x89LZO\0\r\n\x1a\n" + os.urandom(30), "it is lzop, "),
    "lz4": (b"\x04\x22\x4d\x18" + os.urandom(30), "it is lz4, "),
    "snappy": (b"\xff\x06\0\0sNaPpY" + os.urandom(30), r"it is snappy \(framed\), "),
    "compress": (b"\x1f\x9d\x90" + os.urandom(30), r"it is compress \(.Z\), "),
    "zlib": (zlib.compress(JSON), "it is zlib .*, which is not read"),
    "zip": (zip_of(JSON), "it is zip, which is not read; take the JSON file out of the archive"),
    "7z": (b"7z\xbc\xaf\x27\x1c\0\x04" + os.urandom(30), "it is 7z, "),
    "rar": (b"Rar!\x1a\x07\x01\0" + os.urandom(30), "it is RAR, "),
    "tar": (tar_of(JSON), "it is tar, which is not read; take the JSON file out of the archive"),
    "parquet": (b"PAR1\x15\x04" + os.urandom(30) + b"PAR1", "it is Parquet, which is not read; write .* as JSON"),
    "avro": (b"Obj\x01\x04\x16avro.schema" + os.urandom(30), "it is Avro, "),
    "orc": (b"ORC\x0a" + os.urandom(30), "it is ORC, "),
    "arrow": (b"ARROW1\0\0" + os.urandom(30), "it is Arrow, "),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + os.urandom(30), "it is HDF5, "),
    "sqlite": (b"SQLite format 3\0" + os.urandom(30), "it is SQLite, "),
    "pickle": (pickle.dumps(JSON), "it is a Python pickle, "),
    "pdf": (b"%PDF-1.7\n%" + os.urandom(30), "it is PDF, "),
    "lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n",
        "it is a pointer of Git LFS, .*git lfs pull",
    ),
    "utf-16": (JSON.decode().encode("utf-16"), "it is UTF-16, which is not read; write it in UTF-8"),
    "utf-16-le": (JSON.decode().encode("utf-16-le"), "it is UTF-16, "),
    "utf-16-be": (JSON.decode().encode("utf-16-be"), "it is UTF-16, "),
    "utf-32": (JSON.decode().encode("utf-32"), "it is UTF-32, "),
    "utf-32-le": (JSON.decode().encode("utf-32-le"), "it is UTF-32, "),
    "utf-32-be": (JSON.decode().encode("utf-32-be"), "it is UTF-32, "),
    "html": (b"\n  " + PAGE, "it is HTML or XML, which is not read; it may be the error page of a server"),
    "xml": (b"\xef\xbb\xbf<?xml version='1.0'?><a/>", "it is HTML or XML, "),
}
# The number of bytes that show the format; a shorter beginning may still become JSON, or UTF-16.
TOLD_AFTER = {"tar": 263, "html": 4, "xml": 4, "lzma": 3, "7z": 2} | dict.fromkeys(
    ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"), 4
)
PACKERS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "zstd": zstd_bytes}


class TestOtherFormats:
    """The error for a file in another format names the format and what to do; it is not malformed JSON."""

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", OTHERS)
    def test_it_is_named_wherever_it_is_cut(self, kind: str, tmp_path: Path) -> None:
        """A format is named as soon as its magic bytes are complete; a file that ends within them is `SourceTorn`."""
        data, said = OTHERS[kind]
        for end in range(1, min(len(data), 400) + 1):
            if end < TOLD_AFTER.get(kind, 1):
                continue
            result = outcome(data[:end], tmp_path / "a")
            named = isinstance(result, SourceUnreadable) and re.match(said, str(result))
            assert named or (isinstance(result, SourceTorn) and end < 24), (end, result)

    @pytest.mark.parametrize("kind", OTHERS)
    @pytest.mark.parametrize("packer", PACKERS)
    def test_it_is_named_inside_a_compressed_file_too(self, kind: str, packer: str, tmp_path: Path) -> None:
        """The error names a format inside gzip or zstd too, for example the archive that `tar czf` makes."""
        result = outcome(PACKERS[packer](OTHERS[kind][0]), tmp_path / "a")
        assert isinstance(result, SourceUnreadable)
        assert f" inside {packer}, which is not read; " in str(result)

    @pytest.mark.parametrize("outer", PACKERS)
    @pytest.mark.parametrize("inner", PACKERS)
    def test_compressed_twice_is_told(self, outer: str, inner: str) -> None:
        """The error for a file that was compressed twice names both compressions, and says what to do."""
        said = f"it is {inner} inside {outer}: it was compressed twice, which is not read; compress it once"
        with pytest.raises(SourceUnreadable, match=said):
            inflate(PACKERS[outer](PACKERS[inner](JSON)))

    @pytest.mark.parametrize(
        "data", [b"[", b"]", b"7", b"[7z]", b'"PK"', b"-1", b" [1]", b"\xef\xbb\xbf{}", b"[\xff\xfe]", b"nul"]
    )
    def test_what_may_be_json_is_left_to_the_parser(self, data: bytes) -> None:
        """Short text that may be JSON is passed on unchanged, and not mistaken for another format."""
        assert inflate(data) == data


def skippable(data: bytes, kind: int = 0) -> bytes:
    """A skippable zstd frame, as pzstd and seekable zstd write them."""
    return struct.pack("<II", 0x184D2A50 + kind, len(data)) + data


class TestZstdFrames:
    """Skippable zstd frames are skipped, and frames that need a dictionary are refused."""

    @given(
        st.lists(st.one_of(st.binary(max_size=40), st.tuples(st.binary(max_size=40), st.integers(0, 15))), max_size=5)
    )
    def test_skippable_frames_are_skipped_anywhere(self, frames: list[bytes | tuple[bytes, int]]) -> None:
        """Skippable frames may be at the beginning, between other frames and at the end."""
        frames = [*frames[:2], b'["', *frames[2:]]
        data = b"".join(frame for frame in frames if isinstance(frame, bytes))
        packed = [zstd_bytes(frame) if isinstance(frame, bytes) else skippable(*frame) for frame in frames]
        if data.startswith(b'["'):
            assert inflate(b"".join(packed)) == data

    @pytest.mark.parametrize("kind", range(16))
    def test_a_file_may_begin_with_one(self, kind: int, tmp_path: Path) -> None:
        """A file may begin with a skippable frame of any of the sixteen magic numbers; if it is cut short, it is torn.

        Two cuts are no such error: one byte alone may be a bracket of JSON, and the skippable frame alone is an empty
        file.
        """
        packed = skippable(b"of pzstd", kind) + DAMAGED["zstd"]
        assert inflate(packed) == JSON
        for end in range(2, len(packed)):
            result = outcome(packed[:end], tmp_path / "a")
            assert isinstance(result, SourceTorn) or (result == [] and end == 16), (end, result)

    @pytest.mark.parametrize("before", [b"", skippable(b"x"), zstd_bytes(b'["')], ids=["first", "skipped", "later"])
    def test_a_dictionary_that_is_needed_is_told(self, before: bytes) -> None:
        """A frame that needs a dictionary is `SourceUnreadable`, and not torn, since trying again cannot help."""
        dictionary = zstd.train_dict([b'{"symbol":"S%d","prediction":%d}' % (n, n * 7919) for n in range(500)], 1_000)
        packed = before + zstd.compress(JSON, zstd_dict=dictionary)
        named = "a dictionary" if before.startswith(DAMAGED["zstd"][:4]) else f"dictionary {dictionary.dict_id}"

        with pytest.raises(SourceUnreadable, match=f"zstd that needs {named}; compress without one"):
            inflate(packed)
