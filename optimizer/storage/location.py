"""Where inputs and outputs lie: local paths, URLs of object stores, and files of web servers.

A pattern (`*`, `?`, `[...]`, and `**` for any depth) names several inputs, the parts of one source. In the URL of a web
server those characters are ordinary ones: `?` begins its query, which may hold a signature. So a URL shows itself
redacted, in `str` and `repr` alike, and `text` is taken only where the store is asked.
"""

from __future__ import annotations

import glob
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from optimizer.config.redis_url import STORE_SCHEMES, WEB_SCHEMES, redact_url

__all__ = ["Location", "Url", "is_pattern", "parse_location", "spelled"]

# What is meant as a URL, even where it cannot be used as one (`simplecache::memory://o`, `s3:/bucket`): taken for a
# path it would name a local file or make a local directory.
_URL: Final = re.compile(rf"[^/]*://|({'|'.join((*STORE_SCHEMES, *WEB_SCHEMES, 'file'))}):/", re.IGNORECASE)
_FILE: Final = "file:///"


@dataclass(frozen=True, repr=False)
class Url:
    """A place in an object store, such as `s3://bucket/rolling_brain.json.gz`; or a directory there; or a web page."""

    text: str

    def __str__(self) -> str:
        return redact_url(self.text)

    def __repr__(self) -> str:
        return f"Url({str(self)!r})"

    @property
    def name(self) -> str:
        """The last piece."""
        return self.path.rstrip("/").rpartition("/")[2]

    @property
    def scheme(self) -> str:
        """What it begins with: `s3`, `gs`, ..."""
        return self.text.partition(":")[0]

    @property
    def is_web(self) -> bool:
        """Whether a web server has it, and no object store."""
        return self.scheme in WEB_SCHEMES

    @property
    def path(self) -> str:
        """What follows the scheme, without the query of a web server's URL."""
        rest = self.text.partition("://")[2]
        return re.split("[?#]", rest, maxsplit=1)[0] if self.is_web else rest

    @property
    def root(self) -> str:
        """The store or bucket that it is in, such as `s3://bucket`."""
        return f"{self.scheme}://{self.path.partition('/')[0]}"

    def __truediv__(self, name: str) -> Url:
        return Url(f"{self.text.rstrip('/')}/{name}")


Location = Path | Url


def parse_location(text: str) -> Location:
    """A path, or a URL where the text begins as one; `file:///` is a path. `check_url` tells which URL can be used."""
    if text.startswith(_FILE):
        return Path(text.removeprefix("file://"))
    return Url(text) if _URL.match(text) else Path(text)


def spelled(location: Location) -> str:
    """The text of a location, with the secrets that it may hold: for the environment of a child, never to be shown."""
    return location.text if isinstance(location, Url) else str(location)


def is_pattern(location: Location) -> bool:
    """Whether it is written as one that names several inputs."""
    if isinstance(location, Url):
        return not location.is_web and glob.has_magic(location.text)
    return glob.has_magic(str(location))
