"""What may hang for ever is given up after a moment."""

from __future__ import annotations

import threading
import time

import pytest

from optimizer.storage.time_limit import Patience
from tests.support.redis_servers import wait_until


def test_it_returns_what_the_work_returns_or_raises() -> None:
    """As if it had been called."""
    patience = Patience(5.0)
    assert patience(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        patience(lambda: 1 / 0)


def test_what_hangs_is_given_up_and_nothing_is_begun_beside_it() -> None:
    """Until it ends, each further question fails at once; then all is as before."""
    patience = Patience(0.05)
    goes_on, begun = threading.Event(), []
    with pytest.raises(OSError, match=r"no answer in 0\.05 s"):
        patience(goes_on.wait)
    started = time.monotonic()
    for _ in range(100):
        with pytest.raises(OSError, match="no answer to an earlier question"):
            patience(lambda: begun.append(1))
    assert time.monotonic() - started < 5
    assert begun == []

    goes_on.set()

    def is_done() -> bool:
        try:
            return patience(lambda: True)
        except OSError:
            return False

    wait_until(is_done, what="the end of what hung")
