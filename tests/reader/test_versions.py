"""New versions: the callbacks of `on_version`, and `async for` over `versions()`."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing, suppress

import pytest

import optimizer.reader.redis_store
import optimizer.testing.memory
from optimizer import AsyncSnapshotReader, Settings, SnapshotMissing, SnapshotReader, State, testing
from tests.support.places import FIRST, SECOND, Place
from tests.support.published_state import run_next, run_old, version_of
from tests.support.redis_servers import wait_until

pytestmark = pytest.mark.slow  # seconds of waiting for threads, Redis and event loops

# ---- callbacks


def wait_for_refreshes(reader: SnapshotReader) -> None:
    """Wait until the reader's thread has refreshed several times."""
    refreshes: list[int] = []
    reader.follower.on_refresh.append(lambda: refreshes.append(1))
    wait_until(lambda: len(refreshes) > 2, limit_s=5, what="refreshes")
    reader.follower.on_refresh.clear()


def test_a_callback_is_called_once_with_each_newer_version(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A callback is called once with each newer version.

    It is not called with the current one, nor again at the next refreshes, nor after it was removed.
    """
    for name in ("POLL_S", "FIRST_RETRY_S", "LONGEST_RETRY_S"):
        monkeypatch.setattr(optimizer.reader.redis_store, name, 0.05)
    place.publish(FIRST)
    reader = place.open()
    told: list[State] = []
    remove = reader.on_version(told.append)
    wait_for_refreshes(reader)
    second = place.publish(SECOND)
    wait_until(lambda: told != [], limit_s=5, what="the callback")
    wait_for_refreshes(reader)
    third = place.publish(FIRST)
    wait_until(lambda: len(told) > 1, limit_s=5, what="the callback")

    remove()
    remove()
    place.publish(SECOND)
    wait_for_refreshes(reader)

    assert [(state.version, state.origin) for state in told] == [(second, place.origin), (third, place.origin)]


def test_the_first_version_is_new(place: Place) -> None:
    """A callback that was added before there was a version is called with the first one."""
    reader = place.open()
    told: list[State] = []
    reader.on_version(told.append)

    version = place.publish(FIRST)

    wait_until(lambda: told != [], limit_s=5, what="the callback")
    assert [state.version for state in told] == [version]


def test_a_callback_that_fails_ends_nothing(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """If a callback fails, its error is logged, the other callbacks are called, and the next version is shown."""
    place.publish(FIRST)
    reader = place.open()
    told: list[int] = []

    def fail(_state: State) -> None:
        raise ZeroDivisionError

    reader.on_version(fail)
    reader.on_version(lambda state: told.append(state.version))
    with caplog.at_level(logging.ERROR):
        versions = []
        for sample in (SECOND, FIRST):
            versions.append(place.publish(sample))
            wait_until(lambda: versions[-1] in told, limit_s=5, what="the callback")

    assert told == versions
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ZeroDivisionError] * 2
    assert "a callback for new versions failed" in caplog.text


def test_a_callback_may_use_the_reader(place: Place) -> None:
    """A callback may read, look up, refresh, add and remove callbacks, and close the reader.

    Afterwards the reader can be used again.
    """
    place.publish(FIRST)
    reader = place.open()
    read: list[tuple[int, int]] = []
    closed = threading.Event()

    def use(state: State) -> None:
        reader.refresh()
        remove()
        reader.on_version(lambda _state: None)
        read.append((state.version, reader.symbol("MISSING").version))
        reader.close()
        closed.set()

    remove = reader.on_version(use)
    second = place.publish(SECOND)
    assert closed.wait(5)
    assert read == [(second, second)]
    assert reader.manifest().version == second  # it can be used again


def test_a_callback_may_remove_the_next_one(place: Place) -> None:
    """If a callback removes the next one, that one is not called with the same version any more."""
    place.publish(FIRST)
    reader = place.open()
    told: list[str] = []
    removed: list[Callable[[], None]] = []

    def remove(_state: State) -> None:
        told.append("first")
        removed.pop()()

    reader.on_version(remove)
    removed.append(reader.on_version(lambda _state: told.append("second")))
    reader.on_version(lambda _state: told.append("third"))
    place.publish(SECOND)
    wait_until(lambda: "third" in told, limit_s=5, what="the callbacks")
    assert told == ["first", "third"]


def test_only_the_newest_version_counts(settings: Settings) -> None:
    """A callback that takes long is then called with the newest of the versions that were published meanwhile."""
    run_old(settings)
    told: list[int] = []
    entered, resume = threading.Event(), threading.Event()

    def block(state: State) -> None:
        told.append(state.version)
        entered.set()
        assert resume.wait(10)

    with closing(SnapshotReader.from_settings(settings)) as reader:
        reader.on_version(block)
        versions = [version_of(run_next(settings))]
        assert entered.wait(5)
        versions += [version_of(run_next(settings)) for _ in range(3)]
        resume.set()
        wait_until(lambda: told[-1] == versions[-1], limit_s=5, what="the newest version")
    assert told == [versions[0], versions[-1]]


def test_callbacks_are_kept_when_a_reader_is_closed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed reader keeps its callbacks.

    When it is used again, it calls them with the version that was published meanwhile.
    """
    monkeypatch.setattr(optimizer.reader.redis_store, "POLL_S", 60.0)
    place.publish(FIRST)
    reader = place.open()
    told: list[int] = []
    reader.on_version(lambda state: told.append(state.version))
    reader.close()
    second = place.publish(SECOND)
    assert told == []

    assert reader.manifest().version == second

    wait_until(lambda: told == [second], limit_s=5, what="the callback")


def test_a_wait_ends_when_the_reader_is_closed(place: Place) -> None:
    """`wait` ends when the reader is closed, with the same error as after its timeout."""
    reader = place.open()
    errors: list[SnapshotMissing] = []

    def wait() -> None:
        try:
            reader.wait(60)
        except SnapshotMissing as error:
            errors.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    wait_until(lambda: bool(reader._callbacks), what="the wait")
    reader.close()
    waiting.join(10)
    assert len(errors) == 1
    assert not reader._callbacks


FORK_PROGRAM = """
import os, signal, sys, time
from optimizer import SnapshotReader, Settings
from tests.support.published_state import run_next
settings = Settings.from_env(os.environ)
reader = SnapshotReader.from_settings(settings)
told = []
reader.on_version(lambda state: told.append(state.version))
child = os.fork()
if child == 0:
    signal.alarm(30)  # a child that hangs is not to stay behind
    first = reader.predictions().version
    print("reads", flush=True)
    while not told: time.sleep(0.02)
    os._exit(0 if told[0] > first else 3)
sys.stdin.readline()
version = run_next(settings).version
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
while not told: time.sleep(0.02)
print(code, told == [version])
"""


@pytest.mark.slow
def test_a_forked_child_calls_the_callbacks_that_it_inherits(settings: Settings) -> None:
    """A forked child that has read calls the callbacks that it has inherited, as its parent does."""
    run_old(settings)
    environ = {
        "ROLLING_INPUT": str(settings.input),
        "ROLLING_OUTPUT_DIR": str(settings.output_dir),
        "ROLLING_REDIS_URL": settings.redis_url,
    }
    with subprocess.Popen(
        [sys.executable, "-c", FORK_PROGRAM],
        env=os.environ | environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "reads\n"
        output, _ = program.communicate("\n", timeout=60)
    assert (output, program.returncode) == ("0 True\n", 0)


def test_a_publish_in_memory_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a callback blocks, `publish` of a reader in memory raises `TimeoutError` in the test that calls it."""
    monkeypatch.setattr(optimizer.testing.memory, "CALLBACKS_S", 0.1)
    resume = threading.Event()
    with closing(testing.reader()) as reader:
        reader.on_version(lambda _state: resume.wait(10))
        with pytest.raises(TimeoutError, match="version 2: a callback of on_version has not returned"):
            reader.publish()
        resume.set()


# ---- asyncio


def test_versions_begin_with_the_current_one(place: Place) -> None:
    """`versions()` returns the current version, then each newer one, until the reader is closed."""
    first = place.publish(FIRST)

    async def follow() -> list[int]:
        versions: list[int] = []
        reader = place.open_async()
        async with asyncio.timeout(20):
            async for state in reader.versions():
                assert state.origin == place.origin
                versions.append(state.version)
                if len(versions) < 3:
                    content = SECOND if len(versions) == 1 else FIRST
                    versions_published.append(await asyncio.to_thread(place.publish, content))
                else:
                    await reader.close()
        return versions

    versions_published = [first]
    assert asyncio.run(follow()) == versions_published


def test_versions_wait_for_the_first_one(place: Place) -> None:
    """`versions()` waits for the first version, and ends when the reader is closed, in each task that iterates."""

    async def follow(reader: AsyncSnapshotReader, seen: set[int]) -> list[int]:
        versions = []
        async for state in reader.versions():
            versions.append(state.version)
            seen.add(id(versions))
        return versions

    async def main() -> None:
        seen: set[int] = set()
        async with asyncio.timeout(20):
            async with place.open_async() as reader:
                tasks = [asyncio.create_task(follow(reader, seen)) for _ in range(3)]
                version = await asyncio.to_thread(place.publish, FIRST)
                while len(seen) < 3:
                    await asyncio.sleep(0.01)
            assert await asyncio.gather(*tasks) == [[version]] * 3

    asyncio.run(main())


def test_an_iterator_that_is_left_is_forgotten(place: Place) -> None:
    """An iterator that is no longer used has no callback in the reader, which continues to work.

    This holds after `break`, a cancellation, a timeout, and a loop that is closed without any clean-up.
    """
    place.publish(FIRST)
    reader = place.open_async()
    callbacks = reader._reader._callbacks

    async def break_off() -> None:
        async for _state in reader.versions():
            break

    async def follow() -> None:
        async for _state in reader.versions():
            pass

    async def registered() -> None:
        while not callbacks:
            await asyncio.sleep(0.01)

    async def cancel() -> None:
        task = asyncio.create_task(follow())
        await registered()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    async def wait_in_vain() -> None:
        await reader.refresh()
        versions = reader.versions()
        await anext(versions)
        with suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await anext(versions)
        assert callbacks

    for left in (break_off, cancel, wait_in_vain):
        asyncio.run(left())
        gc.collect()
        assert not callbacks, left

    loop = asyncio.new_event_loop()
    task = loop.create_task(follow())
    loop.run_until_complete(registered())
    task._log_destroy_pending = False  # type: ignore[attr-defined] # it is what the test provokes
    loop.close()
    del task, loop
    gc.collect()
    assert not callbacks
    asyncio.run(reader.close())


def test_versions_go_on_in_another_loop(settings: Settings) -> None:
    """After one event loop has ended, another one can iterate over the versions, with an iterator of its own."""
    first = version_of(run_old(settings))
    reader = AsyncSnapshotReader.from_settings(settings)

    async def current() -> int:
        return (await anext(reader.versions())).version

    assert asyncio.run(current()) == first
    second = version_of(run_next(settings))

    async def follow() -> int:
        async with asyncio.timeout(10):
            async for state in reader.versions():
                if state.version > first:
                    return state.version
        raise AssertionError("it was closed")

    assert asyncio.run(follow()) == second
    asyncio.run(reader.close())


def test_a_reader_for_asyncio_can_share_another_one() -> None:
    """An asyncio reader can share thread, version and callbacks of another reader, for a host that has one already."""
    with closing(testing.reader(missing=True)) as reader:
        told: list[int] = []
        reader.on_version(lambda state: told.append(state.version))
        shared = AsyncSnapshotReader.over(AsyncSnapshotReader.over(reader))

        async def read() -> int:
            with pytest.raises(SnapshotMissing):
                await shared.wait(0)
            reader.publish(version=7)
            return (await shared.snapshot()).version

        assert asyncio.run(read()) == 7
        assert told == [7]
        assert reader.manifest().version == 7
