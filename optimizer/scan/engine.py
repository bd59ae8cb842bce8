"""The engines: two ways to prune, one meaning.

- `native`: the compiled kernel, at the speed of inflate. The default where it is there.
- `ijson`: pure Python, 5 to 15 times slower, and the readable specification. It runs where no compiler was.

`auto` takes the faster of what is there. That must not go unnoticed in a service with a time budget, so a worker says
at its start which one it runs (`Engine.warning`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final, Protocol

from optimizer.errors import SettingsInvalid
from optimizer.scan.batch import Run
from optimizer.scan.fragment import Layout, Piece
from optimizer.scan.pruner import Pruner

__all__ = ["AnyPruner", "Engine", "choose_engine"]

_BUILD = (
    "reinstall with a C compiler there: BUILD_EXTENSION=yes pip install --force-reinstall --no-deps rolling-optimizer"
)


class AnyPruner(Protocol):
    """What both pruners do."""

    def feed(self, chunk: bytes, /) -> Iterable[Piece | Run]:
        """Take the next bytes; give the pieces that they complete."""

    def close(self) -> Iterable[Piece | Run]:
        """End the input; give the last pieces."""


class PrunerFactory(Protocol):
    """What makes a pruner."""

    def __call__(self, *, default: Layout, members: Mapping[bytes, Layout], max_unit_bytes: int) -> AnyPruner: ...


@dataclass(frozen=True)
class Engine:
    """One way to scan.

    `chunk_bytes` is how much it likes to get at a time; `ahead` says whether inflating on another thread pays, which it
    does where the scan leaves the interpreter to others. `warning` is what operators should know of it.
    """

    name: str
    pruner: PrunerFactory
    chunk_bytes: int
    ahead: bool
    warning: str | None = None


@cache
def choose_engine(name: str) -> Engine:
    """The engine for `ROLLING_ENGINE`: `auto`, `native` or `ijson`.

    Raises:
        SettingsInvalid: `native` was asked for and is not there.
    """
    if name != "ijson":
        try:
            from optimizer.scan.native_pruner import NativePruner  # noqa: PLC0415 - is there only where it was compiled
        except ImportError as error:
            reason = f"the native engine is not there ({error})"
        else:
            return Engine("native", NativePruner, chunk_bytes=_NATIVE_CHUNK_BYTES, ahead=_usable_cores() > 1)
        if name == "native":
            raise SettingsInvalid(f"ROLLING_ENGINE=native, but {reason}; {_BUILD}")
        warning = f"scans run on the slow engine and take 5 to 15 times as long: {reason}; {_BUILD}"
        return Engine("ijson", Pruner, _CHUNK_BYTES, ahead=False, warning=warning)
    return Engine("ijson", Pruner, _CHUNK_BYTES, ahead=False)


def _usable_cores() -> int:
    """Cores that this process may run on, where the system tells, else those that there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# A chunk of nothing but brackets becomes as many pieces as it has bytes, so small ones keep memory small.
_CHUNK_BYTES: Final = 64 * 1024
# Larger chunks share the cost of the hand-over from thread to thread; still larger ones fall out of the core's cache.
_NATIVE_CHUNK_BYTES: Final = 768 * 1024
