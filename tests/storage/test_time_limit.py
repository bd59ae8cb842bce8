"""A call that may block for ever is abandoned at its time limit."""

from __future__ import annotations

import threading
import time

import pytest

from optimizer.storage.time_limit import TimeLimit
from tests.support.redis_servers import wait_until


def test_it_returns_what_the_work_returns_or_raises() -> None:
    """A call within its limit returns or raises the same as a plain call of the function."""
    limited = TimeLimit(5.0)
    assert limited(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        limited(lambda: 1 / 0)


def test_what_hangs_is_given_up_and_nothing_is_begun_beside_it() -> None:
    """A call that hangs is abandoned at its limit; until it ends, further calls fail at once and start nothing.

    Then calls work as before.
    """
    limited = TimeLimit(0.05)
    goes_on, begun = threading.Event(), []
    with pytest.raises(OSError, match=r"no answer in 0\.05 s"):
        limited(goes_on.wait)
    started = time.monotonic()
    for _ in range(100):
        with pytest.raises(OSError, match="no answer to an earlier request"):
            limited(lambda: begun.append(1))
    assert time.monotonic() - started < 5
    assert begun == []

    goes_on.set()

    def is_done() -> bool:
        try:
            return limited(lambda: True)
        except OSError:
            return False

    wait_until(is_done, what="the end of what hung")
