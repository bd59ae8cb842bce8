"""`rolling-optimizer bench --compression`: the costs and savings of each codec on the present snapshots.

In: the current version, from the files or else from Redis. Out: a figure for each codec and file, and a recommendation
by a rule. Everything runs in this process, on one thread; each figure is the best of several rounds, in which codecs
take turns.

Errors: `SnapshotMissing` if there is no version.
"""

from __future__ import annotations

import gzip
import importlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from typing import Any, Final, NamedTuple

import msgspec
from isal import igzip

from optimizer.config.settings import Settings
from optimizer.models import Index
from optimizer.reader.reader import SnapshotReader
from optimizer.snapshots.compression import IGZIP_LEVELS
from optimizer.snapshots.format import CONTENT_KINDS, KINDS, encode_index
from optimizer.snapshots.store import snapshot_store
from optimizer.storage.zstandard import zstd

__all__ = ["CompressionReport", "CompressionRow", "Cost", "compare_compression", "gzip_row", "recommend", "row_of"]

DAY_S: Final = 86_400
# A call that takes less than this is repeated for this long in a round.
ROUND_S: Final = 0.004
# A level this close to the smallest size counts as equally good, and takes a fraction of the time.
NEAR: Final = 1.05
ZLIB_NG: Final = "zlib-ng"


class _Codec(NamedTuple):
    """A library at a level; `compress` is `None` if the library is not installed."""

    library: str
    level: int
    compress: Callable[[bytes], bytes] | None
    decompress: Callable[[bytes], bytes]

    @property
    def name(self) -> str:
        """Library and level."""
        return f"{self.library} {self.level}"


class Cost(msgspec.Struct, frozen=True):
    """The costs of one codec for one or several files: milliseconds and bytes; `ratio` is relative to the present."""

    wall_ms: float
    cpu_ms: float
    inflate_ms: float
    bytes: int
    ratio: float


class CompressionRow(msgspec.Struct, frozen=True):
    """One codec: its costs by file, for all files, and for those that clients download; empty if it is not installed.

    `day_mb` is the size of a day's downloads by a client that gets predictions, bots and holdings once an interval.
    """

    library: str
    level: int
    files: dict[str, Cost]
    total: Cost | None
    downloads: Cost | None
    day_mb: float | None


class CompressionReport(msgspec.Struct, frozen=True):
    """All codecs on one version. `gzip_level` is the setting, the best levels are those of `recommend`."""

    source: str
    version: int
    origin: str
    json_bytes: dict[str, int]
    bytes: dict[str, int]
    counts: dict[str, int]
    interval_s: float
    gzip_level: int
    rows: list[CompressionRow]
    best_gzip_level: int
    best_zstd_level: int


def _codecs() -> list[_Codec]:
    """Return every level of every library; for inflating, gzip is measured with Python's `gzip`, which readers use."""
    found = [_Codec("isal", level, _bound(igzip.compress, level, mtime=0), gzip.decompress) for level in range(4)]
    found += [_Codec("zlib", level, _bound(gzip.compress, level, mtime=0), gzip.decompress) for level in range(1, 10)]
    try:
        gzip_ng = importlib.import_module("zlib_ng.gzip_ng")
    except ImportError:
        found.append(_Codec(ZLIB_NG, 0, None, gzip.decompress))
    else:
        found += [_Codec(ZLIB_NG, n, _bound(gzip_ng.compress, n, mtime=0), gzip.decompress) for n in range(1, 10)]
    most = zstd.CompressionParameter.compression_level.bounds()[1]
    return found + [_Codec("zstd", n, _bound(zstd.compress, n), zstd.decompress) for n in range(1, most + 1)]


def _bound(compress: Callable[..., bytes], level: int, **options: Any) -> Callable[[bytes], bytes]:
    return lambda data: compress(data, level, **options)


def compare_compression(
    settings: Settings, *, rounds: int = 3, tell: Callable[[str], None] = lambda _: None
) -> CompressionReport:
    """Measure every codec over the current version.

    Args:
        settings: The locations of the files and Redis, the interval, and the current level.
        rounds: The number of rounds.
        tell: Called with a line for each codec and round.

    Raises:
        SnapshotMissing: There is no version, or a part of it cannot be read.
    """
    version, origin, payloads, counts = _current(settings)
    plain = {kind: gzip.decompress(data) for kind, data in payloads.items()}
    now = {kind: len(data) for kind, data in payloads.items()}
    taken: dict[str, dict[str, Cost]] = {}
    codecs = _codecs()
    for number in range(rounds):
        for codec in codecs:
            tell(f"round {number + 1} of {rounds}: {codec.name}")
            costs = taken.setdefault(codec.name, {})
            if codec.compress is None:
                continue
            for kind, data in plain.items():
                measured = _measure(codec.compress, codec.decompress, data, now[kind])
                costs[kind] = _best(costs.get(kind, measured), measured)
    rows = [_row(codec, taken[codec.name], now, settings.interval_s) for codec in codecs]
    best_gzip, best_zstd = recommend(rows, settings.gzip_level)
    return CompressionReport(
        source=settings.source,
        version=version,
        origin=origin,
        json_bytes={kind: len(data) for kind, data in plain.items()},
        bytes=now,
        counts=counts,
        interval_s=settings.interval_s,
        gzip_level=settings.gzip_level,
        rows=rows,
        best_gzip_level=best_gzip.level,
        best_zstd_level=best_zstd.level,
    )


