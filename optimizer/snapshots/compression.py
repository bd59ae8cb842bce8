"""How snapshots are compressed: gzip by a level from 1 to 9. Bytes in, bytes out.

Levels 1 to 3 are igzip's, the others zlib's. At these levels igzip's output is 2 to 8 % smaller than zlib's, and takes
half of its CPU or less; from level 4 on zlib's is smaller still. `rolling-optimizer bench --compression` measures both,
and docs/benchmarks.md has figures.

Equal bytes give equal bytes in one process. Between two they may differ: igzip's do in one of some hundred processes of
one machine, zlib's between builds.
"""

from __future__ import annotations

import gzip
from typing import Final

from isal import igzip

__all__ = ["IGZIP_LEVELS", "QUICK_GZIP_LEVEL", "ZSTD_LEVEL", "compress_gzip"]

IGZIP_LEVELS: Final = (1, 2, 3)
# For what few will read: of 1.8 MB of JSON it takes 2.6 ms, zlib at level 6 takes 34 ms for 11 % less.
QUICK_GZIP_LEVEL: Final = 2
# Of responses, see `optimizer/web/encoding.py`: 5 to 12 % smaller than gzip at level 6, in a tenth of its CPU. Levels 2
# to 5 are larger, and 9 takes ten times as long for up to 4 % less.
ZSTD_LEVEL: Final = 1


def compress_gzip(data: bytes, level: int) -> bytes:
    """Compress to one gzip member, whose time is 0."""
    if level in IGZIP_LEVELS:
        return igzip.compress(data, level, mtime=0)
    return gzip.compress(data, level, mtime=0)
