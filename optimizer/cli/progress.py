"""A progress bar on stderr, for commands that take long, if stderr is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from optimizer.pipeline.run import Progress

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(label: str, *, shown: bool = True) -> Iterator[Progress | None]:
    """Draw a bar; yield a function to call with the amount done and the total.

    Args:
        label: The activity.
        shown: False for no bar. Then, and if stderr is not a terminal, it yields `None`.
    """
    if not (shown and sys.stderr.isatty()):
        yield None
        return
    with click.progressbar(length=1, label=label, file=sys.stderr) as bar:

        def tell(done: int, total: int) -> None:
            bar.length = max(1, total)
            bar.update(done - bar.pos)

        yield tell
