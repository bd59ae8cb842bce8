"""An input in which every number is its generation, and an engine that writes one generation after another."""

from __future__ import annotations

import gzip
import json
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from tests.reliability.chaos.updates import UPDATED, number_in

__all__ = ["KINDS", "Engine", "cut_short", "generations_in", "in_place", "replaced"]

KINDS: Final = ("predictions", "bots", "portfolio")
SYMBOLS: Final = 120
BOTS: Final = 5
# The share of inputs that are a new file with the content of the last one.
SAME_CONTENT: Final = 0.2

Manner = Callable[[Path, bytes, random.Random], None]


def rolling_file(generation: int, padding: str) -> bytes:
    """The gzipped input of a generation: all numbers of it that a snapshot shows are the generation's number."""
    g = generation
    value: dict[str, Any] = {
        f"S{i:03d}": {
            "prediction": g,
            "confidence": round(0.55 + i / 1000, 3),
            "last_price": g,
            "target_price": g,
            "stop_loss": g,
            "timestamp": g,
            "debug": {"text": padding},
        }
        for i in range(SYMBOLS)
    }
    value["bots"] = {
        f"bot-{i}": {
            "enabled": True,
            "equity": g,
            "pnl_today": g,
            "positions": [{"symbol": f"S{i:03d}", "quantity": g, "avg_price": g}],
        }
        for i in range(BOTS)
    }
    # One gzip member: with several, a file that is half one generation and half the next could pass its checksums.
    return gzip.compress(json.dumps(value).encode(), 1)


def generations_in(kind: str, value: dict[str, Any]) -> set[float]:
    """Return the generations in the numbers of a snapshot; fail if records, bots or holdings are missing."""
    if kind == "predictions":
        number_in(value["predictions"])
        scanned = [record for record in value["predictions"] if record["symbol"] not in UPDATED]
        assert len(scanned) == SYMBOLS, len(scanned)
        names = ("prediction", "last_price", "target_price", "stop_loss", "timestamp")
        return {float(record[name]) for record in scanned for name in names}
    if kind == "bots":
        assert len(value["bots"]) == BOTS, len(value["bots"])
        return {float(bot[name]) for bot in value["bots"].values() for name in ("equity", "pnl_today")}
    assert len(value["holdings"]) == BOTS, len(value["holdings"])
    return {float(holding[name]) for holding in value["holdings"] for name in ("qty", "avg")}


def replaced(path: Path, data: bytes, _rng: random.Random) -> None:
    """Write another file and rename it, as a good engine does."""
    partial = path.with_name(f".{path.name}.new")
    partial.write_bytes(data)
    partial.rename(path)


def in_place(path: Path, data: bytes, rng: random.Random) -> None:
    """Write over the old bytes, with a pause at a random place."""
    cut = rng.randrange(len(data))
    with path.open("r+b") as file:
        file.write(data[:cut])
        file.flush()
        time.sleep(rng.uniform(0, 0.15))
        file.write(data[cut:])
        file.truncate()


def cut_short(path: Path, data: bytes, rng: random.Random) -> None:
    """Cut off the file at a random place, then replace it."""
    os.truncate(path, rng.randrange(path.stat().st_size))
    time.sleep(rng.uniform(0, 0.15))
    replaced(path, data, rng)


class Engine:
    """A thread that writes one generation after another until it is stopped; `manners` may be changed meanwhile."""

    def __init__(self, path: Path, rng: random.Random, *, every_s: float, padding_bytes: int) -> None:
        self.generation = 0  # the last one that is whole on the disk
        self.manners: Sequence[Manner] = (replaced,)
        self._path = path
        self._rng = rng
        self._every_s = every_s
        self._padding = "0123456789 }]{[" * (padding_bytes // 15)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._write_for_ever, name="engine")
        self._write(replaced)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def stop(self) -> None:
        """Stop writing; the last generation is whole."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def _write_for_ever(self) -> None:
        while not self._stopped.wait(self._every_s):
            manner = self._rng.choice(self.manners)
            if self._rng.random() < SAME_CONTENT:
                data = rolling_file(self.generation, f"{self._padding}{self._rng.random()}")
                manner(self._path, data, self._rng)
            else:
                self._write(manner)

    def write(self) -> None:
        """Write one more generation, as a good engine does."""
        self._write(replaced)

    def _write(self, manner: Manner) -> None:
        manner(self._path, rolling_file(self.generation + 1, self._padding), self._rng)
        self.generation += 1
