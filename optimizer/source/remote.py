"""The input as an object in a store: the same `Source`, read by ranges.

In: a URL. Out: what `Source` gives, in constant memory: a few blocks of the object, the next of which is fetched while
one is inflated.

An object that is replaced is gone at once, unlike a file under an open descriptor. So what was opened is pinned: S3 is
asked for each range by `If-Match`; and whatever the store, `check_unchanged` asks at the end whether it is the same.

Errors: `SourceMissing`, `SourceUnreadable`, `SourceTorn`.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import RawIOBase
from typing import Any, Final

from optimizer.errors import SourceMissing, SourceTorn, SourceUnreadable
from optimizer.source.file import Source
from optimizer.storage.location import Url
from optimizer.storage.object_store import file_system, translated_errors

__all__ = ["RemoteSource", "readable"]

# Each range is a request, whose first byte takes a store tens of milliseconds.
BLOCK_BYTES: Final = 8 << 20
# Those that one read may touch; the next is fetched besides.
BLOCKS: Final = 2
# What stores call the mark of an object's content or version.
_TAGS: Final = ("ETag", "etag", "generation", "md5Hash", "content_md5", "checksum")


class RemoteSource(Source):
    """An input object, as it was when it was opened."""

    path: Url

    def __init__(self, url: Url) -> None:
        self.path = url
        with readable(url):
            try:
                self._store = file_system(url)
                self._info = self._ask()
                if self._info["type"] != "file":
                    raise SourceUnreadable(f"{url} is no object, others lie below it; set ROLLING_INPUT to one of them")
                self.fingerprint = _fingerprint(self._info)
                file = self._store.open(
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
        self._file = _Object(file, url)

    @property
    def size_bytes(self) -> int:
        """Bytes of the object as it lies in the store."""
        return int(self._info["size"])

    def check_unchanged(self) -> None:
        """Check that the object is still the one that was opened.

        Raises:
            SourceTorn: It is another, or gone.
            SourceUnreadable: The store does not say.
        """
        with readable(self.path):
            try:
                now = _fingerprint(self._ask())
            except FileNotFoundError:
                now = "gone"
        if now != self.fingerprint:
            raise SourceTorn(
                f"{self.path} was replaced while it was read ({self.fingerprint} before, {now} now); the next run "
                "reads the new one"
            )

    def _ask(self) -> dict[str, Any]:
        self._store.invalidate_cache()  # a store may hold what it has listed, whatever it was told
        info: dict[str, Any] = self._store.info(self.path.text)
        return info


@contextmanager
def readable(url: Url) -> Iterator[None]:
    """Turn every way in which the store of an input can fail into `SourceUnreadable`."""
    try:
        with translated_errors(url):
            yield
    except OSError as error:
        raise SourceUnreadable(str(error)) from error


class _Object(RawIOBase):
    """An fsspec file whose every failure is an `OSError`, and that tells when it was replaced."""

    def __init__(self, file: Any, url: Url) -> None:
        self._file = file
        self._url = url

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        with translated_errors(self._url):
            try:
                data: bytes = self._file.read(len(buffer))
            except OSError as error:
                if error.errno != errno.EBUSY:  # s3fs has it from `If-Match`
                    raise
                raise SourceTorn("the object was replaced while it was read; the next run reads the new one") from None
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        self._file.close()
        super().close()


def _fingerprint(info: dict[str, Any]) -> str:
    """The store's own mark and the size; where there is no mark, a digest of all that the store tells."""
    tag = next((str(info[name]).strip('"') for name in _TAGS if info.get(name)), None)
    if tag is None:
        tag = hashlib.sha256(repr(sorted(info.items())).encode()).hexdigest()[:32]
    return f"{tag}-{int(info['size']):x}"
