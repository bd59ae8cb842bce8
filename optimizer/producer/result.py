"""The result of writing a rolling file."""

from __future__ import annotations

import msgspec

__all__ = ["Written"]


class Written(msgspec.Struct, frozen=True):
    """The result of `write_rolling`; all sizes include unchanged parts.

    Attributes:
        records: Number of records.
        json_bytes: Size of the JSON, before compression.
        file_bytes: Size of the files.
        files_written: Number of new files: 1, or the changed parts, including the part with bots.
        files_unchanged: Number of parts that were equal and not replaced.
    """

    records: int
    json_bytes: int
    file_bytes: int
    files_written: int
    files_unchanged: int
