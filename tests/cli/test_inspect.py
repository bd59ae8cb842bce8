"""`rolling-optimizer inspect` shows newcomers what a file of any shape contains, and what to set."""

from __future__ import annotations

import gzip
import json
import os
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from optimizer import Settings
from optimizer.cli.inspection.inspect import MOST_RECORDS, inspect_input
from optimizer.storage.zstandard import zstd
from tests.support.command import rolling_optimizer
from tests.support.rolling_files import a_record, write_json, write_raw


def foreign_record(number: int) -> dict[str, Any]:
    """A record of an engine that has names, units and nesting of its own."""
    return {
        "name": f"Company {number}",
        "sector": "Tech" if number % 2 else "Energy",
        "predictions": {"1d": {"prediction": 100.5 + number, "confidence": 50 + number % 50}},
        "quote": {"close": 100.0 + number, "history": [{"close": 1}]},
        "curve": [1, 2, 3],
    }


SUGGESTED = (
    "prediction=predictions.1d.prediction; confidence=predictions.1d.confidence/100; last_price=quote.close; "
    "+name; +sector"
)


def inspected(directory: Path, *arguments: object, **variables: str) -> dict[str, Any]:
    """Run the command with `--json`, and return what it prints."""
    done = rolling_optimizer(directory, "inspect", *arguments, "--json", **variables)
    assert (done.returncode, done.stderr) == (0, "")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.slow
def test_inspect_shows_what_a_file_holds_and_what_to_set(tmp_path: Path) -> None:
    """`inspect` prints a table of paths: share, type, example, and the field that is or should be read from each.

    Below it is the variable to set.
    """
    write_json(tmp_path / "mine.json.gz", {f"S{number}": foreign_record(number) for number in range(10)})
    done = rolling_optimizer(tmp_path, "inspect", "mine.json.gz")

    assert (done.returncode, done.stderr) == (0, "")
    rows = [re.split(r"\s{2,}", line.strip()) for line in done.stdout.splitlines()]
    assert ["share", "type", "path", "example", "read as"] in rows
    assert ["100 %", "number", "predictions.1d.confidence", "50", "suggested: confidence"] in rows
    assert ["100 %", "text", "sector", '"Energy"', "suggested: +sector"] in rows
    assert ["100 %", "array", "curve", "[...]"] in rows
    assert "shape: an object of records by symbol" in done.stdout
    assert "  no path for: sentiment, target_price, stop_loss, timestamp" in done.stdout
    assert done.stdout.endswith(f'suggested:\n  ROLLING_FIELDS="{SUGGESTED}"\n')


@pytest.mark.slow
def test_inspect_takes_the_input_of_the_settings_and_says_that_nothing_is_needed(data: Path) -> None:
    """Without an argument `inspect` reads the input of the settings, like `run`; if it fits, no line is suggested."""
    done = rolling_optimizer(data, "inspect")
    assert done.returncode == 0
    assert "data/rolling_brain.json.gz: " in done.stdout
    assert "suggested: nothing; the fields of the records are read as they are" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "variables", "status", "said"),
    [
        (["missing.json"], {}, 1, "rolling-optimizer: SourceMissing: missing.json not found in "),
        (["torn.json.gz"], {}, 1, "rolling-optimizer: SourceTorn: torn.json.gz: after "),
        (["bad.json"], {}, 1, "rolling-optimizer: SourceMalformed: bad.json: malformed JSON at byte 6"),
        (["no*.json"], {}, 1, "rolling-optimizer: SourceMissing: no*.json matches no file: the directory "),
        (["page.html"], {}, 1, "rolling-optimizer: SourceUnreadable: page.html: it is HTML or XML"),
        (["bad.json"], {"ROLLING_FIELDS": "prediction"}, 2, "ROLLING_FIELDS: item 1, 'prediction' at column 1"),
        (["a", "b"], {}, 2, "unexpected extra argument"),
    ],
)
def test_errors_are_those_of_a_run(
    tmp_path: Path, arguments: list[str], variables: dict[str, str], status: int, said: str
) -> None:
    """An error is one line that says what is wrong, where, and what to do, as for a run, without a traceback.

    Only for wrong usage is the usage of the command printed before it.
    """
    write_raw(tmp_path / "bad.json", b'{"A": oops}')
    write_raw(tmp_path / "page.html", b"<html></html>")
    torn = json.dumps({f"S{n}": {"x": os.urandom(40).hex()} for n in range(500)}).encode()
    (tmp_path / "torn.json.gz").write_bytes(gzip.compress(torn)[:-5_000])
    done = rolling_optimizer(tmp_path, "inspect", *arguments, **variables)
    assert (done.returncode, done.stdout) == (status, "")
    *usage, error = done.stderr.splitlines()
    assert said in error
    assert [line.partition(":")[0] for line in usage[:1]] == (["Usage"] if status == 2 else [])
    assert "Traceback" not in done.stderr


