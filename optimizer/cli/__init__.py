"""The `rolling-optimizer` command."""

from typing import Final

__all__ = ["INTERRUPTED"]

# The exit status after Ctrl-C: 128 plus the number of SIGINT.
INTERRUPTED: Final = 130
