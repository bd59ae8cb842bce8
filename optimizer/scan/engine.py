"""The engines: two pruners with the same results.

- `native`: the compiled kernel, about as fast as inflating. The default if it was compiled.
- `ijson`: pure Python, 5 to 15 times slower, and the readable specification. The default if it was not.

`auto` takes the faster one that is available. A service with a time budget must not run on the slow one unnoticed, so a
worker logs `Engine.warning` at its start.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final, Protocol

from optimizer.errors import SettingsInvalid
from optimizer.scan.batch import OnBatch
from optimizer.scan.fragment import Fragment
from optimizer.scan.layout import DEFAULT_NAMES, Layout, RecordNames
from optimizer.scan.pruner import Pruner

__all__ = ["AnyPruner", "Engine", "choose_engine", "usable_cores"]

_BUILD = (
    "reinstall with a C compiler there: BUILD_EXTENSION=yes pip install --force-reinstall --no-deps rolling-optimizer"
)


class AnyPruner(Protocol):
    """The methods of both pruners."""

    def feed(self, chunk: bytes | memoryview, /) -> Iterable[Fragment]:
        """Process the next bytes; return the fragments that they complete."""

    def close(self) -> Iterable[Fragment]:
        """End the input; return the last fragments."""


class PrunerFactory(Protocol):
    """Makes a pruner."""

    def __call__(
        self,
        *,
        default: Layout,
        members: Mapping[bytes, Layout],
        max_unit_bytes: int,
        on_batch: OnBatch,
        names: RecordNames = DEFAULT_NAMES,
    ) -> AnyPruner: ...


@dataclass(frozen=True)
class Engine:
    """One way to scan.

    `chunk_bytes` is its best chunk size. `threads` is the best number of threads, besides the scan's, to inflate the
    input: more than one if the scan releases the GIL and there are cores for them. `warning` is for operators.
    """

    name: str
    pruner: PrunerFactory
    chunk_bytes: int
    threads: int
    warning: str | None = None

    @property
    def ahead(self) -> bool:
        """Whether it is faster to inflate on a thread other than the scan's."""
        return self.threads > 1


@cache
def choose_engine(name: str) -> Engine:
    """Return the engine for `ROLLING_ENGINE`: `auto`, `native` or `ijson`.

    Raises:
        SettingsInvalid: `native` is required and was not compiled.
    """
    if name != "ijson":
        try:
            from optimizer.scan.native_pruner import NativePruner  # noqa: PLC0415 - exists only where it was compiled
        except ImportError as error:
            reason = f"the native engine is not there ({error})"
        else:
            return Engine("native", NativePruner, chunk_bytes=_NATIVE_CHUNK_BYTES, threads=usable_cores())
        if name == "native":
            raise SettingsInvalid(f"ROLLING_ENGINE=native, but {reason}; {_BUILD}")
        warning = f"scans run on the slow engine and take 5 to 15 times as long: {reason}; {_BUILD}"
        return Engine("ijson", _python_pruner, _CHUNK_BYTES, threads=1, warning=warning)
    return Engine("ijson", _python_pruner, _CHUNK_BYTES, threads=1)


def _python_pruner(
    *,
    default: Layout,
    members: Mapping[bytes, Layout],
    max_unit_bytes: int,
    on_batch: OnBatch,
    names: RecordNames = DEFAULT_NAMES,
) -> AnyPruner:
    del on_batch  # it has no batches: all records come as fragments
    return Pruner(default=default, members=members, max_unit_bytes=max_unit_bytes, names=names)


def usable_cores() -> int:
    """Return the number of cores that this process may use; without `sched_getaffinity`, of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# A chunk of nothing but brackets becomes one fragment per byte, so chunks are small to keep memory small.
_CHUNK_BYTES: Final = 64 * 1024
# Larger chunks share the cost of passing them between threads; still larger ones do not fit the core's cache.
_NATIVE_CHUNK_BYTES: Final = 768 * 1024
