"""Snapshot sets in an object store: what `snapshots.py` does in a directory, where there is no rename and no link.

    output/
        versions/1795000000000/    a whole set with its manifest, never written again
        rolling_optimized.json.gz ...   fixed names for plain readers: copies, each whole, for a moment of two sets
        manifest.json              put last: it says which set is the current one, and one put changes it

Invariant: a set is complete in the store before `manifest.json` names it, and a put is all or nothing. So whoever reads
`manifest.json` and then the set that it names sees one set, and a writer that dies at any moment leaves the old one.

No lock: stores have none that all of them know. Redis decides which run is on; while it is away, or with `--no-cache`,
two runs may write at the same time. Each has a set of its own, so both stay whole, and the one that finds the other's
manifest just before it puts its own is refused. Where both look at once, the last manifest wins. At worst that names
the older input's set, or one that the other run has swept; the next tick then finds another fingerprint, or a set that
is not whole, and makes it anew. Readers never go back to a version older than the one that they hold.

Errors: `OutputUnwritable` from what writes, `OutputUnreadable` from what reads; `PublishRefused`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final

from optimizer.errors import OutputUnreadable, OutputUnwritable
from optimizer.models import Manifest
from optimizer.snapshots.directory import (
    FILE_NAMES,
    KEPT_SETS,
    KINDS,
    MANIFEST_NAME,
    READ_ATTEMPTS,
    VERSIONS_NAME,
    Current,
    SnapshotSet,
    check_newer,
    decode_manifest,
    encode_manifest,
)
from optimizer.storage.location import Url
from optimizer.storage.object_store import answers, file_system

__all__ = ["mark_checked", "output_lock", "read_current", "read_manifest", "read_set", "write_set"]

# A set newer than the current one is being written, or its writer has died: nobody writes for so long. A version is
# milliseconds since the epoch.
GRACE_MS: Final = 3_600_000

_log = logging.getLogger(__name__)


@contextmanager
def output_lock(output: Url) -> Iterator[bool]:
    """See that the store answers before an input is scanned for it; yield True, for there is no lock to be had."""
    with _writing(output):
        read_manifest(output)
    yield True


def write_set(
    output: Url, snapshots: SnapshotSet, *, replaced: int | None = None, fence: Callable[[], None] = lambda: None
) -> None:
    """Put a set and make it the current one.

    Args:
        output: The place.
        snapshots: The set.
        replaced: The version that was current when its input was opened, 0 for none, see `check_newer`.
        fence: Called when the set is in the store, just before its names become its own; what it raises stops that.

    Raises:
        OutputUnwritable: The store does not answer or refuses; the current set is as it was.
        PublishRefused: A newer set is the current one by now.
    """
    store = file_system(output)
    version, manifest = snapshots.manifest.version, encode_manifest(snapshots.manifest)
    directory = _set_of(output, version)
    files = {FILE_NAMES[kind]: data for kind, data in snapshots.payloads.items()}
    with _writing(output):
        try:
            store.pipe({(directory / name).text: data for name, data in {**files, MANIFEST_NAME: manifest}.items()})
            fence()
            check_newer(version, replaced, read_manifest(output), output)
        except BaseException:
            _remove(output, version)
            raise
        store.pipe({(output / name).text: data for name, data in files.items()})
        store.pipe_file((output / MANIFEST_NAME).text, manifest)
    _sweep(output, version)


def read_manifest(output: Url) -> Manifest | None:
    """The manifest of the current set, or `None` where there is no usable one.

    Raises:
        OutputUnreadable: The store does not say.
    """
    with _reading(output):
        try:
            return decode_manifest(file_system(output).cat_file((output / MANIFEST_NAME).text))
        except FileNotFoundError:
            return None


def read_current(output: Url) -> Current | None:
    """The manifest of the current set with its time by the store's clock, or `None` where there is no usable one.

    Raises:
        OutputUnreadable: The store does not say.
    """
    store, name = file_system(output), (output / MANIFEST_NAME).text
    with _reading(output):
        try:
            modified: datetime = store.modified(name)
            manifest = decode_manifest(store.cat_file(name))
        except FileNotFoundError:
            return None
    seconds = (modified if modified.tzinfo else modified.replace(tzinfo=UTC)).timestamp()
    return None if manifest is None else Current(manifest, seconds)


def read_set(output: Url, *, kinds: Sequence[str] = KINDS) -> SnapshotSet | None:
    """Read the current set, or some kinds of it, checked against the manifest; `None` where it is not whole.

    Raises:
        OutputUnreadable: The store does not answer.
    """
    store = file_system(output)
    for _ in range(READ_ATTEMPTS):
        manifest = read_manifest(output)
        if manifest is None or not manifest.snapshots.keys() >= set(kinds):
            return None
        directory = _set_of(output, manifest.version)
        with _reading(output):
            try:
                payloads = {kind: store.cat_file((directory / manifest.snapshots[kind].file).text) for kind in kinds}
            except FileNotFoundError:
                continue  # swept between two reads: the manifest names another set by now
        found = SnapshotSet(manifest, payloads)
        return found if found.is_whole else None
    return None


def mark_checked(output: Url) -> None:
    """Note that the current set is still the newest: the manifest is put again, for the time that the store gives it.

    Fixed names that somebody removed, or that are another set's by their size, are mended.
    """
    store = file_system(output)
    with _writing(output):
        data = store.cat_file((output / MANIFEST_NAME).text)
        manifest = decode_manifest(data)
        if manifest is None:
            return  # damaged since it was read: the next run makes a new set
        sizes = {_last_piece(info["name"]): info["size"] for info in store.ls(output.text, detail=True)}
        for entry in manifest.snapshots.values():
            if sizes.get(entry.file) != entry.bytes:
                content = store.cat_file((_set_of(output, manifest.version) / entry.file).text)
                store.pipe_file((output / entry.file).text, content)
        store.pipe_file((output / MANIFEST_NAME).text, data)


def _set_of(output: Url, version: int) -> Url:
    return output / VERSIONS_NAME / str(version)


def _sweep(output: Url, current: int) -> None:
    """Remove sets older than the kept ones, and what dead writers left; what cannot be removed harms nobody."""
    try:
        with answers(output):
            found = file_system(output).find((output / VERSIONS_NAME).text)
        pieces = [name.rsplit("/", 2)[-2:] for name in found]
        versions = sorted({int(version) for version, file in pieces if version.isdecimal() and file in _OUR_NAMES})
        kept = [version for version in versions if version <= current][-KEPT_SETS:]
        oldest_written = time.time() * 1000 - GRACE_MS
        for version in versions:
            if version not in kept and (version < current or version < oldest_written):
                _remove(output, version)
    except OSError as error:
        _log.warning("[RollingOptimizer] old sets of snapshots stay: %s", error)


def _remove(output: Url, version: int) -> None:
    """Remove our objects of one set, as far as the store lets us."""
    store, directory = file_system(output), _set_of(output, version)
    for name in sorted(_OUR_NAMES):
        try:
            with answers(output):
                store.rm_file((directory / name).text)
        except FileNotFoundError:
            continue
        except OSError as error:
            _log.warning("[RollingOptimizer] an old set of snapshots stays: %s", error)
            return


_OUR_NAMES: Final = frozenset({MANIFEST_NAME, *FILE_NAMES.values()})


def _last_piece(name: str) -> str:
    return name.rpartition("/")[2]


@contextmanager
def _reading(output: Url) -> Iterator[None]:
    try:
        with answers(output):
            yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise OutputUnreadable(str(error)) from error


@contextmanager
def _writing(output: Url) -> Iterator[None]:
    try:
        with answers(output):
            yield
    except FileNotFoundError as error:
        raise OutputUnwritable(
            f"{output}: {error}; the old snapshots are as they were. Is there such a bucket? Make it, or set "
            "ROLLING_OUTPUT_DIR to another"
        ) from error
    except OSError as error:
        raise OutputUnwritable(f"{error}; the old snapshots are as they were, see ROLLING_OUTPUT_DIR") from error
