"""The content of a set's files, and its manifest."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from optimizer.snapshots.delta import change_between
from optimizer.snapshots.format import FILE_NAMES, KINDS, encode_set
from tests.support.snapshot_sets import RECORDS, a_set, write

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"


def documented(file: str) -> list[str]:
    """Return the fields of a file's entries, in the order in which docs/operations.md lists them."""
    fields = re.search(rf'^\| `{file}` \| `[^|]*?\{{("[^{{}}]*)\}}', OPERATIONS.read_text(), re.MULTILINE)
    assert fields is not None
    return re.findall(r'"(\w+)"', fields[1])


def test_files_are_gzip_of_compact_json(tmp_path: Path) -> None:
    """The standard library inflates the files, and the header of gzip has no time.

    Their JSON has no white space, and its text is UTF-8 without escapes.
    """
    write(tmp_path, 1)

    for kind, name in FILE_NAMES.items():
        data = (tmp_path / name).read_bytes()
        text = gzip.decompress(data).decode()
        value = json.loads(text)
        assert data[4:8] == bytes(4), kind
        assert text == json.dumps(value, separators=(",", ":"), ensure_ascii=False).replace("e-07", "e-7"), kind
        assert value["timestamp"] == "2026-11-01T10:00:00.001Z"


def test_each_file_has_the_shape_that_pages_know(tmp_path: Path) -> None:
    """Each file has the documented fields in the documented order, which are a contract with pages."""
    write(tmp_path, 1)

    shown = {kind: json.loads(gzip.decompress((tmp_path / name).read_bytes())) for kind, name in FILE_NAMES.items()}
    assert list(shown["predictions"]) == ["predictions", "timestamp", "count"]
    assert shown["predictions"]["count"] == 1
    record = shown["predictions"]["predictions"][0]
    assert list(record.items())[:8] == [
        ("symbol", "ÄÖ"),
        ("prediction", 1.5),
        ("confidence", 0.9),
        ("last_price", 100.0),
        ("sentiment", "neutral"),
        ("target_price", None),
        ("stop_loss", None),
        ("timestamp", None),
    ]
    assert list(record) == documented("rolling_optimized.json.gz")
    assert list(shown["bots"]["bots"]["alpha"]) == documented("bots_snapshot.json.gz")
    assert list(shown["portfolio"]["holdings"][0]) == documented("portfolio_snapshot.json.gz")
    assert shown["bots"]["bots"] == {
        "alpha": {
            "enabled": True,
            "equity": 10.5,
            "pnl_today": None,
            "positions": 1,
            "last_updated": "2026-11-01T10:00:00Z",
        }
    }
    assert shown["portfolio"]["holdings"] == [{"symbol": "AAPL", "qty": 2.0, "avg": 99.5}]
    assert [record["symbol"] for record in shown["index"]["symbols"]] == ["ÄÖ", 'A"/\\']


def test_extra_fields_are_in_the_files_only_where_there_are_some() -> None:
    """Extra fields are in the files after the other fields, in their order, and absent where there are none.

    They are read back, and a change of one is a change of the record.
    """
    old = a_set(1)
    records = [replace(record, extra_fields={"sector": "Tech", "volume": None}) for record in RECORDS]
    new = encode_set(
        source="rolling_brain",
        version=2,
        generated_at="2026-11-01T10:00:00.002Z",
        fingerprint="print-2",
        ranked=records,
        predictions=records[:1],
        bots={},
        holdings=[],
        gzip_level=6,
    )

    assert b'"extra"' not in gzip.decompress(old.payloads["predictions"]) + gzip.decompress(old.payloads["index"])
    (shown,) = json.loads(gzip.decompress(new.payloads["predictions"]))["predictions"]
    assert list(shown) == [*documented("rolling_optimized.json.gz"), "extra"]
    assert shown["extra"] == {"sector": "Tech", "volume": None}
    assert [dict(record.extra) for record in new.index()] == [{"sector": "Tech", "volume": None}] * 2
    assert [dict(record.extra) for record in old.index()] == [{}, {}]
    stored = change_between(old.content(), new.content())
    assert stored is not None
    assert stored.change.to_dict()["predictions"]["changed"] == [shown]


def test_the_manifest_tells_the_truth(tmp_path: Path) -> None:
    """The digest, the length and the count in the manifest match each file on the disk."""
    write(tmp_path, 7)

    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert (manifest["source"], manifest["version"], manifest["fingerprint"]) == ("rolling_brain", 7, "print-7")
    assert manifest["generated_at"] == "2026-11-01T10:00:00.007Z"
    for kind, count in zip(KINDS, (1, 1, 1, 2), strict=True):
        data = (tmp_path / FILE_NAMES[kind]).read_bytes()
        assert manifest["snapshots"][kind] == {
            "file": FILE_NAMES[kind],
            "sha256": hashlib.sha256(data).hexdigest(),
            "bytes": len(data),
            "count": count,
        }


def test_equal_content_is_equal_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal content gives equal bytes and digests, whatever the time at which it is encoded."""
    first = a_set(1)
    monkeypatch.setattr(time, "time", lambda: 4_000_000_000.0)

    assert a_set(1) == first
    assert a_set(2) != first
