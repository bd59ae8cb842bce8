"""A source of one file or of two parts, its runs in this process or in the steps of a fleet, and what it publishes."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec

from optimizer import Settings, optimize
from optimizer.cache.keys import Keys
from optimizer.models import Report
from optimizer.pipeline.assignment import Assignment, Dispatcher
from optimizer.pipeline.distributed import merge_parts, scan_one_part
from optimizer.pipeline.run import run_source
from optimizer.snapshots.format import FILE_NAMES
from tests.support.published_state import files_of, keys_of
from tests.support.redis_servers import RedisServer
from tests.support.rolling_files import a_record, local, write_json

__all__ = ["GOOD", "GOOD_BOTS", "WAYS", "Run", "Source", "bot", "by_the_fleet"]

Run = Callable[..., Report]

WAYS = ("one process", "one file by the fleet", "parts by the fleet", "parts in one process")


def bot(equity: float = 1000.0, **fields: Any) -> dict[str, Any]:
    """Return a valid bot."""
    return {"enabled": True, "equity": equity, "positions": [{"symbol": "AAPL", "qty": 1, "avg": 10}]} | fields


GOOD_BOTS = {f"b{number}": bot() for number in range(5)}
GOOD: dict[str, Any] = {"AAPL": a_record(), "MSFT": a_record(confidence=0.9), "bots": GOOD_BOTS}


def by_the_fleet(settings: Settings, *, accept: bool = False) -> Report:
    """Do one run in the steps of a fleet, but within this process; messages are encoded as JSON."""
    sent: list[bytes] = []
    dispatcher = Dispatcher("first", lambda assignment: sent.append(msgspec.json.encode(assignment)), lambda *_: None)
    report = run_source(settings, dispatcher, accept=accept)
    if report is not None:
        return report
    assignment = msgspec.json.decode(sent[0], type=Assignment)
    locations = [assignment.parts[index].location for index in assignment.to_scan]
    return merge_parts(
        settings, assignment.token, [scan_one_part(settings, assignment.token, location) for location in locations]
    )


class Source:
    """One input, as one file or as two parts, and the way in which its runs are made."""

    def __init__(self, settings: Settings, *, run: Run, parted: bool) -> None:
        self._parted = parted
        self._path = local(settings.input).parent / "engine"
        self.settings = replace(settings, input=self._path / ("*.json" if parted else "a.json"), source="engine")
        self.run = run

    def write(self, content: dict[str, Any]) -> None:
        """Write the input; each of two parts has every other member, and so half of all records and bots."""
        if not self._parted:
            write_json(self._path / "a.json", content)
            return
        bots = content.get("bots", {})
        for number, name in enumerate("ab"):
            members = dict([(key, body) for key, body in content.items() if key != "bots"][number::2])
            half = dict(list(bots.items())[number::2]) if isinstance(bots, dict) else bots
            write_json(self._path / f"{name}.json", {**members, "bots": half})

    def published(self, server: RedisServer) -> tuple[dict[str, bytes], dict[bytes, tuple[bytes, bool]]]:
        """Return all that readers can see, byte for byte: the files, and the keys in Redis."""
        keys = Keys(self.settings.source)
        ours = (keys.part("").encode(), keys.parts.encode(), keys.handed.encode())
        shown = {name: value for name, value in keys_of(server, "engine").items() if not name.startswith(ours)}
        return files_of(local(self.settings.output_dir)), shown

    def snapshot(self, kind: str) -> dict[str, Any]:
        """Return one snapshot, decoded from its file."""
        data = gzip.decompress((local(self.settings.output_dir) / FILE_NAMES[kind]).read_bytes())
        value: dict[str, Any] = json.loads(data)
        return value

    @classmethod
    def made(cls, settings: Settings, way: str) -> Source:
        """A source whose runs are made in one of the `WAYS`."""
        return cls(settings, run=by_the_fleet if "fleet" in way else optimize, parted="parts" in way)
