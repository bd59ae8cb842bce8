"""A process that reads the snapshots in seven ways all the time, and reports what it sees.

    python -m tests.reliability.chaos.pollers INPUT OUTPUT_DIR REDIS_URL ORDER       until its standard input ends

ORDER is what must only rise: `generations`, or `versions` where rollbacks publish older generations again.

Each line of output is a JSON object: a generation that a way shows for the first time, or a complaint, and at the end
how often each way has read. A complaint is a payload that is torn (two generations in it), mixed (a version that had
another generation elsewhere), older than what the same way has shown, or any exception. The last three ways use
nothing of this project but its keys and files: they are redis-py and the standard library.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import msgspec
import redis

from optimizer import Settings, SnapshotReader
from tests.reliability.chaos.generations import KINDS, generations_in
from tests.support.readers import Open
from tests.support.rolling_files import local

__all__ = ["WAYS"]

WAYS: Final = (
    "SnapshotReader",
    "SnapshotReader, Redis alone",
    "SnapshotReader, files alone",
    "AsyncSnapshotReader",
    "redis-py",
    "fixed names",
    "link resolved once",
)
FILE_NAMES: Final = dict(
    zip(KINDS, ("rolling_optimized.json.gz", "bots_snapshot.json.gz", "portfolio_snapshot.json.gz"), strict=True)
)
PAUSE_S: Final = 0.05  # seven ways of reading must leave the service a core to run on
ATTEMPTS: Final = 5

# A payload's kind, its version if it is known, and the generations in it.
Payload = tuple[str, int | None, set[float]]


class Unanswered(Exception):
    """There are no data, or no server responds; only the ways without this project's readers may raise it."""


class Judge:
    """Compares what all ways have read, and reports what readers must never see.

    Args:
        generations_rise: Whether it is wrong that a way shows an older generation after a newer one.
    """

    def __init__(self, *, generations_rise: bool) -> None:
        self._generations_rise = generations_rise
        self._lock = threading.Lock()
        self._generation_of: dict[int, float] = {}
        self._newest: dict[tuple[str, str], tuple[float, int]] = {}
        self._shown: dict[str, float] = {}
        self.reads: Counter[str] = Counter()
        self.unanswered: Counter[str] = Counter()

    def hear(self, way: str, payloads: list[Payload]) -> None:
        """Count and check one read of a way; `payloads` is all that it has read."""
        with self._lock:
            self.reads[way] += 1
            for kind, version, generations in payloads:
                self._check(way, kind, version, generations)
            shown = min(generation for _, _, found in payloads for generation in found)
            if shown > self._shown.get(way, 0):
                self._shown[way] = shown
                self.tell({"way": way, "generation": shown, "version": payloads[0][1]})

    def _check(self, way: str, kind: str, version: int | None, generations: set[float]) -> None:
        if len(generations) != 1:
            self.complain(way, f"torn: {kind} of version {version} has generations {sorted(generations)}")
            return
        [generation] = generations
        if version is not None and self._generation_of.setdefault(version, generation) != generation:
            self.complain(
                way, f"mixed: {kind} of version {version} is of {generation}, not {self._generation_of[version]}"
            )
        before = self._newest.get((way, kind), (0.0, 0))
        if (self._generations_rise and generation < before[0]) or (version or 0) < before[1]:
            self.complain(way, f"older: {kind} of version {version}, generation {generation} after {before}")
        self._newest[way, kind] = (generation, version or 0)

    def complain(self, way: str, text: str) -> None:
        """Report something that readers must never see."""
        self.tell({"way": way, "complaint": text})

    def tell(self, line: dict[str, Any]) -> None:
        """Print a line, with the time by the clock that all processes of a machine share."""
        sys.stdout.write(json.dumps({"at": time.monotonic(), **line}) + "\n")
        sys.stdout.flush()


def with_reader(reader: SnapshotReader) -> list[Payload]:
    """Read by three calls, each of which may show another version."""
    found = [(kind, getattr(reader, kind)()) for kind in KINDS]
    return [(kind, shown.version, generations_in(kind, msgspec.to_builtins(shown.value))) for kind, shown in found]


