"""Where inputs and outputs lie: local paths, and URLs of object stores.

A pattern (`*`, `?`, `[...]`, and `**` for any depth) names several inputs, the parts of one source. Parts are in the
order of their names, always, so that a run over them means one thing.
"""

from __future__ import annotations

import glob
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from optimizer.errors import SourceUnreadable

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


def expand(location: Location) -> list[Location]:
    """What a pattern names at this moment, by name; a location that is no pattern names itself.

    Raises:
        SourceUnreadable: The store of a URL does not answer.
    """
    if not is_pattern(location):
        return [location]
    if isinstance(location, Url):
        return [*_expand_url(location)]
    # A name that begins with a dot is being written by somebody; `*` does not match it.
    found = glob.glob(str(location), recursive=True)  # noqa: PTH207 - the rules that URLs have too
    return [Path(path) for path in sorted(found)]


def _expand_url(pattern: Url) -> list[Url]:
    from optimizer.stores import answers, file_system  # noqa: PLC0415 - it knows `Url`

    try:
        with answers(pattern):
            store = file_system(pattern)
            found = store.glob(pattern.text, detail=True)
            # A key that ends in a slash is what some tools make for a directory.
            names = [store.unstrip_protocol(name) for name, info in found.items() if info["type"] == "file"]
    except OSError as error:
        raise SourceUnreadable(str(error)) from error
    return [Url(name) for name in sorted(names) if not _is_hidden(name, pattern.text)]


def _is_hidden(name: str, pattern: str) -> bool:
    """Whether a piece begins with a dot that the pattern does not spell out; fsspec's `*` matches it."""
    spelt = [piece for piece in pattern.split("/") if piece.startswith(".")]
    return any(piece.startswith(".") and not any(fnmatchcase(piece, one) for one in spelt) for piece in name.split("/"))