def inspection(path: Path | str, **settings: Any) -> Any:
    """Return the report of the command, made in this process."""
    return inspect_input(Settings.from_env({"ROLLING_INPUT": str(path), **settings}))


RECORDS = {f"S{number}": foreign_record(number) for number in range(20)}
LISTED = [{"ticker": symbol, **record} for symbol, record in RECORDS.items()]
BOTS = {"alpha": {"active": True, "balance": 5.5, "holdings": [{"ticker": "S1", "size": 3}]}}
FILES: dict[str, tuple[bytes, str, int]] = {
    "map": (json.dumps({"_meta": {"v": 1}, **RECORDS}).encode(), "map", 20),
    "section": (json.dumps({"predictions": RECORDS, "bots": BOTS}).encode(), "section", 20),
    "unknown section": (json.dumps({"meta": {"v": 1}, "data": RECORDS, "bots": BOTS}).encode(), "section", 20),
    "list in an unknown section": (json.dumps({"results": LISTED}).encode(), "section", 20),
    "array": (json.dumps(LISTED, indent=1).encode(), "array", 20),
    "lines": ("\n".join(map(json.dumps, LISTED)).encode(), "lines", 20),
    "nan": (json.dumps({**RECORDS, "N": foreign_record(1) | {"quote": {"close": float("nan")}}}).encode(), "map", 21),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_every_shape_and_compression_is_read(tmp_path: Path, name: str, ending: str) -> None:
    """Each shape is read in each compression, also shapes on which a run fails with `NoRecords`."""
    data, shape, records = FILES[name]
    packed = {"": data, ".gz": gzip.compress(data), ".zst": zstd.compress(data)}[ending]
    path = tmp_path / f"input.json{ending}"
    path.write_bytes(packed)
    found = inspection(path)

    assert (found.shape.name, found.records.count, found.to_the_end) == (shape, records, True)
    listed = b'"ticker": "S0"' in data
    assert found.records.suggested == ("symbol=ticker; " if listed else "") + SUGGESTED
    assert found.bots.count == (b"alpha" in data)
    if found.bots.count:
        assert found.bots.suggested == "enabled=active; equity=balance; positions=holdings"
        assert found.positions.suggested == "symbol=ticker; quantity=size"


def test_a_pattern_reads_as_many_files_as_it_needs(tmp_path: Path) -> None:
    """Files of a pattern are read in the order of their names, without snapshots, until there are enough records.

    The rest is not opened.
    """
    for part in range(4):
        write_json(tmp_path / f"part-{part}.json", {f"P{part}S{n}": foreign_record(n) for n in range(400)})
    write_raw(tmp_path / "part-9.json", b"not JSON")
    write_json(tmp_path / "rolling_optimized.json.gz", {"predictions": []})
    found = inspection(tmp_path / "*.json*")
    assert (found.files, found.files_read, found.to_the_end) == (5, 3, False)
    assert found.records.count == MOST_RECORDS


def test_only_the_beginning_of_a_large_file_is_read(tmp_path: Path) -> None:
    """If bots are before them, only the first thousand records are read; the text that follows may be anything."""
    head = json.dumps({"bots": BOTS, **{f"S{n}": foreign_record(n) for n in range(MOST_RECORDS)}})[:-1]
    path = write_raw(tmp_path / "large.json", head.encode() + b", " + b" " * 1_000_000 + b"][ not JSON")
    found = inspection(path)
    assert (found.records.count, found.bots.count, found.to_the_end) == (MOST_RECORDS, 1, False)
    assert found.json_bytes < len(head) + 200_000


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["auto", "ijson"])
@pytest.mark.parametrize("shape", ["map", "section", "array in a section"])
def test_bots_after_all_records_are_found(tmp_path: Path, shape: str, engine: str) -> None:
    """Bots after all records, where engines usually write them, are found, and lines for them suggested.

    A run may tell its user to set `ROLLING_BOT_FIELDS`; here the user sees the value to set.
    """
    records = {f"S{n}": foreign_record(n) for n in range(3 * MOST_RECORDS)}
    listed = [{"symbol": symbol, **record} for symbol, record in records.items()]
    roots: dict[str, dict[str, Any]] = {
        "map": records,
        "section": {"predictions": records},
        "array in a section": {"predictions": listed},
    }
    path = write_json(tmp_path / "mine.json", {**roots[shape], "bots": BOTS, "more": {"curve": [{"bots": {"x": {}}}]}})
    found = inspection(path, ROLLING_ENGINE=engine)
    assert (found.records.count, found.to_the_end, found.rest) == (MOST_RECORDS, False, "was read for bots only")
    assert (found.bots.count, found.bots.suggested) == (1, "enabled=active; equity=balance; positions=holdings")
    assert found.positions.suggested == "symbol=ticker; quantity=size"


