"""Compression at every level: any gunzip reads it, equal bytes give equal bytes, and no level is larger than zlib's."""

from __future__ import annotations

import gzip
import random
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.snapshots.compression import IGZIP_LEVELS, compress_gzip
from tests.support.snapshot_sets import a_set

LEVELS = range(1, 10)
RANDOM = random.Random(1)
JSON = b"".join(
    b'{"symbol":"S%d","prediction":%.4f,"confidence":%.4f,"sentiment":"bullish"},'
    % (n, RANDOM.random(), RANDOM.random())
    for n in range(1_000)
)


@given(st.binary(max_size=2_000), st.sampled_from(LEVELS))
def test_what_is_compressed_is_inflated_again(data: bytes, level: int) -> None:
    """Compressed data is inflated by Python's gzip to the same data.

    The time in its header is 0, so equal data give equal bytes at any time.
    """
    compressed = compress_gzip(data, level)
    assert gzip.decompress(compressed) == data
    assert compressed[:4] == b"\x1f\x8b\x08\x00"
    assert compressed[4:8] == bytes(4)
    assert compress_gzip(data, level) == compressed


@pytest.mark.parametrize("level", LEVELS)
def test_gunzip_reads_each_level(level: int) -> None:
    """The program `gzip`, as users have it, inflates the output of each level."""
    done = subprocess.run(["gzip", "-dc"], input=compress_gzip(JSON, level), capture_output=True, check=True)
    assert done.stdout == JSON


def test_no_level_is_larger_than_what_zlib_writes() -> None:
    """Levels 1 to 3 (igzip) give smaller output than zlib does at the same level; the others give zlib's.

    Levels 5 to 9 give smaller output than igzip's levels.
    """
    sizes = {level: len(compress_gzip(JSON, level)) for level in LEVELS}
    for level in LEVELS:
        by_zlib = len(gzip.compress(JSON, level))
        assert sizes[level] < by_zlib if level in IGZIP_LEVELS else sizes[level] == by_zlib
    assert max(sizes[level] for level in range(5, 10)) < min(sizes[level] for level in IGZIP_LEVELS)


def test_the_index_is_compressed_quickly_whatever_the_level() -> None:
    """The index is compressed at level 2, since no client downloads it and it is the largest file.

    The predictions have the level that is set.
    """
    payloads = a_set(1).payloads
    assert payloads["index"] == compress_gzip(gzip.decompress(payloads["index"]), 2)
    assert payloads["predictions"] == compress_gzip(gzip.decompress(payloads["predictions"]), 6)
    assert payloads["index"] != compress_gzip(gzip.decompress(payloads["index"]), 6)
