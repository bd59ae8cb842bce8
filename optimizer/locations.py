"""Where inputs and outputs lie: local paths, and URLs of object stores.

A pattern (`*`, `?`, `[...]`, and `**` for any depth) names several inputs, the parts of one source.
"""

from __future__ import annotations

import glob
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["Location", "Url", "is_pattern", "parse_location"]

_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


@dataclass(frozen=True)
class Url:
    """A place in an object store, such as `s3://bucket/rolling_brain.json.gz`; or a directory there."""

    text: str

    def __str__(self) -> str:
        return self.text

    @property
    def name(self) -> str:
        """The last piece."""
        return self.text.rstrip("/").rpartition("/")[2]

    @property
    def scheme(self) -> str:
        """What it begins with: `s3`, `gs`, ..."""
        return self.text.partition("://")[0]

    @property
    def root(self) -> str:
        """The store or bucket that it is in, such as `s3://bucket`."""
        scheme, _, rest = self.text.partition("://")
        return f"{scheme}://{rest.partition('/')[0]}"

    def __truediv__(self, name: str) -> Url:
        return Url(f"{self.text.rstrip('/')}/{name}")


Location = Path | Url


def parse_location(text: str) -> Location:
    """A path, or a URL where the text begins with a scheme; `file://` is a path."""
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    return Url(text) if _SCHEME.match(text) else Path(text)


def is_pattern(location: Location) -> bool:
    """Whether it names several inputs."""
    return glob.has_magic(str(location))
