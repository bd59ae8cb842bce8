"""Blocked gzip: every gunzip reads it, and each header has the size of its deflate data."""

from __future__ import annotations

import gzip
import random
import subprocess
import zlib
from pathlib import Path

import pytest
from isal import igzip

from optimizer.producer.members import MEMBER_BYTES, Compression, Members
from tests.support.examples import examples

LINE = b'{"AAPL":{"prediction":1.5,"history":[1,2,3]}}\n'


def written(path: Path, pieces: list[bytes], *, level: int = 1, threads: int = 2, size: int = MEMBER_BYTES) -> bytes:
    path.write_bytes(b"")
    with Compression(level, threads) as compression:
        members = Members(path, compression, size)
        for piece in pieces:
            members.write(piece)
        members.end()
        compression.finish()
        assert compression.written_bytes == path.stat().st_size
    assert members.json_bytes == sum(map(len, pieces))
    return path.read_bytes()


def members_by_header(data: bytes) -> list[bytes]:
    """The oracle: follow the sizes in the headers, and inflate each member with zlib."""
    found = []
    while data:
        assert data[:16] == b"\x1f\x8b\x08\x04\0\0\0\0\x02\0\x08\0MZ\x04\0"
        end = 20 + int.from_bytes(data[16:20], "little")
        text = zlib.decompress(data[20:end], -15)
        assert data[end : end + 8] == zlib.crc32(text).to_bytes(4, "little") + len(text).to_bytes(4, "little")
        found.append(text)
        data = data[end + 8 :]
    return found


@pytest.mark.parametrize("level", range(4))
def test_every_gunzip_reads_it_and_headers_have_sizes(tmp_path: Path, level: int) -> None:
    """gzip(1), Python's gzip, isal, and an inflate by the sizes in the headers give the same text.

    All members but the last have the same size, wherever the written pieces end.
    """
    rng = random.Random(level)
    pieces = [LINE * rng.randrange(40) + rng.randbytes(rng.randrange(200)) for _ in range(2 * examples(200))]
    whole = b"".join(pieces)
    path = tmp_path / "brain.json.gz"
    data = written(path, pieces, level=level, size=10_000)
    assert gzip.decompress(data) == igzip.decompress(data) == whole  # type: ignore[no-untyped-call]
    assert subprocess.run(["gzip", "-dc", path], capture_output=True, check=True).stdout == whole
    members = members_by_header(data)
    assert b"".join(members) == whole
    assert {len(member) for member in members[:-1]} == {10_000}
    assert 0 < len(members[-1]) <= 10_000


def test_bytes_depend_on_the_text_alone(tmp_path: Path) -> None:
    """The bytes of a file depend on its text, and not on the number of threads or on where written pieces end."""
    text = LINE * 5_000
    pieces = [text[at : at + 999] for at in range(0, len(text), 999)]
    expected = written(tmp_path / "a", [text], size=10_000, threads=1)
    for threads in (1, 2, 5):
        assert written(tmp_path / "b", pieces, size=10_000, threads=threads) == expected


def test_two_files_at_once_do_not_mix(tmp_path: Path) -> None:
    """If several files are written at once by one pool, their members go to their own files, in order."""
    paths = [tmp_path / name for name in "abc"]
    with Compression(1, 2) as compression:
        files = [Members(path, compression, 1_000) for path in paths]
        for path in paths:
            path.touch()
        for number in range(500):
            for name, file in zip("abc", files, strict=True):
                file.write(f"{name}{number} ".encode() * 5)
        for file in files:
            file.end()
        compression.finish()
    for name, path in zip("abc", paths, strict=True):
        expected = "".join(f"{name}{number} " * 5 for number in range(500))
        assert gzip.decompress(path.read_bytes()).decode() == expected
