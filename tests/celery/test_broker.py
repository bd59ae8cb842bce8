"""Unusable messages: those that cannot be decoded or dispatched are dropped, and the worker takes the next one."""

from __future__ import annotations

import base64
import gzip
import itertools
import json
import re
import signal
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from optimizer import Settings
from optimizer.celery.broker import Connection
from tests.support.examples import examples
from tests.support.fleet import Fleet
from tests.support.redis_servers import RedisServer, wait_until
from tests.support.rolling_files import a_record, write_json

pytestmark = pytest.mark.slow

TASK = "tasks.optimize_rolling_data"
SECRET = "S3CRET-CONTENT"
ID = "hostile-id"
DEEP = "[" * 100_000

numbers = itertools.count()


def envelope(run_id: str = ID, task: str = TASK, body: Any = None, **headers: Any) -> dict[str, Any]:
    """A message as kombu writes it."""
    body = [[], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}] if body is None else body
    return {
        "body": base64.b64encode(json.dumps(body).encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            "lang": "py",
            "task": task,
            "id": run_id,
            "shadow": None,
            "eta": None,
            "expires": None,
            "group": None,
            "group_index": None,
            "retries": 0,
            "timelimit": [None, None],
            "root_id": run_id,
            "parent_id": None,
            "argsrepr": "()",
            "kwargsrepr": "{}",
            "origin": "test",
            "ignore_result": False,
            "replaced_task_nesting": 0,
            "stamped_headers": None,
            "stamps": {},
            **headers,
        },
        "properties": {
            "correlation_id": run_id,
            "reply_to": "reply",
            "delivery_mode": 2,
            "delivery_info": {"exchange": "rolling.rolling_brain", "routing_key": "rolling.rolling_brain"},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": f"tag-{next(numbers)}",
        },
    }


def changed(path: str, value: object) -> bytes:
    """Return a message with another value in one field, and `SECRET` in its content."""
    message = envelope(body=[[], {"force": SECRET}, None])
    *outer, name = path.split("/")
    inner: Any = message
    for step in outer:
        inner = inner[step]
    inner[name] = value
    return json.dumps(message).encode()


def without(path: str) -> bytes:
    """Return a message without one field."""
    message = envelope()
    *outer, name = path.split("/")
    inner: Any = message
    for step in outer:
        inner = inner[step]
    del inner[name]
    return json.dumps(message).encode()


def with_body(data: bytes, **fields: object) -> bytes:
    """Return a message with these bytes as its body."""
    return json.dumps({**envelope(), "body": base64.b64encode(data).decode(), **fields}).encode()


