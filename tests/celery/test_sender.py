"""Runs that the web sends: one at a time for each source, over all processes; and forged results."""

from __future__ import annotations

import http.client
import json
import pickle
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Final

import pytest
import redis
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from optimizer import Settings
from optimizer.cache.keys import Keys
from tests.support.examples import examples
from tests.support.redis_servers import RedisServer
from tests.support.web_apps import WebServer

pytestmark = [pytest.mark.slow, pytest.mark.no_fork]

ID: Final = "7e1f0a52-3f0e-4a35-9d0c-5b8f3c6a9e11"
RESULT: Final = f"celery-task-meta-{ID}"
TOKEN: Final = "made-up"
QUEUE: Final = "rolling.rolling_brain"
REQUESTED: Final = Keys("rolling_brain").requested
REPORT: Final[dict[str, Any]] = {
    "status": "success",
    "source": "rolling_brain",
    "timestamp": "2026-11-01T10:00:00.000Z",
    "version": 1795000000000,
    "stats": {"records_seen": 5, "seconds": 0.1},
    "rejects": [{"reason": "SymbolMissing", "count": 1, "first": []}],
}
FAILURE: Final = {"exc_type": "SourceMissing", "exc_message": ["in.json: not found"], "exc_module": "optimizer.errors"}


@pytest.fixture(scope="module")
def webs(tmp_path_factory: pytest.TempPathFactory, shared_redis: RedisServer) -> Iterator[list[WebServer]]:
    """Two servers with the same broker, and no worker."""
    variables = {"ROLLING_TRIGGER_TOKEN": TOKEN, "ROLLING_BROKER_URL": shared_redis.url}
    with ExitStack() as stack:
        servers = []
        for _ in range(2):
            directory = tmp_path_factory.mktemp("web")
            settings = Settings(
                input=directory / "rolling_brain.json", output_dir=directory / "out", redis_url=shared_redis.url
            )
            servers.append(stack.enter_context(WebServer(directory, settings, **variables)))
        yield servers
        for web in servers:
            assert "Traceback" not in web.log.read_text()


@pytest.fixture
def broker(webs: list[WebServer], redis_server: RedisServer) -> Iterator[redis.Redis]:
    """The broker of the servers, empty."""
    assert webs
    with redis_server.client as client:
        yield client


