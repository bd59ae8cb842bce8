"""Calls that may hang for ever, with a limit: a network file system whose server is gone answers no system call."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["Patience"]

T = TypeVar("T")


class Patience:
    """Does one thing at a time on a thread of its own, and waits for it no longer than `limit_s`.

    A thread that hangs cannot be ended. While it does, nothing else is begun, so that there is never more than one.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._thread: threading.Thread | None = None

    def __call__(self, work: Callable[[], T]) -> T:
        """The result of `work`, or what it raises.

        Raises:
            OSError: There is no answer yet, to this question or to one before.
        """
        if self._thread is not None and self._thread.is_alive():
            raise TimeoutError("no answer to an earlier question yet")
        results: list[Any] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                results.append(work())
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=run, name="rolling-files", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the interpreter is shutting down, or there are too many threads
            raise OSError(str(error)) from error
        thread.join(self._limit_s)
        if thread.is_alive():
            self._thread = thread
            raise TimeoutError(f"no answer in {self._limit_s:g} s")
        if errors:
            raise errors[0]
        found: T = results[0]
        return found
