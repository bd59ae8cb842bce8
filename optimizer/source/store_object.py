"""The bytes of an input object in a store, read by ranges.

In: a URL. Memory is constant: a few blocks of the object; the next one is fetched while the current one is inflated.

An object that is replaced is gone at once, unlike a file under an open descriptor. So the opened version is pinned:
each range is requested from S3 with `If-Match`, and for every store `check_unchanged` compares the version at the end.

Errors: `SourceMissing`, `SourceUnreadable`, `SourceTorn`.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from io import RawIOBase
from typing import Any, Final

from optimizer.errors import SourceMissing, SourceTorn, SourceUnreadable
from optimizer.storage.location import Url
from optimizer.storage.object_store import file_system, translated_errors

__all__ = ["StoreObject", "fingerprint_of", "reading_input"]

# Each range is a request, and a store takes tens of milliseconds to send its first byte.
BLOCK_BYTES: Final = 8 << 20
# The number of blocks that one read may touch, and the one fetched ahead.
BLOCKS: Final = 2
# The names under which stores return the time of an object's last modification.
_TIMES: Final = ("LastModified", "last_modified", "updated", "mtime", "created")
LATEST_S: Final = 253_402_300_800  # the year 10000
# The names under which stores return the tag of an object's content or version.
_TAGS: Final = ("ETag", "etag", "generation", "md5Hash", "content_md5", "checksum")


class StoreObject(RawIOBase):
    """An object, in the version that was opened; a `ByteReader`."""

    def __init__(self, url: Url) -> None:
        self.path = url
        self._file: Any = None
        with reading_input(url):
            try:
                self._store = file_system(url)
                self._info = self._ask()
                if self._info["type"] != "file":
                    raise SourceUnreadable(f"{url} is no object, others lie below it; set ROLLING_INPUT to one of them")
                self.fingerprint = fingerprint_of(self._info)
                self._file = self._store.open(
                    url.text,
                    "rb",
                    block_size=BLOCK_BYTES,
                    cache_type="background",
                    cache_options={"maxblocks": BLOCKS},
                )
            except FileNotFoundError:
                raise SourceMissing(
                    f"{url} not found, or there is no such bucket; set ROLLING_INPUT to the prediction engine's file"
                ) from None

    @property
    def size_bytes(self) -> int:
        """The size of the object."""
        return int(self._info["size"])

    @property
    def modified_s(self) -> float | None:
        """When it was put into the store, in seconds since the epoch; `None` if the store does not tell."""
        return _time_of(self._info)

    landed_s = modified_s  # a put is atomic

    def check_unchanged(self) -> None:
        """Check that the object is still the one that was opened.

        Raises:
            SourceTorn: It was replaced, or is gone.
            SourceUnreadable: The store does not tell.
        """
        with reading_input(self.path):
            try:
                now = fingerprint_of(self._ask())
            except FileNotFoundError:
                now = "gone"
        if now != self.fingerprint:
            raise SourceTorn(
                f"{self.path} was replaced while it was read ({self.fingerprint} before, {now} now); the next run "
                "reads the new one"
            )

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Read at most `len(buffer)` bytes into a buffer."""
        with translated_errors(self.path):
            try:
                data: bytes = self._file.read(len(buffer))
            except OSError as error:
                if error.errno != errno.EBUSY:  # which s3fs raises for a failed `If-Match`
                    raise
                raise SourceTorn("the object was replaced while it was read; the next run reads the new one") from None
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Go to an offset."""
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        """The offset of the next byte."""
        return int(self._file.tell())

    def close(self) -> None:
        """Close the object; one that could not be opened has nothing to close."""
        if self._file is not None:
            self._file.close()
        super().close()

    def _ask(self) -> dict[str, Any]:
        self._store.invalidate_cache()  # a store may cache listings, whatever its options say
        info: dict[str, Any] = self._store.info(self.path.text)
        return info


@contextmanager
def reading_input(url: Url) -> Iterator[None]:
    """Turn every failure of an input's store into `SourceUnreadable`."""
    try:
        with translated_errors(url):
            yield
    except OSError as error:
        raise SourceUnreadable(str(error)) from error


def _time_of(info: dict[str, Any]) -> float | None:
    """Return the time of modification; stores return a `datetime`, ISO 8601 text or seconds since the epoch."""
    value = next((info[name] for name in _TIMES if info.get(name)), None)
    if isinstance(value, str):
        with suppress(ValueError):
            value = datetime.fromisoformat(value)
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    return float(value) if isinstance(value, int | float) and 0 < value < LATEST_S else None


def fingerprint_of(info: dict[str, Any]) -> str:
    """Return the store's tag and the size; without a tag, a digest of all metadata that the store returns."""
    tag = next((str(info[name]).strip('"') for name in _TAGS if info.get(name)), None)
    if tag is None:
        tag = hashlib.sha256(repr(sorted(info.items())).encode()).hexdigest()[:32]
    return f"{tag}-{int(info['size']):x}"
