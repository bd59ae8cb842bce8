"""Other libraries for the same result, the best 300 symbols by confidence, each in its own process.

`python -m benchmarks.peers WAY FILE` reads the file and prints a `Measured` as JSON. Each way is written as an
experienced user of the library would, with the columns that are needed where the library can be given them. Libraries
that are not installed are left out.
"""

from __future__ import annotations

import gzip
import heapq
import importlib.util
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from optimizer.cli.measure import measured_here

__all__ = ["PEERS", "Peer", "available"]

TOP: Final = 300


class Peer(NamedTuple):
    """A peer: its function, the module that it needs, the shape of file that it reads, and a note."""

    module: str
    shape: str
    what: str


PEERS: Final = {
    "json.load": Peer("json", "map", "the whole file, as routers did"),
    "orjson": Peer("orjson", "map", "the whole file"),
    "msgspec": Peer("msgspec", "map", "the whole file, into structs of two fields"),
    "ijson": Peer("ijson", "map", "record by record, by its C backend"),
    "DuckDB": Peer("duckdb", "lines", "read_json, two columns, two threads"),
    "chDB": Peer("chdb", "lines", "ClickHouse's JSONEachRow, two columns, two threads"),
}


def available(name: str) -> bool:
    """Whether the library of a peer is installed."""
    return importlib.util.find_spec(PEERS[name].module) is not None


def _best(records: Iterable[tuple[str, Mapping[str, Any]]]) -> list[str]:
    good = (
        (record["confidence"], name) for name, record in records if isinstance(record, dict) and "confidence" in record
    )
    return [name for _, name in heapq.nlargest(TOP, good)]


def _json(path: Path) -> list[str]:
    with gzip.open(path) as file:
        return _best(json.load(file).items())


def _orjson(path: Path) -> list[str]:
    import orjson

    return _best(orjson.loads(gzip.decompress(path.read_bytes())).items())


class _Prediction(msgspec.Struct):
    confidence: float = -1.0


def _msgspec(path: Path) -> list[str]:
    data = gzip.decompress(path.read_bytes())
    found = msgspec.json.decode(data, type=dict[str, _Prediction | str | int])
    good = ((record.confidence, name) for name, record in found.items() if isinstance(record, _Prediction))
    return [name for _, name in heapq.nlargest(TOP, good)]


def _ijson(path: Path) -> list[str]:
    import ijson

    with gzip.open(path) as file:
        return _best(ijson.kvitems(file, "", use_float=True))


def _duckdb(path: Path) -> list[str]:
    import duckdb

    database = duckdb.connect(config={"threads": 2})
    columns = "{symbol: 'VARCHAR', confidence: 'DOUBLE'}"
    rows = database.execute(
        f"SELECT symbol FROM read_json('{path}', format='newline_delimited', columns={columns}, "
        f"maximum_object_size=16777216) ORDER BY confidence DESC LIMIT {TOP}"
    ).fetchall()
    return [symbol for (symbol,) in rows]


def _chdb(path: Path) -> list[str]:
    import chdb

    text = chdb.query(
        f"SELECT symbol FROM file('{path}', 'JSONEachRow', 'symbol String, confidence Float64') "
        f"ORDER BY confidence DESC LIMIT {TOP} SETTINGS input_format_skip_unknown_fields=1, max_threads=2",
        "TSV",
    )
    return str(text).split()


WAYS: Final[dict[str, Callable[[Path], list[str]]]] = {
    "json.load": _json,
    "orjson": _orjson,
    "msgspec": _msgspec,
    "ijson": _ijson,
    "DuckDB": _duckdb,
    "chDB": _chdb,
}


def main(name: str, path: Path, json_bytes: int) -> None:
    """Measure one peer; a wrong result is an error."""
    found: list[str] = []

    def way() -> int:
        found.extend(WAYS[name](path))
        return json_bytes

    measured = measured_here(way)
    if len(set(found)) != TOP:
        raise SystemExit(f"{name} found {len(set(found))} symbols, not {TOP}")
    sys.stdout.buffer.write(msgspec.json.encode(measured))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