OBJECT = {"a": [SECRET]}
BOGUS = "{b" + SECRET
HEADERS = {
    **dict.fromkeys(("id", "task", "expires", "eta", "timelimit", "retries", "group", "root_id", "shadow"), OBJECT),
    **dict.fromkeys(("parent_id", "lang", "ignore_result", "replaced_task_nesting", "group_index"), OBJECT),
}
HOSTILE: dict[str, bytes] = {
    "raw garbage": b"\x00\xff garbage " + SECRET.encode(),
    "an empty message": b"",
    "no UTF-8": b'{"a": "\xff"}',
    "a text": b'"text"',
    "a number": b"5",
    "null": b"null",
    "NaN": b"NaN",
    "a list": b"[1, 2, 3]",
    "an empty object": b"{}",
    "deep nesting": DEEP.encode(),
    "deep nesting that closes": (DEEP[:900] + "]" * 900).encode(),
    "a truncated message": json.dumps(envelope()).encode()[:-20],
    **{f"without {path}": without(path) for path in ("body", "properties", "headers", "content-type")},
    **{f"without {path}": without(path) for path in ("headers/task", "headers/id", "properties/delivery_tag")},
    **{f"without properties/{name}": without(f"properties/{name}") for name in ("delivery_info", "body_encoding")},
    **{f"without {name}": without(f"properties/delivery_info/{name}") for name in ("exchange", "routing_key")},
    "content type application/data": changed("content-type", "application/data"),
    "content type null": changed("content-type", None),
    "content type pickle": changed("content-type", "application/x-python-serialize"),
    "content type yaml": changed("content-type", "application/x-yaml"),
    "content type unknown": changed("content-type", "application/" + SECRET),
    "content type an object": changed("content-type", OBJECT),
    "content encoding unknown": changed("content-encoding", "klingon"),
    "content encoding binary": changed("content-encoding", "binary"),
    "content encoding an object": changed("content-encoding", OBJECT),
    "body no base64": json.dumps({**envelope(), "body": "?*#" + SECRET}).encode(),
    "body null": changed("body", None),
    "body a number": changed("body", 5),
    "body an object": changed("body", OBJECT),
    "body 5": with_body(b"5"),
    "body null in JSON": with_body(b"null"),
    "body a text": with_body(b'"args"'),
    "body no JSON": with_body(b"{" + SECRET.encode()),
    "body no UTF-8": with_body(b'[[], {"force": "\xff"}, {}]'),
    "body with a surrogate": with_body(b'[[], {"source": "\\ud83d"}, {}]'),
    "body empty": with_body(b""),
    "body of two": with_body(b"[[], {}]"),
    "body of four": with_body(b"[[], {}, {}, {}]"),
    "body of the wrong kinds": with_body(b'[{}, [], "x"]'),
    "body of args": with_body(b'["args", "kwargs", "embed"]'),
    "body of protocol 1": with_body(json.dumps({"task": TASK, "id": ID, "args": [], "kwargs": []}).encode()),
    "body deep": with_body(b"[[], {}, " + DEEP[:900].encode() + b"]" * 901),
    "arguments deep": with_body(b"[[" + DEEP[:600].encode() + b"]" * 600 + b"], {}, null]"),
    "arguments deeper": with_body(b"[[" + DEEP.encode()),
    "a bomb": with_body(gzip.compress(bytes(100_000_000)), headers={**envelope()["headers"], "compression": "gzip"}),
    "compression bogus": changed("headers/compression", BOGUS),
    "compression zlib": with_body(zlib.compress(b"[[], {}, {}]"), headers={"compression": "application/x-gzip"}),
    "compression an object": changed("headers/compression", OBJECT),
    **{f"{name} an object": changed(f"headers/{name}", value) for name, value in HEADERS.items()},
    "headers null": changed("headers", None),
    "headers a list": changed("headers", [["task", TASK]]),
    "headers a text": changed("headers", SECRET),
    "headers empty": changed("headers", {}),
    "stamps a text": changed("headers/stamps", SECRET),
    "stamps a list": changed("headers/stamps", [SECRET]),
    "stamped headers a number": changed("headers/stamped_headers", 5),
    "stamped headers of objects": changed("headers/stamped_headers", [OBJECT]),
    "stamps of objects": changed("headers/stamps", {"a": OBJECT}),
    "task unknown": changed("headers/task", "tasks.unknown_" + SECRET),
    "task a list": changed("headers/task", [TASK]),
    "task a number": changed("headers/task", 5),
    "task null": changed("headers/task", None),
    "task empty": changed("headers/task", ""),
    "id null": changed("headers/id", None),
    "id a number": changed("headers/id", 5),
    "id a list": changed("headers/id", [ID]),
    "id a surrogate": changed("headers/id", "\ud800"),
    "id of two lines": changed("headers/id", "a\nERROR " + SECRET),
    "id of a megabyte": changed("headers/id", "x" * 1_000_000),
    "expires no time": changed("headers/expires", "tomorrow " + SECRET),
    "expires a number": changed("headers/expires", 5),
    "eta no time": changed("headers/eta", "tomorrow " + SECRET),
    "eta in the year 9999": changed("headers/eta", "9999-12-31T23:59:59+00:00"),
    "eta out of range": changed("headers/eta", "0001-01-01T00:00:00+23:59"),
    "time limits of three": changed("headers/timelimit", [1, 2, 3]),
    "time limits of texts": changed("headers/timelimit", ["1", "2"]),
    "time limits below nothing": changed("headers/timelimit", [-1, -1]),
    "time limits infinite": changed("headers/timelimit", [float("inf"), float("inf")]),
    "time limits NaN": changed("headers/timelimit", [float("nan"), float("nan")]),
    "time limits a number": changed("headers/timelimit", 5),
    "retries a text": changed("headers/retries", SECRET),
    "retries vast": changed("headers/retries", 10**4_000),
    "reply_to an object": changed("properties/reply_to", OBJECT),
    "correlation_id an object": changed("properties/correlation_id", OBJECT),
    "priority a text": changed("properties/priority", "urgent"),
    "priority an object": changed("properties/priority", OBJECT),
    "delivery tag an object": changed("properties/delivery_tag", OBJECT),
    "delivery tag a number": changed("properties/delivery_tag", 5),
    "delivery tag null": changed("properties/delivery_tag", None),
    "delivery tag a surrogate": changed("properties/delivery_tag", "\ud800"),
    "delivery info null": changed("properties/delivery_info", None),
    "delivery info a text": changed("properties/delivery_info", SECRET),
    "delivery info of objects": changed("properties/delivery_info", {"exchange": OBJECT, "routing_key": OBJECT}),
    "body encoding unknown": changed("properties/body_encoding", "rot13"),
    "body encoding an object": changed("properties/body_encoding", OBJECT),
    "properties null": changed("properties", None),
    "properties a list": changed("properties", [OBJECT]),
    **{
        f"{name} {kind}": json.dumps(envelope(body=[[], {}, {name: value}])).encode()
        for name in ("callbacks", "errbacks", "chain", "chord")
        for kind, value in (("a text", SECRET), ("a number", 5), ("of texts", [SECRET]))
    },
}
# These follow the schema of a task. Whether they fail does not matter here.
STRANGE: dict[str, bytes] = {
    "a task of Celery's": json.dumps(envelope("strange-1", "celery.chord_unlock", [["group", {}], {}, None])).encode(),
    "a map of Celery's": json.dumps(envelope("strange-2", "celery.map", [[{"task": "x"}, [1]], {}, None])).encode(),
    "arguments of other kinds": json.dumps(envelope("strange-3", body=[[OBJECT], {"force": OBJECT}, None])).encode(),
    "callbacks of nothing": json.dumps(envelope("strange-4", body=[[], {}, {"callbacks": [{}]}])).encode(),
    "errbacks of nothing": json.dumps(envelope("strange-5", body=[[5], {}, {"errbacks": [{"a": 5}]}])).encode(),
    "a chord of nothing": json.dumps(envelope("strange-6", body=[[], {}, {"chord": {}}], group="g")).encode(),
    "a chain of nothing": json.dumps(envelope("strange-7", body=[[], {}, {"chain": [{"task": 5}]}])).encode(),
    "a part of no run": json.dumps(
        envelope("strange-8", "tasks.scan_rolling_part", [["rolling_brain", "token", "/etc/passwd"], {}, None])
    ).encode(),
    "a merge of nonsense": json.dumps(
        envelope("strange-9", "tasks.merge_rolling_parts", [[[OBJECT], "rolling_brain", "token"], {}, None])
    ).encode(),
    "a merge of a text": json.dumps(
        envelope("strange-10", "tasks.merge_rolling_parts", [["outcomes", "rolling_brain", "token"], {}, None])
    ).encode(),
    "a source of another kind": json.dumps(
        envelope("strange-11", "tasks.scan_rolling_part", [[OBJECT, OBJECT, OBJECT], {}, None])
    ).encode(),
    "an update of a path": json.dumps(
        envelope("strange-15", "tasks.update_predictions", [["/etc/passwd", "/etc/passwd", "/etc"], {}, None])
    ).encode(),
    "an update of objects": json.dumps(
        envelope("strange-16", "tasks.update_predictions", [[OBJECT, [OBJECT], OBJECT], {"more": OBJECT}, None])
    ).encode(),
    "an update of two thousand": json.dumps(
        envelope("strange-17", "tasks.update_predictions", [[[OBJECT] * 2_000, [], None], {}, None])
    ).encode(),
    "headers that Celery uses inside": json.dumps(
        envelope("strange-12", args=5, kwargs=5, update=5, get=5, chord=OBJECT, properties=5, delivery_info=5, utc=5)
    ).encode(),
    "an expiry out of range": json.dumps(envelope("strange-14", expires="9999-12-31T23:59:59-23:59")).encode(),
    "time limits of next to nothing": json.dumps(envelope("strange-13", timelimit=[None, 0.001])).encode(),
    "a tag that comes twice": changed("properties/delivery_tag", "tag-0"),
}


