"""The scan against the limit, inflate, on files of every shape; and against its peers on the same file.

The files are written once, by `rolling-optimizer sample`, into `.bench/` (about 4 GB). Each way runs in a process of
its own, three rounds in turn, medians; the peers, which take minutes, once. Exit status 1 where a goal is missed.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from isal import igzip, igzip_lib

from benchmarks.peers import PEERS, available
from benchmarks.processes import throwaway_redis
from optimizer import Settings
from optimizer.cli.bench import Comparison, Row, compare, rows_of
from optimizer.cli.dev.sample import write_sample
from optimizer.cli.measure import measure
from optimizer.errors import BenchFailed

__all__ = ["main"]

DIRECTORY: Final = Path(".bench")
PEAK_GOAL_MB: Final = 64.0
GROWTH_GOAL_MB: Final = 2.0
UNCHANGED_GOAL_MS: Final = 10.0


@dataclass(frozen=True)
class Case:
    """A file as `write_sample` makes it, the mapping of its fields, and the goals for the scan's ratios to inflate."""

    name: str
    wall_goal: float
    cpu_goal: float | None = None
    options: dict[str, Any] = field(default_factory=dict)
    fields: str = ""
    file: str = ""  # by default the name of the case
    blocked_like: str = ""  # the case whose JSON it has as blocked gzip, of one kind in `BLOCKS`

    @property
    def path(self) -> Path:
        """The path of the file."""
        return DIRECTORY / f"{self.file or self.name.replace(' ', '-')}.json.gz"


@dataclass(frozen=True)
class Blocks:
    """A kind of blocked gzip: its subfield, the JSON per member, and the bytes that its stated size leaves out."""

    subfield: bytes
    json_bytes: int
    more: int
    end: bytes = b""


BLOCKS: Final = {
    "MiGz": Blocks(b"\x08\0MZ\4\0", 1 << 20, 0),  # as `write_rolling` writes them
    "bgzip": Blocks(
        b"\6\0BC\2\0", 0xFF00, 18 + 8 - 1, bytes.fromhex("1f8b08040000000000ff0600424302001b0003") + bytes(9)
    ),
}
LARGE: Final[dict[str, Any]] = {"symbols": 8_000, "points": 2_700}
CASES: Final = (
    Case("narrow", 1.10, 1.25, LARGE),
    Case("MiGz", 0.75, None, blocked_like="narrow"),
    Case("bgzip", 0.75, None, blocked_like="narrow"),
    Case("wide", 1.8, None, {"symbols": 1_000_000, "points": 0, "lean": True}),
    Case("two paths", 1.15, None, LARGE, "prediction=features.f00; +momentum=features.f01", "narrow"),
    Case("indented", 1.25, None, LARGE | {"indent": True}),
    Case("NaN", 1.5, None, LARGE | {"nan": True}),
    Case("array", 1.10, None, LARGE | {"shape": "array"}),
    Case("lines", 1.10, None, LARGE | {"shape": "lines"}),
    Case("a tenth", 1.5, None, LARGE | {"points": 240}),  # of the size, with the same number of symbols
)


def main() -> int:
    """Measure, print, and return the exit status."""
    DIRECTORY.mkdir(exist_ok=True)
    for case in CASES:
        if not case.path.exists():
            _write(case)
    missed = 0
    found: dict[str, Comparison] = {}
    with tempfile.TemporaryDirectory() as directory, throwaway_redis(Path(directory)) as redis_url:
        print(f"{'':<13}{'JSON, MB':>9}{'inflate':>9}{'scan':>7}{'run':>7}   MB/s", end="")
        print(f"{'scan, wall':>12}{'goal':>7}{'CPU':>7}{'goal':>7}{'run, MB':>9}{'unchanged, ms':>15}")
        for case in CASES:
            found[case.name] = compare(Settings(input=case.path, redis_url=redis_url, fields=case.fields))
            missed += _show(case, found[case.name])
    growth_mb = found["narrow"].rows[-1].peak_mb - found["a tenth"].rows[-1].peak_mb
    missed += growth_mb > GROWTH_GOAL_MB
    print(f"\na file of ten times the size takes {growth_mb:+.1f} MB (goal {GROWTH_GOAL_MB:g})")
    print("\nthe best 300 of 8,000 symbols; the peers once, all else as above")
    print(f"{'':<22}{'MB/s':>7}{'wall s':>9}{'CPU s':>9}{'peak MB':>9}")
    for row in found["narrow"].rows:
        name = {"inflate": "inflate alone", "scan": "rolling-optimizer", "run": "... with files, Redis"}[row.way]
        _line(name, row)
    for name in PEERS:
        _peer(name, found)
    return 1 if missed else 0


def _write(case: Case) -> None:
    if not case.blocked_like:
        write_sample(case.path, **case.options)
        return
    blocks = BLOCKS[case.name]
    like = next(other for other in CASES if other.name == case.blocked_like)
    partial = case.path.with_suffix(".partial")
    with igzip.open(like.path) as source, partial.open("wb") as file:  # type: ignore[no-untyped-call]
        while json := source.read(blocks.json_bytes):
            body = igzip_lib.compress(json, 1, igzip_lib.COMP_GZIP_NO_HDR)
            size = len(body) - 8 + blocks.more
            file.write(
                b"\x1f\x8b\x08\4\0\0\0\0\0\xff" + blocks.subfield + size.to_bytes(blocks.subfield[4], "little") + body
            )
        file.write(blocks.end)
    partial.rename(case.path)


def _show(case: Case, comparison: Comparison) -> int:
    inflate, scan, run = comparison.rows
    misses = (scan.wall_ratio > case.wall_goal) + (case.cpu_goal is not None and scan.cpu_ratio > case.cpu_goal)
    misses += run.peak_mb > PEAK_GOAL_MB
    misses += comparison.unchanged_ms > UNCHANGED_GOAL_MS
    print(
        f"{case.name:<13}{comparison.json_bytes / 1e6:>9,.0f}{inflate.json_mb_per_s:>9,.0f}{scan.json_mb_per_s:>7,.0f}"
        f"{run.json_mb_per_s:>7,.0f}       {scan.wall_ratio:>11.2f}x{case.wall_goal:>7.2f}{scan.cpu_ratio:>6.2f}x"
        f"{case.cpu_goal or '':>7}{run.peak_mb:>9.0f}{comparison.unchanged_ms:>15.1f}{'   MISSED' if misses else ''}",
        flush=True,
    )
    return misses


def _peer(name: str, found: dict[str, Comparison]) -> None:
    peer = PEERS[name]
    if not available(name):
        print(f"{name:<22}not installed")
        return
    case = next(case for case in CASES if case.name == {"map": "narrow", "lines": "lines"}[peer.shape])
    json_bytes = found[case.name].json_bytes
    command = [sys.executable, "-m", "benchmarks.peers", name, str(case.path), str(json_bytes)]
    try:
        taken = measure(name, command, dict(os.environ))
    except BenchFailed as error:
        print(f"{name:<22}{str(error)[:90]}")
        return
    (row,) = rows_of({name: [taken]}, limit=name)
    _line(name, row, peer.what)


def _line(name: str, row: Row, what: str = "") -> None:
    figures = f"{row.json_mb_per_s:>7,.0f}{row.wall_s:>9.2f}{row.cpu_s:>9.2f}{row.peak_mb:>9,.0f}"
    print(f"{name:<22}{figures}   {what}".rstrip(), flush=True)


if __name__ == "__main__":
    sys.exit(main())
