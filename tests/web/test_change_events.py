"""The stream of changes: each listener gets each change once and in order, or else a reset; it is sent as gzip."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from playwright.sync_api import Browser

import optimizer.testing
from optimizer import Settings, optimize
from optimizer.reader.results import CachedVersion
from optimizer.testing import MemoryReader
from optimizer.web.events import PING_MESSAGE, QUEUE_MESSAGES, ChangeQueue, ChangeStream, Hub
from optimizer.web.messages import ChangeMessages, Message
from tests.support.browser import BrowserMissing, Watched, Web, chromium
from tests.support.published_state import run_old, version_of
from tests.support.redis_servers import RedisServer, wait_until
from tests.support.rolling_files import a_record, write_json
from tests.support.web_apps import ChangeEvents, WebServer

AAPL: Final = {"symbol": "AAPL", "prediction": 101.5, "confidence": 0.75, "last_price": 100.0}


def publish(settings: Settings, price: float) -> int:
    """Publish a version in which only a price differs."""
    write_json(settings.input, {"AAPL": a_record(last_price=price), "bots": {"alpha": {}}})
    return version_of(optimize(settings))


def price_of(data: Any) -> float:
    """The price in the data of a change."""
    (record,) = data["predictions"]["changed"]
    return float(record["last_price"])


# ---- the form


@given(
    texts=st.lists(st.binary(max_size=200) | st.integers(1, 40_000).map(lambda size: b"abc" * size), max_size=6),
    order=st.lists(st.integers(-1, 5), max_size=20),
)
def test_messages_in_any_order_are_one_gzip_stream(texts: list[bytes], order: list[int]) -> None:
    """Messages in any order are one gzip stream, from which a decoder gets each message as soon as it receives it.

    This does not depend on the messages before it; a ping (-1) adds nothing to the text.
    """
    messages: list[Message] = []
    for text in texts:
        messages.append(Message(text, messages[-1] if messages else None))
    stream = ChangeStream(Hub(), None)
    stream.accept_gzip()
    decoder = zlib.decompressobj(31)
    for place in [*range(len(messages)), *order]:
        message = messages[place] if 0 <= place < len(messages) else PING_MESSAGE
        assert decoder.decompress(stream.encode(message)) == (b"" if message is PING_MESSAGE else message.plain)
    assert [message.plain for message in messages] == texts


def test_a_message_refers_to_the_one_before_where_that_was_sent_last() -> None:
    """Sent directly after the message before it, a message refers to that one, and has less than half of its size.

    For any other listener it stands alone; a message of 40,000 bytes always does.
    """
    first, second = (
        b'data: {"symbol": "%s", "confidence": 0.%d, "last_price": 1.5}' % each for each in ((b"A", 71), (b"B", 93))
    )
    before = Message(first)
    message = Message(second, before)
    assert message.block_after(before.number) == message.linked
    assert 2 * len(message.block_after(before.number)) < len(message.block)
    assert message.block_after(None) == message.block_after(message.number) == message.block
    assert Message(b"x" * 40_000, before).linked is None


# ---- the hub


class Source:
    """A reader in memory, with the hub that its service would have."""

    def __init__(self, reader: MemoryReader) -> None:
        self.reader = reader
        self.hub = Hub()
        self.messages = ChangeMessages(reader.follower.hold_changes())
        self.prices = iter(range(1, 1_000))
        self.show()

    def publish(self, **version: Any) -> None:
        """Publish a version with another price, without showing it to the hub."""
        self.reader.publish(**{"predictions": [AAPL | {"last_price": next(self.prices)}], **version})
        self.reader.refresh()

    def show(self) -> None:
        """Show the hub what the reader holds."""
        cached = self.reader.follower.cached
        assert isinstance(cached, CachedVersion)
        self.hub.show(cached, self.messages)


@pytest.fixture
def source() -> Iterator[Source]:
    """A source that shows version 1."""
    with closing(optimizer.testing.reader(predictions=[AAPL])) as reader:
        yield Source(reader)


def received(queue: ChangeQueue) -> list[tuple[str, int]]:
    """Take all waiting messages of a listener; return event and id of each message about a version."""
    events = []
    while not queue.empty():
        message = queue.get_nowait()
        assert message is not None
        fields = dict(line.split(": ", 1) for line in message.plain.decode().splitlines() if ": " in line)
        if "id" in fields:
            events.append((fields["event"], int(fields["id"])))
    return events


def test_a_listener_gets_each_change_once(source: Source) -> None:
    """A listener gets each change once, also for versions that were published between two refreshes.

    For a version with the same content as the one before, it gets the number alone.
    """
    queue = source.hub.join_changes(None)
    assert received(queue) == [("version", 1)]
    for _ in range(3):
        source.publish()
    source.show()
    source.show()
    assert received(queue) == [("change", 2), ("change", 3), ("change", 4)]
    source.publish(predictions=[AAPL | {"last_price": 3}])  # the same content as before
    source.show()
    assert received(queue) == [("version", 5)]
    source.publish()
    source.reader.publish(index=[AAPL | {"symbol": "LOW", "confidence": 0.1}])
    source.show()
    assert received(queue) == [("change", 6), ("version", 7)]


def test_a_listener_that_comes_back_goes_on_where_it_was(source: Source) -> None:
    """A listener that reconnects gets the changes that it has missed, or nothing if it has the current version.

    It gets a reset if its version is not held, and the current number if it names no version.
    """
    for _ in range(2):
        source.publish()
    source.show()
    for version, events in (
        (1, [("change", 2), ("change", 3)]),
        (2, [("change", 3)]),
        (3, []),
        (0, [("reset", 3)]),
        (None, [("version", 3)]),
    ):
        queue = source.hub.join_changes(version)
        assert received(queue) == events
        source.publish()
        source.hub.leave(queue)


def test_a_listener_that_is_ahead_waits_for_this_process(source: Source) -> None:
    """A listener with a newer version than this process gets no change that it has.

    It gets the changes after its version once this process shows them.
    """
    queue = source.hub.join_changes(3)
    assert received(queue) == []
    for events in ([], [], [("change", 4)], [("change", 5)]):
        source.publish()
        source.show()
        assert received(queue) == events


def test_who_is_ahead_is_never_set_back(source: Source) -> None:
    """A listener with a newer version than this process gets no reset when its queue of messages about Redis overflows.

    A hub without a version does not fail in this case either.
    """
    ahead, early = source.hub.join_changes(9), (hub := Hub()).join_changes(None)
    for number in range(3 * QUEUE_MESSAGES):
        for each in (source.hub, hub):
            each.cache_is(up=bool(number % 2))
    assert received(ahead) == received(early) == []


def test_a_chain_that_is_broken_is_a_reset(source: Source) -> None:
    """A listener gets one reset where the chain of changes is broken, and changes again after it."""
    queue, late = source.hub.join_changes(None), source.hub.join_changes(9)
    received(queue)
    source.publish(origin="files")
    source.show()
    source.show()
    assert received(queue) == [("reset", 2)]
    source.publish(origin="redis")  # its change leads from version 1, which Redis had
    source.publish()
    source.show()
    assert received(queue) == [("reset", 4)]
    source.publish()
    source.show()
    assert received(queue) == [("change", 5)]
    assert received(late) == []


def test_a_listener_that_does_not_read_is_told_to_take_the_whole(source: Source) -> None:
    """A listener that does not read gets a reset and the changes after it, and not a chain with a gap.

    Its queue stays within its limit, and another listener is not affected.
    """
    slow, quick = source.hub.join_changes(None), source.hub.join_changes(None)
    received(quick)
    for version in range(2, 100):
        source.publish()
        source.show()
        assert received(quick) == [("change", version)]
        assert slow.qsize() <= slow.maxsize <= QUEUE_MESSAGES + 1
    events = received(slow)
    (event, number), *rest = events
    assert event == "reset"
    assert [*rest] == [("change", version) for version in range(number + 1, 100)]

    for _ in range(QUEUE_MESSAGES + 2):
        source.publish()
        source.show()
    source.hub.cache_is(up=False)
    assert received(slow)[0][0] == "reset"


def test_a_stream_that_ends_loses_all_or_nothing(source: Source) -> None:
    """At the end of a stream, a listener gets all waiting messages, or none if its queue is full.

    So a client gets no chain with a gap before the end, and continues from the id of its last message.
    """
    full, free = source.hub.join_changes(None), source.hub.join_changes(None)
    received(free)
    while not full.full():
        source.publish()
        source.show()
    source.hub.close()
    assert full.get_nowait() is None
    messages = [free.get_nowait() for _ in range(free.qsize())]
    assert messages[-1] is None
    assert all(messages[:-1])
    ended = source.hub.join_changes(None)
    assert [ended.get_nowait() for _ in range(ended.qsize())][-1] is None


def test_the_text_of_a_change_is_made_once(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text of a change is made once for all listeners, and is held as long as the change, for the last 120."""
    queues = [source.hub.join_changes(None) for _ in range(3)]
    for queue in queues:
        received(queue)
    source.publish()
    source.messages.prepare()
    monkeypatch.setattr(Message, "of", lambda *_: pytest.fail("made again"))
    source.show()
    assert len({id(queue.get_nowait()) for queue in queues}) == 1
    monkeypatch.undo()
    for _ in range(130):
        source.publish()
        source.messages.prepare()
    held = [entry.version for entry in source.messages.log.entries]
    assert [*source.messages._of_changes] == held == [*range(132 - 119, 132 + 1)]


