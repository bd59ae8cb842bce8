"""A stack whose Python processes are forked, since most of a start is imports."""

from __future__ import annotations

import subprocess
from typing import cast

from optimizer.cli.dev.stack import Stack
from tests.support.fork_server import can_fork, fork_server

__all__ = ["ForkingStack"]


class ForkingStack(Stack):
    """A stack that forks a process where it would be the same, also behind `env -C DIRECTORY`."""

    def _spawn(self, command: list[str], environ: dict[str, str]) -> subprocess.Popen[bytes]:
        directory = "."
        python = command
        if command[:2] == ["env", "-C"]:
            directory, *python = command[2:]
        if not can_fork(python, environ):
            return super()._spawn(command, environ)
        return cast("subprocess.Popen[bytes]", fork_server.start(python, environ, directory))
