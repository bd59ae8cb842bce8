"""The cost of a new version for an open page when 1 % of the records change, as a share of fetching the whole.

    python -m benchmarks.changes

First at the socket: the stream of changes, and the ways to take the whole. Then the dashboard in Chromium: everything
that it moves, and its CPU time. Bytes are counted by proxies before `rolling-optimizer web`, headers included, in both
directions. Medians over versions, with least and most. Throwaway Redis, ports and directories. Exit status 1 where the
goal is missed.
"""

from __future__ import annotations

import http.client
import statistics
import sys
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from benchmarks.changing_source import ChangingSource, changing_source
from benchmarks.counting_proxy import CountingProxy, counting_proxy
from benchmarks.open_page import PageCost, open_page_cost
from benchmarks.processes import wait_until, web_server
from tests.support.browser import BrowserMissing, chromium_executable

__all__ = ["main"]

RECORDS: Final = (300, 10_000)
VERSIONS: Final = 15
GOAL_PERCENT: Final = 3.0
COMPRESSED: Final = {"Accept-Encoding": "gzip"}
WHOLE: Final = "GET /snapshot, gzip"
STREAM: Final = "/events?data=changes, gzip"


def main() -> int:
    """Measure, print, and return the exit status."""
    try:
        chromium_executable()
    except BrowserMissing as error:
        print(error)
        return 1
    missed = 0
    for records in RECORDS:
        with ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            source = stack.enter_context(changing_source(directory, records))
            server = stack.enter_context(
                web_server([sys.executable, "-m", "optimizer.cli", "web", "--port"], source.settings)
            )
            port = urlsplit(server).port
            assert port is not None
            ways = _at_the_socket(source, port)
            print(f"{f'{records:,} records, 1 % changed':<40}{'bytes a version':>16}{'share':>9}  least to most")
            whole = statistics.median(ways[WHOLE])
            for name, counts in ways.items():
                missed += _show(name, counts, whole, GOAL_PERCENT if name == STREAM else None)
            missed += _show_page(open_page_cost(source, port, "no-preference"), whole)
            print("the same, its user wants reduced motion")
            _show_cpu(open_page_cost(source, port, "reduce"))
            print()
    return 1 if missed else 0


def _show(name: str, counts: Sequence[float], whole: float, goal: float | None = None) -> int:
    percent = [100 * count / whole for count in counts]
    middle = statistics.median(percent)
    missed = goal is not None and middle >= goal
    print(
        f"{name:<40}{statistics.median(counts):>16,.0f}{middle:>7.1f} %  {min(percent):.1f} to {max(percent):.1f} %"
        + (f"   goal {goal:g} %" if goal is not None else "")
        + ("   MISSED" if missed else ""),
        flush=True,
    )
    return missed


def _show_page(cost: PageCost, whole: float) -> int:
    print("the dashboard in Chromium")
    missed = _show("  data, a version", cost.data, whole, GOAL_PERCENT)
    for path, counts in cost.beside.items():
        _show(f"  {path}, a version", counts, whole)
    _show("  in 30 s without a version", [cost.idle_bytes], whole)
    _show_cpu(cost)
    return missed


def _show_cpu(cost: PageCost) -> None:
    for name, values in cost.cpu_ms.items():
        print(
            f"{f'  CPU of its {name}, ms':<40}{statistics.median(values):>16,.0f}{'':>9}"
            f"  {min(values):.0f} to {max(values):.0f}   and {cost.idle_cpu_ms[name]:.0f} a second without a version",
            flush=True,
        )


def _at_the_socket(source: ChangingSource, port: int) -> dict[str, list[int]]:
    """Return the bytes of each version by way."""
    ways: dict[str, list[int]] = {
        name: []
        for name in (WHOLE, "GET /page and /predictions, gzip", STREAM, "the same without gzip", "GET /changes")
    }
    with ExitStack() as stack:
        proxies = [stack.enter_context(counting_proxy(port)) for _ in range(3)]
        compressed = stack.enter_context(_listening(proxies[0], COMPRESSED))
        plain = stack.enter_context(_listening(proxies[1], {}))
        last = source.publish()
        for number in range(1 + VERSIONS):
            _wait(compressed, plain, last)
            before, last = last, source.publish()
            _wait(compressed, plain, last)
            counts = [
                _asked(proxies[2], "/snapshot"),
                _asked(proxies[2], "/page") + _asked(proxies[2], "/predictions"),
                _taken(proxies[0]),
                _taken(proxies[1]),
                _asked(proxies[2], f"/changes?since={before}"),
            ]
            if number:  # the first version opened the streams
                for name, count in zip(ways, counts, strict=True):
                    ways[name].append(count)
    return ways


def _wait(compressed: Callable[[], int], plain: Callable[[], int], version: int) -> None:
    wait_until(lambda: compressed() >= version <= plain())


def _taken(proxy: CountingProxy) -> int:
    proxy.wait_quiet()
    return sum(proxy.take().values())


def _asked(proxy: CountingProxy, path: str) -> int:
    """Return the bytes of a request by a client without a cache, and of the response."""
    host = urlsplit(proxy.url)
    connection = http.client.HTTPConnection(str(host.hostname), host.port, timeout=20)
    proxy.take()
    connection.request("GET", path, headers=COMPRESSED)
    answer = connection.getresponse()
    body = answer.read()
    assert answer.status == 200, f"{path}: {answer.status}"
    connection.close()
    counted = _taken(proxy)
    assert counted > len(body)
    return counted


@contextmanager
def _listening(proxy: CountingProxy, headers: dict[str, str]) -> Iterator[Callable[[], int]]:
    """Read the stream of changes in a thread; yield a function that returns the last received version."""
    host = urlsplit(proxy.url)
    connection = http.client.HTTPConnection(str(host.hostname), host.port, timeout=60)
    connection.request("GET", "/events?data=changes", headers={"Accept": "text/event-stream", **headers})
    answer = connection.getresponse()
    assert answer.status == 200, answer.status
    assert answer.headers.get("Content-Encoding") == headers.get("Accept-Encoding"), answer.headers.as_string()
    inflate = zlib.decompressobj(31).decompress if headers else bytes
    versions = [0]

    def read() -> None:
        text = b""
        with suppress(http.client.IncompleteRead):  # the proxy has closed
            while data := answer.read1(1 << 16):
                lines = (text + inflate(data)).split(b"\n")
                text = lines.pop()
                versions.extend(int(line[3:]) for line in lines if line.startswith(b"id:"))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    yield lambda: versions[-1]
    proxy.close()
    thread.join()
    connection.close()


if __name__ == "__main__":
    sys.exit(main())
