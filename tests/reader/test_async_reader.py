"""The asyncio reader in several event loops one after another, and when its tasks or its loop end."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import weakref
from contextlib import closing
from dataclasses import replace
from typing import cast

import pytest
import redis

import optimizer.reader.redis_store
from optimizer import Answer, AsyncSnapshotReader, Settings, SnapshotMissing, SnapshotReader, optimize
from optimizer.reader.lookups import LOOKUPS_AT_ONCE
from tests.support.ports import free_port
from tests.support.published_state import run_next, run_old, version_of
from tests.support.redis_servers import RedisServer
from tests.support.rolling_files import a_record, write_json


def test_an_async_reader_is_a_context(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """`async with` refreshes once, 50 reads in it return the same decoded object, and its end ends the thread."""
    run_old(settings)
    monkeypatch.setattr(optimizer.reader.redis_store, "POLL_S", 60.0)

    async def read() -> AsyncSnapshotReader:
        reader = AsyncSnapshotReader.from_env(
            {"ROLLING_REDIS_URL": settings.redis_url, "ROLLING_OUTPUT_DIR": str(settings.output_dir)}
        )
        refreshes: list[int] = []
        reader.follower.on_refresh.append(lambda: refreshes.append(1))
        async with reader as entered:
            assert entered is reader
            assert len({id((await reader.bots()).value) for _ in range(50)}) == 1
            assert (refreshes, reader._reader.is_started()) == ([1], True)
        return reader

    assert not asyncio.run(read())._reader.is_started()


def test_an_async_reader_follows_its_user_into_another_loop(settings: Settings) -> None:
    """A reader that was closed in one event loop can be used in another, and shows the newer version there."""
    run_old(settings)
    reader = AsyncSnapshotReader.from_settings(settings)

    async def read() -> int:
        try:
            return (await reader.predictions()).version
        finally:
            await reader.close()

    first = asyncio.run(read())
    run_next(settings)
    assert asyncio.run(read()) > first


def test_a_bug_in_what_the_loop_is_told_does_not_end_the_refresher(settings: Settings) -> None:
    """An exception in `on_refresh` is reported by the event loop, and reads show the next version all the same."""
    first = version_of(run_old(settings))
    errors: list[type[BaseException]] = []

    def on_refresh() -> None:
        raise ZeroDivisionError

    async def read() -> int:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: errors.append(type(context["exception"])))
        async with AsyncSnapshotReader.from_settings(settings, on_refresh=on_refresh) as reader:
            assert (await reader.predictions()).version == first
            second = version_of(await asyncio.to_thread(run_next, settings))
            async with asyncio.timeout(5):
                while (await reader.predictions()).version != second:
                    await asyncio.sleep(0.02)
            return second

    assert asyncio.run(read()) > first
    assert set(errors) == {ZeroDivisionError}


FORGOTTEN_PROGRAM = """
import asyncio, sys
from pathlib import Path
from optimizer import AsyncSnapshotReader

async def read(turns):
    await AsyncSnapshotReader(sys.argv[1], "rolling_brain", Path(sys.argv[2])).predictions()
    for _ in range(turns):
        await asyncio.sleep(0)

for turns in range(30):
    asyncio.run(read(turns))
