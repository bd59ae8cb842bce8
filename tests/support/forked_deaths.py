"""A process that forks a child for each line that it reads; the child kills itself before a given step.

A step is a packet to Redis, or a change of a file: opened for writing, made, renamed, linked, removed or touched.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import redis.connection


def die_at_steps(run: Callable[[list[int]], object]) -> None:
    """For each line of numbers (the step, then arguments), call `run` in a child, and print the child's exit status."""
    for line in sys.stdin:
        step, *arguments = map(int, line.split())
        child = os.fork()
        if not child:
            _die_before(step)
            run(arguments)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _die_before(left: int) -> None:
    sent: Any = redis.connection.AbstractConnection.send_packed_command

    def step() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        is_written = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if is_written or event in ("os.mkdir", "os.rename", "os.symlink", "os.remove", "os.rmdir", "os.utime"):
            step()

    def send(*arguments: Any, **options: Any) -> None:
        step()
        sent(*arguments, **options)

    redis.connection.AbstractConnection.send_packed_command = send  # type: ignore[method-assign]
    sys.addaudithook(hook)