# ---- a server


@pytest.mark.slow
@pytest.mark.parametrize("gzip", [True, False], ids=["gzip", "plain"])
def test_changes_come_in_messages(tmp_path: Path, settings: Settings, gzip: bool) -> None:
    """A server sends each change when it is published, and a decoder gets it whole without later bytes.

    A client that reconnects with its version gets the changes after it.
    """
    first = version_of(run_old(settings))
    write_json(settings.input, {"AAPL": a_record(last_price=1.0), "bots": {"alpha": {}}})
    with WebServer(tmp_path, settings) as web, ChangeEvents(web.port, gzip=gzip) as events:
        assert events.response.getheader("Content-Encoding") == ("gzip" if gzip else None)
        assert events.response.getheader("Vary") == "accept-encoding"
        ((event, number, data),) = events.messages(1)
        assert (event, number, data["version"]) == ("version", first, first)
        versions = [first]
        for price in (1.0, 2.0, 3.0):
            versions.append(publish(settings, price))
            event, number, data = events.messages(len(versions))[-1]
            assert (event, number, price_of(data)) == ("change", versions[-1], price)
            assert (data["version"], data["before"]) == (versions[-1], versions[-2])

        # The header takes precedence over the parameter of the address, which a browser does not change.
        for options in ({"since": versions[1]}, {"since": versions[0], "last_event_id": versions[1]}):
            with ChangeEvents(web.port, gzip=gzip, **options) as again:
                assert [message[:2] for message in again.messages(2)] == [
                    ("change", versions[2]),
                    ("change", versions[3]),
                ]
        with ChangeEvents(web.port, gzip=gzip, since=7) as again:
            assert again.messages(1) == [("reset", versions[3], {"version": versions[3]})]
        assert b'rolling_event_listeners{source="rolling_brain"} 1\n' in web.get("/metrics")[2]
        status, _, body = web.get("/events?data=other")
        assert (status, b"query.data" in body) == (422, True)


