"""Updates without a rescan, over a real worker: the time from the call until a reader sees it, and a stream of calls.

An index of 10,000 symbols, a Redis, a worker that takes the queue of updates alone, and one `SnapshotReader`. The time
is from before `publish` is called until the reader's lookup of the symbol returns what was published: validation,
queue, Celery's message, merge, flip and lookup. Calls come slower than the pace of versions, since what comes faster is
merged. Then the same while a forced run scans the input again and again. Last, a stream of calls of a few records each,
after which every symbol is looked up.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

from benchmarks.processes import running, throwaway_redis
from optimizer import Settings, SnapshotReader, optimize
from optimizer.producer import publish

__all__ = ["main"]

SYMBOLS: Final = 10_000
CALLS: Final = 200
# Above the pace, 4 versions a second.
BETWEEN_CALLS_S: Final = 0.27
# 2 KB of discarded data per record, so that a scan takes a while.
PADDING: Final = [1.5] * 500
STREAM_S: Final = 5
STREAM_PER_S: Final = 1_000
# One process sends some 500 calls a second.
RECORDS_A_CALL: Final = 4
GOAL_MS: Final = 50.0
LIMIT_S: Final = 20.0


def main() -> int:
    """Measure, print, and return the exit status: 1 if the goal is missed on an idle worker."""
    with tempfile.TemporaryDirectory() as temporary, throwaway_redis(Path(temporary)) as redis_url:
        settings = Settings(
            input=Path(temporary, "brain.json"),
            output_dir=Path(temporary, "out"),
            redis_url=redis_url,
            min_confidence=0,
        )
        _write_input(settings)
        optimize(settings)
        environ = os.environ | {
            "ROLLING_INPUT": str(settings.input),
            "ROLLING_OUTPUT_DIR": str(settings.output_dir),
            "ROLLING_REDIS_URL": settings.redis_url,
            "ROLLING_MIN_CONFIDENCE": "0",
        }
        options = ["-Q", "rolling.updates", "-c", "1", "--without-mingle", "-f", os.devnull]
        worker = [sys.executable, "-m", "celery", "-A", "optimizer.celery.standalone", "worker", *options]
        with running(worker, environ), closing(SnapshotReader.from_settings(settings)) as reader:
            publish([_record("S0", 0.5)], settings=settings, wait_s=LIMIT_S)  # it is up
            print(f"{'ms from the call until it is read':<36}{'p50':>7}{'p90':>7}{'p99':>7}{'most':>7}")
            idle = _latencies("one record", settings, reader, 1)
            _latencies("100 records", settings, reader, 100)
            with _scanning(environ):
                _latencies("one record, while runs scan", settings, reader, 1)
            print()
            _stream(settings, reader)
    print(f"\np99 of one record: {idle:.0f} ms, goal {GOAL_MS:.0f} ms")
    return int(idle > GOAL_MS)


def _write_input(settings: Settings) -> None:
    """Write the input: more symbols than the index holds."""
    numbers = random.Random(1)
    records = {f"S{number}": {**_record("", numbers.random()), "history": PADDING} for number in range(2 * SYMBOLS)}
    for record in records.values():
        del record["symbol"]
    Path(str(settings.input)).write_text(json.dumps(records))


def _record(symbol: str, confidence: float) -> dict[str, Any]:
    return {"symbol": symbol, "prediction": 101.5, "confidence": confidence, "last_price": 100.0, "sentiment": "up"}


def _latencies(name: str, settings: Settings, reader: SnapshotReader, count: int) -> float:
    """Measure calls of `count` records; return the 99th percentile in ms."""
    numbers = random.Random(2)
    times_ms = []
    for _ in range(CALLS):
        symbols = [f"S{number}" for number in numbers.sample(range(SYMBOLS), count)]
        confidence = 0.9 + numbers.random() / 10
        began_s = time.perf_counter()
        publish([_record(symbol, confidence) for symbol in symbols], settings=settings)
        while (found := reader.symbol(symbols[-1]).value) is None or found.confidence != confidence:
            if time.perf_counter() - began_s > LIMIT_S:
                raise AssertionError(f"{symbols[-1]} is not shown after {LIMIT_S:.0f} s")
            time.sleep(0.0005)
        took_s = time.perf_counter() - began_s
        times_ms.append(1e3 * took_s)
        time.sleep(max(0.0, BETWEEN_CALLS_S - took_s))
    percentiles = statistics.quantiles(times_ms, n=100)
    figures = "".join(f"{percentiles[place - 1]:>7.1f}" for place in (50, 90, 99))
    print(f"{name:<36}{figures}{max(times_ms):>7.1f}", flush=True)
    return percentiles[98]


def _stream(settings: Settings, reader: SnapshotReader) -> None:
    """Publish this many records a second, by four threads; look each of them up, and count the versions."""
    total = STREAM_S * STREAM_PER_S
    confidences = {f"T{number}": 1 - number / 1e7 for number in range(total)}  # all are in the index
    versions: set[int] = set()
    began_s, done = time.perf_counter(), threading.Event()

    def send(first: int) -> None:
        time.sleep(max(0.0, began_s + first / STREAM_PER_S - time.perf_counter()))
        symbols = [f"T{number}" for number in range(first, first + RECORDS_A_CALL)]
        publish([_record(each, confidences[each]) for each in symbols], settings=settings)

    def watch() -> None:
        with closing(SnapshotReader.from_settings(settings)) as watching:
            while not done.is_set():
                versions.add(watching.predictions().version)
                time.sleep(0.01)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(send, range(0, total, RECORDS_A_CALL)))
    sent_s = time.perf_counter() - began_s
    publish(remove=["S0"], settings=settings, wait_s=LIMIT_S)
    shown_s = time.perf_counter() - began_s
    done.set()
    watcher.join()
    found = {each: reader.symbol(each).value for each in confidences}
    lost = [each for each, shown in found.items() if shown is None or shown.confidence != confidences[each]]
    print(
        f"{total:,} records in calls of {RECORDS_A_CALL}, in {sent_s:.1f} s ({total / sent_s:,.0f}/s): "
        f"all are read {shown_s:.1f} s after the first call, in {len(versions):,} versions; lost: {len(lost):,}"
    )
    if lost:
        raise AssertionError(f"{len(lost)} updates are lost, such as {lost[:3]}")


@contextmanager
def _scanning(environ: dict[str, str]) -> Iterator[None]:
    """Scan the input repeatedly, in one process after another."""
    done = threading.Event()

    def scan() -> None:
        command = [sys.executable, "-m", "optimizer.cli", "run", "--force"]
        while not done.is_set():
            subprocess.run(command, env=environ, capture_output=True, check=False)

    scanner = threading.Thread(target=scan)
    scanner.start()
    try:
        yield
    finally:
        done.set()
        scanner.join()


if __name__ == "__main__":
    sys.exit(main())