def test_a_rest_without_bots_or_torn_loses_no_records(tmp_path: Path) -> None:
    """If the rest of a file has no bots or is torn, the records of the beginning are shown, with the reason."""
    text = json.dumps({f"S{n}": foreign_record(n) for n in range(2 * MOST_RECORDS)})
    whole = inspection(write_raw(tmp_path / "whole.json", text.encode()))
    assert (whole.records.count, whole.bots.count, whole.rest) == (MOST_RECORDS, 0, "was read for bots only")
    torn = inspection(write_raw(tmp_path / "torn.json", text[:-9].encode()))
    assert (torn.records.count, torn.records.suggested) == (MOST_RECORDS, SUGGESTED)
    assert torn.rest.startswith("cannot be read for bots: SourceTorn: ")


# Functions, which only the test calls: each worker of a test run imports this module.
HOSTILE: Final[dict[str, Callable[[], bytes]]] = {
    "text": lambda: b'{"A": {"x": "' + b"y" * 60_000_000 + b'"}}',
    "deep": lambda: b'{"A": ' + b'{"x": ' * 900 + b"1" + b"}" * 900 + b"}",
    "plain values": lambda: b"[" + b"1," * 4_000_000 + b"1]",
    "one long record": lambda: b'{"A": {"h": [' + b'{"a": 1},' * 3_000_000 + b"{}]}}",
    "long name": lambda: b'{"' + b"k" * 30_000_000 + b'": 1}',
    "plain members": lambda: b"{" + b",".join(b'"k%d": %d' % (n, n) for n in range(1_000_000)) + b"}",
    "odd lines": lambda: b"\n".join(b'{"k%d": {"v%d": 1}}' % (n, n) for n in range(20_000)),
    "many names": lambda: json.dumps(
        {f"S{n}": {f"{n}-{m}": "t" * 900 for m in range(40)} for n in range(1_000)}
    ).encode(),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_memory_is_bounded_on_a_hostile_file(tmp_path: Path, name: str) -> None:
    """However a file is made, less than 120 MB of memory is used, since only some units, paths and values are held."""
    path = tmp_path / "hostile.json"
    path.write_bytes(HOSTILE[name]())
    tracemalloc.start()
    try:
        inspection(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 120_000_000


@pytest.mark.slow
def test_json_has_what_the_table_has(tmp_path: Path) -> None:
    """`--json` has for programs what the table shows: counts by type, shares, examples and the fields in force."""
    write_json(tmp_path / "mine.json", {"A": foreign_record(1), "B": {"predictions": None, "sector": 5}})
    found = inspected(tmp_path, "mine.json", ROLLING_FIELDS="+desk; last_price=quote.close")
    paths = {path["path"]: path for path in found["records"]["paths"]}

    assert found["records"]["in_force"] == "+desk; last_price=quote.close"
    assert paths["sector"]["types"] == {"text": 1, "number": 1}
    assert paths["predictions"]["types"] == {"object": 1, "null": 1}
    assert (paths["quote.close"]["share"], paths["quote.close"]["used_as"]) == (0.5, "last_price")
    assert paths["predictions.1d.confidence"]["example"] == "51"
    assert found["records"]["suggested"].startswith("last_price=quote.close; prediction=predictions.1d.prediction; ")


@pytest.mark.slow
def test_fields_that_nothing_fits_are_named(tmp_path: Path) -> None:
    """A required field for which no path fits is named, with what a run expects of it.

    It also shows how to set a path, which only a person can choose.
    """
    write_json(tmp_path / "mine.json", {"A": {"alpha": 1.5, "confidence": 0.5, "last": 2, "a$b": 1}})
    done = rolling_optimizer(tmp_path, "inspect", "mine.json")
    assert (
        "  a run needs prediction (a finite number), and no path has a name and values that say so; choose one: "
        "ROLLING_FIELDS='prediction=PATH'\n" in done.stdout
    )


@pytest.mark.slow
def test_names_cannot_draw_on_the_terminal(tmp_path: Path) -> None:
    """Escape sequences in names and values are not printed as they are."""
    write_json(tmp_path / "mine.json", {"A": a_record(**{"\x1b[31mred": "\x1b]0;title\x07"})})
    done = rolling_optimizer(tmp_path, "inspect", "mine.json")
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert "red" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", ["map", "section", "array", "lines"])
def test_the_suggested_lines_make_a_run_succeed_with_the_right_values(tmp_path: Path, name: str) -> None:
    """With the suggested lines set unchanged, a run reads a file that it refused before, with the right values.

    Then `inspect` suggests nothing more.
    """
    write_raw(tmp_path / "mine.json", FILES[name][0])
    before = rolling_optimizer(tmp_path, "run", "--no-cache", "--input", "mine.json")
    assert before.returncode == 1
    assert "rolling-optimizer inspect" in before.stderr
    found = inspected(tmp_path, "mine.json")
    units = (found["records"], found["bots"], found["positions"])
    lines = {one["variable"]: one["suggested"] for one in units if one["suggested"] is not None}

    done = rolling_optimizer(tmp_path, "run", "--no-cache", "--json", "--input", "mine.json", **lines)

    assert (done.returncode, done.stderr) == (0, "")
    stats = json.loads(done.stdout)["stats"]
    assert (stats["records_seen"], stats["records_rejected"], stats["predictions_extracted"]) == (20, 0, 20)
    best = json.loads(gzip.decompress((tmp_path / "data" / "rolling_optimized.json.gz").read_bytes()))["predictions"]
    for record in best:
        number = int(record["symbol"].removeprefix("S"))
        theirs = foreign_record(number)
        assert record["prediction"] == theirs["predictions"]["1d"]["prediction"]
        assert record["confidence"] == theirs["predictions"]["1d"]["confidence"] / 100
        assert record["last_price"] == theirs["quote"]["close"]
        assert record["extra"] == {"name": theirs["name"], "sector": theirs["sector"]}
    if name == "section":
        bots = json.loads(gzip.decompress((tmp_path / "data" / "bots_snapshot.json.gz").read_bytes()))["bots"]
        held = json.loads(gzip.decompress((tmp_path / "data" / "portfolio_snapshot.json.gz").read_bytes()))["holdings"]
        assert bots["alpha"] | {"enabled": True, "equity": 5.5, "positions": 1} == bots["alpha"]
        assert held == [{"symbol": "S1", "qty": 3.0, "avg": None}]
    after = rolling_optimizer(tmp_path, "inspect", "mine.json", **lines)
    assert "suggested: nothing; the fields of the records are read as they are" in after.stdout
