"""The runs that a watch sends and follows, with a real broker in which the test stores results as a worker does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from optimizer import Settings
from optimizer.celery import CelerySender, create_app
from optimizer.errors import CacheUnavailable
from optimizer.watch.landing import Landing, Seen
from optimizer.watch.sent_runs import FOLLOW_S, SKIPPED_AT_MOST_S, SKIPPED_S, SentRuns
from tests.support.redis_servers import RedisServer

QUEUE = "rolling.rolling_brain"
SKIPPED = {"status": "skipped", "source": "rolling_brain", "timestamp": "", "reason": "already_running"}
DONE = {"status": "success", "source": "rolling_brain", "timestamp": "", "version": 1}


class Watched:
    """An input, the runs that are sent for it, and a clock."""

    def __init__(self, settings: Settings, broker: redis.Redis) -> None:
        self.landing = Landing(1.0)
        self.sender = CelerySender(create_app())
        self.runs = SentRuns(settings, self.sender, self.landing)
        self.now_s = 100.0
        self.broker = broker

    def replace(self, version: str) -> None:
        """Let the watch see a renamed file of this version."""
        self.landing.observe({"a": Seen(version, version, is_whole=True)}, self.now_s)

    def step(self, seconds: float = FOLLOW_S) -> int:
        """Let time pass and make a step; return how many runs are in the queue."""
        self.now_s += seconds
        self.runs.step(self.now_s)
        return self.broker.llen(QUEUE)

    def last(self) -> str:
        """The id of the run that was sent last."""
        run: str = json.loads(self.broker.lindex(QUEUE, 0) or b"")["headers"]["id"]
        return run

    def end(self, result: dict[str, Any] | None, status: str = "SUCCESS", run: str = "") -> None:
        """Store the state and the result of a run, by default of the last one."""
        self.broker.set(f"celery-task-meta-{run or self.last()}", json.dumps({"status": status, "result": result}))


@pytest.fixture
def watched(settings: Settings, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    """A watch that has sent nothing yet."""
    monkeypatch.setenv("ROLLING_REDIS_URL", redis_server.url)
    monkeypatch.setenv("ROLLING_INPUT", str(settings.input))
    with redis_server.client as broker:
        yield Watched(settings, broker)


def test_what_lands_while_a_run_is_on_makes_one_more(watched: Watched) -> None:
    """If the input is replaced during a run, however often, one more run is sent after it; otherwise none is."""
    assert watched.step() == 0
    watched.replace("1")
    assert watched.step() == 1
    for version in "2345":
        watched.end({"percent": 5}, "PROGRESS")
        watched.replace(version)
        assert watched.step() == 1
    watched.end(DONE)
    assert watched.step() == 2
    watched.end(DONE)
    assert [watched.step() for _ in range(5)] == [2] * 5


def test_a_run_that_fails_is_left_to_the_next_tick(watched: Watched) -> None:
    """A run that failed is not repeated, so that a bad input is not scanned again and again.

    For the next input a run is sent at once.
    """
    watched.replace("1")
    assert watched.step() == 1
    watched.end({"exc_type": "SourceMalformed", "exc_message": ["x"], "exc_module": "optimizer.errors"}, "FAILURE")
    assert [watched.step() for _ in range(5)] == [1] * 5
    watched.replace("2")
    assert watched.step() == 2


def test_a_run_that_found_the_source_locked_is_sent_again(watched: Watched) -> None:
    """A skipped run is sent again, after pauses that grow up to a limit; a success resets them.

    The end of the run that holds the lock (of a tick, for example) is not known to the watch.
    """
    watched.replace("1")
    assert watched.step() == 1
    sent = 1
    for version in "23":
        for pause_s in (SKIPPED_S, 2 * SKIPPED_S, 4 * SKIPPED_S, SKIPPED_AT_MOST_S, SKIPPED_AT_MOST_S):
            watched.end(SKIPPED)
            assert watched.step() == sent
            assert watched.step(pause_s * 0.9) == sent
            assert watched.step(pause_s * 0.2) == sent + 1
            sent += 1
        watched.end(DONE)
        assert watched.step() == sent
        watched.replace(version)
        assert watched.step() == sent + 1
        sent += 1


def test_a_run_of_another_sender_may_have_read_the_input_before(watched: Watched) -> None:
    """After a pending run of another sender, which may have read the input before it was replaced, one more is sent."""
    run = watched.sender.send(force=False, accept=False, source="rolling_brain")
    watched.end(None, "STARTED", run)
    watched.replace("1")
    assert watched.step() == 1
    watched.end(DONE, run=run)
    assert watched.step() == 2
    assert watched.last() != run
    watched.end(DONE)
    assert [watched.step() for _ in range(3)] == [2] * 3


@pytest.mark.parametrize("stored", [None, "STARTED"])
def test_a_run_that_never_ends_is_given_up(
    watched: Watched, caplog: pytest.LogCaptureFixture, stored: str | None
) -> None:
    """A run that no worker begins within 60 s, or ends within 300 s, is given up: another is sent, with one warning.

    Either no worker has begun it, or the worker that did was killed.
    """
    watched.replace("1")
    assert watched.step() == 1
    if stored:
        watched.end(None, stored)
    assert watched.step() == 1
    limit_s = 300 if stored else 60
    assert watched.step(limit_s - 5) == 1
    # The sender gives it up by the same limits, but by the real clock, on which no second has passed.
    watched.broker.delete("rolling:{rolling_brain}:requested")
    assert watched.step(10) == 2

    def warnings() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]

    watched.end({"exc_type": "TaskRevokedError", "exc_message": ["expired"]}, "REVOKED")  # as by a worker that is late
    assert watched.step() == 3
    assert len(warnings()) == 1
    assert "no worker has ended run" in warnings()[0]
    watched.end(DONE)
    assert watched.step() == 3
    watched.replace("2")
    assert watched.step() == 4
    watched.end({"exc_type": "TaskRevokedError", "exc_message": ["expired"]}, "REVOKED")
    assert watched.step() == 5
    assert len(warnings()) == 2


def test_a_broker_that_forgets_the_run(watched: Watched, own_redis: RedisServer, settings: Settings) -> None:
    """If the broker restarts empty, a run for the landed input is sent again, without waiting for the lost one."""
    own_redis.start()
    with pytest.MonkeyPatch.context() as patch, own_redis.client as broker:
        patch.setenv("ROLLING_REDIS_URL", own_redis.url)
        patch.setenv("ROLLING_INPUT", str(settings.input))
        watched = Watched(settings, broker)
        watched.replace("1")
        assert watched.step() == 1
        own_redis.kill(lose_data=True)
        with pytest.raises(CacheUnavailable):
            watched.step()
        own_redis.start()
        assert watched.step() == 1
