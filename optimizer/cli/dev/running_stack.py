"""The addresses of the stack of `rolling-optimizer up`, for other commands in the same directory.

`up` locks `.up/stack.json` (`flock`) while it runs; the lock ends with its process, however that ends. The file has the
URLs of its Redis and its broker. They may contain passwords, so only its owner can read it, and another user's file is
ignored: anyone can make a `.up` in a directory like `/tmp`.

Errors: `StackFailed`, if the file cannot be written or another `up` runs.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from optimizer.cli.dev.failure import StackFailed, writing
from optimizer.config.environment import FILE_SUFFIX
from optimizer.models import UNDECODABLE

__all__ = ["DIRECTORY", "announcing", "stack_variables"]

DIRECTORY: Final = Path(".up")
FILE: Final = "stack.json"
VARIABLES: Final = ("ROLLING_REDIS_URL", "ROLLING_BROKER_URL")
# A command that only checks holds the lock for a moment, too.
LOCK_S: Final = 1.0


@contextmanager
def announcing(directory: Path) -> Iterator[Callable[[Mapping[str, str]], None]]:
    """Yield a function that publishes the stack's environment, until the end of the block.

    Raises:
        StackFailed: The directory cannot be written, or a stack runs in it: two would write the same Redis files.
    """
    with writing(directory):
        directory.mkdir(exist_ok=True)
        descriptor = os.open(directory / FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        if os.fstat(descriptor).st_uid != os.geteuid():
            raise StackFailed(
                f"{(directory / FILE).absolute()} belongs to another user: start this in another directory"
            )
        if not _try_to_lock(descriptor):
            raise StackFailed(
                f"another `rolling-optimizer up` runs in {directory.absolute().parent}: stop it, or start this one in "
                "another directory"
            )
        os.ftruncate(descriptor, 0)

        def announce(environ: Mapping[str, str]) -> None:
            told = {name: environ[name] for name in VARIABLES if environ.get(name)}
            with writing(directory):
                os.pwrite(descriptor, msgspec.json.encode(told), 0)

        yield announce
    finally:
        os.close(descriptor)


def stack_variables(environ: Mapping[str, str], directory: Path = DIRECTORY) -> dict[str, str]:
    """Return the variables with the addresses of the stack of a directory.

    They are empty if none runs there, and if the environment sets the address of Redis or of the broker.
    """
    if any(environ.get(name) or environ.get(name + FILE_SUFFIX) for name in VARIABLES):
        return {}
    try:
        descriptor = os.open(directory / FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # of a FIFO too
    except OSError:  # none has run here, or another user's
        return {}
    try:
        if os.fstat(descriptor).st_uid != os.geteuid() or not _is_held(descriptor):
            return {}
        return msgspec.json.decode(os.pread(descriptor, 1 << 16, 0), type=dict[str, str])
    except UNDECODABLE:  # Redis does not answer yet
        return {}
    finally:
        os.close(descriptor)


def _try_to_lock(descriptor: int) -> bool:
    """Lock the file for this process; whether that was possible."""
    deadline = time.monotonic() + LOCK_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        else:
            return True


def _is_held(descriptor: int) -> bool:
    """Whether another process holds the lock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False