def _current(settings: Settings) -> tuple[int, str, dict[str, bytes], dict[str, int]]:
    """Return the version, its origin, its stored payloads, and the number of entries of each."""
    snapshots = snapshot_store(settings.output_dir).read_set()
    if snapshots is not None:
        entries = snapshots.manifest.snapshots
        counts = {kind: entries[kind].count for kind in KINDS}
        return snapshots.manifest.version, str(settings.output_dir), snapshots.payloads, counts
    with closing(SnapshotReader.from_settings(settings)) as reader:
        best, bots, portfolio = reader.predictions(), reader.bots(), reader.portfolio()
        ranked = reader.top(settings.index_symbols_limit).value
    # In Redis the index is a key for all symbols; this is its file.
    index = encode_index(Index(ranked, best.value.timestamp))
    payloads = {"predictions": best.gz, "bots": bots.gz, "portfolio": portfolio.gz, "index": index}
    counts = {
        "predictions": len(best.value.predictions),
        "bots": len(bots.value.bots),
        "portfolio": len(portfolio.value.holdings),
        "index": len(ranked),
    }
    return best.version, "Redis", payloads, counts


def _measure(
    compress: Callable[[bytes], bytes], decompress: Callable[[bytes], bytes], data: bytes, bytes_now: int
) -> Cost:
    wall_s, cpu_s, compressed = _time(compress, data)
    inflate_s, _, _ = _time(decompress, compressed)
    size = len(compressed)
    return Cost(1e3 * wall_s, 1e3 * cpu_s, 1e3 * inflate_s, size, size / bytes_now)


def _time(call: Callable[[bytes], bytes], data: bytes) -> tuple[float, float, bytes]:
    """Return the least wall time and CPU time of a repeated call, and its result."""
    least_wall = least_cpu = float("inf")
    until = time.perf_counter() + ROUND_S
    while True:
        wall, cpu = time.perf_counter(), time.process_time()
        result = call(data)
        least_cpu = min(least_cpu, time.process_time() - cpu)
        ended = time.perf_counter()
        least_wall = min(least_wall, ended - wall)
        if ended >= until:
            return least_wall, least_cpu, result


def _best(one: Cost, other: Cost) -> Cost:
    return msgspec.structs.replace(
        one,
        wall_ms=min(one.wall_ms, other.wall_ms),
        cpu_ms=min(one.cpu_ms, other.cpu_ms),
        inflate_ms=min(one.inflate_ms, other.inflate_ms),
    )


def _row(codec: _Codec, files: dict[str, Cost], now: Mapping[str, int], interval_s: float) -> CompressionRow:
    if not files:
        return CompressionRow(codec.library, codec.level, {}, None, None, None)
    downloads = _sum(files, now, CONTENT_KINDS)
    day_mb = downloads.bytes * DAY_S / interval_s / 1e6
    return CompressionRow(codec.library, codec.level, files, _sum(files, now, KINDS), downloads, day_mb)


def _sum(files: Mapping[str, Cost], now: Mapping[str, int], kinds: Iterable[str]) -> Cost:
    costs = [files[kind] for kind in kinds]
    size = sum(cost.bytes for cost in costs)
    return Cost(
        sum(cost.wall_ms for cost in costs),
        sum(cost.cpu_ms for cost in costs),
        sum(cost.inflate_ms for cost in costs),
        size,
        size / sum(now[kind] for kind in kinds),
    )


def gzip_row(rows: Iterable[CompressionRow], level: int) -> CompressionRow:
    """Return the codec that ROLLING_GZIP_LEVEL selects at this level."""
    return row_of(rows, "isal" if level in IGZIP_LEVELS else "zlib", level)


def row_of(rows: Iterable[CompressionRow], library: str, level: int) -> CompressionRow:
    """Return the row of a library at a level."""
    return next(row for row in rows if (row.library, row.level) == (library, level))


def recommend(rows: Sequence[CompressionRow], gzip_level: int) -> tuple[CompressionRow, CompressionRow]:
    """Return the best gzip level for the setting, and the best zstd level, for the files that clients download.

    The best level has the least CPU time of those whose size is within 5 % of the smallest. A zstd level that takes
    more than the current gzip level is excluded, since every serving process compresses by itself; if all do, the
    result is level 1.
    """
    limit = _downloads(gzip_row(rows, gzip_level)).cpu_ms
    every = [row for row in rows if row.library == "zstd"]
    quick = [row for row in every if _downloads(row).cpu_ms <= limit] or every[:1]
    return _cheapest([gzip_row(rows, level) for level in range(1, 10)]), _cheapest(quick)


def _cheapest(rows: Sequence[CompressionRow]) -> CompressionRow:
    smallest = min(_downloads(row).bytes for row in rows)
    near = [row for row in rows if _downloads(row).bytes <= NEAR * smallest]
    return min(near, key=lambda row: _downloads(row).cpu_ms)


def _downloads(row: CompressionRow) -> Cost:
    assert row.downloads is not None  # noqa: S101 - only zlib-ng may be missing
    return row.downloads
