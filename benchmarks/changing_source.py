"""A source in which each version changes 1 % of the records, with new values of the sample engine."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from benchmarks.processes import throwaway_redis
from optimizer import Settings, optimize
from optimizer.cli.dev.sample import write_sample

__all__ = ["CHANGED", "ChangingSource", "changing_source"]

CHANGED: Final = 0.01
INTERVAL_S: Final = 30
# Changed records are taken from a sample file with another seed, which has the same symbols.
SEEDS: Final = 8


class ChangingSource:
    """Records of the sample engine, all shown; `publish` changes some of them and does a run."""

    def __init__(self, directory: Path, settings: Settings, records: int) -> None:
        self.settings = replace(settings, top_symbols_limit=records, index_symbols_limit=records, min_confidence=0.0)
        self._path = directory / "rolling_brain.json"
        self._random = random.Random(records)
        self._versions = 0
        self._drawn = [_drawn(directory, records, seed) for seed in range(SEEDS)]
        self._file = dict(self._drawn[0])
        self._symbols = [name for name, value in self._file.items() if "confidence" in value]
        optimize(self._written())

    def publish(self) -> int:
        """Publish the next version, and return it."""
        self._versions += 1
        drawn = self._drawn[self._versions % SEEDS]
        for symbol in self._random.sample(self._symbols, round(len(self._symbols) * CHANGED)):
            at_s = INTERVAL_S * self._versions + self._random.randrange(INTERVAL_S)
            time = f"2026-11-05T{9 + at_s // 3600:02d}:{at_s // 60 % 60:02d}:{at_s % 60:02d}Z"
            self._file[symbol] = drawn[symbol] | {"timestamp": time}
        report = optimize(self._written())
        assert report.version is not None
        return report.version

    def _written(self) -> Settings:
        path = self._path
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(self._file))
        partial.rename(path)
        return self.settings


def _drawn(directory: Path, records: int, seed: int) -> dict[str, Any]:
    """Return the records of a sample file, reduced to the fields of snapshots."""
    path = directory / f"{seed}.json"
    write_sample(path, symbols=records, points=1, lean=True, seed=seed)
    whole: dict[str, Any] = json.loads(path.read_text())
    path.unlink()
    unused = {"history", "features", "debug", "trace", "curves", "scenarios"}
    return {
        name: {field: value[field] for field in value if field not in unused}
        for name, value in whole.items()
        if isinstance(value, dict)
    }


@contextmanager
def changing_source(directory: Path, records: int) -> Iterator[ChangingSource]:
    """Yield a source with its own Redis, until the block ends."""
    with throwaway_redis(directory) as redis_url:
        settings = Settings(
            input=directory / "rolling_brain.json", output_dir=directory / "snapshots", redis_url=redis_url
        )
        yield ChangingSource(directory, settings, records)
