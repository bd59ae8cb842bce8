"""From the name of an input to the open input, or to the inputs that a pattern names: in a directory or in a store.

Parts are in the order of their names, always, so that a run over them means one thing.
"""

from __future__ import annotations

import glob
from fnmatch import fnmatchcase
from pathlib import Path

from optimizer.errors import SourceUnreadable
from optimizer.locations import Location, Url, is_pattern
from optimizer.remote import RemoteSource
from optimizer.source import Source
from optimizer.stores import answers, file_system
from optimizer.web_source import WebSource

__all__ = ["expand", "open_source"]


def open_source(location: Location) -> Source:
    """Open an input, wherever it lies.

    Raises:
        SourceMissing: There is none.
        SourceUnreadable: It, or its store, cannot be read.
    """
    if isinstance(location, Url):
        return WebSource(location) if location.is_web else RemoteSource(location)
    return Source(location)


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