def with_redis_py(client: redis.Redis, prefix: str) -> list[Payload]:
    """Read the pointer, the payloads that it names, and the index."""
    version = 0
    for _ in range(ATTEMPTS):
        pointer = _ask(client.hgetall, f"{prefix}:current")
        if not pointer:
            raise Unanswered
        if int(pointer[b"version"]) == version:
            raise AssertionError(f"version {version} is current, and a part of it is not there")
        version = int(pointer[b"version"])
        payloads = {kind: _ask(client.get, f"{prefix}:{version}:{kind}") for kind in KINDS}
        symbols = _ask(client.hvals, f"{prefix}:{version}:symbols")
        ranked = _ask(client.zcard, f"{prefix}:{version}:ranking")
        if None in payloads.values() or not symbols or not ranked:
            continue  # the version was replaced and has expired: the pointer names another one by now
        entries = json.loads(pointer[b"manifest"])["snapshots"]
        for kind, data in payloads.items():
            assert hashlib.sha256(data).hexdigest() == entries[kind]["sha256"], f"{kind}: sha256"
        assert len(symbols) == ranked
        index = {"predictions": [json.loads(data) for data in symbols]}
        return [
            *((kind, version, generations_in(kind, _decoded(data))) for kind, data in payloads.items()),
            ("predictions", version, generations_in("predictions", index)),
        ]
    raise AssertionError("no version stayed for as long as it takes to read it")


def _ask(command: Callable[[str], Any], key: str) -> Any:
    try:
        return command(key)
    except (redis.ConnectionError, redis.TimeoutError):  # which includes a server that is loading its data
        raise Unanswered from None


def with_fixed_names(directory: Path) -> list[Payload]:
    """Read three files, each of which may be of another version."""
    return [
        (kind, None, generations_in(kind, _decoded((directory / name).read_bytes())))
        for kind, name in FILE_NAMES.items()
    ]


def with_resolved_link(directory: Path) -> list[Payload]:
    """Read the directory that `current` names, and all of its files."""
    for _ in range(ATTEMPTS):
        resolved = (directory / "current").resolve(strict=True)
        try:
            manifest = json.loads((resolved / "manifest.json").read_bytes())
            payloads = {kind: (resolved / name).read_bytes() for kind, name in FILE_NAMES.items()}
        except FileNotFoundError:
            continue  # the set was removed: two newer versions are there
        for kind, data in payloads.items():
            assert hashlib.sha256(data).hexdigest() == manifest["snapshots"][kind]["sha256"], f"{kind}: sha256"
        return [(kind, manifest["version"], generations_in(kind, _decoded(data))) for kind, data in payloads.items()]
    raise AssertionError("no set stayed for as long as it takes to read it")


def _decoded(data: bytes) -> dict[str, Any]:
    return cast("dict[str, Any]", json.loads(gzip.decompress(data)))


def poll(way: str, read: Callable[[], list[Payload]], judge: Judge, ended: threading.Event) -> None:
    """Read again and again until `ended` is set."""
    while not ended.wait(PAUSE_S):
        try:
            judge.hear(way, read())
        except Unanswered:
            judge.unanswered[way] += 1
        except Exception as error:  # the tests check that there is none
            judge.complain(way, f"{type(error).__name__}: {error}")


def main(arguments: Iterable[str]) -> None:
    """Poll until standard input ends."""
    path, output_dir, redis_url, order = arguments
    settings = Settings(input=Path(path), output_dir=Path(output_dir), redis_url=redis_url)
    judge, ended = Judge(generations_rise=order == "generations"), threading.Event()
    with ExitStack() as stack:
        threads, client = Open(stack, "threads"), redis.Redis.from_url(redis_url, socket_timeout=1)
        stack.callback(client.close)
        readers = [threads(settings), threads(settings, "redis"), threads(settings, "files")]
        readers.append(Open(stack, "asyncio")(settings))
        reads: list[Callable[[], list[Payload]]] = [
            *(partial(with_reader, reader) for reader in readers),
            lambda: with_redis_py(client, f"rolling:{{{settings.source}}}"),
            lambda: with_fixed_names(local(settings.output_dir)),
            lambda: with_resolved_link(local(settings.output_dir)),
        ]
        polling = [
            threading.Thread(target=poll, args=(way, read, judge, ended)) for way, read in zip(WAYS, reads, strict=True)
        ]
        for thread in polling:
            thread.start()
        sys.stdin.read()
        ended.set()
        for thread in polling:
            thread.join()
    judge.tell({"reads": judge.reads, "unanswered": judge.unanswered})


if __name__ == "__main__":
    main(sys.argv[1:])