class Victim:
    """A worker and its queue, to which a test sends messages of any kind."""

    def __init__(self, fleet: Fleet, client: redis.Redis) -> None:
        self.fleet = fleet
        self.client = client
        self.queue = f"rolling.{fleet.settings.source}"

    def take(self, *messages: bytes) -> None:
        """Put messages, and a good one after them, into the queue; check that the good one is executed."""
        run_id = f"good-{next(numbers)}"
        self.client.lpush(self.queue, *messages, json.dumps(envelope(run_id)).encode())
        key = f"celery-task-meta-{run_id}"
        wait_until(lambda: b'"SUCCESS"' in (self.client.get(key) or b""), what="the good message")
        self.fleet.check()

    def assert_nothing_is_left(self) -> None:
        """Check that no message waits in the queue, and that none would be restored to it."""
        wait_until(lambda: not self.client.hlen("unacked"), what="nothing unacknowledged")
        assert self.client.zcard("unacked_index") == self.client.llen(self.queue) == 0


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory, shared_redis: RedisServer) -> Iterator[Victim]:
    """The worker for all tests of this module, which check that no message ends it."""
    directory = tmp_path_factory.mktemp("victim")
    settings = Settings(
        input=directory / "rolling_brain.json.gz", output_dir=directory / "snapshots", redis_url=shared_redis.url
    )
    write_json(settings.input, {"AAPL": a_record()})
    with Fleet(directory, settings) as fleet, shared_redis.client as client:
        client.flushall()
        fleet.start_worker()
        yield Victim(fleet, client)
        assert fleet.end("worker", signal.SIGTERM) == 0
        assert client.llen(f"rolling.{settings.source}") == 0  # no message was restored that could end the next worker


