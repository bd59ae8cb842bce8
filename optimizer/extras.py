"""Check that the packages of an extra are installed, without importing them: one sentence in place of a traceback."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from optimizer.errors import ExtraMissing

__all__ = ["install_command", "require"]


def require(what: str, extra: str, *packages: str) -> None:
    """Check that packages are installed.

    Args:
        what: The module or command that needs them.
        extra: The extra that installs them, or several, separated by commas.
        packages: Their import names.

    Raises:
        ExtraMissing: At least one is not installed; the message names it, and the command that installs it.
    """
    missing = [name for name in packages if not _is_installed(name)]
    if missing:
        are = "is" if len(missing) == 1 else "are"
        raise ExtraMissing(f"{what} needs {', '.join(missing)}, which {are} not installed: {install_command(extra)}")


def _is_installed(package: str) -> bool:
    """Whether a package can be imported. A loaded package is not searched for: kombu, once loaded, has no spec."""
    return sys.modules[package] is not None if package in sys.modules else find_spec(package) is not None


def install_command(extra: str) -> str:
    """Return the command that installs an extra, or several, separated by commas."""
    return f"pip install 'rolling-optimizer[{extra}]'"
