"""Runs the `rolling-optimizer` command as users do."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

from tests.support.compose import ROOT
from tests.support.fork_server import run

__all__ = ["command_line", "in_terminal", "rolling_optimizer"]


def rolling_optimizer(directory: Path, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a directory."""
    environ = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    return run(command_line(*arguments), environ, directory)


def command_line(*arguments: object) -> list[str]:
    """The command with these arguments."""
    return [sys.executable, "-m", "optimizer.cli", *map(str, arguments)]


def in_terminal(directory: Path, *arguments: object, **variables: str) -> tuple[int, str]:
    """Run the command in its own terminal; return its exit status and its output."""
    ours, theirs = pty.openpty()
    given = {name: text for name, text in os.environ.items() if name != "NO_COLOR"}
    with subprocess.Popen(
        command_line(*arguments),
        cwd=directory,
        env=given | {"PYTHONPATH": str(ROOT), "TERM": "xterm"} | variables,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    ) as process:
        os.close(theirs)
        printed = b""
        while data := _read(ours):
            printed += data
        os.close(ours)
        return process.wait(60), printed.decode()


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 1 << 16)
    except OSError:  # how Linux reports the end of a terminal
        return b""
