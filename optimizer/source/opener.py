"""From the name of an input to the open input, or to the inputs that a pattern names: in a directory or in a store.

Parts are in the order of their names, always, so that a run over them means one thing. What is written as a pattern,
and is the very name of a file that is there, is that file.
"""

from __future__ import annotations

import glob
import os
import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from optimizer.source.file import Source
from optimizer.source.remote import RemoteSource, readable
from optimizer.source.web_file import WebSource
from optimizer.storage.location import Location, Url, is_pattern
from optimizer.storage.object_store import file_system

__all__ = ["expand", "open_source", "where_looked"]

SHOWN_NAMES: Final = 3


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
    """What a pattern names at this moment, by name; a location that names one file names itself.

    Raises:
        SourceUnreadable: The store of a URL does not answer.
    """
    if not is_pattern(location):
        return [location]
    if isinstance(location, Url):
        return [*_expand_url(location)]
    before, pieces = _split(location)
    if not pieces:
        return [location]
    # A name that begins with a dot is being written by somebody; `*` does not match it.
    found = glob.glob(str(Path(glob.escape(str(before)), *pieces)), recursive=True)  # noqa: PTH207 - as URLs have it
    return [Path(path) for path in sorted(found)]


def where_looked(pattern: Location) -> str:
    """What is there in place of a match: the directory before the first wildcard, or why it shows nothing."""
    if isinstance(pattern, Url):
        before = Url(re.split(r"[*?[]", pattern.text, maxsplit=1)[0].rpartition("/")[0])
        return f"nothing of that name lies below {before}/, or there is no such bucket"
    directory = _split(pattern)[0].absolute()
    try:
        names = sorted(os.listdir(directory))  # noqa: PTH208 - names are what is shown
    except FileNotFoundError:
        return f"the directory {directory} does not exist"
    except OSError as error:
        return f"the directory {directory} cannot be listed: {error.strerror}"
    if not names:
        return f"the directory {directory} is empty"
    shown = ", ".join(map(repr, names[:SHOWN_NAMES])) + (", ..." if len(names) > SHOWN_NAMES else "")
    return f"the directory {directory} is there and holds {len(names):,} other names: {shown}"


def _split(pattern: Path) -> tuple[Path, tuple[str, ...]]:
    """The directory (or file) before the first piece that is a pattern and no name of what is there; and the rest."""
    before = Path()
    for number, piece in enumerate(pattern.parts):
        if glob.has_magic(piece) and not os.path.exists(before / piece):  # noqa: PTH110 - `Path` raises where it may not look
            return before, pattern.parts[number:]
        before /= piece
    return before, ()


def _expand_url(pattern: Url) -> list[Url]:
    with readable(pattern):
        store = file_system(pattern)
        if store.isfile(pattern.text):
            return [pattern]
        found = store.glob(pattern.text, detail=True)
        # A key that ends in a slash is what some tools make for a directory.
        names = [store.unstrip_protocol(name) for name, info in found.items() if info["type"] == "file"]
    return [Url(name) for name in sorted(names) if not _is_hidden(name, pattern.text)]


def _is_hidden(name: str, pattern: str) -> bool:
    """Whether a piece begins with a dot that the pattern does not spell out; fsspec's `*` matches it."""
    spelt = [piece for piece in pattern.split("/") if piece.startswith(".")]
    return any(piece.startswith(".") and not any(fnmatchcase(piece, one) for one in spelt) for piece in name.split("/"))
