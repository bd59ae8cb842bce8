"""The entry of the `rolling-optimizer` command, and of `python -m optimizer.cli`."""

from __future__ import annotations

import os
import sys

from optimizer.cli import INTERRUPTED

__all__ = ["main"]


def main() -> None:
    """Run the command that `sys.argv` names; without colours if `NO_COLOR` is set (no-color.org)."""
    try:
        # Imported here, since it takes half a second, in which Ctrl-C has to end with one line too.
        from optimizer.cli.commands import commands  # noqa: PLC0415

        commands(prog_name="rolling-optimizer", color=False if os.environ.get("NO_COLOR") else None)
    except KeyboardInterrupt:
        sys.stderr.write("rolling-optimizer: interrupted\n")
        sys.exit(INTERRUPTED)
