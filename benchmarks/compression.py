"""Costs and savings of compression: each library by level on snapshots, then the web's responses in each coding.

    python -m benchmarks.compression

CPU time of one thread, the least of several rounds. Throwaway directories, no Redis. Exit status 1 where a response in
zstd is over 2 % larger than in gzip, or takes more than 5 ms to make, for which the event loop waits.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from fastapi.testclient import TestClient

from optimizer import Settings, optimize
from optimizer.cli.compression import CompressionReport, compare_compression
from optimizer.cli.compression_table import conclusions
from optimizer.cli.dev.sample import write_sample
from optimizer.web import create_app
from optimizer.web.encoding import compress_quickly
from optimizer.web.negotiate import ZSTD

__all__ = ["main"]

SYMBOLS: Final = 10_000
RECORDS: Final = (300, SYMBOLS)
SHOWN: Final = {
    "isal": (1, 2, 3),
    "zlib": (1, 4, 5, 6, 7, 9),
    "zlib-ng": (4, 6, 7, 9),
    "zstd": (1, 3, 6, 9, 12, 15, 19),
}
PATHS: Final = ("/predictions", "/bots", "/portfolio", "/page", "/snapshot", "/predictions.csv")
ROUNDS: Final = 20
LIMIT_MS: Final = 5.0
LIMIT_OF_GZIP: Final = 1.02
CODINGS: Final = ("identity", "gzip", "zstd")


def main() -> int:
    """Measure, print, and return the exit status."""
    missed = 0
    for records in RECORDS:
        with tempfile.TemporaryDirectory() as temporary:
            settings = _published(Path(temporary), records)
            _show_ways(compare_compression(settings, rounds=5))
            missed += _show_responses(settings, records)
    return 1 if missed else 0


def _published(directory: Path, records: int) -> Settings:
    """Return the files of a source with this many predictions, and an index of ten thousand."""
    settings = Settings(
        input=directory / "rolling_brain.json.gz",
        output_dir=directory / "snapshots",
        redis_url="redis://127.0.0.1:1/0",
        top_symbols_limit=records,
        index_symbols_limit=SYMBOLS,
        min_confidence=0.0,
    )
    write_sample(directory / "rolling_brain.json.gz", symbols=SYMBOLS, points=1)
    optimize(settings, use_cache=False)
    return settings


def _show_ways(measured: CompressionReport) -> None:
    counts = f"{measured.counts['predictions']:,} predictions"
    print(f"{counts:<20}{'bytes':>9}{'of now':>8}{'CPU, ms':>9}{'reader, ms':>12}{'MB a day':>10}", end="")
    print(f"   index of {measured.counts['index']:,}{'CPU, ms':>10}")
    for row in measured.rows:
        if row.downloads is None or row.day_mb is None:
            print(f"{row.library:<12}not installed")
        elif row.level in SHOWN[row.library]:
            cost, index = row.downloads, row.files["index"]
            print(
                f"{f'{row.library} {row.level}':<20}{cost.bytes:>9,}{cost.ratio:>8.2f}{cost.cpu_ms:>9.2f}"
                f"{cost.inflate_ms:>12.2f}{row.day_mb:>10,.1f}{index.bytes:>18,}{index.cpu_ms:>10.2f}"
            )
    print("\n" + "\n".join(conclusions(measured)) + "\n")


def _show_responses(settings: Settings, records: int) -> int:
    """Measure the responses of the web in each coding; return how many goals were missed."""
    missed = held = 0
    print(f"{f'{records:,} records':<20}{'plain':>10}{'gzip':>10}{'zstd':>10}{'of gzip':>9}{'made in, ms':>13}", end="")
    print(f"   goals {LIMIT_OF_GZIP:g}, {LIMIT_MS:g} ms")
    with TestClient(create_app(settings)) as client:
        for path in PATHS:
            plain = client.get(path, headers={"Accept-Encoding": "identity"}).content
            sizes = [
                int(client.get(path, headers={"Accept-Encoding": coding}).headers["Content-Length"])
                for coding in CODINGS
            ]
            made_ms = min(_made_ms(plain) for _ in range(ROUNDS))
            held += sizes[2]
            is_missed = made_ms > LIMIT_MS or sizes[2] > LIMIT_OF_GZIP * sizes[1]
            missed += is_missed
            print(f"{path:<20}{''.join(f'{size:>10,}' for size in sizes)}{sizes[2] / sizes[1]:>9.2f}", end="")
            print(f"{made_ms:>13.2f}{'   MISSED' if is_missed else ''}")
    print(f"{'held in zstd, a version':<40}{held:>10,}\n")
    return missed


def _made_ms(plain: bytes) -> float:
    began = time.process_time()
    compress_quickly(plain, ZSTD)
    return 1e3 * (time.process_time() - began)


if __name__ == "__main__":
    sys.exit(main())