@pytest.mark.slow
def test_listeners_are_told_of_redis_and_resume_after_it(
    tmp_path: Path, settings_without_redis: Settings, own_redis: RedisServer
) -> None:
    """Listeners get a message when Redis goes away, and when it is back.

    While it is away, a version that only the files have is a reset. After it is back, a listener that has the last
    version of Redis gets the next one as a change, and one that has the version of the files gets a reset and then
    changes again.
    """
    own_redis.start()
    settings = replace(settings_without_redis, redis_url=own_redis.url)
    first, second = publish(settings, 1.0), publish(settings, 2.0)
    with WebServer(tmp_path, settings) as web, ChangeEvents(web.port, since=first) as events:
        assert events.messages(1)[0][:2] == ("change", second)
        own_redis.kill()
        assert events.messages(1, event="status")[0][2] == {"cache_up": False}
        third = publish(settings, 3.0)
        assert events.messages(1, event="reset")[0][1] == third
        own_redis.start()
        assert events.messages(2, event="status")[1][2] == {"cache_up": True}
        fourth = publish(settings, 4.0)
        # Its change leads from the second version, which Redis had.
        assert events.messages(2, event="reset")[1][1] == fourth
        with ChangeEvents(web.port, since=second) as others:
            assert others.messages(1)[0][:2] == ("change", fourth)
        fifth = publish(settings, 5.0)
        event, number, data = events.messages(6)[-1]
        assert (event, number, price_of(data)) == ("change", fifth, 5.0)


