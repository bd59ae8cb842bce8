"""Recognise file formats by their first bytes: supported compressions, and other formats to name in errors. No I/O.

A file in an unsupported format is not reported as malformed JSON: the error names the format and what to do.

Errors: `SourceUnreadable` for an unsupported format; `SourceTorn` for a file that ends within its magic bytes.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from optimizer.errors import SourceError, SourceTorn, SourceUnreadable

__all__ = ["GZIP", "HEAD_BYTES", "JSON_BEGINNINGS", "SKIPPABLE", "ZSTD", "Format", "format_of", "refusal_of"]

# Enough for the magic bytes of tar.
HEAD_BYTES: Final = 512

# An empty file, or one byte that may begin JSON as well as a format: left to the parser.
JSON_BEGINNINGS: Final = (b"", b"[", b"]", b"7")


class Format(NamedTuple):
    """A format: its name, its possible magic bytes and their offset, and what to do with such a file."""

    name: str
    magic: tuple[bytes, ...]
    remedy: str
    offset: int = 0


# Little-endian, RFC 8878 sections 3.1.1 and 3.1.2. pzstd begins its files with a skippable frame.
SKIPPABLE: Final = tuple(bytes((low, 0x2A, 0x4D, 0x18)) for low in range(0x50, 0x60))

GZIP: Final = Format("gzip", (b"\x1f\x8b",), "compress it once")
ZSTD: Final = Format("zstd", (b"\x28\xb5\x2f\xfd", *SKIPPABLE), "compress it once")

_RECOMPRESS: Final = "decompress it, or compress it with gzip or zstd instead"
_UNPACK: Final = "take the JSON file out of the archive"
_EXPORT: Final = "write the records as JSON"
_UTF8: Final = "write it in UTF-8"
_PAGE: Final = "it may be the error page of a server; set ROLLING_INPUT to the JSON file itself"

_NAMED: Final = (
    Format("bzip2", tuple(b"BZh%d" % level for level in range(1, 10)), _RECOMPRESS),
    Format("xz", (b"\xfd7zXZ\0",), _RECOMPRESS),
    Format("lzma", (b"\x5d\0\0",), _RECOMPRESS),
    Format("lzip", (b"LZIP",), _RECOMPRESS),
    Format("lzop", (b"\x89LZO\0\r\n\x1a\n",), _RECOMPRESS),
    Format("lz4", (b"\x04\x22\x4d\x18", b"\x02\x21\x4c\x18"), _RECOMPRESS),
    Format("snappy (framed)", (b"\xff\x06\0\0sNaPpY",), _RECOMPRESS),
    Format("compress (.Z)", (b"\x1f\x9d", b"\x1f\xa0"), _RECOMPRESS),
    Format("zlib (deflate without a gzip header)", (b"x\x01", b"x\x5e", b"x\x9c", b"x\xda"), _RECOMPRESS),
    Format("zip", (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08"), _UNPACK),
    Format("7z", (b"7z\xbc\xaf\x27\x1c",), _UNPACK),
    Format("RAR", (b"Rar!\x1a\x07",), _UNPACK),
    Format("tar", (b"ustar\0", b"ustar "), _UNPACK, offset=257),
    Format("Parquet", (b"PAR1", b"PARE"), _EXPORT),
    Format("Avro", (b"Obj\x01",), _EXPORT),
    Format("ORC", (b"ORC",), _EXPORT),
    Format("Arrow", (b"ARROW1\0\0",), _EXPORT),
    Format("HDF5", (b"\x89HDF\r\n\x1a\n",), _EXPORT),
    Format("SQLite", (b"SQLite format 3\0",), _EXPORT),
    Format("a Python pickle", tuple(b"\x80%c" % protocol for protocol in range(2, 6)), _EXPORT),
    Format("PDF", (b"%PDF-",), _EXPORT),
    Format("a pointer of Git LFS", (b"version https://git-lfs",), "fetch the file itself: git lfs pull"),
    Format("UTF-32", (b"\xff\xfe\0\0", b"\0\0\xfe\xff"), _UTF8),
    Format("UTF-16", (b"\xff\xfe", b"\xfe\xff"), _UTF8),
)
# Text formats without magic bytes. JSON begins with ASCII, so without a byte order mark the zeros show the encoding.
_TEXTS: Final = (
    (re.compile(rb"[\t\n\r -~]\0\0\0|\0\0\0[\t\n\r -~]"), Format("UTF-32", (), _UTF8)),
    (re.compile(rb"[\t\n\r -~]\0|\0[\t\n\r -~]"), Format("UTF-16", (), _UTF8)),
    (re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*<"), Format("HTML or XML", (), _PAGE)),
)


def format_of(head: bytes) -> Format | None:
    """Return the format of a file that begins with these `HEAD_BYTES` bytes; `None` if it may be JSON."""
    for known in (GZIP, ZSTD, *_NAMED):
        if head.startswith(known.magic, known.offset):
            return known
    return next((known for pattern, known in _TEXTS if pattern.match(head)), None)


def refusal_of(head: bytes, *, inside: str = "") -> SourceError | None:
    """Return the error for a file that does not begin like JSON; `None` if it may be JSON.

    Args:
        head: The first bytes of the JSON: of the file, or of the decompressor's output.
        inside: The compression of the file, if any.
    """
    known = format_of(head)
    if known is not None:
        within = f" inside {inside}" if inside else ""
        twice = ": it was compressed twice" if inside and known in (GZIP, ZSTD) else ""
        return SourceUnreadable(f"it is {known.name}{within}{twice}, which is not read; {known.remedy}")
    if not inside and head not in JSON_BEGINNINGS and any(_is_cut(head, known) for known in _NAMED):
        return SourceTorn(f"it ends within the magic bytes of a format, after {len(head)}; is it still being written?")
    return None


def _is_cut(head: bytes, known: Format) -> bool:
    return not known.offset and any(magic.startswith(head) for magic in known.magic)
