"""`make bench`: every benchmark, printed and written to docs/benchmarks.md with what is known of the machine.

`python -m benchmarks updates freshness` prints these alone, and leaves the page as it is.
"""

from __future__ import annotations

import io
import platform
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from benchmarks import changes, compression, fleet, freshness, history, long_table, producer, scan, updates, web
from optimizer.scan.native_pruner import VARIANT

PAGE = Path("docs/benchmarks.md")
INTRODUCTION = """# Benchmarks

Written by `make bench`, which repeats every measurement: about half an hour, 4 GB of disk, 14 GB of memory for
`json.load`. Figures of one machine, each with its ratio to a limit measured in the same run: ratios hold on other
machines too, rates do not.
"""
SCAN = """## The scan

The limit is the time to inflate the file; `scan` also prunes, decodes and selects, `run` writes the files
and publishes them in Redis too. Each in a process of its own, medians of three rounds. `run, MB` is its peak
memory. The files are those of `rolling-optimizer sample`: 8,000 symbols of 290 KB; `wide` has 1,000,000 of 1.1 KB.
"""
FLEET = """## The fleet

A source of eight parts, each of 1,000 symbols of 290 KB, through Celery: one scan a part, then the merge. Runs by hand,
the median of three that scan everything, and one after a part has changed. `s` is from the first check of the input
to the publish.
"""
PRODUCER = """## Writing the input

What an engine spends: `write_rolling`, and what it replaces, on 200 symbols of 290 KB in memory. Then the 8,000 of
`lines` as parts of which 1 % of the symbols have changed: what one run of this process scans and takes.
"""
FRESHNESS = """## Freshness

From the rename of a new input to the moment when a `SnapshotReader` has its version, less the `seconds` of its run.
Redis, worker and `rolling-optimizer watch` are processes of their own; the file is flushed to disk and renamed every
half second, as [an engine should](integrate.md#how-an-engine-should-write).
"""
UPDATES = """## Updates

From before `publish` is called until a `SnapshotReader` returns what was published: an index of 10,000, and a worker of
its own for updates; then while runs scan, one process after another. Last, a stream of calls of four records each.
"""
WEB = """## The web

`wrk` on loopback, one uvicorn process; the limit is a bare Starlette endpoint that returns the same bytes from memory.
"""
CHANGES = """## Changes

What a version moves to an open page, as a share of taking the whole, if 1 % of its records have changed: each of them
written anew by the sample engine, all numbers and the time. Bytes are counted by a TCP proxy before the server, with
all headers, in both directions. Medians over 15 versions by a client, over 11 in the dashboard, with least and most.

`data` are predictions, bots and holdings; what else the page asks for is listed by path. Chromium is headless, without
a GPU. CPU is what the 3 s after a publish take, less what 3 s without one do.
"""
LONG_TABLE = """## The page's table

What the table of predictions takes of the page's main thread, in ms of CPU, the least of some times: to show all rows
again after a search, to sort them by each column, to search them, and to show a version of which 1 % of the records
have changed, less what the page takes without one. The heap is what is left of it after a collection.
"""
COMPRESSION = """## Compression

Snapshots of the sample engine. `bytes` and its CPU are of predictions, bots and portfolio together;
`rolling-optimizer bench --compression` prints each file and each level, of the snapshots that you have. Then what the
web sends: gzip as it is stored or by zlib at level 6, zstd as the process makes it at the first request.
"""
HISTORY = """## The history

What a serving process holds for `/history` and `/predictions/{symbol}/history`: resident memory of a fresh one, with
the stream that it is made from, the time to make it at the start, and for each further version.
"""
EVERY: Final[dict[str, tuple[str, Any]]] = {
    "scan": (SCAN, scan),
    "fleet": (FLEET, fleet),
    "producer": (PRODUCER, producer),
    "freshness": (FRESHNESS, freshness),
    "updates": (UPDATES, updates),
    "web": (WEB, web),
    "changes": (CHANGES, changes),
    "long_table": (LONG_TABLE, long_table),
    "compression": (COMPRESSION, compression),
    "history": (HISTORY, history),
}


class _Tee(io.StringIO):
    """Prints and stores the output."""

    def write(self, text: str, /) -> int:
        sys.__stdout__.write(text)  # type: ignore[union-attr]  # a program has one
        return super().write(text)


def _machine() -> str:
    model = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    cores = subprocess.run(["nproc"], capture_output=True, text=True, check=False).stdout.strip() or "?"
    memory = next((int(line.split()[1]) / 1e6 for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0.0)
    return (
        f"{datetime.now(UTC):%Y-%m-%d}: {cores} cores of {model}, {memory:.0f} GB, {platform.system()} "
        f"{platform.release()}, Python {platform.python_version()}, kernel variant {VARIANT}."
    )


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def main(names: Sequence[str] = ()) -> int:
    """Run all benchmarks, or those of these names; return 1 if a goal is missed."""
    status = 0
    parts = [INTRODUCTION, _machine() + "\n"]
    for text, module in [EVERY[name] for name in names or EVERY]:
        with redirect_stdout(_Tee()) as shown:
            status |= module.main()
        parts += [text, "".join(f"    {line}".rstrip() + "\n" for line in shown.getvalue().strip("\n").splitlines())]
    if not names:
        PAGE.write_text("\n".join(parts))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
