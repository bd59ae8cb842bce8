"""Locations of inputs and outputs: local paths, URLs of object stores and of web servers; and URLs made safe to show.

A pattern (`*`, `?`, `[...]`, and `**` for any depth) names several inputs, the parts of one source. In the URL of a web
server those characters are ordinary: `?` begins its query, which may hold a signature. So `str` and `repr` of a URL are
redacted, and only code that sends a request to the store or server uses `text`.
"""

from __future__ import annotations

import glob
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = [
    "STORE_SCHEMES",
    "WEB_SCHEMES",
    "Location",
    "Url",
    "is_pattern",
    "parse_location",
    "redact_url",
    "spelled",
]

# Object stores that fsspec supports and in which a put is atomic.
STORE_SCHEMES: Final = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")
WEB_SCHEMES: Final = ("http", "https")

# Text that is meant as a URL, even if it is not a valid one (`simplecache::memory://o`, `s3:/bucket`): as a path, it
# would name a local file or create a local directory.
_URL: Final = re.compile(rf"[^/]*://|({'|'.join((*STORE_SCHEMES, *WEB_SCHEMES, 'file'))}):/", re.IGNORECASE)
_FILE: Final = "file:///"

# Options of Redis URLs, the only query values that are shown: any other may be a signature, a token or a password.
PUBLIC_OPTIONS: Final = (
    "db",
    "virtual_host",
    "ssl_ca_certs",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_cert_reqs",
    "ssl_check_hostname",
)
_SECRET_VALUE: Final = re.compile(rf"([?&](?!(?:{'|'.join(PUBLIC_OPTIONS)})=)[^?&=#/]+=)[^&#]*")
_PASSWORD: Final = re.compile(r"(://[^:@]*:).*@", re.DOTALL)
# Keys in object stores may hold colons and at signs.
_STORE_PASSWORD: Final = re.compile(r"(://[^:@/]*:).*@|(://)[^/@]*@", re.DOTALL)
_PORT: Final = re.compile(r"(\[[^\]]*\]|[^:]*):\d*")


@dataclass(frozen=True, repr=False)
class Url:
    """A URL: an object or a directory in an object store, such as `s3://bucket/brain.json.gz`; or a file on the web."""

    text: str

    def __str__(self) -> str:
        return redact_url(self.text)

    def __repr__(self) -> str:
        return f"Url({str(self)!r})"

    @property
    def name(self) -> str:
        """The last component of the path."""
        return self.path.rstrip("/").rpartition("/")[2]

    @property
    def scheme(self) -> str:
        """The scheme: `s3`, `gs`, ..."""
        return self.text.partition(":")[0]

    @property
    def is_web(self) -> bool:
        """Whether it is the URL of a web server rather than of an object store."""
        return self.scheme in WEB_SCHEMES

    @property
    def path(self) -> str:
        """What follows the scheme, without the query of a web server's URL."""
        rest = self.text.partition("://")[2]
        return re.split("[?#]", rest, maxsplit=1)[0] if self.is_web else rest

    @property
    def root(self) -> str:
        """The bucket or container, such as `s3://bucket`."""
        return f"{self.scheme}://{self.path.partition('/')[0]}"

    def __truediv__(self, name: str) -> Url:
        return Url(f"{self.text.rstrip('/')}/{name}")


Location = Path | Url


def parse_location(text: str) -> Location:
    """Parse a path or a URL; `file:///` is a path. `check_url` checks whether a URL can be used."""
    if text.startswith(_FILE):
        return Path(text.removeprefix("file://"))
    return Url(text) if _URL.match(text) else Path(text)


def spelled(location: Location) -> str:
    """Return a location as text, secrets included: for the environment of a child process, never for output."""
    return location.text if isinstance(location, Url) else str(location)


def is_pattern(location: Location) -> bool:
    """Whether a location is a pattern, which may name several inputs."""
    if isinstance(location, Url):
        return not location.is_web and glob.has_magic(location.text)
    return glob.has_magic(str(location))


def redact_url(url: str) -> str:
    """Replace anything that may be a secret by `***`, in a URL of Redis, a store or a web server, or in a mistyped one.

    A password is assumed to reach to the last `@`, since it may hold characters that should be escaped. In a query,
    everything but the options of Redis is a secret; in a web server's URL, so are the whole query and the user.
    """
    scheme, mark, rest = url.partition("://")
    if mark and re.search("https?$", scheme, re.IGNORECASE):
        return f"{scheme}://{_redact_web(rest)}"
    if not mark:  # mistyped, so it is unknown where the password begins
        url = re.sub(r".*@", "***@", url, flags=re.DOTALL)
    password = _STORE_PASSWORD if scheme in STORE_SCHEMES else _PASSWORD
    return _SECRET_VALUE.sub(r"\1***", password.sub(lambda match: f"{match[1] or match[2]}***@", url))


def _redact_web(rest: str) -> str:
    place = re.split("[?#]", rest, maxsplit=1)[0]
    query = rest[len(place) :]
    host = place.partition("/")[0]
    if "@" in host or (":" in host and "@" in place):
        place = "***@" + place.rpartition("@")[2]
    elif ":" in host and ("@" in query or not _PORT.fullmatch(host)):  # a password that holds a question mark
        place = "***"
    return place + (f"{query[0]}***" if query else "")