@pytest.mark.parametrize("messages", [HOSTILE, STRANGE], ids=["hostile", "strange"])
def test_no_message_ends_a_worker(victim: Victim, messages: dict[str, bytes]) -> None:
    """After each unusable or strange message, the worker executes the good one that follows it."""
    for name, message in messages.items():
        try:
            victim.take(message)
            victim.assert_nothing_is_left()
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}; {victim.fleet.lines[-20:]}") from error


def test_a_dropped_message_is_logged_in_one_line_without_its_content_and_counted(victim: Victim) -> None:
    """Each dropped message is counted, and is one log line with its queue and the reason.

    Its content may be hostile, and is not logged.
    """
    before = len(victim.fleet.lines)
    victim.take(*HOSTILE.values())

    def drops() -> list[str]:
        return [line for line in victim.fleet.lines[before:] if "was dropped" in line]

    # The good message may be executed before this process has read what the worker has printed.
    wait_until(lambda: len(drops()) >= len(HOSTILE), what="a line for each")
    lines = victim.fleet.lines[before:]
    assert len(drops()) == len(HOSTILE)
    assert not [line for line in lines if SECRET in line or "Traceback" in line]
    assert any("a message of rolling.rolling_brain was dropped: Expected `str`, got `object`" in line for line in lines)
    assert any(re.search(r"was dropped: .* at `.\.content-type`", line) for line in drops())

    stats = victim.fleet.celery("inspect", "stats", "--json")
    counted = next(iter(json.loads(stats).values()))["dropped_messages"]
    assert sum(counted.values()) == len([line for line in victim.fleet.lines if "was dropped" in line])


def test_the_sender_of_a_task_that_does_not_exist_gets_a_failure(victim: Victim) -> None:
    """A message for an unknown task, whose name may be misspelt, gets the result FAILURE with `NotRegistered`."""
    victim.take(json.dumps(envelope("misspelt", "tasks.optimise")).encode())
    meta = json.loads(victim.client.get("celery-task-meta-misspelt") or b"{}")
    assert (meta["status"], meta["result"]["exc_type"]) == ("FAILURE", "NotRegistered")


