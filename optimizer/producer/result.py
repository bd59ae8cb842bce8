"""What was written."""

from __future__ import annotations

import msgspec

__all__ = ["Written"]


class Written(msgspec.Struct, frozen=True):
    """What `write_rolling` has written; parts that were left as they were are counted in all sizes.

    Attributes:
        records: Number of records.
        json_bytes: Size of the JSON, before compression.
        file_bytes: Size of the files.
        files_written: How many files are new: 1, or the parts that have changed, that with bots too.
        files_unchanged: How many parts were equal, byte for byte, and have been left.
    """

    records: int
    json_bytes: int
    file_bytes: int
    files_written: int
    files_unchanged: int