@pytest.mark.slow
def test_a_version_that_the_files_have_first_is_no_reset(tmp_path: Path, settings: Settings) -> None:
    """A version that the files have before Redis is sent as a change, and not as a reset.

    A run writes the files before it publishes, so a refresh between the two waits for the change.
    """
    first = publish(settings, 1.0)
    with WebServer(tmp_path, settings) as web, ChangeEvents(web.port) as events:
        events.messages(1)
        write_json(settings.input, {"AAPL": a_record(last_price=2.0), "bots": {"alpha": {}}})
        second = version_of(optimize(settings, use_cache=False))
        until_s = time.monotonic() + 1.5  # a refresh sees the files in this time
        while time.monotonic() < until_s:
            assert (web.get(f"/changes?since={first}")[0], b"%d" % first in web.get("/status")[2]) == (200, True)
        optimize(settings)  # publishes the files
        assert [message[:2] for message in events.messages(2)] == [("version", first), ("change", second)]


@pytest.mark.slow
def test_a_version_that_redis_does_not_get_is_shown_from_the_files_after_a_while(
    tmp_path: Path, settings: Settings
) -> None:
    """If Redis responds but a run did not use it, after some seconds listeners get a reset to the version of the files.

    They then have to take the whole snapshot.
    """
    first = publish(settings, 1.0)
    with WebServer(tmp_path, settings) as web, ChangeEvents(web.port) as events:
        events.messages(1)
        write_json(settings.input, {"AAPL": a_record(last_price=2.0), "bots": {"alpha": {}}})
        second = version_of(optimize(settings, use_cache=False))
        assert [message[:2] for message in events.messages(2)] == [("version", first), ("reset", second)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The distribution's Chromium."""
    try:
        with chromium() as browser:
            yield browser
    except BrowserMissing as error:
        pytest.skip(str(error))


LISTEN: Final = """
() => new Promise((resolve) => {
    window.seen = [];
    const events = new EventSource("events?data=changes");
    for (const name of ["version", "change", "reset"]) {
        events.addEventListener(name, (event) => window.seen.push([name, event.lastEventId, JSON.parse(event.data)]));
    }
    events.onopen = () => resolve(true);
})
"""


@pytest.mark.slow
def test_a_browser_reads_the_stream(tmp_path: Path, settings: Settings, browser: Browser) -> None:
    """Chromium's EventSource inflates each message when it is received.

    After a restart of the server it reconnects by itself with its last id, and gets the change that it has missed.
    """
    versions = [publish(settings, 1.0)]
    with Web(tmp_path, settings) as web:
        watched = Watched(browser, web.url)
        page = watched.open()
        page.evaluate(LISTEN)

        def seen() -> list[Any]:
            messages: list[Any] = page.evaluate("() => window.seen")
            return messages

        wait_until(lambda: len(seen()) == 1, what="the first message")
        for price in (2.0, 3.0):
            versions.append(publish(settings, price))
            wait_until(lambda: len(seen()) == len(versions), limit_s=5, what="the change")
        web.stop()
        web.start()
        versions.append(publish(settings, 4.0))
        wait_until(lambda: len(seen()) == len(versions), what="the change after a restart")
        shown = seen()
        watched.close()
    assert [(event, int(number)) for event, number, _ in shown] == [
        ("version", versions[0]),
        *(("change", version) for version in versions[1:]),
    ]
    assert [price_of(data) for _, _, data in shown[1:]] == [2.0, 3.0, 4.0]