def ask(web: WebServer, method: str, path: str, body: bytes | None = None, token: str = TOKEN) -> tuple[int, Any]:
    """Send a request; return the status and the decoded body of the response."""
    with closing(http.client.HTTPConnection("127.0.0.1", web.port, timeout=10)) as connection:
        connection.request(method, path, body, {"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def store(broker: redis.Redis, run: str, status: str, result: Any = None) -> None:
    """Store a result as a worker does."""
    broker.set(f"celery-task-meta-{run}", json.dumps({"status": status, "result": result, "task_id": run}))


# ---- one at a time


def test_of_all_requests_of_a_source_one_is_sent(webs: list[WebServer], broker: redis.Redis) -> None:
    """Until a run has ended, all requests for its source, to any process, get its id, and one message is sent."""
    with ThreadPoolExecutor(16) as threads:
        sent = list(threads.map(lambda number: ask(webs[number % 2], "POST", "/runs"), range(200)))
    assert {status for status, _ in sent} == {202}
    [run] = {answer["id"] for _, answer in sent}
    assert broker.llen(QUEUE) == 1

    for status, result in (("STARTED", {"pid": 1, "hostname": "x"}), ("PROGRESS", {"percent": 7.5})):
        store(broker, run, status, result)
        assert [ask(web, "POST", "/runs") for web in webs] == [(202, {"id": run})] * 2
        assert ask(webs[0], "GET", f"/runs/{run}")[1]["state"] == "running"

    for number, (status, result) in enumerate(
        [("SUCCESS", REPORT), ("FAILURE", FAILURE), ("REVOKED", FAILURE), ("SUCCESS", {"junk": 1})], 2
    ):
        store(broker, run, status, result)
        with ThreadPoolExecutor(8) as threads:
            again = list(threads.map(lambda number: ask(webs[number % 2], "POST", "/runs"), range(16)))
        [following] = {answer["id"] for _, answer in again}
        assert following != run
        assert broker.llen(QUEUE) == number
        run = following


@pytest.mark.parametrize("more", ["force", "accept"])
def test_a_run_that_should_do_more_is_not_mixed_up_with_one_that_does_less(
    webs: list[WebServer], broker: redis.Redis, more: str
) -> None:
    """A run with `force` or `accept` is refused (409) while one without it is pending.

    In the other order, a request without it gets the id of the pending run that has it.
    """
    doing_more = json.dumps({more: True}).encode()
    run = ask(webs[0], "POST", "/runs")[1]["id"]
    status, problem = ask(webs[1], "POST", "/runs", doing_more)
    assert (status, run in problem["detail"], f"without {more}" in problem["detail"]) == (409, True, True)
    assert broker.llen(QUEUE) == 1

    store(broker, run, "SUCCESS", REPORT)
    status, forced = ask(webs[1], "POST", "/runs", doing_more)
    assert (status, forced["id"] != run) == (202, True)
    for body in (doing_more, b"{}"):
        assert ask(webs[0], "POST", "/runs", body) == (202, forced)
    assert broker.llen(QUEUE) == 2
    sent = json.loads(broker.lindex(QUEUE, 0) or b"")
    assert sent["headers"]["id"] == forced["id"]


def test_a_run_that_no_worker_has_begun_in_time_holds_up_no_other(webs: list[WebServer], broker: redis.Redis) -> None:
    """A run that no worker has begun within a minute does not block the next: its message has expired by then.

    The key that notes the run expires too. A run that has begun still blocks the next.
    """
    first = ask(webs[0], "POST", "/runs")[1]["id"]
    assert ask(webs[0], "POST", "/runs")[1]["id"] == first
    kept_ms = broker.pttl(REQUESTED)
    assert 0 < kept_ms <= 330_000  # the time limit of a run
    broker.pexpire(REQUESTED, 330_000 - 61_000)  # as a minute later
    second = ask(webs[0], "POST", "/runs")[1]["id"]
    assert second != first
    store(broker, second, "STARTED")
    broker.pexpire(REQUESTED, 330_000 - 61_000)
    assert ask(webs[0], "POST", "/runs")[1]["id"] == second  # this one has been begun


def test_a_run_that_could_not_be_sent_holds_up_no_other(webs: list[WebServer], broker: redis.Redis) -> None:
    """After a run that could not be sent, the next request sends one."""
    broker.set(QUEUE, "no list")
    assert ask(webs[0], "POST", "/runs")[0] == 503
    broker.delete(QUEUE)
    status, sent = ask(webs[0], "POST", "/runs")
    assert (status, broker.llen(QUEUE)) == (202, 1)
    assert ask(webs[1], "POST", "/runs") == (202, sent)


@pytest.mark.parametrize(
    "damage", ["junk", "list", "[]", '{"id": 5}', '{"id": "x", "force": true}', "[" * 100_000, "\udcff", "null"]
)
def test_a_damaged_note_is_replaced(webs: list[WebServer], broker: redis.Redis, damage: str) -> None:
    """A note of the pending run that is damaged in any way is replaced by the next request."""
    if damage == "list":
        broker.lpush(REQUESTED, "x")
    else:
        broker.set(REQUESTED, damage.encode("utf-8", "surrogateescape"))
    status, sent = ask(webs[0], "POST", "/runs")
    assert (status, broker.llen(QUEUE)) == (202, 1)
    assert ask(webs[1], "POST", "/runs") == (202, sent)


# ---- results

numbers = st.integers() | st.floats() | st.sampled_from([10**30, -(10**400), 1 << 64, 1e308])
texts = st.text(st.characters(), max_size=20) | st.sampled_from(["\ud800", "x" * 10_000])
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
STATUSES: Final = ("SUCCESS", "FAILURE", "REVOKED", "PROGRESS", "STARTED", "RETRY", "PENDING", "RECEIVED")


@st.composite
def changed(draw: st.DrawFn, whole: dict[str, Any]) -> dict[str, Any]:
    """One of our objects, with some members removed, or replaced by any value."""
    given = {name: value for name, value in whole.items() if draw(st.booleans())}
    for name in draw(st.lists(st.sampled_from(sorted(whole)), max_size=2)):
        given[name] = draw(values)
    return given


envelopes = st.fixed_dictionaries(
    {
        "status": st.sampled_from(STATUSES) | values,
        "result": changed(REPORT) | changed(FAILURE) | changed({"percent": 5.0}) | values,
    },
    optional={"traceback": values, "children": values, "task_id": values},
)
forged = st.binary(max_size=200) | values.map(json.dumps).map(str.encode) | envelopes.map(json.dumps).map(str.encode)


def said(web: WebServer) -> dict[str, Any]:
    """Return the response for the run, after a check that it is a state or a problem, never a traceback."""
    status, answer = ask(web, "GET", f"/runs/{ID}")
    if status == 200:
        assert answer["id"] == ID
        assert answer["state"] in ("pending", "running", "done", "failed")
    else:
        assert (status, answer["title"]) == (503, "Service Unavailable")
        assert "none of ours" in answer["detail"]
    content: dict[str, Any] = answer
    return content


class Raises:
    """An object that runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Make unpickling run code."""
        return exec, ("raise SystemExit",)


def _envelope(status: Any, result: Any) -> bytes:
    return json.dumps({"status": status, "result": result}).encode()


@example(data=b"")
@example(data=b"\xff\xfe")
@example(data=b"null")
@example(data=b"5")
@example(data=b"[]")
@example(data=b"{}")
@example(data=b"[" * 200_000)
@example(data=b'{"status": "SUCCESS", "result": ' + b"[" * 200_000)
@example(data=pickle.dumps(Raises()))
@example(data=_envelope("SUCCESS", None))
@example(data=_envelope("SUCCESS", REPORT | {"version": 10**30}))
@example(data=_envelope("SUCCESS", REPORT | {"source": "\ud800"}))
@example(data=_envelope("FAILURE", None))
@example(data=_envelope("FAILURE", {"exc_type": "system", "exc_module": "os", "exc_message": ["touch /tmp/x"]}))
@example(data=_envelope("FAILURE", {"exc_type": "X", "exc_module": "no.such.module", "exc_message": 5}))
@example(data=_envelope("FAILURE", {"exc_type": 5}))
@example(data=_envelope("FAILURE", FAILURE).replace(b'"in.json: not found"', b"9" * 5_000))
@example(data=_envelope("FAILURE", FAILURE).replace(b'"in.json: not found"', b"[" * 900 + b"]" * 900))
@example(data=_envelope("SUCCESS", REPORT).replace(b"1795000000000", b"9" * 5_000))
@example(data=_envelope("PROGRESS", {"percent": 0}).replace(b"0", b"9" * 5_000))
@example(data=_envelope("FAILURE", "text"))
@example(data=_envelope("PROGRESS", {}))
@example(data=_envelope("PROGRESS", {"percent": "x"}))
@example(data=_envelope("PROGRESS", None))
@example(data=_envelope({}, None))
@example(data=_envelope("MADE-UP", None))
@hypothesis_settings(max_examples=examples(300))
@given(data=forged)
def test_no_result_makes_a_traceback(webs: list[WebServer], shared_redis: RedisServer, data: bytes) -> None:
    """Any bytes under the key of a result give a state, or 503 with a sentence."""
    with shared_redis.client as client:
        client.set(RESULT, data)
    said(webs[0])


OTHER_TYPES: Final = {
    "list": ("LPUSH", "x"),
    "set": ("SADD", "x"),
    "zset": ("ZADD", "1", "x"),
    "hash": ("HSET", "status", "SUCCESS"),
    "stream": ("XADD", "*", "status", "SUCCESS"),
}


@pytest.mark.parametrize("kind", OTHER_TYPES)
def test_a_key_of_another_type_is_no_result(webs: list[WebServer], broker: redis.Redis, kind: str) -> None:
    """A key of another type in place of a result gives 503."""
    command, *arguments = OTHER_TYPES[kind]
    broker.execute_command(command, RESULT, *arguments)  # type: ignore[no-untyped-call]
    assert said(webs[0])["status"] == 503


def test_a_huge_result_is_not_read(webs: list[WebServer], broker: redis.Redis) -> None:
    """A result of 200 MB gives 503 without being read: the peak memory of the server rises by less than 30 MB."""
    broker.setrange(RESULT, 200_000_000, "x")
    before_mb = peak_memory_mb(webs[0])
    assert said(webs[0])["status"] == 503
    assert peak_memory_mb(webs[0]) - before_mb < 30
    broker.delete(RESULT)


def peak_memory_mb(web: WebServer) -> float:
    """Return the peak resident memory of the server."""
    status = Path(f"/proc/{web.process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) / 1e3


def test_results_of_workers_are_shown(webs: list[WebServer], broker: redis.Redis) -> None:
    """Results that workers store are shown as states of the run; a failed one has the name and text of its error."""
    assert said(webs[0])["state"] == "pending"
    for status, result, expected in (
        ("PENDING", None, {"state": "pending"}),
        ("STARTED", {"pid": 7, "hostname": "x"}, {"state": "running", "percent": None}),
        ("PROGRESS", {"percent": 12.5, "done_bytes": 1, "total_bytes": 8}, {"state": "running", "percent": 12.5}),
        ("PROGRESS", {"percent": 101}, {"state": "running", "percent": 100}),
        ("SUCCESS", REPORT, {"state": "done", "percent": 100}),
        ("FAILURE", FAILURE, {"error": {"error": "SourceMissing", "details": "in.json: not found"}}),
        ("FAILURE", FAILURE | {"exc_message": "as text"}, {"error": {"error": "SourceMissing", "details": "as text"}}),
        ("REVOKED", FAILURE, {"state": "failed"}),
    ):
        store(broker, ID, status, result)
        answer = said(webs[0])
        assert answer | expected == answer, status
    store(broker, ID, "SUCCESS", REPORT)
    assert said(webs[0])["report"]["stats"]["records_seen"] == 5


# ---- wrong tokens


@pytest.mark.alone
def test_wrong_tokens_are_slowed_down(webs: list[WebServer], broker: redis.Redis) -> None:
    """Responses to wrong tokens are delayed by more with each of them, up to 429 with `Retry-After`.

    Requests with the right token get their responses at once meanwhile. Each process counts for itself.
    """
    ended = time.monotonic() + 3

    def guess(number: int) -> list[int]:
        statuses: list[int] = []
        while time.monotonic() < ended:
            statuses.append(ask(webs[0], "GET", f"/runs/{ID}", token=f"guess-{number}-{len(statuses)}")[0])
        return statuses

    with ThreadPoolExecutor(16) as threads:
        guessing = threads.map(guess, range(16))
        while time.monotonic() < ended - 0.5:
            started = time.monotonic()
            assert ask(webs[0], "GET", f"/runs/{ID}")[0] == 200
            assert ask(webs[0], "POST", "/runs")[0] == 202
            assert time.monotonic() - started < 0.5
            time.sleep(0.05)
        statuses = [status for found in guessing for status in found]
    assert set(statuses) == {401, 429}
    assert len(statuses) < 100  # instead of thousands
    assert broker.llen(QUEUE) == 1
    with closing(http.client.HTTPConnection("127.0.0.1", webs[0].port, timeout=10)) as connection:
        connection.request("POST", "/runs", headers={"Authorization": "Bearer wrong"})
        answer = connection.getresponse()
        assert (answer.status, answer.getheader("Content-Type")) == (429, "application/problem+json")
        assert 0 < int(answer.getheader("Retry-After", "")) < 20
    assert ask(webs[1], "POST", "/runs", token="wrong")[0] == 401  # each process counts for itself
