"""Blocked gzip as MiGz, mgzip, pgzip and bgzip write it, with any other header fields."""

from __future__ import annotations

import itertools
import struct
import zlib
from typing import Final

__all__ = ["BGZF_END", "FCOMMENT", "FHCRC", "FNAME", "KINDS", "blocked", "member"]

KINDS: Final = ("MZ", "IG", "BC")
FHCRC, FEXTRA, FNAME, FCOMMENT = 2, 4, 8, 16
# SAM specification, section 4.1.2.
BGZF_END: Final = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")


def member(data: bytes, kind: str, *, flags: int = 0, before: bytes = b"", level: int = 1, error: int = 0) -> bytes:
    """One member with its size in the header.

    Args:
        data: The data to compress.
        kind: The name of the subfield with the size; empty for none.
        flags: `FHCRC`, `FNAME`, `FCOMMENT`.
        before: Other subfields, which are written before it.
        level: The level of zlib.
        error: How much larger the stated size is than the real one.
    """
    packer = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS)
    deflated = packer.compress(data) + packer.flush()
    width = {"MZ": 4, "IG": 4, "BC": 2, "": 0}[kind]
    names = b"rolling_brain.json\0" * bool(flags & FNAME) + b"a comment\0" * bool(flags & FCOMMENT)
    extra_bytes = len(before) + (4 + width) * bool(kind)
    size = 10 + (2 + extra_bytes) * bool(extra_bytes) + len(names) + 2 * bool(flags & FHCRC) + len(deflated) + 8
    stated = {"MZ": len(deflated), "IG": size, "BC": size - 1, "": 0}[kind] + error
    header = struct.pack("<4sIBB", b"\x1f\x8b\x08" + bytes([flags | FEXTRA * bool(extra_bytes)]), 0, 2, 255)
    if extra_bytes:
        header += struct.pack("<H", extra_bytes) + before
    if kind:
        header += kind.encode() + struct.pack("<H", width) + (stated % (1 << 8 * width)).to_bytes(width, "little")
    header += names
    header += struct.pack("<H", zlib.crc32(header) & 0xFFFF) if flags & FHCRC else b""
    return header + deflated + struct.pack("<II", zlib.crc32(data), len(data))


def blocked(data: bytes, kind: str = "MZ", block_bytes: int = 1 << 20, *, level: int = 1) -> bytes:
    """Return a whole file of blocked gzip, in members of `block_bytes` of data each."""
    edges = [*range(0, len(data), block_bytes), len(data)]
    pieces = [data[begin:end] for begin, end in itertools.pairwise(edges)]
    return b"".join(member(piece, kind, level=level) for piece in pieces) + (BGZF_END if kind == "BC" else b"")
