"""The error of `rolling-optimizer up` and `demo`; apart from the processes, since every command looks for a stack."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from optimizer.errors import RollingError

__all__ = ["StackFailed", "writing"]


class StackFailed(RollingError):
    """A process of the stack ended by itself, or did not start."""


@contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Turn a failure to write in the block into one line.

    Args:
        directory: Where the block writes.

    Raises:
        StackFailed: Something cannot be made or written.
    """
    try:
        yield
    except OSError as error:
        path = Path(error.filename or directory).absolute()
        raise StackFailed(
            f"{path} cannot be written: {error.strerror or error}; start this in a directory that you may write to"
        ) from error
