"""Reading ahead on a thread gives the same chunks and errors, and leaves no thread when it is stopped."""

from __future__ import annotations

import itertools
import signal
import threading
from collections.abc import Generator

import pytest

from optimizer.source.read_ahead import read_ahead
from tests.support.redis_servers import wait_until


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "read-ahead"]


class Chunks:
    """A generator of `count` numbered chunks, and then an error if one is given.

    It records how many chunks it has produced, and on which thread it was closed.
    """

    def __init__(self, count: int, error: Exception | None = None) -> None:
        self.count, self.error = count, error
        self.made = 0
        self.closed_on = ""

    def __call__(self) -> Generator[bytes]:  # noqa: D102 - see the class
        try:
            for number in range(self.count):
                self.made += 1
                yield b"%d" % number
            if self.error is not None:
                raise self.error
        finally:
            self.closed_on = threading.current_thread().name


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 1_000])
def test_all_chunks_come_in_order(count: int) -> None:
    """All chunks arrive in order, whether there are fewer or more than are read ahead; then the thread ends."""
    chunks = Chunks(count)

    with read_ahead(chunks()) as ahead:
        assert list(ahead) == [b"%d" % number for number in range(count)]

    assert chunks.closed_on == "read-ahead"
    assert not threads()


@pytest.mark.parametrize("count", [0, 2, 50])
def test_an_error_comes_in_its_place(count: int) -> None:
    """An error of the generator is raised unchanged, after the chunks before it."""
    error = EOFError("torn")
    chunks: list[bytes] = []

    with pytest.raises(EOFError) as caught, read_ahead(Chunks(count, error)()) as ahead:
        chunks.extend(ahead)

    assert caught.value is error
    assert len(chunks) == count
    assert not threads()


@pytest.mark.parametrize("taken", [0, 1, 7])
def test_stopping_early_leaves_no_thread(taken: int) -> None:
    """If the caller fails before the last chunk, the generator is closed on the thread that used it, which ends."""
    chunks = Chunks(10**9)

    with pytest.raises(ZeroDivisionError), read_ahead(chunks()) as ahead:
        assert len(list(itertools.islice(ahead, taken))) / 0

    assert chunks.closed_on == "read-ahead"
    assert not threads()


def test_a_few_chunks_are_ahead_and_no_more() -> None:
    """At most three chunks are ahead of the caller, so memory is bounded, however slowly the chunks are consumed."""
    chunks = Chunks(100)

    with read_ahead(chunks()) as ahead:
        wait_until(lambda: chunks.made == 3, what="three chunks")
        next(ahead)
        wait_until(lambda: chunks.made == 4, what="one more")
        assert chunks.made == 4


def test_a_time_limit_interrupts_the_wait() -> None:
    """An error that a signal handler raises, as Celery's soft limit does, ends the wait for an input that blocks."""
    hangs = threading.Event()

    def chunks() -> Generator[bytes]:
        yield b"one"
        hangs.wait(10)

    def expire(*_: object) -> None:
        hangs.set()  # or the thread could not be joined
        raise TimeoutError("soft limit")

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(TimeoutError, match="soft limit"), read_ahead(chunks()) as ahead:
            list(ahead)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not threads()