print("ended")
"""


@pytest.mark.parametrize("redis_is_up", [True, False])
def test_a_loop_can_end_with_a_reader_open(settings: Settings, redis_is_up: bool) -> None:
    """An event loop with an open reader ends, with Redis up or down, at whichever turn its tasks are cancelled.

    redis-py swallows a cancellation that arrives while it connects.
    """
    run_old(settings)
    url = settings.redis_url if redis_is_up else f"redis://127.0.0.1:{free_port()}/0"
    command = [sys.executable, "-c", FORGOTTEN_PROGRAM, url, str(settings.output_dir)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "ended\n", done.stderr


def test_lookups_that_are_cancelled_leave_the_others_their_turn(own_settings: Settings, own_redis: RedisServer) -> None:
    """After more lookups than run at once were cancelled while Redis hung, the next lookups get their results."""
    run_old(own_settings)

    async def read() -> None:
        async with AsyncSnapshotReader.from_settings(own_settings) as reader:
            assert (await reader.predictions()).origin == "redis"
            own_redis.pause()
            tasks = [asyncio.create_task(reader.symbol("MISSING")) for _ in range(4 * LOOKUPS_AT_ONCE)]
            await asyncio.wait(tasks, timeout=0.05)
            for task in tasks:
                task.cancel()
            assert {type(outcome) for outcome in await asyncio.gather(*tasks, return_exceptions=True)} == {
                asyncio.CancelledError
            }
            own_redis.resume()
            async with asyncio.timeout(20):
                answers = await asyncio.gather(*(reader.symbol("MISSING") for _ in range(4 * LOOKUPS_AT_ONCE)))
            assert {answer.value for answer in answers} == {None}

    asyncio.run(read())


def test_a_loop_that_has_ended_is_not_kept(settings: Settings) -> None:
    """A reader does not keep an ended loop alive, so a program that calls `asyncio.run` for each read does not grow."""
    run_old(settings)
    reader = AsyncSnapshotReader.from_settings(settings)

    async def read() -> weakref.ref[asyncio.AbstractEventLoop]:
        assert (await reader.symbol("MISSING")).value is None
        return weakref.ref(asyncio.get_running_loop())

    first, _second = asyncio.run(read()), asyncio.run(read())
    gc.collect()
    assert first() is None
    asyncio.run(reader.close())


def test_symbols_are_looked_up_together(own_settings: Settings, own_redis: RedisServer) -> None:
    """Symbols that wait at the same time are looked up together: 52 of them take at most three HMGET commands.

    Each gets the same result as alone, also if some of them are cancelled.
    """
    settings = replace(own_settings, top_symbols_limit=2)
    write_json(settings.input, {f"S{rank}": a_record(confidence=1 - rank / 100, prediction=rank) for rank in range(50)})
    optimize(settings)
    symbols = [*(f"S{rank}" for rank in range(50)), "MISSING", "\ud800"]
    with closing(SnapshotReader.from_settings(settings)) as threads:
        alone = [threads.symbol(symbol).value for symbol in symbols]

    async def read() -> list[object]:
        async with AsyncSnapshotReader.from_settings(settings) as reader:
            tasks = [asyncio.create_task(reader.symbol(symbol)) for symbol in symbols]
            await asyncio.sleep(0)  # all of them wait
            for task in tasks[10:20]:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            return [outcome.value if isinstance(outcome, Answer) else outcome for outcome in outcomes]

    with own_redis.client as client:
        before = asked(client)
        together = asyncio.run(read())
        assert asked(client) - before <= 3
    assert together[:10] + together[20:] == alone[:10] + alone[20:]
    assert [type(outcome) for outcome in together[10:20]] == 10 * [asyncio.CancelledError]


def asked(client: redis.Redis) -> int:
    """How many HMGET commands, by which members of an index are read, a server has executed."""
    return int(
        cast("dict[str, dict[str, int]]", client.info("commandstats")).get("cmdstat_hmget", {"calls": 0})["calls"]
    )


def test_each_caller_is_told_that_a_symbol_cannot_be_looked_up(own_settings: Settings, own_redis: RedisServer) -> None:
    """If neither Redis nor the files have the index any more, each waiting lookup raises `SnapshotMissing`."""
    settings = replace(own_settings, top_symbols_limit=1)
    run_old(settings)

    async def read() -> list[type]:
        async with AsyncSnapshotReader(settings.redis_url, settings.source, None) as reader:
            await reader.predictions()
            own_redis.kill()
            outcomes = await asyncio.gather(*(reader.symbol("MISSING") for _ in range(20)), return_exceptions=True)
            return [type(outcome) for outcome in outcomes]

    assert asyncio.run(read()) == 20 * [SnapshotMissing]


FORK_PROGRAM = """
import asyncio, os, signal, sys
from pathlib import Path
from optimizer import AsyncSnapshotReader

reader = AsyncSnapshotReader(sys.argv[1], "rolling_brain", Path(sys.argv[2]))

async def read():
    answer = await reader.symbol("MISSING")
    await reader.refresh()
    return answer.version, (await reader.predictions()).origin

before = asyncio.run(read())
child = os.fork()
if child == 0:
    signal.alarm(30)  # a child that hangs is not to stay behind
    os._exit(0 if asyncio.run(read()) == before else 3)
after = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(before[1], after, asyncio.run(read()) == before)
"""


def test_an_async_reader_is_of_use_on_both_sides_of_a_fork(settings: Settings) -> None:
    """After a fork with the reader's thread running, parent and child both read.

    The child has a loop, a thread and connections of its own.
    """
    run_old(settings)
    command = [sys.executable, "-c", FORK_PROGRAM, settings.redis_url, str(settings.output_dir)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "redis 0 True\n", done.stderr
