"""A time limit for calls that may block forever, as system calls do on a network file system whose server is gone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["TimeLimit"]

T = TypeVar("T")


class TimeLimit:
    """Run one function at a time on a thread, and wait no longer than `limit_s` for it.

    A blocked thread cannot be ended. As long as it blocks no other is started, so there is never more than one.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._thread: threading.Thread | None = None

    def __call__(self, function: Callable[[], T]) -> T:
        """Return the function's result, or raise its exception.

        Raises:
            OSError: This call, or an earlier one, has not returned yet.
        """
        if self._thread is not None and self._thread.is_alive():
            raise TimeoutError("no answer to an earlier request yet")
        results: list[Any] = []
        errors: list[BaseException] = []

        def target() -> None:
            try:
                results.append(function())
            except BaseException as error:  # raised again by the thread that asks
                errors.append(error)

        thread = threading.Thread(target=target, name="rolling-files", daemon=True)
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
        result: T = results[0]
        return result
