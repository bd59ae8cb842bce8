"""Open an input by its location, and expand a pattern to the inputs that it names, in a directory or in a store.

Parts are always in the order of their names, so that the result of a run over them is deterministic. A pattern that is
also the exact name of an existing file names that file.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from optimizer.source.input_file import InputFile
from optimizer.source.local_file import LocalFile
from optimizer.source.store_object import StoreObject, fingerprint_of, reading_input
from optimizer.source.web_file import WebFile
from optimizer.storage.location import Location, Url, is_pattern
from optimizer.storage.object_store import file_system

__all__ = ["expand", "fingerprints", "open_input_file", "split_pattern", "where_looked"]

SHOWN_NAMES: Final = 3


def open_input_file(location: Location) -> InputFile:
    """Open an input by its location.

    Raises:
        SourceMissing: There is none.
        SourceUnreadable: It, or its store or server, cannot be read.
    """
    if isinstance(location, Url):
        return InputFile(WebFile(location) if location.is_web else StoreObject(location))
    return InputFile(LocalFile(location))


def expand(location: Location) -> list[Location]:
    """Return the inputs that match a pattern at this moment, in the order of names; a plain location matches itself.

    Raises:
        SourceUnreadable: The store of a URL does not answer.
    """
    if not is_pattern(location):
        return [location]
    if isinstance(location, Url):
        return [*_expand_url(location)]
    before, pieces = split_pattern(location)
    if not pieces:
        return [location]
    # A name that begins with a dot is still being written; `*` does not match it.
    paths = glob.glob(str(Path(glob.escape(str(before)), *pieces)), recursive=True)  # noqa: PTH207 - as for URLs
    return [Path(path) for path in sorted(paths)]


def where_looked(pattern: Location) -> str:
    """Describe the directory before the first wildcard of a pattern without matches, or why it cannot be listed."""
    if isinstance(pattern, Url):
        before = Url(re.split(r"[*?[]", pattern.text, maxsplit=1)[0].rpartition("/")[0])
        return f"nothing of that name lies below {before}/, or there is no such bucket"
    directory = split_pattern(pattern)[0].absolute()
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


def split_pattern(pattern: Path) -> tuple[Path, tuple[str, ...]]:
    """Split a pattern before its first component that is a pattern and does not exist by that very name."""
    before = Path()
    for number, piece in enumerate(pattern.parts):
        if glob.has_magic(piece) and not os.path.exists(before / piece):  # noqa: PTH110 - `Path` raises where it may not look
            return before, pattern.parts[number:]
        before /= piece
    return before, ()


def fingerprints(url: Url) -> dict[str, str]:
    """Return the fingerprint of each input that a URL names at this moment, by one request to the store for many parts.

    Raises:
        SourceMissing: There is no such input. A pattern that matches nothing yields an empty result instead.
        SourceUnreadable: The store or server does not answer.
    """
    with reading_input(url):
        if is_pattern(url) and not file_system(url).isfile(url.text):
            return {str(name): fingerprint_of(info) for name, info in _matches(url)}
    with open_input_file(url) as source:
        return {str(url): source.fingerprint}


def _expand_url(pattern: Url) -> list[Url]:
    with reading_input(pattern):
        if file_system(pattern).isfile(pattern.text):
            return [pattern]
        return sorted((url for url, _ in _matches(pattern)), key=lambda url: url.text)


def _matches(pattern: Url) -> Iterator[tuple[Url, dict[str, Any]]]:
    """Yield the objects that match a pattern, each with the metadata that the store returns."""
    store = file_system(pattern)
    store.invalidate_cache()  # a store may cache listings, whatever its options say
    for path, info in store.glob(pattern.text, detail=True).items():
        name = store.unstrip_protocol(path)
        # Some tools create a key that ends in a slash for a directory.
        if info["type"] == "file" and not _is_hidden(name, pattern.text):
            yield Url(name), info


def _is_hidden(name: str, pattern: str) -> bool:
    """Whether a component begins with a dot and its pattern does not: fsspec's `*` matches hidden names too."""
    spelt = [piece for piece in pattern.split("/") if piece.startswith(".")]
    return any(piece.startswith(".") and not any(fnmatchcase(piece, one) for one in spelt) for piece in name.split("/"))
