"""Where inputs and outputs lie: local paths, and URLs of object stores.

A pattern (`*`, `?`, `[...]`, and `**` for any depth) names several inputs, the parts of one source. Parts are in the
order of their names, always, so that a run over them means one thing.
"""

from __future__ import annotations

import glob
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["Location", "Url", "expand", "is_pattern", "parse_location"]

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


def expand(location: Location) -> list[Location]:
    """What a pattern names at this moment, by name; a location that is no pattern names itself."""
    if not is_pattern(location):
        return [location]
    # A name that begins with a dot is being written by somebody; `*` does not match it.
    found = glob.glob(str(location), recursive=True)  # noqa: PTH207 - the rules that URLs have too
    return [Path(path) for path in sorted(found)]
