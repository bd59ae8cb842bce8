"""Limits: what a client sends, keeps open or leaves unread costs the server little, and other clients are served."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest

from optimizer import Settings, optimize
from optimizer.cli.dev.sample import write_sample
from optimizer.web.protocol import MAX_HEAD_BYTES, MAX_PIPELINED
from tests.support.redis_servers import RedisServer, wait_until
from tests.support.rolling_files import local
from tests.support.web_apps import Events, WebServer

pytestmark = [pytest.mark.slow, pytest.mark.no_fork]

LISTENERS: Final = 1_200
HOST: Final = b"Host: test\r\n"
GET: Final = b"GET /healthz HTTP/1.1\r\n" + HOST
SMALL: Final = b"a: b\r\n"
# The command with other limits: file descriptors, and seconds that it waits for a client.
LIMITED: Final = """
import resource, sys
import optimizer.web.protocol
from optimizer.cli.main import main

resource.setrlimit(resource.RLIMIT_NOFILE, ({descriptors}, {descriptors}))
optimizer.web.protocol.PATIENCE_S = optimizer.web.protocol.UNSENT_PATIENCE_S = {patience_s}
sys.argv[1:1] = ["web"]
main()
"""


@contextmanager
def limited(
    directory: Path,
    server: RedisServer,
    *,
    descriptors: int = 1_024,
    patience_s: int = 15,
    variables: dict[str, str] | None = None,
) -> Iterator[WebServer]:
    """Run a server with a snapshot and these limits.

    At the end, check that its log has no traceback and does not say that Redis is away.
    """
    settings = Settings(
        input=directory / "rolling_brain.json.gz",
        output_dir=directory / "snapshots",
        redis_url=server.url,
        source=directory.name,  # this Redis is not emptied between tests
        top_symbols_limit=2_000,
        min_confidence=0,
    )
    write_sample(local(settings.input), symbols=2_000, points=1)
    optimize(settings)
    program = LIMITED.format(descriptors=descriptors, patience_s=patience_s)
    with WebServer(directory, settings, command=("-c", program), **(variables or {})) as web:
        wait_until(lambda: web.get("/predictions")[0] == 200, what="a snapshot")
        yield web
    log = web.log.read_text()
    assert "Redis is away" not in log
    assert "Traceback" not in log, log


def connect(web: WebServer, timeout_s: float = 10) -> socket.socket:
    """Open a connection to the server."""
    return socket.create_connection(("127.0.0.1", web.port), timeout=timeout_s)


def exchange(web: WebServer, *sent: bytes) -> bytes:
    """Send data; return all that the server sends until it closes the connection."""
    with connect(web) as connection:
        with suppress(ConnectionError):
            for data in sent:
                connection.sendall(data)
        return read_all(connection)


def read_all(connection: socket.socket) -> bytes:
    """Return all that is received until the other side closes the connection."""
    received = b""
    with suppress(ConnectionError):
        while data := connection.recv(65_536):
            received += data
    return received


def memory_mb(web: WebServer) -> float:
    """Resident memory of the server, in MB."""
    status = Path(f"/proc/{web.process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")) / 1e3


def worked_s(web: WebServer) -> float:
    """CPU time that the server has used, in seconds."""
    fields = Path(f"/proc/{web.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def others_are_served(web: WebServer) -> Iterator[None]:
    """Send requests during the block, each on a new connection, and check that each gets a response within 5 s."""
    took_s, ended = [], threading.Event()

    def ask() -> None:
        while not ended.is_set():
            started = time.monotonic()
            assert web.get("/predictions")[0] == 200
            took_s.append(time.monotonic() - started)
            ended.wait(0.02)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    assert took_s
    assert max(took_s) < 5  # a long limit, since the machine is busy with other tests


HEADS: Final[dict[str, tuple[bytes, bytes]]] = {  # the bytes before the padding, and those after it
    "small headers": (GET, b"\r\n"),
    "one header": (GET + b"X: ", b"\r\n\r\n"),
    "the name of a header": (GET, b": x\r\n\r\n"),
    "a path": (b"GET /", b" HTTP/1.1\r\n" + HOST + b"\r\n"),
    "a query": (b"GET /healthz?", b" HTTP/1.1\r\n" + HOST + b"\r\n"),
}


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory, shared_redis: RedisServer) -> Iterator[WebServer]:
    """One server for all tests that leave it as it was."""
    with limited(tmp_path_factory.mktemp("web"), shared_redis) as server:
        yield server


# ---- heads


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_of_more_than_64_kib_is_refused(web: WebServer, kind: str) -> None:
    """A head of more than 64 KiB is a 431 with problem details, and the connection is closed; a smaller head is served.

    The head may arrive in one piece or two, and be complete or not.
    """
    before, after = HEADS[kind]
    pad = SMALL if kind == "small headers" else b"x"

    def padded(size: int) -> bytes:
        return before + pad * ((size - len(before) - len(after)) // len(pad)) + after

    fits, too_large = padded(MAX_HEAD_BYTES - 1_000), padded(MAX_HEAD_BYTES + 10_000)
    with connect(web) as connection:
        connection.sendall(fits)
        assert connection.recv(12).removeprefix(b"HTTP/1.1 ") in (b"200", b"404")
    halves = [too_large[:40_000], too_large[40_000:]]
    for sent in ([too_large], halves, [too_large.removesuffix(after)]):
        answer, _, body = exchange(web, *sent).partition(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
        assert b"content-type: application/problem+json" in answer
        assert json.loads(body)["status"] == 431
        assert str(MAX_HEAD_BYTES) in json.loads(body)["detail"]


def test_the_second_head_of_a_connection_is_limited_too(web: WebServer) -> None:
    """The second head of a connection is limited too, also if the request before it had a body."""
    body = b"POST /healthz HTTP/1.1\r\nContent-Length: 100000\r\n" + HOST + b"\r\n" + b"x" * 100_000
    for first in (GET + b"\r\n", body):
        with connect(web) as connection:
            connection.sendall(first)
            assert b"\r\n\r\n" in connection.recv(65_536)
            with suppress(ConnectionError):
                connection.sendall(GET + SMALL * 40_000)
            assert b"431" in read_all(connection)


FLOODS: Final[dict[str, tuple[bytes, bytes]]] = {  # the beginning of a request, and what then follows without end
    "small headers": (GET, SMALL * 10_000),
    "one header": (GET + b"X: ", b"x" * 60_000),
    "a path": (b"GET /", b"x" * 60_000),
    "trailers": (GET + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", SMALL * 10_000),
    "one trailer": (GET + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: ", b"x" * 60_000),
    "an extension of a chunk": (GET + b"Transfer-Encoding: chunked\r\n\r\n1;", b"x" * 60_000),
    "requests": (b"", (GET + b"\r\n") * 1_500),
}


@pytest.mark.parametrize("kind", FLOODS)
def test_what_never_ends_takes_little_memory_and_no_time(web: WebServer, kind: str) -> None:
    """Each of 16 connections that send megabytes without end is closed, and other clients are served meanwhile.

    All take under 40 MB of memory and 1 s of CPU time.
    """
    begin, more = FLOODS[kind]
    before_mb, before_s = memory_mb(web), worked_s(web)
    closed: list[bool] = []

    def flood() -> None:
        with connect(web) as connection:
            try:
                connection.sendall(begin)
                for _ in range(100):
                    connection.sendall(more)
            except ConnectionError:
                closed.append(True)

    with others_are_served(web):
        threads = [threading.Thread(target=flood) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(closed) == len(threads)
    assert memory_mb(web) - before_mb < 40
    assert worked_s(web) - before_s < 1.0


def test_a_body_that_is_not_wanted_is_thrown_away(web: WebServer) -> None:
    """A request whose body is not used gets its response, and 300 MB of body take under 20 MB of memory."""
    before_mb = memory_mb(web)
    with others_are_served(web), connect(web) as connection:
        connection.sendall(b"GET /predictions HTTP/1.1\r\nContent-Length: 300000000\r\n" + HOST + b"\r\n")
        for _ in range(300):
            connection.sendall(bytes(1_000_000))
        assert connection.recv(12) == b"HTTP/1.1 200"
    assert memory_mb(web) - before_mb < 20


def test_requests_may_follow_each_other_without_waiting(web: WebServer) -> None:
    """A client may pipeline as many requests as `MAX_PIPELINED`, and each gets its response.

    The response to HEAD has no body, so the next one begins after its headers.
    """
    head = b"HEAD /predictions HTTP/1.1\r\n" + HOST + b"\r\n"
    with connect(web) as connection:
        connection.sendall(head + (GET + b"\r\n") * (MAX_PIPELINED - 2) + GET + b"Connection: close\r\n\r\n")
        received = read_all(connection)
    assert received.count(b"HTTP/1.1 200 OK\r\n") == MAX_PIPELINED
    assert received.partition(b"\r\n\r\n")[2].startswith(b"HTTP/1.1 200 OK\r\n")


# ---- waiting

WAITING: Final[dict[str, bytes]] = {
    "nothing": b"",
    "half a head": GET,
    "a head after a request": GET + b"\r\n" + GET,
    "a body that is not read": GET + b"Content-Length: 1000\r\n\r\n",
    "a body that is wanted": b"POST /runs HTTP/1.1\r\nAuthorization: Bearer token\r\nContent-Length: 9\r\n"
    + HOST
    + b"\r\n",
}


def test_who_keeps_the_server_waiting_is_closed(tmp_path: Path, shared_redis: RedisServer) -> None:
    """A connection that keeps the server waiting is closed, even if it sends a byte now and then.

    A listener to events is not closed.
    """
    with ExitStack() as stack:
        variables = {"ROLLING_TRIGGER_TOKEN": "token", "ROLLING_BROKER_URL": shared_redis.url}
        web = stack.enter_context(limited(tmp_path, shared_redis, patience_s=2, variables=variables))
        events = stack.enter_context(Events(web.port))
        events.versions(1)
        connections = {kind: stack.enter_context(connect(web)) for kind in WAITING}
        for kind, sent in WAITING.items():
            connections[kind].sendall(sent)
        started = time.monotonic()
        ended: dict[str, float] = {}
        while len(ended) < len(WAITING):
            assert time.monotonic() - started < 8, WAITING.keys() - ended.keys()
            for kind in WAITING.keys() - ended.keys():
                connection = connections[kind]
                try:
                    if kind != "nothing":
                        connection.sendall(b"x")
                    connection.settimeout(0.05)
                    while connection.recv(65_536):
                        pass
                    ended[kind] = time.monotonic() - started
                except TimeoutError:
                    continue
                except ConnectionError:
                    ended[kind] = time.monotonic() - started
        assert min(ended.values()) > 1
        assert b'rolling_event_listeners{source="rolling_brain"} 1\n' in web.get("/metrics")[2]


def test_who_does_not_take_the_answers_is_closed(tmp_path: Path, shared_redis: RedisServer) -> None:
    """A client that does not read its responses is disconnected, and what was written for it is freed.

    A client that reads slowly is served to the end.
    """
    with limited(tmp_path, shared_redis, patience_s=2) as web, ExitStack() as stack:
        request = b"GET /predictions HTTP/1.1\r\n" + HOST + b"\r\n"
        # Requested before the reader connects: on a busy machine the response may take as long as the server waits.
        expected = MAX_PIPELINED * len(web.get("/predictions")[2])
        silent = [stack.enter_context(connect(web)) for _ in range(8)]
        for connection in silent:
            connection.sendall(request * MAX_PIPELINED)
        reader = stack.enter_context(connect(web))
        reader.sendall(request * (MAX_PIPELINED - 1) + request.removesuffix(b"\r\n") + b"Connection: close\r\n\r\n")
        received, started = 0, time.monotonic()
        while data := reader.recv(400_000):  # a client that reads them slowly, over four seconds, is not closed
            received += len(data)
            time.sleep(max(0.0, started + 4 * received / expected - time.monotonic()))
        assert received > expected > 10_000_000
        wait_until(lambda: connections_of(web) == 0, limit_s=12, what="their end")
        assert all(length_of_rest(connection) < expected for connection in silent)


def length_of_rest(connection: socket.socket) -> int:
    """Count the bytes that can still be received until the connection ends."""
    received = 0
    with suppress(ConnectionError):
        while data := connection.recv(400_000):
            received += len(data)
    return received


def test_a_client_that_goes_is_missed_by_all_its_requests(tmp_path: Path, shared_redis: RedisServer) -> None:
    """When a client disconnects, all its pipelined requests end, also those before the last.

    A listener leaves at once, and nothing is written to a closed connection.
    """
    with limited(tmp_path, shared_redis) as web:
        for _ in range(5):
            with Events(web.port) as events:
                events.versions(1)
                events.socket.sendall((GET + b"\r\n") * 5)
                assert b'rolling_event_listeners{source="rolling_brain"} 1\n' in web.get("/metrics")[2]
            wait_until(
                lambda: b'rolling_event_listeners{source="rolling_brain"} 0\n' in web.get("/metrics")[2],
                limit_s=3,
                what="its leaving",
            )
        for _ in range(20):
            with connect(web) as connection:
                connection.sendall((b"GET /predictions HTTP/1.1\r\n" + HOST + b"\r\n") * 20)
                connection.recv(10)


def connections_of(web: WebServer) -> int:
    """The number of client connections that the server has open."""
    listens, closed_by_the_process = "0A", "0"
    entries = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(
        entry[1].endswith(f":{web.port:04X}") and entry[3] != listens and entry[9] != closed_by_the_process
        for entry in entries
    )


def descriptors(web: WebServer) -> int:
    """The number of file descriptors that the server has open."""
    return len(list(Path(f"/proc/{web.process.pid}/fd").iterdir()))


# ---- descriptors


def test_listeners_leave_descriptors_for_others(tmp_path: Path, shared_redis: RedisServer) -> None:
    """With 1,024 descriptors, 704 of 1,200 listeners are accepted, and 496 get a 503 with `Retry-After`.

    All other requests are served. When a listener has gone, another one is accepted.
    """
    with limited(tmp_path, shared_redis, descriptors=1_024) as web, ExitStack() as stack:
        with others_are_served(web):
            listeners = [stack.enter_context(Events(web.port)) for _ in range(LISTENERS)]
            heads = [listener.wait_for(b"\r\n\r\n") for listener in listeners]
        taken = [head for head in heads if head.startswith(b"HTTP/1.1 200")]
        refused = [head for head in heads if head.startswith(b"HTTP/1.1 503")]
        assert (len(taken), len(refused)) == (1_024 * 3 // 4 - 64, LISTENERS - 1_024 * 3 // 4 + 64)
        assert all(b"retry-after: 5" in head and b"application/problem+json" in head for head in refused)
        for path in ("/predictions", "/healthz", "/readyz", "/metrics", "/runs"):
            assert web.get(path)[0] == 200
        listeners[0].socket.close()
        wait_until(lambda: accepts_a_listener(web), limit_s=5, what="a place")


def accepts_a_listener(web: WebServer) -> bool:
    """Whether the server accepts another listener, which then leaves."""
    with Events(web.port) as late:
        return late.wait_for(b"\r\n\r\n").startswith(b"HTTP/1.1 200")


def test_connections_that_do_nothing_make_way(tmp_path: Path, shared_redis: RedisServer) -> None:
    """With 256 descriptors and 600 idle connections, requests are served, and Redis and files can still be opened."""
    with limited(tmp_path, shared_redis, descriptors=256) as web, ExitStack() as stack:
        for _ in range(600):
            connection = stack.enter_context(connect(web))
            with suppress(ConnectionError):
                connection.sendall(GET)
        wait_until(lambda: answers(web), limit_s=3, what="an answer")
        for _ in range(20):
            assert web.get("/predictions")[0] == 200
            assert b'rolling_cache_up{source="rolling_brain"} 1' in web.get("/metrics")[2]
        assert descriptors(web) <= 256 - 32


def answers(web: WebServer) -> bool:
    """Whether the server responds on a new connection."""
    try:
        return web.get("/predictions")[0] == 200
    except OSError:
        return False
