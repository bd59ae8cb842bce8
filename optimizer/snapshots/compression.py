"""How snapshots are compressed: gzip by a level from 1 to 9. Bytes in, bytes out.

Levels 1 to 3 use igzip, the others zlib. At levels 1 to 3, igzip's output is 2 to 8 % smaller than zlib's and takes
half of its CPU time or less; from level 4 on, zlib's output is smaller still. `rolling-optimizer bench --compression`
measures both, and docs/benchmarks.md has figures.

Within a process, equal input gives equal output. Between processes it may differ: igzip's does in one of some hundred
processes on one machine, zlib's between builds.
"""

from __future__ import annotations

import gzip
from typing import Final

from isal import igzip

__all__ = ["IGZIP_LEVELS", "QUICK_GZIP_LEVEL", "ZSTD_LEVEL", "compress_gzip"]

IGZIP_LEVELS: Final = (1, 2, 3)
# For data that is rarely read: 1.8 MB of JSON take 2.6 ms; zlib at level 6 takes 34 ms for 11 % less output.
QUICK_GZIP_LEVEL: Final = 2
# For responses, see `optimizer/web/encoding.py`: 5 to 12 % smaller than gzip at level 6, in a tenth of its CPU time.
# The output of levels 2 to 5 is larger, and level 9 takes ten times as long for up to 4 % less.
ZSTD_LEVEL: Final = 1


def compress_gzip(data: bytes, level: int) -> bytes:
    """Compress to one gzip member with the modification time 0."""
    if level in IGZIP_LEVELS:
        return igzip.compress(data, level, mtime=0)
    return gzip.compress(data, level, mtime=0)
