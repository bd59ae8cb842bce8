"""The costs of the history in a serving process: memory, time at its start, time for each version.

    python -m benchmarks.history

Versions are made here; a fresh process then holds the newest as `rolling-optimizer web` does, before and after it has
read 120 changes from bytes, so that the difference of its resident memory is of the stream, the history and its
responses. Then it follows further versions, one by one. Exit status 1 where a goal is missed.
"""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec

from optimizer.cache.clocks import text_of
from optimizer.cache.keys import CHANGES_KEPT, PAYLOAD_KINDS
from optimizer.models import Manifest, Record
from optimizer.reader.changes import HeldChange
from optimizer.reader.results import CachedVersion, Sighting, load_payloads
from optimizer.snapshots.delta import change_between, encode_stored
from optimizer.snapshots.format import SnapshotSet, encode_set
from optimizer.web.history_pages import HistoryPages
from optimizer.web.pages import Pages

__all__ = ["main"]

MEMORY_LIMIT_MB: Final = 20.0
FURTHER: Final = 20
# Symbols, and the share of them that changes each time.
CASES: Final = ((300, 1.0), (10_000, 0.01))


class Made(msgspec.Struct):
    """A stored version, and the changes before and after it."""

    manifest: Manifest
    payloads: dict[str, bytes]
    changes: list[HeldChange]


def main() -> int:
    """Measure, print, and return the exit status."""
    missed = 0
    print(f"{'120 versions of':<32}{'held, MB':>10}{'goal':>6}{'stream, MB':>13}{'start, ms':>12}{'a version, ms':>16}")
    for symbols, share in CASES:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "made"
            path.write_bytes(msgspec.msgpack.encode(_make(symbols, share)))
            command = [sys.executable, "-m", "benchmarks.history", str(path)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        held_mb, stream_mb, start_ms, version_ms = map(float, done.stdout.split())
        is_missed = held_mb >= MEMORY_LIMIT_MB
        missed += is_missed
        name = f"{symbols:,} records, {share:.0%} change"
        print(
            f"{name:<32}{held_mb:>10.1f}{MEMORY_LIMIT_MB:>6g}{stream_mb:>13.1f}{start_ms:>12.0f}{version_ms:>16.1f}"
            f"{'   MISSED' if is_missed else ''}"
        )
    return 1 if missed else 0


def _make(symbols: int, share: float) -> Made:
    """Make versions half a minute apart; the stored one has 120 changes before it and 20 after it."""
    chance = random.Random(7)
    names = [f"SYM{number:05}" for number in range(symbols)]

    def draw(symbol: str) -> Record:
        confidence, price = chance.random(), 10 + 500 * chance.random()
        timestamp = "2026-11-01T09:59:30Z"
        return Record(symbol, price * 1.02, confidence, price, "bullish", price * 1.1, price * 0.9, timestamp)

    version = 1_795_000_000_000
    records = {name: draw(name) for name in names}
    before = stored = _encode(version, records)
    changes = []
    for number in range(CHANGES_KEPT + FURTHER):
        version += 30_000
        records |= {name: draw(name) for name in chance.sample(names, round(symbols * share))}
        after = _encode(version, records)
        change = change_between(before.content(), after.content())
        assert change is not None
        changes.append(HeldChange(version, before.manifest.version, before.manifest.version, encode_stored(change)))
        before = after
        if number == CHANGES_KEPT - 1:
            stored = after
    return Made(stored.manifest, stored.payloads, changes)


def _encode(version: int, records: dict[str, Record]) -> SnapshotSet:
    ranked = sorted(records.values(), key=lambda record: (-record.confidence, record.symbol))
    return encode_set(
        source="bench",
        version=version,
        generated_at=text_of(version / 1e3),
        fingerprint="",
        ranked=[],
        predictions=ranked,
        bots={},
        holdings=[],
        gzip_level=1,
    )


def measure(path: Path) -> None:
    """In a fresh process: print MB held, MB of the stream, ms at the start and for each version."""
    made = msgspec.msgpack.decode(path.read_bytes(), type=Made)
    payloads = {kind: made.payloads[kind] for kind in PAYLOAD_KINDS}
    sighting = Sighting(made.manifest, made.manifest.generated_at, 0.0)
    cached = CachedVersion.load(sighting, "redis", load_payloads(sighting, payloads))
    held, further = made.changes[:CHANGES_KEPT], made.changes[CHANGES_KEPT:]
    stream_mb = sum(len(change.gz) for change in held) / 1e6
    pages = Pages(cached, lambda _cached, _kind: [])
    before_mb = _resident_mb()
    started = time.perf_counter()
    history = HistoryPages.after(None, cached, pages, held)
    start_ms = (time.perf_counter() - started) * 1e3
    held_mb = _resident_mb() - before_mb + stream_mb
    assert len(history.history.steps) == CHANGES_KEPT
    took_ms = []
    for change in further:
        held = [*held[1:], change]
        manifest = msgspec.structs.replace(made.manifest, version=change.version)
        newer = replace(cached, sighting=replace(sighting, manifest=manifest))
        started = time.perf_counter()
        history = HistoryPages.after(history, newer, pages, held)
        took_ms.append((time.perf_counter() - started) * 1e3)
        assert history.history.version == change.version
    print(held_mb, stream_mb, start_ms, statistics.median(took_ms))


def _resident_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) * 1024 / 1e6


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.exit(main())
    measure(Path(sys.argv[1]))
