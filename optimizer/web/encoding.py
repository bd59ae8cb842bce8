"""Bodies in the content codings that this process encodes itself. Bytes in, bytes out.

Whole snapshots in gzip are sent as they are stored, and do not pass through here.
"""

from __future__ import annotations

from typing import Final

from optimizer.snapshots.compression import QUICK_GZIP_LEVEL, ZSTD_LEVEL, compress_gzip
from optimizer.storage.zstandard import zstd
from optimizer.web.negotiate import GZIP, ZSTD

__all__ = ["SHORTEST_BYTES", "ZSTD_VERSION", "compress_quickly"]

# A shorter body is sent as it is.
SHORTEST_BYTES: Final = 512
# The parameters that the bytes of a zstd body depend on, besides the body.
ZSTD_VERSION: Final = f"zstd-{zstd.zstd_version}-{ZSTD_LEVEL}"


def compress_quickly(body: bytes, encoding: int) -> bytes:
    """Compress a body in about two milliseconds a megabyte, which an event loop can wait for.

    Args:
        body: The body.
        encoding: `GZIP`, `ZSTD`, or `IDENTITY` to return it as it is.
    """
    if encoding == ZSTD:
        return zstd.compress(body, ZSTD_LEVEL)
    return compress_gzip(body, QUICK_GZIP_LEVEL) if encoding == GZIP else body