@pytest.mark.parametrize("channel", ["/0.celery.pidbox", "/0.celeryev/worker.heartbeat", "/0.celeryev/worker.elect"])
def test_no_command_and_no_event_ends_a_worker(victim: Victim, channel: str) -> None:
    """Malformed commands and events, which arrive by pub/sub channels and pass the same checks, do not end a worker."""
    commands = [
        *(b"5", b'"text"', b"[]", b"{}", b"null", b'{"method": {}}', b'{"method": "nothing", "reply_to": 5}'),
        *(b'{"method": "revoke", "arguments": {"task_id": {"a": {}}}}', b'{"method": "ping", "destination": 5}'),
        *(b'{"method": "revoke", "arguments": 5}', b'{"method": "ping", "reply_to": {"exchange": {}}}'),
        *(b'{"hostname": {}, "type": []}', b'{"id": {}, "clock": {}, "hostname": 5, "pid": 5, "topic": 5}'),
    ]
    bodies = [
        {**json.loads(with_body(command)), "headers": headers} for command in commands for headers in ({}, {"clock": 1})
    ]
    hostile = [b"\xff", b"{", DEEP.encode(), *HOSTILE.values(), *(json.dumps(body).encode() for body in bodies)]
    for message in hostile:
        assert victim.client.publish(channel, message) >= 1
    victim.take()
    assert "OK" in victim.fleet.celery("inspect", "ping")


# ---- property: messages of any shape

texts = st.text(st.characters(exclude_categories=()), max_size=20)  # with surrogates
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts
values = st.recursive(
    scalars | st.just([None, None]) | st.just("json") | st.just(TASK),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)


def paths(message: object, outer: str = "") -> list[str]:
    """Return the path of every field of a message, in the form that `changed` takes."""
    if not isinstance(message, dict):
        return []
    return [path for name, inner in message.items() for path in (outer + name, *paths(inner, f"{outer}{name}/"))]


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """A message with any other value in a few fields, or cut short, or of any bytes; none has a countdown."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=50))
    arguments = st.tuples(st.lists(values), st.dictionaries(st.text(), values), values)
    body: Any = draw(st.just([[], {}, {}]) | arguments | values)
    message = envelope(f"any-{next(numbers)}", body=body)
    for path in draw(st.lists(st.sampled_from(paths(message)), max_size=3)):
        *outer, name = path.split("/")
        inner: Any = message
        for step in outer:
            inner = inner.get(step) if isinstance(inner, dict) else None
        if isinstance(inner, dict):
            inner[name] = draw(values)
    if draw(st.booleans()):
        message["headers"] = {**draw(st.dictionaries(st.text(), values, max_size=2)), **envelope()["headers"]}
    data = json.dumps(message).encode()
    return data[: draw(st.integers(0, len(data)))] if draw(st.integers(0, 9)) == 0 else data


@given(st.lists(messages(), min_size=20, max_size=40))
@hypothesis_settings(max_examples=examples(15), suppress_health_check=list(HealthCheck))
def test_messages_of_any_shape(victim: Victim, batch: list[bytes]) -> None:
    """After any messages in any order the worker takes the next one, and none of them is left to be restored."""
    victim.take(*batch)
    victim.assert_nothing_is_left()


def test_a_channel_that_outlives_its_connection_with_a_message_in_flight_can_be_closed(
    redis_server: RedisServer,
) -> None:
    """Closing a channel that lost its connection raises no error, and its unacknowledged message can be restored.

    `collect` leaves such a channel if Redis comes back during it; an error of `close` would end the worker.
    """
    connection: Any = Connection(redis_server.url)  # type: ignore[no-untyped-call]
    with connection, redis_server.client as client:
        queue = connection.SimpleQueue("in-flight")
        client.lpush("in-flight", json.dumps(envelope()))
        queue.get(timeout=5)  # not acknowledged
        channel = connection.default_channel
        channel.connection.client = None
        channel.close()
        assert channel.closed
        assert client.hlen("unacked") == 1  # for any worker to restore
